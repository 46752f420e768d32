;; clients: 1.2
;; A connection, and questions about nothing: what a store is when it is new.
(with-store store
  (attempt (valid-path? store %missing))
  (attempt (query-failed-paths store))
  (attempt (find-roots* store))
  (attempt (live-paths store))
  (attempt (dead-paths store))
  (attempt (raw-call store 23 no-argument read-strings))
  (attempt (verify-store store))
  (attempt (verify-store store #:check-contents? #t))
  (attempt (optimize-store store))
  (attempt/sorted (collect store))
  (attempt (raw-call store 13 no-argument read-int*))
  (attempt (built-in-builders store)))
