;; Build `peek.sh` through the daemon that GUIX_DAEMON_SOCKET names, with an unmodified client, and print what it reports.
;;   guix repl -- peek.scm BASH-STATIC DIR-WITH-BUSYBOX SYMLINK PEEK.SH [fixed] > report
(use-modules (guix) (guix store) (guix derivations) (gcrypt hash) (rnrs bytevectors) (srfi srfi-34) (ice-9 match))

(define log (open-output-string))

(define (run bash busybox link script fixed?)
  (with-store store
    (set-build-options store #:use-substitutes? #f #:print-build-trace #f #:verbosity 0)
    (let* ((add (lambda (name file) (add-to-store store name #t "sha256" file)))
           (bash (add "bash-static" bash))
           (busybox (add "busybox" busybox))
           (link (add "link" link))
           (script (add "peek.sh" script))
           (drv (apply derivation store "peek" bash (list script "one argument" "")
                       #:sources (list bash busybox link script)
                       #:env-vars `(("bash" . ,bash) ("busybox" . ,(string-append busybox "/busybox")) ("zeta" . "last") ("Alpha" . "first") ("empty" . "")
                                    ("lines" . "a\nb") ("impureEnvVars" . "PEEK_IMPURE http_proxy"))
                       (if fixed?
                           (list #:hash-algo 'sha256 #:hash (sha256 (string->utf8 "ok")) #:recursive? #f)
                           '()))))
      (parameterize ((current-build-output-port log))
        (build-derivations store (list drv))))))

(match (cdr (command-line))
  ((bash busybox link script . kind)
   (guard (c (#t (format (current-error-port) "~a~%~s~%" (get-output-string log) c) (exit 1)))
     (run bash busybox link script (equal? kind '("fixed"))))
   (let loop ((lines (string-split (get-output-string log) #\newline)) (in? #f))
     (match lines
       (("PEEK-BEGIN" . rest) (loop rest #t))
       (("PEEK-END" . _) (exit 0))
       ((line . rest) (when in? (display line) (newline)) (loop rest in?))
       (() (format (current-error-port) "no report in: ~a~%" (get-output-string log)) (exit 1))))))
