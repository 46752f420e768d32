;; What the other scripts share. Everything here runs with the modules of Guix 1.2.0 and of 1.5.0.
(use-modules (guix store) (guix derivations) (guix serialization)
             (ice-9 match) (ice-9 binary-ports) (ice-9 rdelim)
             (srfi srfi-34) (rnrs bytevectors))

(define (read-word-from file)
  (call-with-input-file file read-line))

(define %shell (read-word-from "/frx/shell"))

;; Errors of the daemon are part of the show.
(define-syntax-rule (attempt exp ...)
  (guard (c ((store-protocol-error? c)
             (format #t "error: ~a~%" (store-protocol-error-message c))
             #f))
    (let ((result (begin exp ...)))
      (format #t "~s~%" result)
      result)))

(define (shell-derivation store name script . rest)
  (apply derivation store name %shell (list "-c" script)
         #:sources (list %shell) #:env-vars '(("who" . "world")) rest))

;; Operations that no client of Guix's uses.
(define (raw-call store operation write-arguments read-reply)
  (let ((port (store-connection-socket store)))
    ((@@ (guix serialization) write-int) operation port)
    (write-arguments port)
    (force-output port)
    (let loop ()
      (unless ((@@ (guix store) process-stderr) store)
        (loop)))
    (read-reply port)))
