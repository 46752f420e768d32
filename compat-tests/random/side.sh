#!/bin/bash
# side.sh : one daemon for random-diff, in mount and process namespaces that it made; everything ends with them.
# It reads `fresh FLAGS' (a daemon on an empty store), `start', `stop', `sweep' and `dump', and answers each with a line when done.
# The environment says what: SIDE, ROOT, FRUIXD, DUMP, SELF (random-diff), CHECKOUT.
set -euo pipefail
shopt -s nullglob
mount -t tmpfs -o mode=755,size=1g tmpfs /frx
mount -t tmpfs -o mode=1777,size=1g tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
# shellcheck source=compat-tests/accounts.sh
. "$CHECKOUT/compat-tests/accounts.sh"
accounts frxbuild 30000 5 31000 alice:31001:/tmp/alice
cd /

# Nothing ever comes from there: waiting for it takes a while without starting a process.
exec 9<> <(:)
nap() { read -rt 0.005 -u 9 || true; }

flags=() daemon=""
start() {
  local command
  case $SIDE in
    guix-daemon) command=("$CHECKOUT/build-aux/enter-root" "$ROOT" guix-daemon) ;;
    *) command=("$FRUIXD") ;;
  esac
  rm -f /frx/var/daemon-socket/socket
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 TZ=UTC NIX_STORE_DIR=/frx/store GUIX_STATE_DIRECTORY=/frx/var \
    NIX_STATE_DIR=/frx/var NIX_LOCALSTATE_DIR=/frx/var GUIX_DATABASE_DIRECTORY=/frx/var/db GUIX_LOG_DIRECTORY=/frx/var/log \
    GUIX_CONFIGURATION_DIRECTORY=/frx/etc HOME=/tmp/home --default-signal=INT,QUIT setsid "${command[@]}" --no-substitutes \
    --build-users-group=guixbuild "${flags[@]}" --listen=/frx/var/daemon-socket/socket </dev/null >>/run/daemon.log 2>&1 &
  daemon=$!
  local i
  for ((i = 0; i < 1000; i++)); do
    [ ! -S /frx/var/daemon-socket/socket ] || { echo started; return; }
    kill -0 "$daemon" 2>/dev/null || break
    nap
  done
  tail -n 5 /run/daemon.log
  exit 1
}
# Until nothing but this shell runs.
stop() {
  local i processes
  [ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
  for ((i = 0; i < 1000; i++)); do
    processes=(/proc/[0-9]*)
    [ ${#processes[@]} -gt 1 ] || return 0
    nap
  done
  echo "processes are left: ${processes[*]}"
}

echo ready
while read -r word rest; do
  case $word in
    fresh)
      kill -9 -1 2>/dev/null || true
      wait || true
      umount -l /frx
      mount -t tmpfs -o mode=755,size=1g tmpfs /frx
      rm -rf /tmp/* /run/daemon.log
      mkdir -p /frx/store /frx/var/log /frx/etc /frx/links /tmp/home /tmp/alice
      chown 31001:31000 /tmp/alice /frx/links
      read -ra flags <<<"$rest"
      start
      ;;
    start) start ;;
    stop) stop; echo stopped ;;
    sweep)
      "$SELF" sweep /frx 2>&1 || { echo "cannot sweep"; ls -l /frx/var/db; tail -n 5 /run/daemon.log; exit 1; }
      echo swept
      ;;
    dump)
      "$DUMP" /frx /tmp
      echo dumped
      ;;
  esac
done
