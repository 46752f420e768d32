;; clients: 1.2
;; A build that takes too long, one that is silent too long, one that talks enough.
(with-store store
  (options store #:timeout 2 #:max-silent-time 60)
  (attempt (build store (sh store "too-long" "echo begun; while :; do $bb sleep 1; done" #:tools? #t)))
  (options store #:timeout 60 #:max-silent-time 2)
  (attempt (build store (sh store "too-silent" "echo begun; echo x > $out; $bb sleep 60" #:tools? #t)))
  (attempt (build store (sh store "talks" "for i in 1 2 3; do echo $i; $bb sleep 1; done; echo x > $out" #:tools? #t)))
  (options store #:timeout 1 #:max-silent-time 1 #:keep-going? #t)
  (let* ((late (sh store "late" "$bb sleep 60" #:tools? #t))
         (needs (sh store "needs" "echo > $out" #:inputs (list (derivation-input late)))))
    (attempt (build store needs))))
