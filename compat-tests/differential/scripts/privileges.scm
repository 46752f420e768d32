;; user: alice
;; What somebody who is not root may not do, and may.
(with-store store
  (options store)
  (let ((drv (sh store "made" "echo > $out")))
    (attempt (build store drv))
    (attempt (build* store (build-mode check) drv))
    (attempt (verify-store store))
    (attempt (verify-store store #:check-contents? #t))
    (attempt (optimize-store store))
    (attempt (dead-paths store))
    (attempt (find-roots* store))
    (attempt (delete-paths store (list (out drv))))
    (attempt (call-with-values (lambda () (collect-garbage store)) (lambda (paths freed) (length paths))))
    (attempt (verify-store store #:repair? #t))))
(alone store (build* store (build-mode repair) %missing))
(with-store store
  (symlink (add-text-to-store store "a" "a") "/tmp/alice/root")
  (attempt (begin (add-indirect-root store "/tmp/alice/root") #t))
  (attempt (find-roots* store)))
(alone store (import-paths store (open-bytevector-input-port #vu8(0 0 0 0 0 0 0 0))))
