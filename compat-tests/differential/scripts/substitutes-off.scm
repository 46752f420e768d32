;; clients: 1.2
;; Questions about substitutes when there are none, and paths that only substitutes could bring.
(with-store store
  (set-build-options store #:use-substitutes? #t #:print-build-trace #t #:substitute-urls '("http://substitutes.example.org"))
  (let ((drv (sh store "made" "echo > $out" #:env '(("allowSubstitutes" . "0")))))
    (attempt (has-substitutes? store %missing))
    (attempt (substitutable-paths store (list %missing (out drv))))
    (attempt (substitutable-path-info store (list %missing (out drv))))
    (attempt (ensure store %missing))
    (attempt (ensure store (drv-file drv)))
    (attempt (build store (out drv)))
    (attempt (build store %missing))
    (attempt (build store drv))
    (attempt (ensure store (out drv)))
    (attempt (build store (out drv)))
    (when (module-variable (resolve-interface '(guix store)) 'substitute-urls)
      (attempt ((@ (guix store) substitute-urls) store)))))
