;; clients: 1.2
;; --rounds: the same each time, and not.
(with-store store
  (options store #:rounds 3)
  (attempt (build store (sh store "same" "echo round; echo x > $out; echo y > $doc" #:outputs '("out" "doc"))))
  (attempt (build store (sh store "random" "$bb head -c 9 /dev/urandom | $bb md5sum > $out" #:tools? #t)))
  (attempt (build store (sh store "fixed" "echo once; printf ok > $out" #:hash-algo 'sha256 #:hash (sha256 (string->utf8 "ok")) #:recursive? #f)))
  (attempt (build store (sh store "fails" "exit 1")))
  (attempt (build* store (build-mode check) (sh store "same" "echo round; echo x > $out; echo y > $doc" #:outputs '("out" "doc"))))
  (options store #:rounds 1)
  (attempt (build store (sh store "single" "echo round; echo x > $out"))))
(define random (with-store store (out (sh store "random" "$bb head -c 9 /dev/urandom | $bb md5sum > $out" #:tools? #t))))
(forget random)
(forget (string-append random "-check"))
