;; clients: 1.2
;; env: GUIX_SECRET=x NIX_SECRET=y LANG=de_DE
;; What a builder finds: variables, arguments, directories, identity.
(with-store store
  (define _ (options store #:build-cores 3))
  (define script "$bb tr '\\0' '\\n' < /proc/self/environ; echo; $bb tr '\\0' '\\n' < /proc/$$/cmdline; $bb id; $bb pwd; $bb ls -la . / /etc /dev | $bb awk '{ print $1, $3, $4, $NF }'; $bb cat /etc/passwd /etc/group /etc/hosts; umask; ulimit -a; $bb hostname; $bb uname -sm; $bb ls $NIX_STORE; echo x > $out")
  (attempt (build store (sh store "look" script #:tools? #t #:env '(("a b" . "c d") ("PATH" . "mine") ("HOME" . "/mine") ("NIX_BUILD_CORES" . "77") ("TMPDIR" . "/mine") ("out2" . "x") ("Z" . "") ("new" . "line\nline")))))
  (options store #:build-cores 0)
  (attempt (build store (sh store "cores-0" "echo $NIX_BUILD_CORES; echo > $out")))
  (attempt (build store (sh store "no-env" "echo $NIX_BUILD_TOP $TEMP $TMP $TEMPDIR $PWD $NIX_STORE $NIX_LOG_FD $TERM; echo > $out"))))
