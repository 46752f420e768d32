;; Export and import, signed and not.
(load "/frx/scripts/common.scm")

(define key "(genkey (ecdsa (curve Ed25519) (flags rfc6979)))")
(unless (file-exists? "/frx/etc/signing-key.sec")
  (let* ((pair ((@ (gcrypt pk-crypto) generate-key)
                ((@ (gcrypt pk-crypto) string->canonical-sexp) key)))
         (text (lambda (token)
                 ((@ (gcrypt pk-crypto) canonical-sexp->string)
                  ((@ (gcrypt pk-crypto) find-sexp-token) pair token))))
         (write (lambda (file text)
                  (call-with-output-file file (lambda (port) (display text port)))
                  (chmod file #o400))))
    (write "/frx/etc/signing-key.sec" (text 'private-key))
    (write "/frx/etc/signing-key.pub" (text 'public-key))
    (write "/frx/etc/acl"
           (string-append "(acl (entry " (text 'public-key) " (tag (guix import))))"))))

(with-store store
  (let* ((item (add-text-to-store store "exported" (make-string 9000 #\e))))
    (define (exported sign?)
      (call-with-values open-bytevector-output-port
        (lambda (port bytes)
          (attempt (export-paths store (list item) port #:sign? sign?))
          (bytes))))
    (let ((unsigned (exported #f))
          (signed (exported #t)))
      (attempt ((@@ (guix store) export-path) store (string-append (%store-prefix) "/" (make-string 32 #\0) "-missing")
                            (%make-void-port "w") #:sign? #f))
      (attempt (import-paths store (open-bytevector-input-port unsigned)))
      (attempt (import-paths store (open-bytevector-input-port signed)))
      (attempt (import-paths store (open-bytevector-input-port #vu8(0 0 0 0 0 0 0 0)))))))
