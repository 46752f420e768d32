#!/bin/bash
# look.sh PREFIX : write what can be seen of the main job's result into PREFIX.build-log, PREFIX.valid and PREFIX.files.
# PREFIX.out holds what `fruix build' printed.  Run by compare.sh inside `on'; stops the daemon at the end.
set -euo pipefail
# shellcheck source=compat-tests/main-job/lib.sh
. "$(dirname "$0")/lib.sh"
prefix=$1
output=$(cat "$prefix.out")

[ "$("$output/bin/hello")" = "Hello, world!" ] || fail "$output/bin/hello does not greet"

# As the client finds it, from the output's deriver.
zcat "$(guix build --log-file "$output")" >"$prefix.build-log"
guix repl -- "$here/dump-store.scm" >"$prefix.valid"

# Every hash in the database against the files, by the daemon itself and by the client's own implementation.
guix gc --verify=contents >"$prefix.verify" 2>&1 || { cat "$prefix.verify" >&2; fail "guix gc --verify=contents"; }
[ "$(guix hash --serializer=nar --format=hex "$output")" = "$(sed -n "s|^$output sha256:\([0-9a-f]*\) .*|\1|p" "$prefix.valid")" ] ||
  fail "the hash of $output in the database is not that of its archive"
fruix daemon stop 2>>"$prefix.log"

# The disk itself, as the daemon leaves it.  The links directory is left out: which of several equal files becomes the shared one is nobody's promise.
cd "$NIX_STORE_DIR"
{
  find . -maxdepth 0 -printf '%p %y %m %U:%G\n'
  find . -mindepth 1 -path ./.links -prune -o -printf '%p %y %m %U:%G %T@ %l\n' | sort
} >"$prefix.files"
