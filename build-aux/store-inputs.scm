;; store-inputs.scm TREE TARBALL : add what examples/hello.scm is built from to the store, and keep it from the garbage
;; collector by links in GCROOTS/fruix.  Run by `fruix prepare', through `guix repl'.

(use-modules (guix store)
             ((guix config) #:select (%state-directory))
             ((guix build utils) #:select (mkdir-p))
             (ice-9 match))

(define %roots
  (string-append %state-directory "/gcroots/fruix"))

(define (root! name item)
  ;; Made under another name first: a reader finds the old link or the new one.
  (let* ((link (string-append %roots "/" name))
         (new  (string-append link ".new")))
    (mkdir-p %roots)
    (when (false-if-exception (lstat new))
      (delete-file new))
    (symlink item new)
    (rename-file new link)))

(match (cdr (command-line))
  ((tree tarball)
   (with-store store
     ;; The name of the item and the way it is added make its store file name; that of the tarball is its origin's.
     (root! "debian-packages"
            (add-to-store store "debian-packages" #t "sha256" tree))
     (root! (basename tarball)
            (add-to-store store (basename tarball) #f "sha256" tarball)))))
