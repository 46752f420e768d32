;; clients: 1.2
;; --max-jobs=0: nothing is built, but what prefers to be built here.
(with-store store
  (options store #:max-build-jobs 0)
  (let* ((plain (sh store "plain" "echo > $out"))
         (local (sh store "local" "echo > $out" #:env '(("preferLocalBuild" . "1"))))
         (no (sh store "no" "echo > $out" #:env '(("preferLocalBuild" . "0"))))
         (needs (sh store "needs" "echo > $out" #:env '(("preferLocalBuild" . "1")) #:inputs (list (derivation-input plain)))))
    (attempt (build store local))
    (attempt (build store plain))
    (attempt (build store no))
    (attempt (build store needs))
    (attempt (build store local (bash store)))
    (options store #:max-build-jobs 1)
    (attempt (build store needs))
    (attempt (build* store (build-mode check) plain))
    (options store #:max-build-jobs 0)
    (attempt (build* store (build-mode check) plain))))
