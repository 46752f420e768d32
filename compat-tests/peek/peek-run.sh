#!/bin/bash
# What a builder sees under a daemon: start DAEMON on a store and state of its own, build peek.sh through an unmodified client,
# print the report. Run it as root inside a root that has guix, bash-static and busybox-static, in mount and process namespaces
# of its own (it mounts tmpfs on /frx and /tmp), once for each daemon, and diff the two:
#   peek-run.sh ordinary guix-daemon --build-users-group=guixbuild          > a
#   peek-run.sh ordinary /path/fruixd --build-users-group=guixbuild         > b
#   diff a b
# The first argument is `ordinary' or `fixed'. PEEK_DIR: where peek.sh and peek.scm are; PEEK_LOG: where the daemon's messages go;
# PEEK_USER: who is to run the daemon, if not root.
set -eum  # m: otherwise the daemon would be started with SIGQUIT ignored
kind=$1; shift
dir=${PEEK_DIR:-$(dirname "$(readlink -f "$0")")}
mkdir -p /frx
mount -t tmpfs -o mode=755 tmpfs /frx
mkdir /frx/busybox
cp /usr/bin/busybox /frx/busybox/
ln -s /target/of/link /frx/link
cp "$dir/peek.sh" "$dir/peek.scm" /frx/
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /frx/store /frx/var /frx/log
export NIX_STORE_DIR=/frx/store GUIX_STATE_DIRECTORY=/frx/var GUIX_LOG_DIRECTORY=/frx/log NIX_STATE_DIR=/frx/var NIX_LOCALSTATE_DIR=/frx/var
export GUIX_DATABASE_DIRECTORY=/frx/var/db GUIX_CONFIGURATION_DIRECTORY=/frx/etc GUIX_DAEMON_SOCKET=/frx/socket HOME=/frx
export PEEK_IMPURE=seen GUILE_AUTO_COMPILE=0 LC_ALL=C.UTF-8
if [ -n "${PEEK_USER-}" ]; then
    chown -R "$PEEK_USER" /frx
    set -- setpriv --reuid="$PEEK_USER" --regid="$(id -g "$PEEK_USER")" --clear-groups "$@"
fi
"$@" --listen="$GUIX_DAEMON_SOCKET" --no-substitutes </dev/null >"${PEEK_LOG:-/frx/daemon.log}" 2>&1 &
daemon=$!
n=0; while [ ! -S "$GUIX_DAEMON_SOCKET" ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done
status=0
timeout 120 guix repl -- /frx/peek.scm /bin/bash-static /frx/busybox /frx/link /frx/peek.sh ${kind#ordinary} </dev/null || status=$?
[ $status = 0 ] || cat "${PEEK_LOG:-/frx/daemon.log}" >&2
kill $daemon 2>/dev/null || :
wait 2>/dev/null || :
exit $status
