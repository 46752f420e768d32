;; clients: 1.2
;; Builders that succeed and do not make what they should.
(with-store store
  (options store)
  (attempt (build store (sh store "nothing" "echo done")))
  (attempt (build store (sh store "one-of-two" "echo > $out" #:outputs '("out" "doc"))))
  (attempt (build store (sh store "other-of-two" "echo > $doc" #:outputs '("out" "doc"))))
  (attempt (build store (sh store "wrong-name" "echo > $out-not")))
  (attempt (build store (sh store "fixed-nothing" "true" #:hash-algo 'sha256 #:hash (sha256 (string->utf8 "ok")) #:recursive? #f)))
  (attempt (build store (sh store "more" "echo > $out; echo > $NIX_STORE/00000000000000000000000000000000-more"))))
