#!/bin/bash
# machine.sh [--keep] [PART...] : generations on a FreeBSD that runs, in qemu, over its serial console, with nobody at it.
#
# FREEBSD_BASE=DIR is a FreeBSD as installed with -DNO_ROOT (kernel, loader, base).  FREEBSD_KERNEL=FILE is another kernel for the second system; without it
# a copy of the first with another number in its version.  Programs for FreeBSD are those of build-aux/cross-freebsd (--release).
# The parts, all of them when none is named; each starts from the disk that `prepare' leaves:
#   prepare      an image with fruixd, booted; the machine's own fruixd builds the second system and those that cannot boot
#   generations  deploy, start again, roll back, start again; the loader's choice; collecting garbage
#   fallback     systems that cannot boot are left without a hand
#   cuts         the machine is killed at CUTS (30) random moments of a deployment, then boots, is ready, and deploys
#   reconfigure  the machine builds its next system and starts it
# FRUIX_MACHINE=DIR keeps and takes what was made there.  SEED=N repeats the moments.  Needs root.  Takes an hour and more where qemu emulates.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=${here%/*/*}
say() { printf 'machine: %s\n' "$*" >&2; }
if [ "${1:-}" = --inside ]; then
  # shellcheck source=compat-tests/systems/namespace.sh
  OUT=$WORK . "$here/namespace.sh"
  start_daemon "$WORK/log" || { say "fruixd does not start"; exit 1; }
  env -i "${environment[@]}" "$WORK/bin/fruix" system image -q -o "$WORK/one.img" "$WORK/one.toml" >"$WORK/made" 2>>"$WORK/log"
  kill "$daemon"
  wait "$daemon" 2>/dev/null || true
  exit 0
fi
[ "$(id -u)" -eq 0 ] || { say "needs root, to start daemons with build users"; exit 1; }
[ -d "${FREEBSD_BASE:-}" ] || { say "FREEBSD_BASE=DIR names no installed FreeBSD"; exit 1; }
keep=""
[ "${1:-}" != --keep ] || { keep=yes; shift; }
"$checkout/build-aux/install-packages" qemu-system-x86 qemu-utils ovmf python3
programs=$checkout/target/cross-freebsd/x86_64-unknown-freebsd/release
if [ -z "${FRUIX_SYSTEMS_NO_BUILD:-}" ]; then
  "$checkout/build-aux/provision" fruixd
  "$checkout/build-aux/cross-freebsd" build --release -p fruixd --bins
fi
work=${FRUIX_MACHINE:-}
if [ -n "$work" ]; then
  keep=yes
  mkdir -p "$work"
else
  work=$(mktemp -d "${FRUIX_TEST_STORES:-/var/tmp}/fruix-machine.XXXXXX")
fi
chmod 755 "$work"
clean_up() {
  local status=$?
  if [ -n "$keep" ]; then say "kept in $work"; else rm -rf "$work"; fi
  exit "$status"
}
trap clean_up EXIT

if [ ! -e "$work/one.img" ]; then
  mkdir -p "$work/bin" "$work/frx" "$work/t" /frx
  install "$(readlink -f "${FRUIXD:-$checkout/target/fruixd}")" "$work/bin/fruixd"
  install "$(readlink -f "${FRUIX:-$checkout/target/fruix}")" "$work/bin/fruix"
  # What debuggers want is most of them, and is not wanted here.
  for program in fruixd fruix; do strip -o "$work/t/$program" "$programs/$program"; done
  # What all systems have, but for the root's device.
  common() {
    cat <<END
host-name = "$1"
[base]
version = "$2"
kind = "local-tree"
path = "$3"
[image]
capacity = "2G"
grow = false
[services.fruixd]
program = "${4:-/t/}fruixd"
client = "${4:-/t/}fruix"
build-users = 2
flags = ["--no-substitutes"]
[loader]
"fruix.trial_seconds" = ${5:-600}
[rc-conf]
devd_enable = "NO"
END
  }
  root() { printf '[[file-systems]]\nmount-point = "/"\ndevice = "%s"\ntype = "ufs"\n' "$1"; }
  { common one 15.1-ONE "$FREEBSD_BASE" "$work/t/"; root /dev/gpt/rootfs; } >"$work/one.toml"
  { common two 15.1-TWO two; root /dev/gpt/rootfs; printf '[[files]]\npath = "/usr/local/etc/two"\ntext = "two\\n"\n'; } >"$work/t/two.toml"
  { common three 15.1-TWO two; root /dev/gpt/rootfs; printf '[[files]]\npath = "/usr/local/etc/three"\ntext = "three\\n"\n'; } >"$work/t/three.toml"
  { common fstab 15.1-TWO two "" 60; root /dev/gpt/nowhere; } >"$work/t/fstab.toml"
  {
    common hangs 15.1-TWO two "" 60
    root /dev/gpt/rootfs
    printf '[[files]]\npath = "/usr/local/etc/rc.d/hangs"\nmode = "0755"\ntext = "#!/bin/sh\\n# PROVIDE: hangs\\n# BEFORE: LOGIN\\nsleep 100000\\n"\n'
  } >"$work/t/hangs.toml"
  unshare --mount --pid --fork --kill-child --mount-proc --propagation private env WORK="$work" "$here/machine.sh" --inside </dev/null ||
    { tail -n 30 "$work/log"; say "FAILED: no image"; exit 1; }
  # For the machine's second disk, as a tar: the second base has another kernel.
  cp -al "$FREEBSD_BASE" "$work/t/two" 2>/dev/null || cp -a "$FREEBSD_BASE" "$work/t/two"
  rm -f "$work/t/two/boot/kernel/kernel"
  if [ -n "${FREEBSD_KERNEL:-}" ]; then
    cp "$FREEBSD_KERNEL" "$work/t/two/boot/kernel/kernel"
  else
    sed 's/\(FreeBSD [0-9.]*-[A-Za-z0-9-]* \)#[0-9] /\1#2 /' "$FREEBSD_BASE/boot/kernel/kernel" >"$work/t/two/boot/kernel/kernel"
  fi
  tar --numeric-owner --owner=0 --group=0 -cf "$work/t.tar" -C "$work" t
  rm -rf "$work/t/two"
fi
python3 "$here/machine.py" "$work" "$@"
