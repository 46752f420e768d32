;; clients: 1.2
;; Builders that leave processes behind, close their output, or have it held open.
(with-store store
  (define _ (options store #:timeout 20))
  (define (try name script)
    (attempt/label name (build store (sh store name script #:tools? #t))))
  (try "background" "$bb sleep 30 & echo > $out")
  (try "background-quiet" "$bb sleep 30 >/dev/null 2>&1 & echo > $out")
  (try "background-writes" "(while :; do echo x > $out/late 2>/dev/null; done) >/dev/null 2>&1 & $bb mkdir $out; echo > $out/f")
  (try "closes-output" "echo before; exec >/dev/null 2>&1; $bb sleep 1; echo after; echo > $out")
  (try "daemon" "$bb setsid $bb sleep 30 >/dev/null 2>&1 < /dev/null & echo > $out")
  (attempt (valid-path? store %missing)))
