;; A trusted client limits the log of a build.
(define (set-raw-options store . settings)
  (raw-call store 19 (lambda (port)
                       (for-each (cut write-int <> port) '(0 0 0 0 0 0 0 1 0))
                       (write-int (length settings) port)
                       (for-each (match-lambda ((name . value) (write-string* name port) (write-string* value port))) settings))))
(with-store store
  (set-raw-options store '("build-max-log-size" . "1000"))
  (attempt (build store (sh store "talks-a-little" "printf '%0500d' 1; echo x > $out")))
  (attempt (build store (sh store "talks-too-much" "printf '%0900d' 1; $bb sleep 1; printf '%0900d' 2; $bb sleep 60" #:tools? #t))))
