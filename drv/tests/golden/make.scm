;; Makes the golden files of this directory: what guix-daemon 1.5.0 and its client say of inputs that are written here.
;; README.md says how to run it.  Usage: guix repl make.scm DIR [--without-cases]
;; The client's store directory, which the daemon must have too, comes from NIX_STORE_DIR.
(use-modules (guix store) (guix derivations) (guix base16) (guix base32) (guix serialization)
             (gcrypt hash) (ice-9 match) (ice-9 binary-ports) (ice-9 regex) (ice-9 textual-ports) (rnrs bytevectors)
             (srfi srfi-1) (srfi srfi-26) (srfi srfi-34))

(define dir (match (command-line) ((_ dir . _) dir)))
(define cases? (match (command-line) ((_ _ "--without-cases") #f) (_ #t)))
(define store (open-connection))
(define store-dir (%store-prefix))
(define tmp (string-append dir "/tmp"))
(mkdir dir)
(mkdir tmp)
(mkdir (string-append dir "/drvs"))

;;; Bytes are written so that each stands in one line: \xNN for what is not printable ASCII, \\ for a backslash.
(define (escape bytes)
  (string-concatenate
   (map (lambda (b)
          (cond ((= b 92) "\\\\")
                ((<= 32 b 126) (string (integer->char b)))
                (else (string-append "\\x" (bytevector->base16-string (u8-list->bytevector (list b)))))))
        (bytevector->u8-list bytes))))

(define (latin1 str)                    ;one byte for each character
  (u8-list->bytevector (map char->integer (string->list str))))

(define (unlatin1 bytes)
  (list->string (map integer->char (bytevector->u8-list bytes))))

(define (row port . columns)
  (put-string port (string-join columns "\t"))
  (newline port))

(define (spaced lst)
  (if (null? lst) "-" (string-join lst " ")))

(define paths (open-output-file (string-append dir "/paths.tsv")))

;;; Hashes.
(define algorithms
  '(md5 sha1 sha256 sha512 sha3-256 sha3-512 blake2s-256))

(define (digest algo bytes)
  (bytevector-hash bytes (lookup-hash-algorithm algo)))

(define odd
  (latin1 "quote \" backslash \\ newline \n return \r tab \t nul \x00 latin1 \xe9 \xff end"))

(for-each (lambda (algo)
            (for-each (lambda (bytes)
                        (let ((hash (digest algo bytes)))
                          (row paths "hash" (symbol->string algo) (escape bytes)
                               (bytevector->base16-string hash) (bytevector->nix-base32-string hash))))
                      (list #vu8() (latin1 "abc") odd)))
          algorithms)

;;; Texts.
(define (text name bytes refs)
  (let ((path (add-data-to-store store name bytes refs)))
    (row paths "text" name (spaced refs) (escape bytes) path)
    path))

(define text0 (text "plain" (latin1 "hello\n") '()))
(define text1 (text "odd.txt" odd (list text0)))
(define text2 (text "A-z_0.9+?=" (latin1 "") (list text1 text0)))
(text "a" (latin1 "x") (list text2 text0 text1))

;;; Files and trees, flat and recursive, by each algorithm.
(define (nar file)
  (call-with-values open-bytevector-output-port
    (lambda (port get)
      (write-file file port)
      (get))))

(define file (string-append tmp "/file"))
(call-with-output-file file (lambda (port) (put-bytevector port odd)))
(define tree (string-append tmp "/tree"))
(mkdir tree)
(call-with-output-file (string-append tree "/x") (lambda (port) (put-string port "x\n")))
(symlink "x" (string-append tree "/link"))

(define (source algo recursive? name file bytes)
  (let ((path (add-to-store store name recursive? (symbol->string algo) file)))
    (row paths "fixed" (if recursive? "recursive" "flat") (symbol->string algo)
         (bytevector->base16-string (digest algo bytes)) name path)
    path))

(define sources
  (append-map (lambda (algo)
                (list (source algo #f "flat-file" file odd)
                      (source algo #t "nar-file" file (nar file))
                      (source algo #t "tree" tree (nar tree))))
              algorithms))

;;; Derivations.  (No character beyond Latin 1: this client, run by Guile 3.0.10 or newer, writes Latin 1 and fails on others.)
(define (keep drv)
  (let ((file (derivation-file-name drv)))
    (call-with-output-file (string-append dir "/drvs/" (basename file))
      (lambda (port)
        (put-bytevector port (call-with-input-file file get-bytevector-all #:binary #t))))
    (row paths "modulo" file
         (bytevector->base16-string ((@@ (guix derivations) derivation-hash) drv)))
    drv))

(define fixed
  (append-map (lambda (algo)
                (map (lambda (recursive?)
                       (keep (derivation store
                                         (string-append "fixed-" (symbol->string algo) (if recursive? "-r" ""))
                                         "builtin:download" '()
                                         #:hash (digest algo odd) #:hash-algo algo #:recursive? recursive?
                                         #:env-vars '(("url" . "\"https://example.org/\\\"")))))
                     '(#f #t)))
              algorithms))

;; Same output, other recipe.
(define twin
  (keep (derivation store "fixed-sha256" "builtin:download" '()
                    #:hash (digest 'sha256 odd) #:hash-algo 'sha256
                    #:env-vars '(("url" . "file:///elsewhere")))))

(define multi
  (keep (derivation store "multi" text0 (list "-c" "" "a\nb\tc\rd\"e\\f" "é" "-c")
                    #:system "x86_64-linux"
                    #:outputs '("out" "dev" "a.b" "doc")
                    #:sources (list text0 text1 (first sources))
                    #:inputs (map (cut derivation-input <> '("out")) fixed)
                    #:env-vars `(("empty" . "")
                                 ("" . "no name")
                                 ("lines" . "\n\r\t\"\\")
                                 ("control" . "\x01\x1b\x7f")
                                 ("latin1" . "é\xff")
                                 ("zz top" . "{}[](),")
                                 ("UPPER" . "1")
                                 ("a\"b\\c\nd" . "odd name")))))

(define user
  (keep (derivation store "user" "builtin:something" '()
                    #:outputs '("only")
                    #:inputs (list (derivation-input multi '("dev" "doc" "out"))
                                   (derivation-input twin '("out")))
                    #:local-build? #t #:substitutable? #f
                    #:properties '((type . graft)))))

(fold (lambda (n previous)
        (keep (derivation store (string-append "chain-" (number->string n)) "/nowhere" '()
                          #:inputs (list (derivation-input previous '("only"))
                                         (derivation-input user '("only")))
                          #:outputs '("only"))))
      user (iota 5))

(close-port paths)
(unless cases?
  (exit 0))

;;; Derivations written by hand: what the daemon answers when they are added under the name `case.drv'.  When it
;;; answers that an output should have another path, they are added again with that path.
(define cases (open-output-file (string-append dir "/cases.tsv")))

(define (ask name bytes refs)
  (guard (c ((store-protocol-error? c) (store-protocol-error-message c)))
    (string-append "accepted " (add-data-to-store store name bytes refs))))

(define (replace str from to)
  (match (string-contains str from)
    (#f str)
    (at (string-append (substring str 0 at) to
                       (replace (substring str (+ at (string-length from))) from to)))))

(define should-be
  (let ((rx (make-regexp "incorrect output `([^']*)', should be `([^']*)'")))
    (lambda (answer)
      (and=> (regexp-exec rx answer)
             (lambda (m) (list (match:substring m 1) (match:substring m 2)))))))

(define (base name)
  (string-append store-dir "/00000000000000000000000000000000-" name))

(define* (try label str #:key (name "case.drv") (refs '()) (again 4))
  (let* ((str (fold (match-lambda* (((from . to) str) (replace str from to)))
                    str `(("@OUT@" . ,(base "case")) ("@DEV@" . ,(base "case-dev")) ("@STORE@" . ,store-dir))))
         (bytes (latin1 str))
         (answer (ask name bytes refs)))
    (row cases label name (spaced refs) (escape bytes) (escape (string->utf8 answer)))
    (match (and (> again 0) (should-be answer))
      ((found expected)
       (unless (string=? found expected)
         (try label (replace str found expected) #:name name #:refs refs #:again (- again 1))))
      (#f #t))))

(define* (derive #:key (outputs "(\"out\",\"@OUT@\",\"\",\"\")") (inputs "") (srcs "") (platform "x86_64-linux")
                 (builder "/bin/sh") (args "\"-c\",\"true\"") (env "(\"a\",\"b\"),(\"out\",\"@OUT@\")"))
  (string-append "Derive([" outputs "],[" inputs "],[" srcs "],\"" platform "\",\"" builder "\",[" args "],[" env "])"))

(try "plain" (derive))
(try "trailing bytes" (string-append (derive) "\n)junk\""))
(try "leading commas" (derive #:outputs ",(\"out\",\"@OUT@\",\"\",\"\")" #:args ",\"a\"" #:env ",(\"out\",\"@OUT@\")"))
(try "no commas" (derive #:args "\"a\"\"b\"\"c\"" #:env "(\"a\",\"b\")(\"out\",\"@OUT@\")"))
(try "comma at end" (derive #:args "\"a\","))
(try "two commas" (derive #:args "\"a\",,\"b\""))
(try "lone comma" (derive #:args ","))
(try "unknown escapes" (derive #:args "\"\\a\\0\\x41\\u00e9\\'\\ \\\n\""))
(try "raw control characters" (derive #:args "\"\n\r\t\x01\x7f\""))
(try "high bytes" (derive #:platform "\xe9\xff" #:builder "/\x80" #:args "\"\xe9\\\xe9\""
                          #:env "(\"\xfe\",\"\xc3\xa9\xc3\"),(\"out\",\"@OUT@\"),(\"a\",\"\xe9\")"))
(try "NUL" (derive #:args "\"a\x00b\""))
(try "escaped NUL" (derive #:args "\"a\\\x00b\""))
(try "environment out of order" (derive #:env "(\"out\",\"@OUT@\"),(\"b\",\"1\"),(\"a\",\"2\")"))
(try "repeated variable" (derive #:env "(\"a\",\"1\"),(\"out\",\"@OUT@\"),(\"a\",\"2\")"))
(try "variable of the output missing" (derive #:env ""))
(try "variable of the output wrong" (derive #:env "(\"out\",\"/elsewhere\")"))
(try "repeated output" (derive #:outputs "(\"out\",\"@DEV@\",\"a\",\"b\"),(\"out\",\"@OUT@\",\"\",\"\")"))
(try "outputs out of order"
     (derive #:outputs "(\"out\",\"@OUT@\",\"\",\"\"),(\"dev\",\"@DEV@\",\"\",\"\")"
             #:env "(\"out\",\"@OUT@\"),(\"dev\",\"@DEV@\")"))
(try "no outputs" (derive #:outputs "" #:env ""))
(try "output with a slash" (derive #:outputs "(\"a/b\",\"@OUT@\",\"\",\"\")" #:env "(\"a/b\",\"@OUT@\")"))
(try "output without a name" (derive #:outputs "(\"\",\"@OUT@\",\"\",\"\")" #:env "(\"\",\"@OUT@\")"))
(try "relative path" (derive #:outputs "(\"out\",\"x\",\"\",\"\")"))
(try "empty path" (derive #:outputs "(\"out\",\"\",\"\",\"\")"))
(try "path elsewhere" (derive #:outputs "(\"out\",\"/x\",\"\",\"\")"))
(try "space" (derive #:args "\"a\", \"b\""))
(try "lower case" "derive([],[],[],\"\",\"\",[],[])")
(try "empty strings" (derive #:platform "" #:builder "" #:args "\"\"" #:env "(\"\",\"\"),(\"out\",\"@OUT@\")"))
(try "source elsewhere" (derive #:srcs "\"/etc/passwd\""))
(try "source that is not there" (derive #:srcs "\"@STORE@/11111111111111111111111111111111-x\""))
(try "relative source" (derive #:srcs "\"etc\""))
(try "sources out of order and repeated"
     (derive #:srcs (string-append "\"" text1 "\",\"" text0 "\",\"" text1 "\",\"" text2 "\"")) #:refs (list text0 text1 text2))
(try "odd name" (derive #:outputs "(\"out\",\"@STORE@/00000000000000000000000000000000-a?b=c+d_e-f.g\",\"\",\"\")"
                        #:env "(\"out\",\"@STORE@/00000000000000000000000000000000-a?b=c+d_e-f.g\")")
     #:name "a?b=c+d_e-f.g.drv")
(try "name ends in .drv twice" (derive) #:name "case.drv.drv")

;; As a client whose port encoding works would write it.
(try "UTF-8" (derive #:args "\"\xce\xbb\xe2\x86\x92\"" #:env "(\"\xce\xbb\",\"\xf0\x90\x8d\x88\"),(\"out\",\"@OUT@\")"))
(try "output beyond ASCII" (derive #:outputs "(\"\xe9\",\"@OUT@\",\"\",\"\")" #:env "(\"\xe9\",\"@OUT@\")"))
(try "input output beyond ASCII" (derive #:inputs (string-append "(\"" (derivation-file-name user) "\",[\"\xe9\"])"))
     #:refs (list (derivation-file-name user)))

;; Inputs.
(let ((file (derivation-file-name user))
      (first-fixed (derivation-file-name (find (lambda (drv)
                                                 (string=? (derivation-name drv) "fixed-sha256"))
                                               fixed)))
      (twin (derivation-file-name twin)))
  (define (input path outputs)
    (string-append "(\"" path "\",[" outputs "])"))
  (try "input" (derive #:inputs (input file "\"only\"")) #:refs (list file))
  (try "input's outputs out of order" (derive #:inputs (input file "\"z\",\"only\",\"a\",\"only\"")) #:refs (list file))
  (try "input without outputs" (derive #:inputs (input file "")) #:refs (list file))
  (try "repeated input" (derive #:inputs (string-append (input file "\"a\"") "," (input file "\"b\""))) #:refs (list file))
  (try "inputs of one hash" (derive #:inputs (string-append (input first-fixed "\"out\"") "," (input twin "\"out\",\"other\"")))
       #:refs (list first-fixed twin))
  (try "inputs of one hash, the other way"
       (derive #:inputs (string-append (input twin "\"out\"") "," (input first-fixed "\"out\",\"other\"")))
       #:refs (list first-fixed twin))
  (try "inputs out of order" (derive #:inputs (string-append (input twin "\"out\"") "," (input file "\"only\"") ","
                                                             (input (derivation-file-name multi) "\"dev\"")))
       #:refs (list file twin (derivation-file-name multi))))

;; Fixed outputs.
(define abc (bytevector->base16-string (sha256 (latin1 "abc"))))
(define (fixed-case label algo hash)
  (try label (derive #:outputs (string-append "(\"out\",\"@OUT@\",\"" algo "\",\"" hash "\")"))))
(fixed-case "fixed" "sha256" abc)
(fixed-case "fixed recursive" "r:sha256" abc)
(fixed-case "fixed in upper case" "sha256" (string-upcase abc))
(fixed-case "fixed in base 32" "sha256" (bytevector->nix-base32-string (sha256 (latin1 "abc"))))
(fixed-case "fixed too short" "sha256" "ab")
(fixed-case "fixed odd" "sha512" "abc")
(fixed-case "fixed too long for blake" "r:blake2s-256" (string-append abc "00"))
(fixed-case "fixed with no digit" "sha256" (string-append (substring abc 0 63) "g"))
(fixed-case "fixed with sign" "sha256" (string-append (substring abc 0 62) "+1"))
(fixed-case "fixed without algorithm" "" abc)
(fixed-case "fixed by unknown algorithm" "sha224" abc)
(fixed-case "fixed in upper-case algorithm" "SHA256" abc)
(fixed-case "fixed recursive twice" "r:r:sha256" abc)
(fixed-case "algorithm without hash" "r:sha256" "")
(fixed-case "unknown algorithm without hash" "x" "")
(try "fixed, but not called out" (derive #:outputs (string-append "(\"dev\",\"@DEV@\",\"sha256\",\"" abc "\")")
                                         #:env "(\"dev\",\"@DEV@\")"))
(try "two with hashes" (derive #:outputs (string-append "(\"dev\",\"@DEV@\",\"sha256\",\"" abc "\"),"
                                                        "(\"out\",\"@OUT@\",\"x\",\"y\")")
                               #:env "(\"dev\",\"@DEV@\"),(\"out\",\"@OUT@\")"))

;; Each beginning of a derivation that does not end within a string (where the daemon would eat all memory).
(let* ((whole (derive #:outputs "(\"o\",\"/o\",\"\",\"\"),(\"p\",\"/p\",\"\",\"\")" #:inputs "(\"/i\",[\"o\",\"p\"])"
                      #:srcs "\"/s\",\"/t\"" #:env "(\"a\",\"b\"),(\"c\",\"d\")"))
       (whole (replace (replace whole "\"/" "\"@STORE@/00000000000000000000000000000000-") "@STORE@" store-dir)))
  (let loop ((at 0) (inside? #f))
    (unless inside?
      (try (string-append "cut at " (number->string at)) (substring whole 0 at)))
    (when (< at (- (string-length whole) 1))
      (loop (+ at 1) (if (char=? (string-ref whole at) #\") (not inside?) inside?)))))

(close-port cases)
