;; clients: 1.2
;; What verification finds: changed contents, missing paths, needed ones too, a damaged link.
(define made
  (with-store store
    (let* ((a (add-text-to-store store "a" "a"))
           (b (add-text-to-store store "b" a (list a)))
           (c (add-text-to-store store "c" "c"))
           (d (add-text-to-store store "d" "d"))
           (e (add-text-to-store store "e" d (list d))))
      (list a b c d e))))
(match made
  ((a b c d e)
   (chmod c #o644) (write-file c "changed")
   (with-store store
     (attempt (verify-store store))
     (attempt (verify-store store #:check-contents? #t)))
   (delete-file d)
   (with-store store
     (attempt (verify-store store))
     (attempt (map (cut valid-path? store <>) made)))
   (delete-file e)
   (delete-file b)
   (with-store store
     (attempt (verify-store store))
     (attempt (map (cut valid-path? store <>) made))
     (attempt (verify-store store #:repair? #t))
     (attempt (verify-store store #:check-contents? #t #:repair? #t))
     (attempt (verify-store store #:check-contents? #t)))))
