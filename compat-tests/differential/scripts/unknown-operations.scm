;; clients: 1.2
;; Numbers of operations that there are none of: the connection ends.
(for-each
 (lambda (number)
   (attempt/label (format #f "operation ~a" number)
     (with-store store
       (attempt/label "call" (raw-call store number no-argument))
       (attempt/label "after" (valid-path? store %missing)))))
 '(0 2 15 17 36 37 79 82 99 1000 4294967295))
(attempt/label "an operation of more than 32 bits"
  (with-store store
    (raw-call store 1 (lambda (port) (put-bytevector port #vu8(1 0 0 0 1 0 0 0))))))
(attempt/label "a string longer than the machine"
  (with-store store
    (raw-call store 1 (lambda (port) (put-bytevector port #vu8(255 255 255 255 255 255 255 127)) (shutdown port 1)))))
(attempt/label "a string with bad padding"
  (with-store store
    (raw-call store 1 (lambda (port) (put-bytevector port #vu8(1 0 0 0 0 0 0 0 65 1 1 1 1 1 1 1))) read-int*)))
(attempt/label "a set larger than the machine"
  (with-store store
    (raw-call store 31 (lambda (port) (put-bytevector port #vu8(255 255 255 255 255 255 0 0)) (shutdown port 1)))))
