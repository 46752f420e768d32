(define-module (debian toolchain)
  #:use-module (guix store)
  #:use-module (guix derivations)
  #:use-module (guix gexp)
  #:use-module (guix monads)
  #:use-module (guix packages)
  #:use-module (guix build-system)
  #:use-module (guix download)
  #:use-module ((guix config) #:select (%state-directory))
  #:use-module ((guix licenses) #:prefix license:)
  #:export (debian-packages
            debian-toolchain
            url-fetch/daemon))

;;; A compiler and the usual programs as one package, made from Debian's.
;;;
;;; There is no build from source below it: `debian-packages' is a tree of unpacked .deb files that was added to the store
;;; as it is; the derivation of `debian-toolchain' makes a tree of it that works at its own path (see relocate.sh).

(define %packages-link
  ;; A garbage collector root, made by build-aux/store-inputs.scm.
  (string-append %state-directory "/gcroots/fruix/debian-packages"))

(define (debian-packages)
  "Return the store file name of the tree of unpacked Debian packages."
  (catch 'system-error
    (lambda () (readlink %packages-link))
    (lambda _
      (error (string-append %packages-link
                            " is missing: `fruix prepare' adds Debian's packages to the store")))))

(define relocate
  (local-file "relocate.sh"))

(define (relocated-tree name)
  "Return, as a monadic value, the derivation that relocates the tree of Debian packages."
  (let ((tree (debian-packages)))
    (mlet %store-monad ((script (lower-object relocate)))
      (raw-derivation name
                      (string-append tree "/usr/bin/bash-static")
                      (list script)
                      #:system "x86_64-linux"
                      #:sources (list tree script)
                      #:env-vars `(("packages" . ,tree))))))

(define relocation-build-system
  (build-system
    (name 'relocation)
    (description "Make a store item from the tree of unpacked Debian packages.")
    (lower
     (lambda* (name #:key system target outputs #:allow-other-keys)
       (bag
         (name name)
         (system system)
         (target target)
         (outputs outputs)
         (build
          (lambda (first . rest)
            ;; Until 1.3, `build' is called with the store and returns a derivation; since then, it returns a monadic value.
            (if (store-connection? first)
                (run-with-store first (relocated-tree (car rest)))
                (relocated-tree first)))))))))

(define debian-toolchain
  (package
    (name "debian-toolchain")
    (version "13")
    (source #f)
    (build-system relocation-build-system)
    (supported-systems '("x86_64-linux"))
    (home-page "https://www.debian.org/")
    (synopsis "GCC, GNU libc, Binutils, Guile and the usual programs of Debian")
    (description "A compiler and what the GNU build system asks for, taken from
Debian's packages and made to work at its place in the store.")
    (license license:gpl3+)))

(define* (url-fetch/daemon url hash-algo hash
                           #:optional name #:key system)
  "Like 'url-fetch', whose downloads are made by the daemon.  That never looks
at the Guile package it is given; to name its default one, though, is to load
hundreds of package modules, most of a second on every run."
  (url-fetch url hash-algo hash name #:system system #:guile #f))
