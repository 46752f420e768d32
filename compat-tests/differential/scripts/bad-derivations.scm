;; Derivations that the daemon should not take: malformed, or with outputs that are not theirs.
(define hash (bytevector->base16-string (sha256 (string->utf8 "x"))))
(define path (store-file (string-append (make-string 32 #\1) "-x")))
(define right (fixed-output-path "x" (sha256 (string->utf8 "x")) #:recursive? #f))
(for-each
 (match-lambda
   ((label text)
    (with-store store
      (options store)
      (let ((drv (attempt/label label (add-text-to-store store "x.drv" text '()))))
        (when drv
          (attempt/label "outputs" (query-derivation-outputs store drv))
          (attempt/label "names" (raw-call store 28 (string-argument drv) read-strings))
          (attempt/label "build" (build store drv)))))))
 `(("empty" "")
   ("word" "Derive")
   ("no fields" "Derive()")
   ("wrong output path" ,(string-append "Derive([(\"out\",\"" path "\",\"sha256\",\"" hash "\")],[],[],\"x86_64-linux\",\"builtin:x\",[],[])"))
   ("right output path" ,(string-append "Derive([(\"out\",\"" right "\",\"sha256\",\"" hash "\")],[],[],\"x86_64-linux\",\"builtin:x\",[],[(\"out\",\"" right "\")])"))
   ("right output path, trailing" ,(string-append "Derive([(\"out\",\"" right "\",\"sha256\",\"" hash "\")],[],[],\"x86_64-linux\",\"builtin:x\",[],[]) "))
   ("output path, not hashed" ,(string-append "Derive([(\"out\",\"" path "\",\"\",\"\")],[],[],\"x86_64-linux\",\"/bin/sh\",[],[(\"out\",\"" path "\")])"))
   ("unknown algorithm" ,(string-append "Derive([(\"out\",\"" right "\",\"crc32\",\"" hash "\")],[],[],\"x86_64-linux\",\"builtin:x\",[],[])"))
   ("short hash" ,(string-append "Derive([(\"out\",\"" right "\",\"sha256\",\"00\")],[],[],\"x86_64-linux\",\"builtin:x\",[],[])"))
   ("output path is no path" "Derive([(\"out\",\"x\",\"\",\"\")],[],[],\"x86_64-linux\",\"/bin/sh\",[],[])")
   ("output path outside" "Derive([(\"out\",\"/etc/passwd\",\"\",\"\")],[],[],\"x86_64-linux\",\"/bin/sh\",[],[])")
   ("no outputs" "Derive([],[],[],\"x86_64-linux\",\"/bin/sh\",[],[])")
   ("input path is no path" ,(string-append "Derive([(\"out\",\"" right "\",\"sha256\",\"" hash "\")],[],[\"x\"],\"x86_64-linux\",\"builtin:x\",[],[])"))))
;; guix-daemon leaves what it refused, with its locks.
(with-store store (quietly (collect-garbage store)))
