;; clients: 1.2
;; Several clients that want the same derivation at once: it is built once.
(define drv (with-store store (sh store "shared" "echo started; echo x >> /tmp/count; $bb sleep 1; $bb head -c 9 /dev/urandom | $bb md5sum > $out" #:tools? #t)))
(define pids
  (map (lambda (n)
         (match (primitive-fork)
           (0 (let ((store (open-connection)))
                (options store)
                (primitive-_exit (if (parameterize ((current-build-output-port (%make-void-port "w")))
                                       (false-if-exception (build store drv)))
                                     0 1))))
           (pid pid)))
       (iota 4)))
(attempt (map (lambda (pid) (status:exit-val (cdr (waitpid pid)))) pids))
(with-store store
  (attempt (valid-path? store (out drv)))
  (let ((path (out drv)))
    (chmod path #o644) (write-file path "x")
    (attempt/label "make the stores alike" (call-with-values (lambda () (delete-paths store (list path))) (const #t)))))
