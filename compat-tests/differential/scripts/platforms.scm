;; clients: 1.2
;; Derivations for other machines.
(with-store store
  (options store)
  (for-each
   (lambda (system)
     (attempt/label system (build store (sh store "platform" "echo x > $out" #:system system))))
   '("x86_64-linux" "i686-linux" "aarch64-linux" "armhf-linux" "riscv64-linux" "x86_64-freebsd" "i586-gnu" "builtin" "" "nonsense"))
  (attempt (build store (sh store "machine" "$bb uname -m; echo x > $out" #:system "i686-linux" #:tools? #t)))
  (attempt (build store (sh store "local" "echo x > $out" #:system "nonsense" #:env '(("preferLocalBuild" . "1")))))
  (attempt (build* store (build-mode check) (sh store "other" "echo x > $out" #:system "nonsense"))))
