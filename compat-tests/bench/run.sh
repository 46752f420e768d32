#!/bin/bash
# run.sh [--turns=N] [--only=B2,...] [--quick] [--no-trace] : guix-daemon 1.5.0 and fruixd on the same work, side by side.
#
# Each has a store of its own, on one file system (ext4 in a file, if it can be mounted), below FRUIX_BENCH_STORES (/var/tmp); at most
# 24 GB.  docs/performance.md says what is measured and how.  The tables go to standard output and to target/bench.md.
#   FRUIXD=FILE          another fruixd than target/fruixd
#   FRUIXD_FLAGS=...     further flags for it
#   FRUIXD_ALSO=...      flags of the third side, a fruixd that takes part in what adds: --sync-additions; empty for none
#   FRUIXD_OTHER=FILE    a second fruixd that is another program, such as one with another C library
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=${here%/*/*}
FRUIX_CACHE=${FRUIX_CACHE:-/var/cache/fruix}
say() { printf 'bench: %s\n' "$*" >&2; }
[ "$(id -u)" -eq 0 ] || { say "needs root, to start the daemons"; exit 1; }

if [ -z "${FRUIX_BENCH_NO_BUILD:-}" ]; then
  "$checkout/build-aux/provision" all
  export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
  cargo build --quiet --locked --release --manifest-path "$checkout/Cargo.toml" -p fruix-compat-tests --bin bench
fi
root=$("$checkout/build-aux/provision" frontend)

# Two at once would measure each other.
exec 8>"$FRUIX_CACHE/bench.lock"
flock -n 8 || { say "waiting for another run on this machine"; flock 8; }

work=$(mktemp -d "${FRUIX_BENCH_STORES:-/var/tmp}/fruix-bench.XXXXXX")
inside=
clean_up() {
  local status=$?
  # The namespace's processes end with it.
  [ -z "$inside" ] || kill -KILL "$inside" 2>/dev/null || true
  [ -z "$inside" ] || wait "$inside" 2>/dev/null || true
  rm -rf "$work"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
mkdir -p /frx "$work/stores"
# A file system of its own where that can be had: on ext4 it costs to create files where others have removed some in the last minutes.
"$checkout/build-aux/install-packages" e2fsprogs mount
truncate -s 24G "$work/image"
mkfs.ext4 -q -F -N 1500000 -E lazy_itable_init=0,lazy_journal_init=0 "$work/image"
# Copies: cargo may write the next ones while these run.
install "$(readlink -f "${FRUIXD:-$checkout/target/fruixd}")" "$work/fruixd"
install "${FRUIX_BENCH:-$checkout/target/release/bench}" "$work/bench"
sides=(--side "guix-daemon=$checkout/build-aux/enter-root $root guix-daemon"
  --side "fruixd${FRUIXD_FLAGS:+ $FRUIXD_FLAGS}=$work/fruixd ${FRUIXD_FLAGS:-}")
also=${FRUIXD_ALSO---sync-additions}
[ -z "$also" ] || sides+=(--adding-side "fruixd $also=$work/fruixd ${FRUIXD_FLAGS:-} $also")
if [ -n "${FRUIXD_OTHER:-}" ]; then
  install "$FRUIXD_OTHER" "$work/other"
  sides+=(--side "other fruixd=$work/other ${FRUIXD_FLAGS:-}")
fi

{
  echo
  echo "$(date -u +%F), $(nproc) × $(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1), $(($(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo) / 1048576)) GiB," \
    "Linux $(uname -r), $(stat -f -c %T "$work"), load before it began $(cut -d' ' -f1 /proc/loadavg), fruixd of $(git -C "$checkout" rev-parse --short HEAD 2>/dev/null || echo "no commit")"
} | tee "$work/head"
# In mount and process namespaces of its own, so that nothing stays behind; both stores have names of the same length.
# shellcheck disable=SC2016 # expanded by the inner shell
unshare --mount --pid --fork --kill-child --mount-proc --propagation private /bin/bash -c '
  work=$1; shift
  mount -o loop,noatime "$work/image" /frx 2>/dev/null || mount --bind "$work/stores" /frx || exit
  ulimit -n 16384 || exit
  # No exec: the namespace needs a first process that reaps what guix-daemon leaves.
  "$work/bench" --root=/frx --out="$work/tables" "$@"
  exit' bench "$work" "${sides[@]}" "$@" </dev/null 8>&- &
inside=$!
wait "$inside"
inside=
cat "$work/head" "$work/tables" >"$checkout/target/bench.md"
