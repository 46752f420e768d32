#!/bin/bash
# run.sh [run|replay|accept|show] [ARGUMENT...] : random sequences of operations against guix-daemon 1.5.0 and fruixd.
#
#   run.sh                          every kept case, then an hour of new sequences from a new seed (--time=SECONDS, --seed=N)
#   run.sh run --seed=N ...         sequences alone
#   run.sh replay [FILE...]         kept cases alone (`cases/'), each as its .diff expects; --all prints what both did
#   run.sh accept FILE...           writes the .diff: for what docs/differences.md explains
#   run.sh show --seed=N            prints the case of a seed
#
# A disagreement is made smaller and written to a file below RANDOM_FOUND (/tmp/random-diff), which `replay' takes.
set -euo pipefail
shopt -s nullglob
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=${here%/*/*}
export FRUIX_CACHE=${FRUIX_CACHE:-/var/cache/fruix}
say() { printf 'random: %s\n' "$*" >&2; }
[ "$(id -u)" -eq 0 ] || { say "needs root, to start daemons with build users"; exit 1; }
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
if [ -z "${FRUIX_DIFF_NO_BUILD:-}" ]; then
  "$checkout/build-aux/provision" all
  cargo build --quiet --locked --release --manifest-path "$checkout/Cargo.toml" -p fruix-compat-tests --bin store-dump --bin random-diff
fi
ROOT=$("$checkout/build-aux/provision" frontend)
packages=$("$checkout/build-aux/provision" packages)
export ROOT CHECKOUT=$checkout BUSYBOX=$packages/usr/bin/busybox
work=$(mktemp -d "${FRUIX_TEST_STORES:-/var/tmp}/fruix-random.XXXXXX")
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
mkdir -p /frx
# Copies: cargo may write the next ones while these run.
install "$(readlink -f "${FRUIXD:-$checkout/target/fruixd}")" "$work/fruixd"
install "$checkout/target/release/store-dump" "$checkout/target/release/random-diff" "$work"
export FRUIXD=$work/fruixd DUMP=$work/store-dump SELF=$work/random-diff
found=${RANDOM_FOUND:-/tmp/random-diff}

case ${1:-} in
  show | accept) "$work/random-diff" "$@" ;;
  replay)
    shift
    [ $# -gt 0 ] || set -- "$here"/cases/*.case
    "$work/random-diff" replay "$@"
    ;;
  run)
    shift
    mkdir -p "$found"
    "$work/random-diff" run --found="$found" "$@"
    ;;
  *)
    mkdir -p "$found"
    "$work/random-diff" replay "$here"/cases/*.case
    "$work/random-diff" run --found="$found" --seed="$(date +%s)000" --time=3600 "$@"
    ;;
esac
