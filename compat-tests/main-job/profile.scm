;; profile.scm PROFILE plain|note : make a new generation of PROFILE by Guix's own procedure, with hello, or hello and a note.
;; Run by `guix repl'.

(use-modules (guix)
             (guix packages)
             (guix profiles)
             ((guix scripts package) #:select (build-and-use-profile))
             ((guix ui) #:select (load*  make-user-module))
             (debian toolchain)
             (ice-9 match))

(define hello
  (load* (string-append (getenv "FRUIX_CHECKOUT") "/examples/hello.scm")
         (make-user-module '((guix packages)))))

(define note
  (manifest-entry
    (name "note")
    (version "1")
    (item (computed-file "note-1"
                         #~(begin
                             (mkdir #$output)
                             (call-with-output-file (string-append #$output "/note")
                               (lambda (port)
                                 (display "second generation\n" port))))
                         #:guile debian-toolchain))))

(match (cdr (command-line))
  ((profile contents)
   (with-store store
     ;; Building a profile takes a Guile; the default one would have to be built from Guix's bootstrap first.  The usual hooks
     ;; (manual database, Info directory, ...) ask for more of Guix's packages.
     (parameterize ((%guile-for-build (package-derivation store debian-toolchain)))
       (build-and-use-profile store profile
                              (manifest
                               (cons (package->manifest-entry hello)
                                     (if (string=? contents "note") (list note) '())))
                              #:hooks '())))))
