;; daemon: --log-compression=none
;; Logs that are not compressed; a second build overwrites the log.
(with-store store
  (options store)
  (let ((drv (sh store "logged" "echo to the log; echo > $out")))
    (attempt (build store drv))
    (attempt (build* store (build-mode check) drv))
    (attempt (log-file store (out drv)))
    (attempt (log-file store (drv-file drv)))
    (attempt (build store (sh store "fails" "echo to the log; exit 1")))))
