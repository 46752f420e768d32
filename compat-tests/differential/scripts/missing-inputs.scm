;; clients: 1.2
;; Derivations whose inputs are not there.
(define (with-input drv-name src drvs)
  (string-append "Derive([(\"out\",\"" (store-file (string-append (make-string 32 #\1) "-" drv-name)) "\",\"sha256\",\""
                 (bytevector->base16-string (sha256 (string->utf8 drv-name))) "\")],[" drvs "],[" src "],\"x86_64-linux\",\"/frx/store/x\",[],[])"))
(define (fixed-path name)
  (fixed-output-path name (sha256 (string->utf8 name)) #:recursive? #f))
(define (text name src drvs)
  (string-append "Derive([(\"out\",\"" (fixed-path name) "\",\"sha256\",\""
                 (bytevector->base16-string (sha256 (string->utf8 name))) "\")],[" drvs "],[" src "],\"x86_64-linux\",\"" (store-file "x") "\",[],[(\"out\",\"" (fixed-path name) "\")])"))
(with-store store
  (options store)
  (attempt (build store %missing-drv))
  (attempt (build store %missing))
  (attempt (build store %missing-drv %missing))
  (attempt (build store (string-append %missing-drv "!out")))
  (let* ((no-source (attempt (add-text-to-store store "a.drv" (text "a" (string-append "\"" %missing "\"") "") '())))
         (no-derivation (attempt (add-text-to-store store "b.drv" (text "b" "" (string-append "(\"" %missing-drv "\",[\"out\"])")) '())))
         (good (sh store "good" "echo > $out"))
         (no-output (attempt (add-text-to-store store "c.drv" (text "c" "" (string-append "(\"" (drv-file good) "\",[\"none\"])")) (list (drv-file good))))))
    (when no-source (attempt (build store no-source)))
    (when no-derivation (attempt (build store no-derivation)))
    (when no-output (attempt (build store no-output)))
    (attempt (raw-call store 23 no-argument read-strings))))
