;; What is kept of a build that took too long.
(with-store store
  (options store #:timeout 1 #:keep-failed? #t)
  (attempt (build store (sh store "too-long" "echo half > half; echo half > $out; $bb sleep 60" #:tools? #t)))
  (show-files "/tmp/guix-build-too-long.drv-0"))
