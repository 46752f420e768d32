# shellcheck shell=bash
# namespace.sh : sourced in namespaces of its own, gives them a store, users and a client's environment.  OUT says where the store is kept.
# Sets socket and environment.
mount --bind "${OUT:?}/frx" /frx
mount -t tmpfs -o mode=755 tmpfs /run
# shellcheck source=compat-tests/accounts.sh
. "$(dirname "${BASH_SOURCE[0]}")/../accounts.sh"
accounts sysbuild 32000 4 33000 mallory:33001:/tmp
mkdir -p /frx/store /frx/var/log /frx/etc /run/home
chmod 1777 /run/home
socket=/frx/var/daemon-socket/socket
environment=(PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/run/home TMPDIR=/run/home NIX_STORE_DIR=/frx/store
  GUIX_STATE_DIRECTORY=/frx/var NIX_STATE_DIR=/frx/var GUIX_LOG_DIRECTORY=/frx/var/log GUIX_CONFIGURATION_DIRECTORY=/frx/etc
  GUIX_DAEMON_SOCKET="$socket" GUILE_AUTO_COMPILE=0)

# start_daemon LOG : a daemon on that store, whose number is in daemon.
start_daemon() {
  env -i "${environment[@]}" "$WORK/bin/fruixd" --no-substitutes --build-users-group=guixbuild --listen="$socket" \
    </dev/null >>"$1" 2>&1 &
  daemon=$!
  for ((i = 0; i < 400; i++)); do
    [ ! -S "$socket" ] || return 0
    kill -0 "$daemon" 2>/dev/null || return 1
    sleep 0.05
  done
  return 1
}
