;; Not recorded: puts into the store what is too large for a transcript, and a closure for the commands to look at.
(use-modules (guix store) (guix derivations))

(define (write-word file word)
  (call-with-output-file file (lambda (port) (display word port))))

(with-store store
  (let ((shell (add-to-store store "bash-static" #t "sha256" "/usr/bin/bash-static")))
    (write-word "/frx/shell" shell)
    (load "/frx/scripts/common.scm")
    (let* ((drv (shell-derivation store "item" (string-append "echo " shell " > $out")))
           (out (derivation->output-path drv)))
      (build-derivations store (list drv))
      (write-word "/frx/item" out)
      (mkdir "/frx/roots")
      (symlink out "/frx/roots/item")
      (add-indirect-root store "/frx/roots/item"))
    (write-word "/frx/dead" (add-text-to-store store "dead" "nobody needs this"))))
