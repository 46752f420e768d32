;; clients: 1.2
;; Something invalid stands where an output is to be; an input is damaged; a lock is left.
(with-store store
  (options store)
  (let ((file (sh store "over-a-file" "echo good > $out"))
        (dir (sh store "over-a-directory" "echo good > $out"))
        (link (sh store "over-a-link" "echo good > $out"))
        (lock (sh store "over-a-lock" "echo good > $out"))
        (root (sh store "over-a-root" "echo good > $out")))
    (write-file (out file) "junk")
    (mkdir (out dir)) (write-file (string-append (out dir) "/f") "x") (chmod (out dir) #o500)
    (symlink "/etc/passwd" (out link))
    (write-file (string-append (out lock) ".lock") "")
    (mkdir (string-append (drv-file root) ".chroot")) (write-file (string-append (drv-file root) ".chroot/f") "x")
    (for-each (lambda (drv) (attempt/label (drv-file drv) (build store drv))) (list file dir link lock root))
    (let ((text (store-file "0000")))
      (attempt (read-file (out file)))))
  ;; The same for what is added.
  (let ((path (attempt (add-text-to-store store "text" "text"))))
    (attempt (call-with-values (lambda () (delete-paths store (list path))) (const #t)))
    (write-file path "junk")
    (attempt (add-text-to-store store "text" "text"))
    (attempt (read-file path))))
