;; --keep-failed by somebody else: he gets what is kept.
;; user: alice
(with-store store
  (options store #:keep-failed? #t)
  (define (try name script)
    (attempt/label name (build store (sh store name script #:tools? #t))))
  (try "files" "echo x > x; $bb mkdir d; echo y > d/y; $bb chmod 700 d; exit 1")
  (try "files" "echo x > x; $bb mkdir d; echo y > d/y; $bb chmod 700 d; exit 1")
  (try "modes" "echo x > x; $bb chmod 4777 x; $bb mkdir d; $bb chmod 2777 d; $bb ln -s /etc/passwd l; $bb mkfifo p; exit 1")
  (try "links" "echo x > x; $bb ln x y; exit 1")
  (try "no-output" "echo x > x")
  (try "good" "echo x > x; echo > $out")
  (try "half-output" "echo x > $out; exit 1")
  (attempt (build* store (build-mode check) (sh store "good" "echo x > x; echo > $out" #:tools? #t))))
