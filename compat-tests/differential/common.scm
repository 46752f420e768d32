;; What differential scripts share.  Everything here runs with the modules of Guix 1.2.0 and of 1.5.0.
(use-modules (guix store) (guix derivations) (guix serialization) (guix base32) (guix base16)
             (gcrypt hash)
             (ice-9 match) (ice-9 binary-ports) (ice-9 rdelim) (ice-9 textual-ports) (ice-9 format) (ice-9 popen) (ice-9 regex)
             (srfi srfi-1) (srfi srfi-26) (srfi srfi-34) (srfi srfi-35) (rnrs bytevectors))

(define %prefix (%store-prefix))
(define (store-file name) (string-append %prefix "/" name))
(define %missing (store-file (string-append (make-string 32 #\0) "-missing")))
(define %missing-drv (string-append %missing ".drv"))

;; What the daemon says while it works, and what it answers, in order.
(define %sort-log? (make-parameter #f))
(define (show-log text)
  (unless (string-null? text)
    (let ((lines (string-split (if (string-suffix? "\n" text) (string-drop-right text 1) text) #\newline)))
      (for-each (lambda (line) (format #t "  | ~a~%" line))
                (if (%sort-log?)
                    (sort (map (lambda (line)
                                 (match (string-match "^\\[.*\\] (deleting '.*)$" line)
                                   (#f line)
                                   (m (match:substring m 1))))
                               lines)
                          string<?)
                    lines)))))

(define (show-error c)
  (cond ((store-protocol-error? c)
         (format #t "  error (status ~a): ~a~%" (store-protocol-error-status c) (store-protocol-error-message c)))
        ((store-connection-error? c)
         (format #t "  connection error: ~a~%" (strerror (store-connection-error-code c))))
        (else (format #t "  condition: ~s~%" c))))

(define (show-other key args)
  ;; A connection that the daemon has ended is noticed when writing or when reading, as it happens.
  (if (memq key '(system-error %exception srfi-34))
      (format #t "  the connection is gone~%")
      (format #t "  exception: ~a~%" key)))

(define (attempt* label thunk)
  (format #t "~a~%" label)
  (let* ((port (open-output-string))
         (result (catch #t
                   (lambda ()
                     (guard (c ((store-error? c) (show-log (get-output-string port))
                                (truncate-log! port)
                                (show-error c) #f))
                       (parameterize ((current-build-output-port port))
                         (let ((value (thunk)))
                           (show-log (get-output-string port))
                           (format #t "  => ~s~%" value)
                           value))))
                   (lambda (key . args)
                     (show-log (get-output-string port))
                     (show-other key args)
                     #f))))
    result))
(define (truncate-log! port) #t)

(define-syntax-rule (attempt exp) (attempt* (format #f "~s" 'exp) (lambda () exp)))
(define-syntax-rule (attempt/label label exp) (attempt* label (lambda () exp)))

;; What is done in no particular order.
(define-syntax-rule (attempt/sorted exp) (parameterize ((%sort-log? #t)) (attempt exp)))
(define (collect store . rest) (call-with-values (lambda () (apply collect-garbage store rest)) (lambda (paths freed) (list (sort paths string<?) freed))))
(define-syntax-rule (quietly exp ...) (parameterize ((current-build-output-port (%make-void-port "w"))) exp ...))
;; What is not the same in two runs must not be there when the stores are compared.
(define (forget . paths)
  (with-store store (guard (c ((store-protocol-error? c) #f)) (quietly (delete-paths store paths))))
  #t)

;; A connection of its own, for what may end it.
(define-syntax-rule (alone store exp)
  (attempt/label (format #f "alone: ~s" 'exp) (with-store store exp)))

(define (add-file store file) (add-to-store store (basename file) #t "sha256" file))

;; The builders: static programs, so that builds take milliseconds.
(define %bash-file (getenv "BASH_STATIC"))
(define %busybox-file (getenv "BUSYBOX"))
(define (bash store) (add-to-store store "bash-static" #t "sha256" %bash-file))
(define (busybox store) ; a directory, since the program looks at the name that it was started with
  (unless (exists? "/run/work/.busybox")
    (mkdir "/run/work/.busybox")
    (copy-file %busybox-file "/run/work/.busybox/busybox")
    (chmod "/run/work/.busybox/busybox" #o755))
  (add-to-store store "busybox" #t "sha256" "/run/work/.busybox"))

;; A derivation whose builder is bash with SCRIPT, with `bb' naming busybox if #:tools? says so.
(define* (sh store name script #:key (inputs '()) (sources '()) (env '()) (tools? #f) #:allow-other-keys #:rest rest)
  (let ((shell (bash store))
        (tools (and tools? (busybox store)))
        (rest (let loop ((rest rest))
                (match rest
                  (() '())
                  (((or #:inputs #:sources #:env #:tools?) _ . rest) (loop rest))
                  ((key value . rest) (cons* key value (loop rest)))))))
    (apply derivation store name shell (list "-e" "-c" script)
           #:inputs inputs
           #:sources (append (list shell) (if tools? (list tools) '()) sources)
           #:env-vars (append (if tools? `(("bb" . ,(string-append tools "/busybox"))) '()) env)
           rest)))

(define (drv-file drv) (derivation-file-name drv))
(define* (out drv #:optional (name "out")) (derivation->output-path drv name))

;; Options as a client sends them; the log then has everything.
(define* (options store #:rest rest)
  (apply set-build-options store #:use-substitutes? #f #:print-build-trace #t #:offload? #f rest))

(define (build store . things) (build-things store (map (lambda (thing) (if (derivation? thing) (drv-file thing) thing)) things)))
(define (build* store mode . things)
  (build-things store (map (lambda (thing) (if (derivation? thing) (drv-file thing) thing)) things) mode))

;; Operations that no procedure of the client's does, or with what it would not send.
(define write-int (@@ (guix serialization) write-int))
(define write-long-long (@@ (guix serialization) write-long-long))
(define write-string* (@@ (guix serialization) write-string))
(define write-strings (@@ (guix serialization) write-string-list))
(define read-int* (@@ (guix serialization) read-int))
(define read-string* (@@ (guix serialization) read-string))
(define read-strings (@@ (guix serialization) read-string-list))

(define* (raw-call store operation write-arguments #:optional (read-reply (const 'done)))
  (let ((port (store-connection-socket store)))
    (write-int operation port)
    (write-arguments port)
    (force-output port)
    (let loop ()
      (unless ((@@ (guix store) process-stderr) store)
        (loop)))
    (read-reply port)))
;; Procedures that not every client has.
(define export-path* (@@ (guix store) export-path))
(define (find-roots* store)
  (raw-call store 14 no-argument
            (lambda (port)
              (map (lambda _ (let* ((link (read-string* port)) (target (read-string* port))) (cons link target)))
                   (iota (read-int* port))))))
(define (ensure store path) (raw-call store 10 (string-argument path) read-int*))
(define (string-argument text) (lambda (port) (write-string* text port)))
(define (no-argument port) #t)

(define (write-file name text)
  (call-with-output-file name (lambda (port) (display text port))))
(define (read-file name) (call-with-input-file name get-string-all))

(define (show . things) (for-each (lambda (thing) (format #t "~a~%" thing)) things))
(define (exists? file) (->bool (false-if-exception (lstat file))))
(define (show-files . files)
  (for-each (lambda (file) (format #t "~a ~a~%" (if (exists? file) "there:" "not there:") file)) files))

(define (info store path)
  (let ((info (query-path-info store path)))
    (list (path-info-deriver info) (bytevector->base16-string (path-info-hash info))
          (path-info-references info) (path-info-nar-size info)
          (< (abs (- (current-time) (path-info-registration-time info))) 300))))

;; Wait until THUNK is true, or for 10 seconds.
(define (wait-until thunk)
  (let loop ((n 0))
    (cond ((thunk) #t)
          ((> n 200) (format #t "waited in vain~%") #f)
          (else (usleep 50000) (loop (+ n 1))))))
