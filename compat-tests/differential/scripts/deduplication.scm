;; clients: 1.2
;; Equal files are shared as they come; deleting frees the last one's space.
(write-file "one" (make-string 9000 #\x))
(mkdir "tree")
(write-file "tree/two" (make-string 9000 #\x))
(write-file "tree/three" (make-string 9000 #\x))
(write-file "tree/tiny" "t")
(define paths
  (with-store store
    (options store)
    (let ((drv (sh store "made" "x=xxxxxxxxxxxxxxxxxx; for i in 1 2 3; do x=$x$x$x; done; echo $x > $out; echo $x > $doc" #:outputs '("out" "doc"))))
      (parameterize ((current-build-output-port (%make-void-port "w"))) (build store drv))
      (list (add-to-store store "one" #t "sha256" "one")
            (add-to-store store "tree" #t "sha256" "tree")
            (add-to-store store "flat" #f "sha256" "one")
            (out drv) (out drv "doc")))))
(define (links) (length ((@ (ice-9 ftw) scandir) (store-file ".links") (lambda (name) (not (member name '("." "..")))))))
(with-store store
  (attempt (links))
  (for-each (lambda (path) (attempt/label path (call-with-values (lambda () (delete-paths store (list path))) list))
                    (attempt (links)))
            paths)
  (attempt/sorted (collect store))
  (attempt (links)))
