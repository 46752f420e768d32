;; clients: 1.2
;; A path that a session has made sure of, and another session's collection.
(define ensured (with-store store (add-text-to-store store "ensured" "ensured")))
(define first (open-connection))
(attempt (ensure first ensured))
(with-store store
  (attempt (dead-paths store))
  (attempt/sorted (collect store)))
(attempt (valid-path? first ensured))
