#!/bin/sh
# Runs in a FreeBSD guest, as root, beside the test programs: all of them, then the daemon as a service.
cd "$(dirname "$0")" || exit 99
uname -v
failed=
run() {
	echo "== $*"
	"$@" || failed="$failed $1"
}
# Golden data is where it was when the tests were built; without it, that test is the other machine's.
for program in fruix_freebsd-* fruixd-*; do
	run "./$program" --skip a_life_is_as_written --skip headers
done
for program in cells-*; do
	run "./$program" --skip a_life_is_as_written
done
for program in jails-*; do
	run "./$program"
done

service_works() {
	install -d /usr/local/sbin /usr/local/etc/rc.d
	install -m 755 fruixd /usr/local/sbin/fruixd
	install -m 755 rc.fruixd /usr/local/etc/rc.d/fruixd
	sysrc fruixd_enable=YES fruixd_users=2 >/dev/null 2>&1 || echo 'fruixd_enable=YES fruixd_users=2' | tr ' ' '\n' >>/etc/rc.conf
	rc=/usr/local/etc/rc.d/fruixd
	$rc setup && $rc check && $rc start || return 1
	tries=0
	until [ -S /var/guix/daemon-socket/socket ]; do
		tries=$((tries + 1))
		[ $tries -lt 100 ] || { cat /var/log/fruixd.log; return 1; }
		sleep 0.1
	done
	$rc status && $rc reload && sleep 1 && $rc status && $rc stop || return 1
	! $rc status && [ ! -e /var/guix/daemon-socket/socket ]
}
run service_works
[ -z "$failed" ] || { echo "FAILED:$failed"; exit 1; }
echo "all passed"
