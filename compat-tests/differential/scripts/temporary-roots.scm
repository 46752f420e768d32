;; clients: 1.2
;; What one session uses, another's collection leaves; when the first is gone, so is its claim.
(define first (open-connection))
(define kept (add-text-to-store first "kept" "kept"))
(define other (add-text-to-store first "other" kept (list kept)))
(define rooted (with-store store (add-text-to-store store "rooted" "rooted")))
(attempt (add-temp-root first rooted))
(attempt (add-temp-root first %missing))
(with-store store
  (attempt (dead-paths store))
  (attempt (live-paths store))
  (attempt (delete-paths store (list kept)))
  (attempt (delete-paths store (list other)))
  (attempt/sorted (collect store))
  (attempt (map (cut valid-path? store <>) (list kept other rooted))))
(close-connection first)
(usleep 300000)
(with-store store
  (attempt (dead-paths store))
  (attempt/sorted (collect store)))
