;; clients: 1.2
;; Output with its process and length in front.
(with-store store
  (define _ (options store #:multiplexed-build-output? #t #:print-extended-build-trace? #t))
  (define (try name script)
    (attempt/label name (build store (sh store name (string-append script "; echo > $out") #:tools? #t))))
  (try "line" "echo a line")
  (try "no-newline" "printf 'no newline'")
  (try "bytes" "printf 'a\\0b\\xff\\xfe\\x80c\\n'")
  (try "stages" "printf one; $bb sleep 0.3; printf two; $bb sleep 0.3; echo three")
  (try "long" "printf '%04000d' 7")
  (try "fails" "echo bad; exit 1"))
