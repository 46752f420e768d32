#!/bin/bash
# memory.sh [DAEMON] : how much memory the daemon takes to add a file of 4 GiB and a tree of 100,000 files.
#
# Fails when the process that serves was ever larger than 64 MiB. Needs 9 GB of disk and some minutes, so it is not part of `make check'.
set -euo pipefail
# shellcheck source=compat-tests/main-job/lib.sh
. "$(dirname "$0")/lib.sh"
ours=${1:-fruixd}
limit=$((64 * 1024))

new_stores ours
cd "$checkout"
FRUIX_DAEMON=$ours ./build-aux/provision all
truncate -s 4G "$work/big"
mkdir "$work/tree"
for directory in {1..100}; do
  mkdir "$work/tree/$directory"
  for file in {1..1000}; do echo "$directory $file" >"$work/tree/$directory/$file"; done
done
cat >"$work/add.scm" <<'SCM'
(use-modules (guix store) (ice-9 match))
(match (command-line)
  ((_ file)
   (with-store store
     (display (add-to-store store (basename file) #t "sha256" file))
     (newline))))
SCM

on ours "$ours" fruix daemon start
pid=$(cat "$work/ours/var/daemon.pid")
for what in big tree; do
  seconds on ours "$ours" "$checkout/build-aux/enter-root" "$FRUIX_CACHE/roots/guix-1.5.0" guix repl -- "$work/add.scm" "$work/$what" >&2 ||
    fail "adding $what"
  peak=$(awk '/^VmHWM:/ { print $2 }' "/proc/$pid/status")
  say "$what: added in $seconds s; the daemon's peak so far is $peak KiB"
  [ "$peak" -lt "$limit" ] || fail "the daemon took $peak KiB, more than $limit"
done
on ours "$ours" fruix daemon stop
