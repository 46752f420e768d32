;; The programs that build FreeBSD on Linux, as an item of the store, for `toolchain' of [base.build] in a system file:
;;
;;   build-aux/make-freebsd-toolchain /var/tmp/freebsd-toolchain
;;   FREEBSD_TOOLCHAIN=/var/tmp/freebsd-toolchain ./pre-inst-env fruix build -f examples/freebsd-toolchain.scm
;;
;; They are Debian's packages, unpacked.  Nothing is relocated: a builder that names the item in its variable `builderRoot' sees its bin, lib and usr
;; where such programs expect them.  A system file may name the directory itself, too; it becomes the same item.

(use-modules (guix gexp))

(local-file (or (getenv "FREEBSD_TOOLCHAIN")
                (error "FREEBSD_TOOLCHAIN is not set: name the directory that build-aux/make-freebsd-toolchain made"))
            "freebsd-toolchain"
            #:recursive? #t)
