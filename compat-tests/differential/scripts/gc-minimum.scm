;; clients: 1.2
;; Collecting a minimum: which paths go does not matter, how many bytes are freed does.
(define (fill store n)
  (for-each (lambda (i) (add-text-to-store store (format #f "file-~a" i) (make-string (* 100 1024) (integer->char (+ 65 i))))) (iota n)))
(define (few store bytes)
  (let ((log (open-output-string)))
    (call-with-values (lambda () (parameterize ((current-build-output-port log)) (collect-garbage store bytes)))
      (lambda (paths freed) (list (length paths) freed)))))
(with-store store (fill store 10))
(with-store store
  (attempt (few store (* 250 1024)))
  (attempt (length (dead-paths store)))
  (attempt (few store 1))
  (attempt (length (dead-paths store)))
  (attempt/sorted (few store (expt 2 40)))
  (attempt (dead-paths store)))
