;; GNU hello from its upstream tarball, built by Guix's own gnu-build-system with a toolchain made from Debian's packages:
;;
;;   ./pre-inst-env fruix build -f examples/hello.scm
;;
;; Works with guix 1.5.0 and with 1.2.0.

(use-modules (guix packages)
             (guix build-system gnu)
             ((guix licenses) #:prefix license:)
             (debian toolchain))

(package
  (name "hello")
  (version "2.12.3")
  (source (origin
            (method url-fetch/daemon)
            (uri (string-append "mirror://gnu/hello/hello-" version ".tar.gz"))
            (sha256
             (base32 "183a6rxnhixiyykd7qis0y9g9cfqhpkk872a245y3zl28can0pqd"))))
  (build-system gnu-build-system)
  (arguments
   ;; Without these two, Guix would build its own distribution from the seeds of its bootstrap first.
   `(#:implicit-inputs? #f
     #:guile ,debian-toolchain
     ;; The default since 1.3; the toolchain has no other locale.
     #:locale "C.UTF-8"))
  ;; The configure phase of 1.2 looks for its shell under this label.
  (native-inputs `(("bash" ,debian-toolchain)))
  (home-page "https://www.gnu.org/software/hello/")
  (synopsis "Hello, GNU world: an example GNU package")
  (description "GNU Hello prints the message \"Hello, world!\" and then exits.")
  (license license:gpl3+))
