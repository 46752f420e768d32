;; size: 40m
;; A store without space: builds and additions fail, and work again when there is some.
(define filler "/frx/filler")
(define (fill leave)
  (let* ((stat (open-pipe* OPEN_READ "df" "--output=avail" "-k" "/frx"))
         (_ (read-line stat))
         (free (string->number (string-trim-both (read-line stat)))))
    (close-pipe stat)
    (system* "dd" "if=/dev/zero" (string-append "of=" filler) "bs=1024" (format #f "count=~a" (max 0 (- free leave))) "status=none")))
(write-file "big" (make-string 3000000 #\b))
(define drv #f)
(with-store store
  (options store)
  (set! drv (sh store "large" "$bb dd if=/dev/zero of=$out bs=1024 count=4000; $bb sync" #:tools? #t))
  (parameterize ((current-build-output-port (%make-void-port "w"))) (build store (sh store "small" "echo > $out"))))
(fill 1000)
(with-store store
  (options store)
  (attempt/label "build" (guard (c (#t (store-protocol-error? c))) (quietly (build store drv))))
  (attempt/label "add" (guard (c (#t (store-protocol-error? c))) (add-to-store store "big" #t "sha256" "big")))
  (attempt (valid-path? store (out drv))))
(delete-file filler)
(with-store store
  (options store)
  (attempt (add-to-store store "big" #t "sha256" "big"))
  (attempt (valid-path? store (out drv)))
  (attempt (verify-store store #:check-contents? #t)))
