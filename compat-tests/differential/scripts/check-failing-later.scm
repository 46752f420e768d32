;; --check of what was built once and fails, or makes nothing, the second time: time is what it depends on.
(write-file "/tmp/switch" "first")
(with-store store
  (options store)
  (let ((fails (sh store "fails" "read -r line < /tmp/switch || :; echo x > $out"))
        (fixed (lambda (script) (sh store "fixed" script #:hash-algo 'sha256 #:hash (sha256 (string->utf8 "ok")) #:recursive? #f))))
    (attempt (build store (fixed "printf ok > $out")))
    (attempt (build* store (build-mode check) (fixed "printf ko > $out")))
    (attempt (build* store (build-mode check) (fixed "exit 5")))
    (attempt (build* store (build-mode check) (fixed "true")))
    (attempt (build* store (build-mode repair) (fixed "true")))))
