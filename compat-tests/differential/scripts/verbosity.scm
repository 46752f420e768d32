;; clients: 1.2
;; What is told at which level.
(for-each
 (lambda (verbosity)
   (with-store store
     (options store #:verbosity verbosity #:keep-failed? #t)
     (let ((n (number->string verbosity)))
       (attempt/label (string-append "verbosity " n)
         (build store (sh store (string-append "good-" n) "echo out; echo > $out")))
       (attempt/label (string-append "verbosity, failing " n)
         (build store (sh store (string-append "bad-" n) "echo out; exit 1")))
       (attempt/label "check" (build* store (build-mode check) (sh store (string-append "good-" n) "echo out; echo > $out"))))))
 '(0 1 2))
(with-store store
  (options store #:verbosity 3)
  (attempt/label "no trace" (begin (set-build-options store #:use-substitutes? #f #:offload? #f #:print-build-trace #f #:verbosity 0)
                                   (build store (sh store "untraced" "echo out; echo > $out")))))
