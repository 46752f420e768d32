#!/bin/sh
# In a FreeBSD guest, as root, beside fruixd, fruix and rc.fruixd: the daemon as a service, from setup to stop, and a client.
cd "$(dirname "$0")" || exit 99
rc=/usr/local/etc/rc.d/fruixd
fail() {
	echo "FAILED: $*"
	tail -20 /var/log/fruixd.log
	exit 1
}
wait_for_socket() {
	tries=0
	until [ -S "$1/daemon-socket/socket" ]; do
		tries=$((tries + 1))
		[ $tries -lt 300 ] || fail "no socket"
		sleep 0.1
	done
}
install -d /usr/local/sbin /usr/local/bin /usr/local/etc/rc.d
install -m 755 fruixd /usr/local/sbin/fruixd
install -m 755 fruix /usr/local/bin/fruix
install -m 755 rc.fruixd $rc
# What is missing is told, before and without setup.
fruixd --check-host && fail "a host without build users passes"
printf 'fruixd_enable=YES\nfruixd_users=2\nfruixd_args="--limit memory=1g --limit processes=200"\n' >>/etc/rc.conf
$rc start && fail "it starts without build users"
$rc setup || fail setup
$rc check || fail check
$rc start || fail start
wait_for_socket /frx/var
$rc status || fail status
echo hello >/tmp/hello
path=$(fruix add /tmp/hello) || fail add
[ "$(cat "$path")" = hello ] || fail "the store has $path"
fruix path-info "$path" || fail path-info
fruix roots || fail roots
fruix gc --list-dead >/tmp/dead || fail list-dead
grep -q "$path" /tmp/dead || fail "$path is alive: $(procstat -a -e -f 2>/dev/null | grep -c "$path") records name it"
fruix gc || fail gc
[ ! -e "$path" ] || fail "$path is not collected"
fruix package 2>&1 | grep -q 'needs guix' || fail "more is asked than fruix can, and it does not say so"
$rc reload || fail reload
wait_for_socket /frx/var
$rc status || fail "status after reload"
$rc stop || fail stop
$rc status && fail "it runs after stop"
[ ! -e /frx/var/daemon-socket/socket ] || fail "the socket is left"
[ "$(ls /frx/var/jails)" = lock ] || fail "$(ls /frx/var/jails)"
# Guix's places.
echo 'fruixd_store=/gnu/store' >>/etc/rc.conf
$rc setup || fail "setup of guix's store"
$rc start || fail "start with guix's store"
wait_for_socket /var/guix
path=$(NIX_STORE_DIR=/gnu/store fruix add /tmp/hello) || fail "add to guix's store"
[ "$path" != "${path#/gnu/store/}" ] || fail "guix's store is not where $path is"
[ "$(cat "$path")" = hello ] || fail "guix's store has $path"
$rc stop || fail "stop with guix's store"
echo "test service ... ok"
