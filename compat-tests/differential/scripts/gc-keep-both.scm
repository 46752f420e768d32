;; daemon: --gc-keep-outputs=yes --gc-keep-derivations=yes
;; Both are kept.
(define made
  (with-store store
    (options store)
    (let* ((one (sh store "one" "echo one > $out"))
           (two (sh store "two" (string-append "read -r x < " (out one) "; echo two > $out; echo > $doc") #:outputs '("out" "doc") #:inputs (list (derivation-input one)))))
      (parameterize ((current-build-output-port (%make-void-port "w"))) (build store two))
      (list one two))))
(match made
  ((one two)
   (symlink (drv-file two) "/tmp/root")
   (with-store store
     (add-indirect-root store "/tmp/root")
     (attempt (live-paths store))
     (attempt (dead-paths store))
     (delete-file "/tmp/root")
     (symlink (out two) "/tmp/root")
     (attempt (live-paths store))
     (attempt (dead-paths store))
     (attempt (delete-paths store (list (drv-file two))))
     (attempt/sorted (collect store)))))
