;; clients: 1.2
;; env: SECRET=from-the-daemon http_proxy=http://proxy.example/
;; impureEnvVars: for fixed outputs only.
(with-store store
  (define _ (options store))
  (define script "echo \"SECRET=${SECRET-unset} http_proxy=${http_proxy-unset} none=${none-unset}\"; printf ok > $out")
  (define env '(("impureEnvVars" . "SECRET http_proxy none")))
  (attempt (build store (sh store "fixed" script #:env env #:hash-algo 'sha256 #:hash (sha256 (string->utf8 "ok")) #:recursive? #f)))
  (attempt (build store (sh store "ordinary" script #:env env)))
  (attempt (build store (sh store "fixed-own" script #:env (cons '("SECRET" . "mine") env) #:hash-algo 'sha256 #:hash (sha256 (string->utf8 "ok")) #:recursive? #f)))
  (attempt (build store (sh store "fixed-empty" script #:env '(("impureEnvVars" . "")) #:hash-algo 'sha256 #:hash (sha256 (string->utf8 "ok")) #:recursive? #f)))
  (attempt (build store (sh store "fixed-tmp" "echo $TMPDIR $PATH $HOME; printf ok > $out" #:env '(("impureEnvVars" . "TMPDIR PATH HOME NIX_STORE")) #:hash-algo 'sha256 #:hash (sha256 (string->utf8 "ok")) #:recursive? #f))))
