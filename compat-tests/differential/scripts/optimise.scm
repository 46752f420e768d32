;; clients: 1.2
;; daemon: --disable-deduplication
;; Equal files become one only when that is asked for.
(write-file "one" (make-string 5000 #\x))
(mkdir "tree")
(write-file "tree/two" (make-string 5000 #\x))
(write-file "tree/three" (make-string 5000 #\x))
(write-file "tree/empty" "")
(write-file "tree/program" (make-string 5000 #\x))
(chmod "tree/program" #o755)
(symlink "two" "tree/link")
(with-store store
  (add-to-store store "one" #t "sha256" "one")
  (add-to-store store "tree" #t "sha256" "tree")
  (add-text-to-store store "small" "x")
  (add-text-to-store store "small2" "x"))
(define (links) (length ((@ (ice-9 ftw) scandir) (store-file ".links") (lambda (name) (not (member name '("." "..")))))))
(with-store store
  (attempt (links))
  (attempt (optimize-store store))
  (attempt (links))
  (attempt (optimize-store store))
  (attempt (verify-store store #:check-contents? #t))
  (attempt/sorted (collect store))
  (attempt (links)))
