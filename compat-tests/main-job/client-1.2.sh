#!/bin/bash
# client-1.2.sh [DAEMON] : the 1.2.0 client builds hello through DAEMON (fruixd), with the same examples/hello.scm.
#
# What it builds differs from what 1.5.0 builds (their build systems do); both outputs must greet.
set -euo pipefail
# shellcheck source=compat-tests/main-job/lib.sh
. "$(dirname "$0")/lib.sh"

new_stores store
cd "$checkout"
daemon=$(daemon_program "${1:-fruixd}")
./build-aux/provision guix-1.2 >/dev/null

FRUIX_GUIX=1.2 seconds on store "$daemon" fruix build -f examples/hello.scm >"$work/out" 2>"$work/log" ||
  { tail -n 40 "$work/log" >&2; fail "the 1.2.0 client did not build hello"; }
grep -Eqx '/frx/store/[0-9a-z]{32}-hello-2\.12\.3' "$work/out" || fail "standard output is not one store file name"
grep -q 'phase .check. succeeded' "$work/log" || fail "the client showed no check phase that succeeds"
# shellcheck disable=SC2016 # expanded by the inner shell
[ "$(on store "$daemon" bash -c '"$1/bin/hello"' hello "$(cat "$work/out")")" = "Hello, world!" ] || fail "the built hello does not greet"
say "guix 1.2.0 built $(cat "$work/out") through ${daemon##*/} in $seconds s"
