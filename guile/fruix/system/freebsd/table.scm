;; Written by `cargo test -p fruix-freebsd' from the table of fields (freebsd/src/system): change it there.
(define-module (fruix system freebsd table)
  #:export (%parts %packages %builders %builder-version))

(define %parts
  '((operating-system
     (host-name text required #f)
     (base (part freebsd-base) required #f)
     (kernel text (is "kernel") (one-of "kernel" "bootloader" "headers" "toolchain" "openssl" "zlib" "sh" "bash" "libc" "rc-scripts" "userland" "runtime"))
     (bootloader text (is "bootloader") (one-of "kernel" "bootloader" "headers" "toolchain" "openssl" "zlib" "sh" "bash" "libc" "rc-scripts" "userland" "runtime"))
     (base-packages texts (is ("runtime" "userland" "libc" "rc-scripts" "sh" "openssl" "zlib")) (one-of "kernel" "bootloader" "headers" "toolchain" "openssl" "zlib" "sh" "bash" "libc" "rc-scripts" "userland" "runtime"))
     (repository (part pkg-repository) (is #f) #f)
     (init-mode text (is "freebsd-init") (one-of "freebsd-init" "freebsd-init+rc.d-shepherd" "shepherd-pid1"))
     (ready-marker text (is "/var/lib/fruix/ready") #f)
     (time-zone text (is "UTC") #f)
     (motd text (is "") #f)
     (users (parts user) (is ()) #f)
     (groups (parts group) (is ()) #f)
     (file-systems (parts file-system) required #f)
     (services (part services) part #f)
     (loader pairs (is ()) #f)
     (rc-conf pairs (is ()) #f)
     (sysctl pairs (is ()) #f)
     (hosts pairs (is ()) #f)
     (files (parts file) (is ()) #f)
     (image (part image) part #f))
    (freebsd-base
     (name text (is "freebsd") #f)
     (version text required #f)
     (kind text required (one-of "local-tree" "freebsd-sets" "pkgbase" "source"))
     (path text (is #f) #f)
     (manifest text (is "METALOG") #f)
     (sets (parts freebsd-set) (is ()) #f)
     (repository (part pkg-repository) (is #f) #f)
     (source (part freebsd-source) (is #f) #f)
     (build (part freebsd-build) (is #f) #f))
    (freebsd-set
     (url text (is #f) #f)
     (path text (is #f) #f)
     (sha256 text required #f))
    (pkg-repository
     (name text (is "FreeBSD") #f)
     (url text required #f)
     (fingerprints texts (is ()) #f)
     (pubkey text (is #f) #f)
     (packages texts required #f)
     (sha256 text (is #f) #f)
     (locked texts (is ()) #f))
    (freebsd-source
     (name text (is "freebsd") #f)
     (kind text required (one-of "local-tree" "git" "src-txz"))
     (url text (is #f) #f)
     (path text (is #f) #f)
     (ref text (is #f) #f)
     (commit text (is #f) #f)
     (sha256 text (is #f) #f))
    (freebsd-build
     (toolchain text required #f)
     (toolchain-system text (is "x86_64-linux") (one-of "x86_64-linux" "x86_64-freebsd"))
     (kernel-config text (is "GENERIC") #f)
     (kernel-modules texts (is ("all")) #f)
     (options texts (is ()) #f)
     (patches texts (is ()) #f))
    (user
     (name text required #f)
     (uid number required (range 0 4294967294))
     (group text required #f)
     (groups texts (is ()) #f)
     (comment text (is "") #f)
     (home text (is "/nonexistent") #f)
     (shell text (is "/usr/sbin/nologin") #f)
     (password text (is "*") #f)
     (class text (is "") #f)
     (ssh-keys texts (is ()) #f))
    (group
     (name text required #f)
     (gid number required (range 0 4294967294))
     (members texts (is ()) #f))
    (file-system
     (mount-point text required #f)
     (device text required #f)
     (type text required (one-of "ufs" "tmpfs" "devfs" "fdescfs" "procfs" "linprocfs" "linsysfs" "msdosfs" "nullfs" "nfs" "zfs" "cd9660" "swap"))
     (options text (is "rw") #f)
     (pass number (is 0) (range 0 9)))
    (services
     (sshd (part sshd-service) (is #f) #f)
     (dhcp (part dhcp-service) (is #f) #f)
     (ntpd (part ntpd-service) (is #f) #f)
     (syslogd (part syslogd-service) (is #f) #f)
     (cron (part cron-service) (is #f) #f)
     (jails (parts jail) (is ()) #f)
     (shepherd (part shepherd-service) (is #f) #f)
     (fruixd (part fruixd-service) (is #f) #f))
    (sshd-service
     (port number (is 22) (range 1 65535))
     (permit-root-login text (is "prohibit-password") (one-of "yes" "no" "prohibit-password"))
     (password-authentication flag (is #f) #f)
     (allow-users texts (is ()) #f))
    (dhcp-service
     (interfaces texts (is ()) #f)
     (wait flag (is #f) #f))
    (ntpd-service
     (servers texts (is ("0.freebsd.pool.ntp.org" "2.freebsd.pool.ntp.org")) #f)
     (sync-on-start flag (is #t) #f))
    (syslogd-service
     (flags text (is "-ss") #f))
    (cron-service
     (jobs texts (is ()) #f))
    (jail
     (name text required #f)
     (path text required #f)
     (host-name text (is #f) #f)
     (command text (is "/bin/sh /etc/rc") #f)
     (user text (is "root") #f)
     (parameters pairs (is ()) #f))
    (shepherd-service
     (path text required #f)
     (configuration text (is "") #f))
    (fruixd-service
     (program text required #f)
     (client text (is #f) #f)
     (build-users number (is 8) (range 1 200))
     (first-uid number (is 30001) (range 1000 60000))
     (base flag (is #f) #f)
     (flags texts (is ()) #f))
    (file
     (path text required #f)
     (text text required #f)
     (mode text (is "0644") (one-of "0400" "0444" "0500" "0555" "0600" "0640" "0644" "0700" "0750" "0755"))
     (user text (is "root") #f)
     (group text (is "wheel") #f))
    (image
     (capacity text (is "auto") #f)
     (swap text (is "0") #f)
     (esp text (is "64M") #f)
     (firmware text (is "uefi") (one-of "uefi" "uefi+bios"))
     (format text (is "raw") (one-of "raw" "qcow2"))
     (grow flag (is #t) #f))
    (freebsd-cut
     (version text required #f)
     (manifest text required #f)
     (packages (parts package) required #f))
    (package
     (name text required #f)
     (patterns texts required #f))))

;; Each package with the patterns of its paths.
(define %packages
  '(("kernel"
     "boot/kernel"
     "boot/kernel/**"
     "boot/modules"
     "boot/modules/**"
     "usr/lib/debug/boot"
     "usr/lib/debug/boot/**")
    ("bootloader"
     "boot"
     "boot/**")
    ("headers"
     "usr/include"
     "usr/include/**"
     "usr/lib/include")
    ("toolchain"
     "usr/bin/addr2line"
     "usr/bin/ar"
     "usr/bin/as"
     "usr/bin/bmake"
     "usr/bin/byacc"
     "usr/bin/c++"
     "usr/bin/c++filt"
     "usr/bin/c89"
     "usr/bin/c99"
     "usr/bin/cc"
     "usr/bin/clang*"
     "usr/bin/cpp"
     "usr/bin/CC"
     "usr/bin/ctags"
     "usr/bin/elfcopy"
     "usr/bin/elfctl"
     "usr/bin/elfdump"
     "usr/bin/flex"
     "usr/bin/flex++"
     "usr/bin/gcov"
     "usr/bin/gprof"
     "usr/bin/ld"
     "usr/bin/ld.*"
     "usr/bin/lex"
     "usr/bin/lex++"
     "usr/bin/lld*"
     "usr/bin/lldb*"
     "usr/bin/llvm-*"
     "usr/bin/lorder"
     "usr/bin/make"
     "usr/bin/mkdep"
     "usr/bin/nm"
     "usr/bin/objcopy"
     "usr/bin/objdump"
     "usr/bin/ranlib"
     "usr/bin/readelf"
     "usr/bin/size"
     "usr/bin/strings"
     "usr/bin/strip"
     "usr/bin/yacc"
     "usr/lib/*.a"
     "usr/lib/*.o"
     "usr/lib/clang"
     "usr/lib/clang/**"
     "usr/lib/debug"
     "usr/lib/debug/**"
     "usr/lib/lib*.so"
     "usr/libdata/pkgconfig"
     "usr/libdata/pkgconfig/**"
     "usr/share/mk"
     "usr/share/mk/**")
    ("openssl"
     "etc/ssl"
     "etc/ssl/**"
     "lib/libcrypto.so.*"
     "usr/bin/openssl"
     "usr/lib/engines*"
     "usr/lib/engines*/**"
     "usr/lib/libcrypto.so.*"
     "usr/lib/libssl.so.*"
     "usr/lib/ossl-modules"
     "usr/lib/ossl-modules/**"
     "usr/share/certs"
     "usr/share/certs/**")
    ("zlib"
     "lib/libz.so.*"
     "usr/lib/libz.so.*")
    ("sh"
     "bin/sh")
    ("bash"
     "bin/bash"
     "usr/local/bin/bash")
    ("libc"
     "etc/libmap.conf"
     "lib/libc++.so.*"
     "lib/libc.so.*"
     "lib/libcrypt.so.*"
     "lib/libcxxrt.so.*"
     "lib/libgcc_s.so.*"
     "lib/libm.so.*"
     "lib/libmd.so.*"
     "lib/librt.so.*"
     "lib/libssp.so.*"
     "lib/libsys.so.*"
     "lib/libthr.so.*"
     "lib/libutil.so.*"
     "libexec/ld-elf*"
     "usr/lib/i18n"
     "usr/lib/i18n/**"
     "usr/libexec/ld-elf*"
     "usr/share/i18n"
     "usr/share/i18n/**"
     "usr/share/locale"
     "usr/share/locale/**")
    ("rc-scripts"
     "etc/defaults"
     "etc/defaults/**"
     "etc/devd"
     "etc/devd.conf"
     "etc/devd/**"
     "etc/netstart"
     "etc/network.subr"
     "etc/pccard_ether"
     "etc/rc"
     "etc/rc.*"
     "etc/rc.*/**"
     "libexec/debug.sh"
     "libexec/hooks.sh"
     "libexec/resolvconf"
     "libexec/resolvconf/**"
     "libexec/safe_eval.sh")
    ("userland"
     "bin/**"
     "lib/**"
     "libexec/**"
     "rescue/**"
     "sbin/**"
     "usr/bin/**"
     "usr/lib/**"
     "usr/lib32/**"
     "usr/libdata/**"
     "usr/libexec/**"
     "usr/sbin/**"
     "usr/share/**")
    ("runtime"
     "**")))

;; Each builder with the version of what it makes, and the variable that has it.
(define %builders
  '(("builtin:freebsd-base" . "2")
    ("builtin:freebsd-system" . "6")
    ("builtin:freebsd-rootfs" . "4")
    ("builtin:freebsd-image" . "2")
    ("builtin:freebsd-source" . "1")
    ("builtin:freebsd-pkg" . "1")
    ("builtin:freebsd-profile" . "1")
    ("builtin:freebsd-source-part" . "1")))

(define %builder-version "builder-version")
