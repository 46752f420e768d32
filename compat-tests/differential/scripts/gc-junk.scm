;; clients: 1.2
;; What is in the store directory and in no database: stray files, directories, links, locks, temporary names.
(with-store store (add-text-to-store store "valid" "x"))
(define junk (map store-file '("junk" "00000000000000000000000000000000-junk" "00000000000000000000000000000000-junk.lock" "11111111111111111111111111111111-x.drv.chroot"
                               "22222222222222222222222222222222-y.drv" ".hidden" "tmp-1-2" "33333333333333333333333333333333-z-check" "name with space")))
(for-each (lambda (file) (write-file file "junk")) junk)
(mkdir (store-file "directory")) (write-file (store-file "directory/f") "x") (chmod (store-file "directory") #o500)
(symlink "/etc/passwd" (store-file "link"))
(with-store store
  (attempt (live-paths store))
  (attempt (dead-paths store))
  (attempt/sorted (collect store))
  (apply show-files junk)
  (show-files (store-file "directory") (store-file "link"))
  (attempt (verify-store store)))
