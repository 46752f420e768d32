#!/bin/bash
# peek.sh [DAEMON] : what a builder can see and do under guix-daemon and under DAEMON (fruixd) must be the same.
#
# See compat-tests/peek.  Prints the report's size, or where the two differ.
set -euo pipefail
# shellcheck source=compat-tests/main-job/lib.sh
. "$(dirname "$0")/lib.sh"

getent group "$FRUIX_BUILD_GROUP" >/dev/null || "$checkout/pre-inst-env" "$checkout/build-aux/daemon" users
new_stores none # the peek brings a file system of its own
program=$(daemon_program "${1:-fruixd}")
root=$("$checkout/build-aux/provision" frontend)

for kind in ordinary fixed; do
  for side in upstream ours; do
    daemon=guix-daemon
    [ "$side" = upstream ] || daemon=$program
    PEEK_LOG=$work/$kind.$side.log unshare --mount --pid --fork --kill-child --mount-proc \
      "$checkout/build-aux/enter-root" "$root" "$checkout/compat-tests/peek/peek-run.sh" "$kind" \
      "$daemon" --build-users-group="$FRUIX_BUILD_GROUP" >"$work/$kind.$side" 2>"$work/$kind.$side.error" ||
      { tail -n 20 "$work/$kind.$side.error" "$work/$kind.$side.log" >&2; fail "the peek ($kind) under $daemon"; }
  done
  [ "$(wc -l <"$work/$kind.ours")" -gt 50 ] || fail "the report ($kind) is too short to be one"
  diff -u "$work/$kind.upstream" "$work/$kind.ours" >&2 || fail "a builder ($kind) sees other things than under guix-daemon"
  say "$kind derivation: the same report of $(wc -l <"$work/$kind.ours") lines"
done
