#!/bin/bash
# boot.sh [--keep] : a system from its file to a machine that boots it, without a FreeBSD.
#
# The base is synthetic: files of the right names, and in the place of FreeBSD's loader a GRUB for EFI whose own readers of GPT, FAT and UFS2 find the
# kernel and print files of the image to the serial console, among them the ready marker.  What is shown:
#   - firmware (OVMF) under qemu starts the loader from the image's ESP, and that finds the root file system and what is in it, over its links;
#   - the same file elsewhere, with another store's history and another user, gives the same image; Scheme gives the same derivations
#     (where the root of Guix 1.5.0 is provisioned);
#   - two versions of a base, and their systems, live in one store;
#   - without the GPT, the ESP or the superblock the same harness fails;
#   - a wrong file is refused with its line, status 1, before anything is written; so is a service that the base has no program for, of sets when
#     they are unpacked.
# With FREEBSD_BASE=DIR (kernel, loader and base, as installed with -DNO_ROOT) the real one is booted, too.
# FRUIX_SYSTEMS_NO_BUILD takes the programs that are there (FRUIXD, FRUIX).  Needs root, for a daemon with build users.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=${here%/*/*}
say() { printf 'systems: %s\n' "$*" >&2; }
[ "$(id -u)" -eq 0 ] || { say "needs root, to start daemons with build users"; exit 1; }
keep=""
[ "${1:-}" != --keep ] || keep=yes

"$checkout/build-aux/install-packages" qemu-system-x86 ovmf grub-efi-amd64-bin grub-common
[ -n "${FRUIX_SYSTEMS_NO_BUILD:-}" ] || "$checkout/build-aux/provision" fruixd
guix=${FRUIX_CACHE:-/var/cache/fruix}/roots/guix-1.5.0
[ -d "$guix" ] || guix=""

work=$(mktemp -d "${FRUIX_TEST_STORES:-/var/tmp}/fruix-systems.XXXXXX")
chmod 755 "$work"
clean_up() {
  local status=$?
  if [ -n "$keep" ]; then say "kept in $work"; else rm -rf "$work"; fi
  exit "$status"
}
trap clean_up EXIT
mkdir "$work/bin" "$work/one" "$work/two"
install "$(readlink -f "${FRUIXD:-$checkout/target/fruixd}")" "$work/bin/fruixd"
install "$(readlink -f "${FRUIX:-$checkout/target/fruix}")" "$work/bin/fruix"

# A base of the right shapes.
base=$work/base
mkdir -p "$base"/{bin,sbin,lib,boot/kernel,boot/lua,etc/rc.d,etc/defaults,usr/bin,usr/sbin,usr/lib,usr/share/misc,var/db,var/log,tmp,root}
echo 'fruix stand-in kernel' >"$base/boot/kernel/kernel"
echo '-- lua' >"$base/boot/lua/loader.lua"
programs=("$base"/{bin/sh,sbin/init,sbin/growfs,usr/sbin/sshd,etc/rc,etc/rc.d/growfs,etc/rc.d/sshd})
echo '#!/bin/sh' | tee "${programs[@]}" >/dev/null
chmod 755 "${programs[@]}"
echo su >"$base/usr/bin/su"
head -c 3000000 /dev/zero | tr '\0' x >"$base/usr/share/misc/large"
ln -s ../usr/share/misc/termcap "$base/etc/termcap"
cat >"$base/METALOG" <<'END'
#mtree 2.0
./usr/bin/su type=file uid=0 gid=0 mode=04555
./tmp type=dir uid=0 gid=0 mode=01777
END
# GRUB 2.06 loses the last character of a link's target, so the store is looked into directly.
cat >"$work/grub.cfg" <<'END'
insmod regexp
search --file --set=root /etc/stand-in
for file in /frx/store/*-kernel/boot/kernel/kernel /frx/store/*-fruix-system-*/etc/rc.conf /frx/store/*-fruix-system-*/metadata/freebsd-base.scm /etc/stand-in; do
  cat "$file"
done
halt
END
modules="part_gpt ufs2 fat search search_fs_file cat halt normal regexp"
grub-mkstandalone -O x86_64-efi -o "$base/boot/loader.efi" --install-modules="$modules" --modules="$modules" --locales= --fonts= --themes= \
  "boot/grub/grub.cfg=$work/grub.cfg"
cat >"$work/system.toml" <<'END'
host-name = "stand-in"
motd = "a motd\nwith \"quotes\""
[base]
version = "0.1"
kind = "local-tree"
path = "base"
[[file-systems]]
mount-point = "/"
device = "/dev/gpt/rootfs"
type = "ufs"
[services.sshd]
port = 2222
[rc-conf]
zero = "0"
a_first = true
[[users]]
name = "anna"
uid = 1001
group = "staff"
home = "/home/anna"
[[files]]
path = "/etc/stand-in"
text = "fruix: system is ready: /var/lib/fruix/ready\nlogin:\n"
END
cat >"$work/system.scm" <<'END'
(use-modules (fruix system freebsd))
(freebsd-image
 (operating-system
  (host-name "stand-in")
  (motd "a motd\nwith \"quotes\"")
  (base (freebsd-base (version "0.1") (kind "local-tree") (path "base")))
  (file-systems (list (file-system (mount-point "/") (device "/dev/gpt/rootfs") (type "ufs"))))
  (services (services (sshd (sshd-service (port 2222)))))
  (rc-conf '(("zero" . "0") ("a_first" . "YES")))
  (users (list (user (name "anna") (uid 1001) (group "staff") (home "/home/anna"))))
  (files (list (file (path "/etc/stand-in")
                     (text "fruix: system is ready: /var/lib/fruix/ready\nlogin:\n"))))))
END
# Of the sets of a release only their builder knows what is in them: one that lacks what a service needs.
tar -cf "$work/base.tar" -C "$base" --exclude=./usr/sbin/sshd --exclude=./METALOG .
mkdir "$work/elsewhere"
cp -r "$base" "$work/elsewhere/base"
cp "$work/system.toml" "$work/elsewhere/other.toml"
chmod -R go+rX "$work"

start=$SECONDS
for place in one two; do
  # A store of its own for each, with users and processes that end with it.
  mkdir -p "$work/$place/frx" /frx
  PLACE=$place WORK=$work CHECKOUT=$checkout GUIX=$guix \
    unshare --mount --pid --fork --kill-child --mount-proc --propagation private "$here/inside.sh" </dev/null ||
    { tail -n 30 "$work/$place/log" "$work/$place/console" 2>/dev/null || true; say "FAILED ($place)"; exit 1; }
done
cmp "$work/one/sha256" "$work/two/sha256" || { say "FAILED: two places, two images"; exit 1; }
echo "systems: one image in two places, booted, three damaged ones not, in $((SECONDS - start)) s"
