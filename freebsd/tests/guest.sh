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
for program in builds-*; do
	run env FRUIX_BINARIES="$PWD" FRUIX_GOLDEN="$PWD/golden.builds" FRUIX_BUILDS=200 FRUIX_KILLS=10 "./$program" --test-threads=1 --nocapture
done

run sh ./service.sh
[ -z "$failed" ] || { echo "FAILED:$failed"; exit 1; }
echo "all passed"
