#!/bin/bash
# native.sh [--keep] : FreeBSD built from FREEBSD_SOURCE=DIR by derivations, with times.  Takes an hour or so; `native-plan.sh' is what `make check' has
# room for.
#
# What is shown:
#   - tools, kernel, boot programs and runtime are built from the source in the ordinary sandbox by a toolchain from Debian's packages;
#   - a changed line below bin/ls changes the path of the runtime alone, one in the kernel that of the kernel alone;
#   - what NATIVE_CHECK names (kernel and loader, or `none') is built twice, with the same bytes;
#   - with NATIVE_BOOT=yes an image of all that boots to its ready marker.
# NATIVE_ONLY builds only what it names (tools, kernel, loader, runtime).  NATIVE_STORE=DIR keeps store and toolchain there.  FREEBSD_TOOLCHAIN=DIR is
# taken where it is there.  FRUIX_SYSTEMS_NO_BUILD takes the programs that are there (FRUIXD, FRUIX).  Needs root, for a daemon with build users.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=${here%/*/*}

fail() {
  echo "native: FAILED: $*" >&2
  tail -n 25 "$OUT/log" >&2 2>/dev/null || true
  exit 1
}

outside() {
  local keep=${1:-} status=0
  [ "$(id -u)" -eq 0 ] || { echo "native: needs root, to start a daemon with build users" >&2; exit 1; }
  [ -f "${FREEBSD_SOURCE:-}/Makefile.inc1" ] || { echo "native: FREEBSD_SOURCE=DIR must name FreeBSD's source" >&2; exit 1; }
  [ -n "${FRUIX_SYSTEMS_NO_BUILD:-}" ] || "$checkout/build-aux/provision" fruixd
  if [ -n "${NATIVE_STORE:-}" ]; then
    WORK=$NATIVE_STORE keep=--keep
    mkdir -p "$WORK"
  else
    WORK=$(mktemp -d "${FRUIX_TEST_STORES:-/var/tmp}/fruix-native.XXXXXX")
  fi
  chmod 755 "$WORK"
  export WORK OUT=$WORK/out FREEBSD_SOURCE
  export FREEBSD_TOOLCHAIN=${FREEBSD_TOOLCHAIN:-$WORK/toolchain}
  "$checkout/build-aux/make-freebsd-toolchain" "$FREEBSD_TOOLCHAIN"
  mkdir -p "$WORK/bin" "$OUT/frx" /frx
  install "$(readlink -f "${FRUIXD:-$checkout/target/fruixd}")" "$WORK/bin/fruixd"
  install "$(readlink -f "${FRUIX:-$checkout/target/fruix}")" "$WORK/bin/fruix"
  unshare --mount --pid --fork --kill-child --mount-proc --propagation private "$here/native.sh" inside </dev/null || status=$?
  if [ "$keep" = --keep ]; then echo "native: kept in $WORK" >&2; else rm -rf "$WORK"; fi
  exit "$status"
}
[ "${1:-}" = inside ] || outside "$@"

# shellcheck source=compat-tests/systems/namespace.sh
. "$here/namespace.sh"
cd "$WORK"
: >"$OUT/log"
fruix=(env -i "${environment[@]}" "$WORK/bin/fruix" system)
value() { sed -n "s/^$1=//p" "$OUT/said"; }
run() { "${fruix[@]}" "$@" >"$OUT/said" 2>>"$OUT/log" || fail "fruix system $*"; }
# timed WHAT COMMAND... : runs it and says how long it took
timed() {
  local what=$1 begun=$SECONDS
  shift
  "$@"
  echo "native: $what: $((SECONDS - begun)) s, load $(cut -d' ' -f1-3 /proc/loadavg)"
}

mkdir -p files/native
cp "$checkout/examples/native/SMALL" files/native/
# A snapshot that lacks this file cannot build the library, which nothing of so small a system uses.
patches=""
if [ ! -e "$FREEBSD_SOURCE/contrib/sqlite3/sqlite3.c" ]; then
  mkdir -p a/lib b/lib
  cp "$FREEBSD_SOURCE/lib/Makefile" a/lib/Makefile
  grep -v '^[[:space:]]*libsqlite3 \\$' a/lib/Makefile >b/lib/Makefile
  diff -u a/lib/Makefile b/lib/Makefile >files/no-sqlite.patch || true
  patches='"no-sqlite.patch"'
fi
# system FILE PATCH... : a system file that changes the source so, too
system() {
  local file=$1 list=$patches patch
  shift
  for patch; do list+=${list:+, }\"$patch\"; done
  sed -e "s|^path = .*|path = \"$FREEBSD_SOURCE\"|; s|^toolchain = .*|toolchain = \"$FREEBSD_TOOLCHAIN\"|" -e "s|^kernel-modules = .*|&\npatches = [$list]|" \
    "$checkout/examples/native.toml" >"files/$file"
}
# changed PATH FILE : a patch that changes a comment's first line of a file of the source
changed() {
  mkdir -p "a/${1%/*}" "b/${1%/*}"
  cp "$FREEBSD_SOURCE/$1" "a/$1"
  { cat "$FREEBSD_SOURCE/$1"; echo "/* another line */"; } >"b/$1"
  diff -u "a/$1" "b/$1" >"files/$2" || true
}
system os.toml
changed bin/ls/util.c ls.patch
changed sys/kern/kern_environment.c kern.patch
system ls.toml ls.patch
system kern.toml kern.patch

start_daemon "$OUT/log" || fail "fruixd does not start"
builds="tools kernel loader runtime"
timed "source and its parts" run base --only tools --dry-run files/os.toml
cp "$OUT/said" "$OUT/plan"
for build in ${NATIVE_ONLY:-$builds}; do
  timed "$build" run base --only "$build" files/os.toml
  key=$build
  [ "$build" != loader ] || key=bootloader
  out=$(value "native_${key}_store")
  [ -s "$out/.freebsd-native-build-info.scm" ] || fail "$build made nothing"
  echo "native: $build: $out, $(du -sm "$out" | cut -f1) MiB"
done
for build in ${NATIVE_CHECK:-kernel loader}; do
  [ "$build" = none ] || timed "$build, again, the same bytes" run base --check --only "$build" files/os.toml
done

# What depends on a line, and what does not.
for change in ls:runtime kern:kernel; do
  timed "paths with ${change%:*}.patch" run base --dry-run "files/${change%:*}.toml"
  for key in tools kernel bootloader runtime; do
    before=$(sed -n "s/^native_${key}_store=//p" "$OUT/plan")
    case ${change#*:} in
      "$key") [ "$(value "native_${key}_store")" != "$before" ] || fail "${change%:*}.patch does not change $key" ;;
      *) [ "$(value "native_${key}_store")" = "$before" ] || fail "${change%:*}.patch changes $key" ;;
    esac
  done
done

if [ "${NATIVE_BOOT:-}" = yes ]; then
  timed "image" run image files/os.toml
  timed "boot to the ready marker" run boot files/os.toml
fi
echo "native: all passed"
