;; Two clients that may build one thing at a time each: whether their builds run side by side.
(define drvs
  (with-store store
    (list (sh store "one" "$bb sleep 3; echo > $out" #:tools? #t) (sh store "two" "$bb sleep 3; echo > $out" #:tools? #t))))
(define begun (current-time))
(define pids
  (map (lambda (drv)
         (match (primitive-fork)
           (0 (let ((store (open-connection)))
                (options store #:max-build-jobs 1)
                (quietly (false-if-exception (build store drv)))
                (primitive-_exit 0)))
           (pid pid)))
       drvs))
(for-each waitpid pids)
(attempt (> (- (current-time) begun) 5))
(with-store store (attempt (map (lambda (drv) (valid-path? store (out drv))) drvs)))
