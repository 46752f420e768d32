;; daemon: --rounds=2
;; --rounds --keep-failed, with the daemon's own number of rounds.
(with-store store
  (options store #:keep-failed? #t)
  (attempt (build store (sh store "same" "echo round; echo x > $out")))
  (attempt (build store (sh store "random" "$bb head -c 9 /dev/urandom | $bb md5sum > $out" #:tools? #t)))
  (attempt (build store (sh store "fails" "exit 1"))))
(define random (with-store store (out (sh store "random" "$bb head -c 9 /dev/urandom | $bb md5sum > $out" #:tools? #t))))
(forget random)
(forget (string-append random "-check"))
