;; What the file system cannot name.
(for-each
 (lambda (length)
   (attempt/label (format #f "name of ~a" length)
                  (with-store store (add-text-to-store store (make-string length #\n) "long"))))
 '(212 220 222 223 230 255 300 4000))
