#!/bin/bash
# run.sh [--short] [--keep] [--jobs=N] [NAME...] : what a daemon must endure, each scenario with a store, users and processes of its own.
#
#   takeover      a store filled by guix-daemon 1.5.0 and taken over by fruixd, and back, five times
#   many-clients  50 clients at once that ask for overlapping derivations, and others that go in the middle
#   gc-soak       8 clients that add and build while garbage is collected without pause, for 10 minutes
#   hostile       clients that mean harm, while others want to be served
#
# --short does less of each, all of them in some two minutes (part of `make check').  Prints one line of figures for each
# scenario; fails with a line that says why.  --keep keeps stores and logs.  SCENARIO_SEED varies what is random.
# FRUIX_SCENARIOS_NO_BUILD takes the programs that are there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=${here%/*/*}
say() { printf 'scenarios: %s\n' "$*" >&2; }
[ "$(id -u)" -eq 0 ] || { say "needs root, to start daemons with build users"; exit 1; }

short="" keep="" jobs=2 names=()
for argument in "$@"; do
  case $argument in
    --short) short=yes ;;
    --keep) keep=yes ;;
    --jobs=*) jobs=${argument#*=} ;;
    takeover | many-clients | gc-soak | hostile) names+=("$argument") ;;
    *) say "unknown scenario or option $argument"; exit 64 ;;
  esac
done
# The longest first.
[ ${#names[@]} -gt 0 ] || names=(hostile takeover gc-soak many-clients)

[ -n "${FRUIX_SCENARIOS_NO_BUILD:-}" ] || "$checkout/build-aux/provision" all
root=$("$checkout/build-aux/provision" frontend)
packages=$("$checkout/build-aux/provision" packages)
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
[ -n "${FRUIX_SCENARIOS_NO_BUILD:-}" ] ||
  cargo build --quiet --locked --release --manifest-path "$checkout/Cargo.toml" -p fruix-compat-tests --bin store-dump --bin scenario

work=$(mktemp -d "${FRUIX_TEST_STORES:-/var/tmp}/fruix-scenarios.XXXXXX")
chmod 755 "$work"
clean_up() {
  local status=$?
  if [ -n "$keep" ]; then say "kept in $work"; else rm -rf "$work"; fi
  exit "$status"
}
trap clean_up EXIT
# Copies: cargo may write the next ones while these run.
mkdir "$work/bin"
install "$(readlink -f "${FRUIXD:-$checkout/target/fruixd}")" "$work/bin/fruixd"
install "${CARGO_TARGET_DIR:-$checkout/target}"/release/{store-dump,scenario} "$work/bin"

failed=()
one() { # NAME
  local start=$SECONDS status=0
  mkdir -p "$work/$1/frx" /frx
  NAME=$1 SHORT=$short ROOT=$root PACKAGES=$packages OUT=$work/$1 BIN=$work/bin CHECKOUT=$checkout \
    unshare --mount --pid --fork --kill-child --mount-proc --propagation private \
    "$here/inside.sh" </dev/null >"$work/$1/output" 2>"$work/$1/errors" || status=$?
  echo "$status" >"$work/$1/status"
  say "$1 ($((SECONDS - start)) s)"
  if [ "$status" -eq 0 ]; then
    cat "$work/$1/output"
  else
    tail -n 30 "$work/$1/output"
    tail -n 10 "$work/$1/errors" "$work/$1/daemon.log" 2>/dev/null || true
    echo "$1: FAILED with status $status"
  fi
}
for name in "${names[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
  (trap - EXIT; one "$name") &
done
wait
for name in "${names[@]}"; do
  [ "$(cat "$work/$name/status" 2>/dev/null)" = 0 ] || failed+=("$name")
done
say "${#names[@]} scenarios in $SECONDS s, ${#failed[@]} failed${failed[*]:+: ${failed[*]}}"
[ ${#failed[@]} -eq 0 ]
