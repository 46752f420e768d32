;; clients: 1.2
;; A client that goes in the middle of a build: the builder ends, nothing comes into the store, the next client builds.
(define (builders) (let* ((pipe (open-pipe* OPEN_READ "sh" "-c" "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c '[g]one-in-mid' || :"))
                          (text (read-line pipe))) (close-pipe pipe) (string->number text)))
(define drv (with-store store (sh store "gone" ": gone-in-mid-build; echo begun > $out; $bb sleep 50; echo > $out" #:tools? #t)))
(define pid
  (match (primitive-fork)
    (0 (let ((store (open-connection)))
         (options store)
         (parameterize ((current-build-output-port (%make-void-port "w")))
           (false-if-exception (build store drv)))
         (primitive-_exit 0)))
    (pid pid)))
(attempt (wait-until (lambda () (> (builders) 0))))
(kill pid SIGKILL)
(waitpid pid)
(attempt (wait-until (lambda () (= (builders) 0))))
(usleep 500000)
(show-files (out drv) "/tmp/guix-build-gone.drv-0" (string-append (drv-file drv) ".chroot"))
(with-store store
  (options store)
  (attempt (valid-path? store (out drv)))
  (attempt (build store (sh store "next" "echo > $out"))))
