;; clients: 1.2
;; Export and import where there are no keys, of what is not there, of junk.
(define (try label thunk)
  (attempt/label label (with-store store (thunk store))))
(define void (%make-void-port "w"))
(try "export missing" (lambda (store) (export-path* store %missing void #:sign? #f)))
(try "export signed without key" (lambda (store) (export-path* store (add-text-to-store store "a" "a") void)))
(try "import nothing" (lambda (store) (import-paths store (open-bytevector-input-port #vu8(0 0 0 0 0 0 0 0)))))
(try "import junk" (lambda (store) (import-paths store (open-bytevector-input-port (make-bytevector 1000 7)))))
(try "import end" (lambda (store) (import-paths store (open-bytevector-input-port #vu8()))))
