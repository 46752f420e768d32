#!/bin/bash
# profile.sh [DAEMON] : a profile of hello and its generations through DAEMON (fruixd), by Guix's own procedures; what the
# garbage collector keeps of them, and what it drops.
set -euo pipefail
# shellcheck source=compat-tests/main-job/lib.sh
. "$(dirname "$0")/lib.sh"

if [ -z "${FRUIX_INSIDE:-}" ]; then
  new_stores store
  cd "$checkout"
  daemon=$(daemon_program "${1:-fruixd}")
  on store "$daemon" "$here/profile.sh" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; exit 1; }
  say "${daemon##*/}: generations made, switched, rolled back, deleted and collected"
  exit 0
fi

fruix prepare
profile=$GUIX_STATE_DIRECTORY/profiles/per-user/root/hello
mkdir -p "${profile%/*}"
greets() { [ "$("$profile/bin/hello")" = "Hello, world!" ] || fail "$profile/bin/hello does not greet $1"; }
generation() { readlink "$profile"; }
package() { guix package --bootstrap --profile="$profile" "$@"; }

guix repl -- "$here/profile.scm" "$profile" plain
greets "in the first generation"
[ "$(generation)" = hello-1-link ] || fail "the first generation is $(generation)"
[ ! -e "$profile/note" ] || fail "the first generation has a note"

guix repl -- "$here/profile.scm" "$profile" note
greets "in the second generation"
[ "$(generation)" = hello-2-link ] || fail "the second generation is $(generation)"
[ "$(cat "$profile/note")" = "second generation" ] || fail "the second generation has no note"
[ "$(package --list-generations | grep -c '^Generation')" -eq 2 ] || fail "there are not two generations"

package --switch-generation=1
[ "$(generation)" = hello-1-link ] || fail "switched to generation 1, but $(generation) is current"
greets "after switching to generation 1"
package --switch-generation=+1
[ "$(generation)" = hello-2-link ] || fail "switched to generation 2, but $(generation) is current"
package --roll-back
[ "$(generation)" = hello-1-link ] || fail "rolled back, but $(generation) is current"
greets "after rolling back"

first=$(readlink -f "$profile-1-link") second=$(readlink -f "$profile-2-link")
hello=$(readlink -f "$profile/bin/hello")
note=$(dirname "$(readlink -f "$profile-2-link/note")")
hello=${hello%/bin/hello}

# Both generations are roots, the one that is not current too.
guix gc
for path in "$first" "$second" "$hello" "$note"; do
  [ -e "$path" ] || fail "guix gc dropped $path, which a generation needs"
  guix gc --references "$path" >/dev/null || fail "guix gc keeps $path, but not as valid"
done
[ -e "$NIX_STORE_DIR/$(basename "$(readlink "$GUIX_STATE_DIRECTORY/gcroots/fruix/debian-packages")")" ] ||
  fail "guix gc dropped the packages that gcroots/fruix names"

package --delete-generations=2
guix gc
[ ! -e "$second" ] || fail "guix gc kept $second, a deleted generation"
[ ! -e "$note" ] || fail "guix gc kept $note, which only a deleted generation needs"
greets "after its other generation was collected"
[ "$(guix gc --list-dead | grep -c .)" -eq 0 ] || fail "guix gc left garbage: $(guix gc --list-dead | head -n 3)"
package --list-generations | grep -q 'Generation 1.*(current)' || fail "generation 1 is not current at the end"
fruix daemon stop
