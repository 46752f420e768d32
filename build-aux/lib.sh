# Shared by the scripts of build-aux.  Sourced, never run.
# shellcheck shell=bash
# Everything these scripts say goes to standard error: standard output belongs to the command that the user asked for.

FRUIX_CACHE=${FRUIX_CACHE:-/var/cache/fruix}

say() { printf 'fruix: %s\n' "$*" >&2; }

# die MESSAGE HINT : the hint says what the reader can do next.
die() {
  printf 'fruix: error: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf 'fruix: hint: %s\n' "$2" >&2
  exit 1
}

# step WHAT COMMAND... : run COMMAND with its output on standard error, saying what is done and how long it took.
step() {
  local what=$1 start=$SECONDS
  shift
  say "$what ..."
  "$@" >&2 || return
  say "$what: done ($((SECONDS - start)) s)"
}

# quietly LOG COMMAND... : like COMMAND, with its output in LOG, shown only when it fails.
quietly() {
  local log=$1
  shift
  "$@" >"$log" 2>&1 || {
    local status=$?
    tail -n 30 "$log" >&2
    say "the whole output is in $log"
    return "$status"
  }
}

need_root() {
  [ "$(id -u)" -eq 0 ] || die "$1 needs root" "run the command once as root (sudo); later runs need root no more"
}

# with_lock NAME COMMAND... : two provisioning runs at once wait for each other.
with_lock() {
  local name=$1
  shift
  mkdir -p "$FRUIX_CACHE"
  (
    flock -n 9 || { say "waiting for another run that prepares $name"; flock 9; }
    "$@"
  ) 9>"$FRUIX_CACHE/$name.lock"
}
