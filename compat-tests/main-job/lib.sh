# Shared by the tests of the main job.  Sourced, never run.
# shellcheck shell=bash disable=SC2034 # what is set here is used by the scripts that source it
# Every test has stores of its own: directories that are bound over /frx in a mount namespace, so that guix-daemon and fruixd
# work on the same store file names without seeing each other, or the machine's own /frx.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
here=$checkout/compat-tests/main-job
FRUIX_CACHE=${FRUIX_CACHE:-/var/cache/fruix}
# Outside of `on', settings of the caller's own /frx mean nothing.
[ -n "${FRUIX_INSIDE:-}" ] ||
  unset NIX_STORE_DIR GUIX_STATE_DIRECTORY GUIX_DATABASE_DIRECTORY GUIX_LOG_DIRECTORY GUIX_CONFIGURATION_DIRECTORY GUIX_DAEMON_SOCKET

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
fail() {
  say "FAILED: $*"
  exit 1
}

[ "$(id -u)" -eq 0 ] || fail "needs root, to start daemons with build users"

# Build users of our own, and one test at a time: daemons that share build users kill each other's builds.
export FRUIX_BUILD_GROUP=checkbuild
if [ -z "${FRUIX_INSIDE:-}" ]; then
  mkdir -p "$FRUIX_CACHE"
  exec 8>"$FRUIX_CACHE/tests.lock"
  flock -n 8 || { say "waiting for another test on this machine"; flock 8; }
fi

# new_stores NAME... : empty directories $work/NAME, gone when the script ends, together with the daemons on them.
new_stores() {
  work=$(mktemp -d "${FRUIX_TEST_STORES:-/var/tmp}/fruix-test.XXXXXX")
  stores=("$@")
  local name
  for name; do mkdir "$work/$name"; done
  mkdir -p /frx
  trap clean_up EXIT
}

clean_up() {
  local status=$? name pid
  for name in "${stores[@]}"; do
    # The number of the process that `fruix daemon start' started on that store; the tests have one process namespace.
    pid=$(cat "$work/$name/var/daemon.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null && timeout 10 tail --pid="$pid" -f /dev/null
  done
  if [ "$status" -ne 0 ] && [ -n "${FRUIX_KEEP_STORES:-}" ]; then
    say "the stores are kept in $work"
  else
    rm -rf "$work"
  fi
  return "$status"
}

# on STORE DAEMON COMMAND... : run COMMAND in the checkout's environment with $work/STORE as /frx and DAEMON to be started there.
on() {
  local store=$1 daemon=$2
  shift 2
  # shellcheck disable=SC2016 # expanded by the inner shell
  FRUIX_INSIDE=yes FRUIX_DAEMON=$daemon unshare --mount --propagation private bash -c 'mount --bind "$1" /frx && shift && exec "$@"' on \
    "$work/$store" "$checkout/pre-inst-env" "$@" 8>&-
}

# daemon_program NAME : what to give `on' for the daemon NAME.  This checkout's fruixd is built first, and copied: whatever
# happens to its source during a test, the test is about one program.
daemon_program() {
  if [ "$1" = fruixd ]; then
    FRUIX_DAEMON=fruixd "$checkout/build-aux/provision" all
    install "$checkout/target/fruixd" "$work/fruixd"
    echo "$work/fruixd"
  else
    FRUIX_DAEMON=guix-daemon "$checkout/build-aux/provision" all
    echo "$1"
  fi
}

# guix COMMAND... : the unmodified guix, without what `fruix' prepares before; for use inside `on'.
guix() { "$checkout/build-aux/enter-root" "$FRUIX_CACHE/roots/guix-1.5.0" guix "$@"; }

# seconds COMMAND... : run COMMAND, and put how long it took into $seconds.
seconds() {
  local start=$EPOCHREALTIME
  "$@" || return
  seconds=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
}
