#!/bin/bash
# side.sh : one script against one daemon, in mount and process namespaces that run.sh made; everything ends with them.
# The environment says what: SIDE, SCRIPT, ROOT, CLIENT_ROOT, PACKAGES, OUT, FLAGS, AS, SIZE, FRUIXD, DUMP, CHECKOUT.
set -euo pipefail
mount -t tmpfs -o "mode=755,size=${SIZE:-1g}" tmpfs /frx
mount -t tmpfs -o mode=1777,size=1g tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
# Build users and a client who is nobody in particular, with the same numbers on every machine.
# shellcheck source=compat-tests/accounts.sh
. "$CHECKOUT/compat-tests/accounts.sh"
accounts frxbuild 30000 5 31000 alice:31001:/tmp/alice bob:31002:/tmp/bob
mkdir -p /frx/store /frx/var/log /frx/etc /tmp/home /tmp/alice /tmp/bob
chown alice:people /tmp/alice
chown bob:people /tmp/bob

base=(PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 TZ=UTC NIX_STORE_DIR=/frx/store GUIX_STATE_DIRECTORY=/frx/var
  NIX_STATE_DIR=/frx/var NIX_LOCALSTATE_DIR=/frx/var GUIX_DATABASE_DIRECTORY=/frx/var/db GUIX_LOG_DIRECTORY=/frx/var/log
  GUIX_CONFIGURATION_DIRECTORY=/frx/etc GUIX_DAEMON_SOCKET=/frx/var/daemon-socket/socket SIDE="$SIDE" CLIENT="$CLIENT"
  GUILE_AUTO_COMPILE=0 DIFFERENTIAL="$CHECKOUT/compat-tests/differential" BASH_STATIC="$PACKAGES/usr/bin/bash-static"
  BUSYBOX="$PACKAGES/usr/bin/busybox" ENTER="$CHECKOUT/build-aux/enter-root" CLIENT_ROOT="$CLIENT_ROOT")

# In the daemon's group alone: a script may stop it and start it again through the files below.
start_daemon() {
  local command
  case $SIDE in
    guix-daemon) command=("$CHECKOUT/build-aux/enter-root" "$ROOT" guix-daemon) ;;
    fruixd) command=("$FRUIXD") ;;
  esac
  local flags environment
  read -ra flags <<<"${FLAGS:-}"
  read -ra environment <<<"${DAEMON_ENV:-}"
  case " ${FLAGS:-} " in *" --build-users-group="*) ;; *) flags+=(--build-users-group=guixbuild) ;; esac
  env -i --default-signal=INT,QUIT "${base[@]}" HOME=/tmp/home "${environment[@]}" setsid "${command[@]}" --no-substitutes "${flags[@]}" \
    --listen=/frx/var/daemon-socket/socket </dev/null >>"$OUT/daemon.log" 2>&1 &
  daemon=$!
  local i
  for ((i = 0; i < 200; i++)); do
    [ ! -S /frx/var/daemon-socket/socket ] || return 0
    kill -0 "$daemon" 2>/dev/null || break
    sleep 0.05
  done
  cat "$OUT/daemon.log"
  echo "$SIDE does not start"
  return 1
}
start_daemon

as=()
[ -z "${AS:-}" ] || as=(setpriv --reuid="$AS" --regid=people --clear-groups --)
home=/tmp/${AS:-home}
status=0
case $SCRIPT in
  *.scm)
    command=("${as[@]}" "$CHECKOUT/build-aux/enter-root" "$CLIENT_ROOT" guix repl -- "$CHECKOUT/compat-tests/differential/run.scm" "$SCRIPT")
    ;;
  *) command=("${as[@]}" bash "$SCRIPT") ;;
esac
mkdir -p /run/work && chmod 1777 /run/work && cd /run/work
timeout "${LIMIT:-100}" env -i "${base[@]}" HOME="$home" "${command[@]}" </dev/null >"$OUT/client" 2>&1 || status=$?
echo "client status $status" >>"$OUT/client"
cd /

# Sessions may still be going down.
sleep 0.1
kill "$daemon" 2>/dev/null || true
timeout 15 tail --pid="$daemon" -f /dev/null || { echo "$SIDE does not stop"; exit 1; }
# What a daemon leaves running: nothing of a build, of nobody.
echo "processes left: $(pgrep -c -u frxbuild1,frxbuild2,frxbuild3,frxbuild4,frxbuild5 || true)" >"$OUT/dump"
"$DUMP" /frx /tmp >>"$OUT/dump"
touch "$OUT/done"
