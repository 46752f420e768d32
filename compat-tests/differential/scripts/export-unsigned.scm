;; clients: 1.2
;; Export without a signature: byte for byte; and the import of it, which is refused.
(with-store store
  (let* ((a (add-text-to-store store "a" "a"))
         (b (add-text-to-store store "b" (string-append a (make-string 70000 #\b)) (list a))))
    (define (exported item)
      (call-with-values open-bytevector-output-port
        (lambda (port bytes)
          (attempt (export-path* store item port #:sign? #f))
          (bytes))))
    (let ((one (exported a)) (two (exported b)))
      (attempt (bytevector->base16-string one))
      (attempt (bytevector->base16-string (sha256 two)))
      (attempt (import-paths store (open-bytevector-input-port one))))))
