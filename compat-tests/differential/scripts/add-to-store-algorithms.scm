;; clients: 1.2
;; Every hash algorithm, flat and recursive, and what is none.
(write-file "file" "twelve bytes")
(write-file "program" "#!/bin/sh\n")
(chmod "program" #o755)
(mkdir "dir")
(write-file "dir/in" "x")
(symlink "file" "link")
(with-store store
  (for-each
   (lambda (algorithm)
     (for-each
      (lambda (recursive?)
        (for-each
         (lambda (file)
           (attempt/label (format #f "~a ~a ~a" algorithm recursive? file)
                          (add-to-store store (string-append algorithm "-" file) recursive? algorithm file)))
         '("file" "program")))
      '(#f #t)))
   '("sha256" "sha1" "md5" "sha512"))
  (attempt (info store (add-to-store store "sha1-file" #t "sha1" "file")))
  (attempt (add-to-store store "file" #t "sha256" "file"))
  (attempt (add-to-store store "file" #t "sha256" "file")))
(for-each
 (lambda (algorithm)
   (attempt/label (format #f "alone ~a" algorithm)
                  (with-store store
                    (list (add-to-store store "f" #f algorithm "file")
                          (add-to-store store "f" #t algorithm "dir")))))
 '("sha224" "sha384" "sha3-256" "sha3-512" "blake2b-256" "blake2s-128" "crc32" "" "SHA256" "sha256 "))
(for-each
 (lambda (file)
   (attempt/label (format #f "flat ~a" file)
                  (with-store store
                    (attempt (add-to-store store "f" #f "sha256" file))
                    (valid-path? store %missing))))
 '("dir" "link"))
