#!/bin/bash
# compare.sh [DAEMON] : the main job on an empty store under guix-daemon and under DAEMON (fruixd), side by side.
#
# Both must end with the same set of store files: names (of derivations too), NAR hashes, sizes, derivers, references, and
# modes, owners and times on the disk.  Prints how long each took.
set -euo pipefail
# shellcheck source=compat-tests/main-job/lib.sh
. "$(dirname "$0")/lib.sh"

new_stores upstream ours
cd "$checkout"
ours=$(daemon_program "${1:-fruixd}")

job() { # STORE DAEMON
  local store=$1 daemon=$2
  seconds on "$store" "$daemon" fruix prepare 2>"$work/$store.log" || { tail -n 40 "$work/$store.log"; fail "$daemon: fruix prepare"; }
  local prepared=$seconds
  seconds on "$store" "$daemon" fruix build -f examples/hello.scm >"$work/$store.out" 2>>"$work/$store.log" ||
    { tail -n 40 "$work/$store.log"; fail "$daemon: fruix build"; }
  local built=$seconds
  seconds on "$store" "$daemon" fruix build -f examples/hello.scm >"$work/$store.again" 2>>"$work/$store.log" || fail "$daemon: second run"
  say "${daemon##*/}: inputs added in $prepared s, built in $built s, second run in $seconds s"
  cmp -s "$work/$store.out" "$work/$store.again" || fail "$daemon: the second run printed something else"
  grep -Eqx '/frx/store/[0-9a-z]{32}-hello-2\.12\.3' "$work/$store.out" || fail "$daemon: standard output is not one store file name"

  on "$store" "$daemon" "$here/look.sh" "$work/$store" || fail "$daemon: looking at the result"
  grep -q "phase .check. succeeded" "$work/$store.build-log" || fail "$daemon: the build log shows no check phase that succeeds"
  grep -Eq '^# PASS: +[1-9]' "$work/$store.build-log" || fail "$daemon: the build log shows no test that passed"
  grep -Eq '^# FAIL: +0$' "$work/$store.build-log" || fail "$daemon: the build log shows a test that failed"
}
job upstream guix-daemon
job ours "$ours"

differs=
for what in out valid files; do
  if ! diff -u "$work/upstream.$what" "$work/ours.$what" >"$work/$what.diff"; then
    say "guix-daemon (-) and ${ours##*/} (+) differ in '$what':"
    head -n 40 "$work/$what.diff" >&2
    differs=yes
  fi
done
# What a builder prints is the same up to durations and the order of make's parallel jobs.
comparable() { sed -E 's/after [0-9.]+ seconds/after N seconds/' "$1" | sort; }
diff <(comparable "$work/upstream.build-log") <(comparable "$work/ours.build-log") >"$work/log.diff" || {
  say "the build logs differ:"
  head -n 20 "$work/log.diff" >&2
  differs=yes
}
[ -z "$differs" ] || fail "the stores differ"
say "the same $(wc -l <"$work/ours.valid") store files ($(grep -c '\.drv ' "$work/ours.valid") derivations), names, hashes, references and all"
