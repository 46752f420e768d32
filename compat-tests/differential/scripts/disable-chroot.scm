;; daemon: --disable-chroot
;; Builds without a sandbox: good, failing, checked, partly there.
(with-store store
  (options store)
  (let* ((one (sh store "one" "echo in $TMPDIR; echo one $out > $out"))
         (two (sh store "two" "echo o $out > $out; echo d $out > $doc" #:outputs '("out" "doc")))
         (random (sh store "random" "$bb head -c 9 /dev/urandom | $bb md5sum > $out" #:tools? #t)))
    (attempt (build store one two))
    (attempt (build* store (build-mode check) one))
    (attempt (build* store (build-mode check) two))
    (attempt (begin (delete-paths store (list (out two "doc"))) #t))
    (attempt (build store two))
    (attempt (build store (sh store "fails" "echo half > $out; exit 1")))
    (attempt (build store (sh store "nothing" "true")))
    (attempt (build store (sh store "environment" "echo $PATH $HOME $NIX_BUILD_TOP $PWD; $bb id -un; $bb pwd; echo > $out" #:tools? #t)))
    (attempt (build store (sh store "fixed" "printf ok > $out" #:hash-algo 'sha256 #:hash (sha256 (string->utf8 "ok")) #:recursive? #f)))
    (attempt (build store (derivation store "outside" "/bin/sh" '("-c" "echo > $out"))))
    (attempt (verify-store store #:check-contents? #t))))
