#!/bin/bash
# inside.sh : one scenario, in mount and process namespaces that run.sh made; everything ends with them.
# The environment says what: NAME, SHORT, ROOT, PACKAGES, OUT, BIN, CHECKOUT.
set -euo pipefail
mount --bind "$OUT/frx" /frx
mount -t tmpfs -o mode=1777,size=2g tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
# Build users and clients who are nobody in particular.
# shellcheck source=compat-tests/accounts.sh
. "$CHECKOUT/compat-tests/accounts.sh"
accounts scnbuild 32000 16 33000 mallory:33001:/tmp victor:33002:/tmp
mkdir -p /frx/store /frx/var/log /frx/etc /tmp/home
socket=/frx/var/daemon-socket/socket

environment=(PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 TZ=UTC HOME=/tmp/home NIX_STORE_DIR=/frx/store
  GUIX_STATE_DIRECTORY=/frx/var NIX_STATE_DIR=/frx/var NIX_LOCALSTATE_DIR=/frx/var GUIX_DATABASE_DIRECTORY=/frx/var/db
  GUIX_LOG_DIRECTORY=/frx/var/log GUIX_CONFIGURATION_DIRECTORY=/frx/etc GUIX_DAEMON_SOCKET="$socket" GUILE_AUTO_COMPILE=0
  BASH_STATIC="$PACKAGES/usr/bin/bash-static" BUSYBOX="$PACKAGES/usr/bin/busybox" SCENARIO_SEED="${SCENARIO_SEED:-1}")

fail() {
  echo "FAILED: $*"
  exit 1
}

start() { # guix-daemon|fruixd [FLAG...]
  local command i
  case $1 in
    guix-daemon) command=("$CHECKOUT/build-aux/enter-root" "$ROOT" guix-daemon) ;;
    fruixd) command=("$BIN/fruixd") ;;
  esac
  kind=$1
  shift
  rm -f "$socket"
  env -i --default-signal=INT,QUIT "${environment[@]}" setsid "${command[@]}" --no-substitutes --build-users-group=guixbuild "$@" \
    --listen="$socket" </dev/null >>"$OUT/daemon.log" 2>&1 &
  daemon=$!
  for ((i = 0; i < 400; i++)); do
    [ ! -S "$socket" ] || return 0
    kill -0 "$daemon" 2>/dev/null || break
    sleep 0.05
  done
  fail "$kind does not start: $(tail -n 3 "$OUT/daemon.log")"
}

# The daemon ends when told, and leaves nothing behind: no process of a build, no complaint of its own, a store that is whole.
stop() {
  local i
  kill -0 "$daemon" 2>/dev/null || fail "$kind has died"
  kill "$daemon"
  timeout 30 tail --pid="$daemon" -f /dev/null || fail "$kind does not stop"
  for ((i = 0; i < 20; i++)); do
    [ -n "$(ps -o uid= -A | awk '$1 > 32000 && $1 < 33000')" ] || break
    sleep 0.1
  done
  [ "$i" -lt 20 ] || fail "$kind leaves builders: $(ps -o pid=,uid=,args= -A | awk '$2 > 32000 && $2 < 33000')"
  ! grep -a -q -E 'panicked|internal error' "$OUT/daemon.log" ||
    fail "$kind complains: $(grep -a -m 3 -E 'panicked|internal error' "$OUT/daemon.log")"
  if "$BIN/fruixd" --help | grep -q -e --verify-store; then
    env -i "${environment[@]}" "$BIN/fruixd" --build-users-group=guixbuild --verify-store >"$OUT/verify" 2>&1 ||
      fail "fruixd --verify-store: $(tail -n 5 "$OUT/verify")"
  fi
}

scenario() { env -i "${environment[@]}" "$BIN/scenario" "$@"; }

# What the real client thinks of the store.
verify() {
  local status=0
  timeout 100 env -i "${environment[@]}" "$CHECKOUT/build-aux/enter-root" "$ROOT" guix gc --verify=contents </dev/null >"$OUT/gc" 2>&1 ||
    status=$?
  # It reports some damage without failing.
  if [ "$status" -ne 0 ] || grep -q -E 'was modified|disappeared|not valid|missing|error' "$OUT/gc"; then
    fail "guix gc --verify=contents on $kind: status $status: $(tail -n 3 "$OUT/gc")"
  fi
}

case $NAME in
  takeover)
    turns=10
    [ -z "$SHORT" ] || turns=3
    for ((turn = 1; turn <= turns; turn++)); do
      if ((turn % 2)); then start guix-daemon --cache-failures; else start fruixd --cache-failures; fi
      scenario takeover --state="$OUT/state" --turn="$turn" >"$OUT/turn" || fail "turn $turn, $kind: $(cat "$OUT/turn")"
      verify
      stop
      "$BIN/store-dump" /frx /tmp >"$OUT/dump.$turn"
      if ((turn > 1)); then
        scenario compare-dumps "$OUT/dump.$((turn - 1))" "$OUT/dump.$turn" >"$OUT/compared" ||
          fail "after turn $turn, $kind: $(cat "$OUT/compared")"
      fi
      # A daemon that only comes and goes changes nothing.
      if ((turn <= 2)); then
        if ((turn % 2)); then start fruixd --cache-failures; else start guix-daemon --cache-failures; fi
        stop
        "$BIN/store-dump" /frx /tmp >"$OUT/dump.idle"
        scenario compare-dumps --all "$OUT/dump.$turn" "$OUT/dump.idle" >"$OUT/compared" ||
          fail "$kind came and went: $(cat "$OUT/compared")"
      fi
    done
    # The last turn was the other's; who began takes it back.
    if ((turns % 2)); then start fruixd; else start guix-daemon; fi
    verify
    stop
    echo "takeover: $turns turns, $(cat "$OUT/turn"); $(cat "$OUT/compared")"
    ;;
  many-clients)
    amount=()
    [ -z "$SHORT" ] || amount=(--leavers=5)
    start fruixd
    scenario many-clients --logs=/frx/var/log/drvs "${amount[@]}"
    verify
    stop
    ;;
  gc-soak)
    start fruixd
    scenario gc-soak --seconds="$([ -z "$SHORT" ] && echo 600 || echo 25)"
    verify
    stop
    ;;
  hostile)
    start fruixd
    long=(--long)
    [ -z "$SHORT" ] || long=()
    scenario hostile --pid="$daemon" --users 33001 33002 "${long[@]}"
    verify
    stop
    ;;
esac
