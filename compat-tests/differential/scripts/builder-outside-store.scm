;; clients: 1.2
;; Builders that no derivation may have.
(with-store store
  (options store)
  (for-each
   (lambda (builder)
     (attempt/label builder (build store (derivation store "outside" builder '("-c" "echo > $out")))))
   '("/bin/sh" "sh" "./sh" "/frx/store/../../bin/sh" "builtin:nothing" "builtin:" "builtin:download" "builtin")))
