;; clients: 1.2
;; Every question, asked about what is missing, what is not in the store, and what is no path.
(define operations
  `((1 . ,read-int*) (3 . ,read-int*) (4 . ,read-string*) (5 . ,read-strings) (6 . ,read-strings) (10 . ,read-int*)
    (11 . ,read-int*) (18 . ,read-string*) (22 . ,read-strings) (26 . ,read-string*) (28 . ,read-strings) (33 . ,read-strings)
    (29 . ,read-string*) (21 . ,read-int*)))
(define arguments
  (list %missing %missing-drv (store-file "short") (store-file (string-append (make-string 32 #\e) "-bad-letter"))
        (store-file (make-string 32 #\0)) (store-file (string-append (make-string 32 #\0) "-"))
        (store-file (string-append (make-string 32 #\0) "-a b"))
        (store-file (string-append (make-string 32 #\0) "-.a"))
        %prefix (string-append %prefix "/") (store-file ".links") (string-append %missing "/sub") (string-append %missing "/")
        (store-file (string-append "../store/" (make-string 32 #\0) "-x"))
        "/etc/passwd" "relative" "" "/" (string-append "/" %missing)))
(for-each
 (match-lambda
   ((operation . reader)
    (for-each
     (lambda (argument)
       (attempt/label (format #f "~a ~s" operation argument)
         (with-store store
           (list (guard (c ((store-protocol-error? c)
                            (list 'error (store-protocol-error-status c) (store-protocol-error-message c))))
                   (raw-call store operation (string-argument argument) reader))
                 ;; Whether the connection lives on.
                 (catch #t (lambda () (valid-path? store %missing)) (const 'closed))))))
     arguments)))
 operations)
