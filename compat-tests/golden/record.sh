#!/bin/bash
# record.sh PEERS RECORD: make the golden transcripts anew.
# PEERS has the roots `sid' (guix 1.5.0) and `bullseye' (guix 1.2.0); RECORD is this crate's program of that name. Needs root.
# The daemon is guix-daemon 1.5.0 throughout, on a new store for each client; nothing of this machine gets into a transcript.
# `FRUIX_RECORD=PEERS cargo test -p fruix-compat-tests --test transcripts' runs it.
set -eu
peers=$(realpath "$1") record=$(realpath "$2") here=$(dirname "$(realpath "$0")")
work=$(mktemp -d /dev/shm/golden.XXXXXX)
pids=()
clean_up() {
  # unshare ignores SIGTERM; when it dies, all that it has started is killed.
  for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || :; done
  wait 2>/dev/null || :
  rm -rf "$work"
}
trap clean_up EXIT

# enter ROOT COMMAND...: run COMMAND in ROOT, in namespaces of its own, with this run's /frx and nothing of the environment.
enter() {
  mkdir -p "$1/frx"
  # shellcheck disable=SC2016 # expanded by the inner shell
  exec ${LIMIT:+timeout -s KILL "$LIMIT"} unshare --mount --pid --fork --kill-child --uts --propagation private bash -c '
    root=$1 frx=$2; shift 2
    hostname localhost
    mount --bind "$root" "$root"; cd "$root"
    mount -t proc proc proc; mount --rbind /dev dev; mount -t tmpfs tmpfs run; mount -t tmpfs -o mode=1777 tmpfs tmp
    mount --bind "$frx" frx; mkdir run/old; pivot_root . run/old; cd /; umount -l /run/old; mount --make-rprivate /
    exec env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/frx/home USER=root LC_ALL=C.UTF-8 GUILE_AUTO_COMPILE=0 TZ=UTC \
      NIX_STORE_DIR=/frx/store GUIX_STATE_DIRECTORY=/frx/var NIX_STATE_DIR=/frx/var NIX_LOCALSTATE_DIR=/frx/var \
      GUIX_LOG_DIRECTORY=/frx/log GUIX_DATABASE_DIRECTORY=/frx/var/db GUIX_CONFIGURATION_DIRECTORY=/frx/etc \
      GUIX_DAEMON_SOCKET=/frx/"$SOCKET" "$@"' _ "$1" "$work/frx" "${@:2}"
}

wait_for() { for _ in $(seq 100); do [ -S "$1" ] && return; sleep 0.1; done; echo "$1 does not appear" >&2; exit 1; }

# session NAME COMMAND...: what COMMAND and the daemon say becomes NAME.transcript.
session() {
  local name=$1 recorder status=0
  shift
  rm -f "$work/frx/proxy"
  "$record" --listen "$work/frx/proxy" --forward "$work/frx/socket" --output "$here/$version-$name.transcript" </dev/null &
  recorder=$!
  pids=("$daemon" "$recorder")
  wait_for "$work/frx/proxy"
  (LIMIT=120 SOCKET=proxy enter "$root" "$@") </dev/null >"$work/out" 2>&1 || status=$?
  [ -z "${VERBOSE-}" ] || cat "$work/out" >&2
  kill "$recorder"; wait "$recorder" || :
  echo "$version $name: status $status, $(wc -c <"$here/$version-$name.transcript") bytes" >&2
  case $name in fail-*) ;; *) [ $status = 0 ] || { cat "$work/out" >&2; exit 1; } ;; esac
}

for version in 1.5.0 1.2.0; do
  case $version in 1.5.0) root=$peers/sid ;; *) root=$peers/bullseye ;; esac
  rm -rf "$work/frx"
  mkdir -p "$work"/frx/{home,store,var,etc,log}
  cp -r "$here/scripts" "$work/frx/scripts"
  chmod -R u=rwX,go=rX "$work/frx/scripts"
  (SOCKET=socket enter "$peers/sid" guix-daemon --build-users-group=guixbuild --no-substitutes --listen=/frx/socket \
    --cache-failures) </dev/null >"$work/daemon.log" 2>&1 &
  daemon=$!
  pids=("$daemon")
  wait_for "$work/frx/socket"
  (SOCKET=socket enter "$peers/sid" guix repl -- /frx/scripts/prepare.scm) </dev/null >"$work/out" 2>&1 || { cat "$work/out"; exit 1; }
  item=$(cat "$work/frx/item")

  session breadth guix repl -- /frx/scripts/breadth.scm
  session builds guix repl -- /frx/scripts/builds.scm
  session transfer guix repl -- /frx/scripts/transfer.scm
  session build-file guix build --no-grafts --no-offload -f /frx/scripts/build.scm
  session fail-build guix build --no-grafts -K -k --timeout=60 --max-silent-time=30 -c 1 -M 2 -f /frx/scripts/fail.scm
  session fail-size guix size /frx/store/nothing
  session size guix size "$item"
  session references guix gc --references "$item"
  session requisites guix gc --requisites "$item"
  session derivers guix gc --derivers "$item"
  session verify guix gc --verify=contents
  session optimize guix gc --optimize
  session list-live guix gc --list-live
  session list-dead guix gc --list-dead
  session failures guix gc --list-failures
  session clear-failures guix gc --clear-failures
  session download guix download file:///frx/scripts/build.scm
  session delete guix gc -D "$(cat "$work/frx/dead")"
  session collect guix gc --collect-garbage=1
  kill -KILL "$daemon"; wait "$daemon" 2>/dev/null || :
  pids=()
done
