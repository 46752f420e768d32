;; What a client may set, with what a careless one sends.
(define (set-raw-options store . settings)
  (raw-call store 19 (lambda (port)
                       (for-each (cut write-int <> port) '(0 0 0 0 0 0 0 1 0))
                       (write-int (length settings) port)
                       (for-each (match-lambda ((name . value) (write-string* name port) (write-string* value port))) settings))))
(for-each
 (lambda (setting)
   (attempt/label (format #f "~s" setting)
     (with-store store
       (list (catch #t (lambda () (guard (c ((store-protocol-error? c) (store-protocol-error-message c))) (set-raw-options store setting))) (lambda (key . _) key))
             (catch #t (lambda () (guard (c ((store-protocol-error? c) (store-protocol-error-message c))) (valid-path? store %missing))) (const 'closed))))))
 '(("build-timeout" . "10") ("build-timeout" . "-1") ("build-timeout" . "x") ("build-timeout" . "") ("build-timeout" . "10x") ("build-timeout" . " 10")
   ("build-timeout" . "99999999999") ("build-timeout" . "99999999999999999999999") ("build-max-jobs" . "x") ("build-cores" . "") ("build-repeat" . "x") ("build-repeat" . "-5")
   ("build-max-silent-time" . "1.5") ("multiplexed-build-output" . "maybe") ("multiplexed-build-output" . "1") ("print-extended-build-trace" . "maybe")
   ("nonsense" . "x") ("" . "") ("user-name" . "root") ("substitute-urls" . "x y") ("locale" . "xx")))
(with-store store
  (set-raw-options store '("build-repeat" . "1"))
  (attempt (build store (sh store "twice" "echo once; echo > $out"))))
(with-store store
  (set-raw-options store '("build-timeout" . "-1"))
  (attempt (build store (sh store "negative-timeout" "echo begun; $bb sleep 2; echo > $out" #:tools? #t))))
(with-store store
  (set-raw-options store '("build-max-silent-time" . "-1"))
  (attempt (build store (sh store "negative-silence" "echo begun; $bb sleep 2; echo > $out" #:tools? #t))))
