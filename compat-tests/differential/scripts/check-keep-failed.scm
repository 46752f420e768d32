;; --check --keep-failed: the differing output stays beside the first.
(define check (build-mode check))
(with-store store
  (options store #:keep-failed? #t)
  (let ((random (sh store "random" "$bb mkdir $out; $bb head -c 9 /dev/urandom | $bb md5sum > $out/f" #:tools? #t)))
    (quietly (build store random))
    (attempt (build* store check random))
    (attempt (build* store check random))
    (attempt (exists? (string-append (out random) "-check")))
    (attempt (dead-paths store))
    (attempt (begin (delete-paths store (list (out random))) #t))
    (attempt (exists? (string-append (out random) "-check")))
    (forget (string-append (out random) "-check"))))
