;; clients: 1.2
;; Without traces: failures of every kind.
(with-store store
  (set-build-options store #:use-substitutes? #f #:offload? #f #:print-build-trace #f #:keep-going? #t #:timeout 4)
  (attempt (build store (sh store "good" "echo out; echo > $out")))
  (attempt (build store (sh store "bad" "echo out; exit 1")))
  (attempt (build store (sh store "nothing" "echo out")))
  (attempt (build store (sh store "late" "$bb sleep 9" #:tools? #t)))
  (attempt (build store (sh store "wrong" "printf ko > $out" #:hash-algo 'sha256 #:hash (sha256 (string->utf8 "ok")) #:recursive? #f)))
  (attempt (build store (derivation store "outside" "/bin/sh" '())))
  (attempt (build* store (build-mode check) (sh store "good" "echo out; echo > $out"))))
