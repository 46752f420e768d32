;; clients: 1.2
;; Outputs that refer to themselves and to each other.
(with-store store
  (options store)
  (let ((self (sh store "self" "echo $out > $out"))
        (forward (sh store "forward" "echo $doc > $out; echo x > $doc" #:outputs '("out" "doc")))
        (backward (sh store "backward" "echo x > $out; echo $out > $doc" #:outputs '("out" "doc")))
        (cycle (sh store "cycle" "echo $doc > $out; echo $out > $doc" #:outputs '("out" "doc")))
        (ring (sh store "ring" "echo $b > $out; echo $c > $b; echo $out > $c" #:outputs '("out" "b" "c"))))
    (for-each
     (lambda (drv)
       (attempt/label (drv-file drv) (build store drv))
       (for-each (match-lambda ((name . output)
                                (attempt/label name (and (valid-path? store (derivation-output-path output))
                                                         (list (references store (derivation-output-path output))
                                                               (referrers store (derivation-output-path output)))))))
                 (derivation-outputs drv)))
     (list self forward backward cycle ring))
    (attempt (dead-paths store))
    (attempt (begin (delete-paths store (list (out self))) #t))
    (attempt (build store cycle))))
