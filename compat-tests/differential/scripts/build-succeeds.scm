;; clients: 1.2
;; One derivation built, built again, asked for by output; its log, its rows, its disk.
(with-store store
  (options store)
  (let* ((one (sh store "one" "echo one; echo err >&2; echo $who > $out" #:env '(("who" . "world"))))
         (two (sh store "two" (string-append "read -r line < " (out one) "; echo \"$line " (out one) "\" > $out")
                  #:inputs (list (derivation-input one)))))
    (attempt (build store two))
    (attempt (build store two))
    (attempt (build store (out one)))
    (attempt (info store (out two)))
    (attempt (references store (out two)))
    (attempt (valid-derivers store (out one)))))
