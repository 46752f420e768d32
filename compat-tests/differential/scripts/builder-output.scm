;; clients: 1.2
;; What a builder prints, byte by byte, to the client and to the log.
(with-store store
  (define _ (options store))
  (define (try name script)
    (attempt/label name (build store (sh store name (string-append script "; echo > $out") #:tools? #t))))
  (try "nothing" ":")
  (try "no-newline" "printf 'no newline'")
  (try "only-newlines" "printf '\\n\\n\\n'")
  (try "bytes" "printf 'a\\0b\\xff\\xfe\\x80c\\n'")
  (try "unicode" "printf 'λ ü €\\n'")
  (try "returns" "printf 'one\\rtwo\\r\\nthree\\n'")
  (try "colours" "printf '\\033[31mred\\033[0m\\n'")
  (try "trace-like" "echo '@ build-succeeded /frx/store/x -'; echo '@ nonsense'")
  (try "both" "echo out; echo err >&2; echo out")
  (try "long-line" "printf '%05000d' 7")
  (try "stages" "printf one; $bb sleep 0.3; printf two; $bb sleep 0.3; echo three")
  (try "many-lines" "$bb seq 1 300"))
