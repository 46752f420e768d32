;; Trees that are 63, 64 and 70 directories deep.
(define (deep n)
  (let ((name (format #f "deep-~a" n)) (here (getcwd)))
    (mkdir name) (chdir name)
    (let loop ((n (- n 2)))
      (unless (= n 0) (mkdir "d") (chdir "d") (loop (- n 1))))
    (write-file "f" "bottom")
    (chdir here)
    name))
(for-each
 (lambda (n)
   (let ((name (deep n)))
     (attempt/label name (with-store store (add-to-store store name #t "sha256" name)))))
 '(63 64 66))
(with-store store
  (options store)
  (for-each
   (lambda (n)
     (attempt/label (format #f "built ~a" n)
       (build store (sh store "deep" (format #f "$bb mkdir $out; cd $out; for i in {3..~a}; do $bb mkdir d; cd d; done; echo > f" n) #:tools? #t))))
   '(64 66)))
(with-store store (quietly (collect-garbage store)))
