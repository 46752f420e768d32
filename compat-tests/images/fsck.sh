#!/bin/bash
# fsck.sh : FreeBSD's own fsck_ffs and kernel on images of ours, in a guest: checked, mounted, read, written to, unmounted, checked again.
#
#   FREEBSD_GUEST=COMMAND  runs as COMMAND DIR, and runs DIR's run.sh as root on FreeBSD with DIR at /t (see build-aux/check-freebsd); required
#   MKIMAGE=FILE           another mkimage than the one that is built here (freebsd/examples/mkimage.rs)
#   IMAGE=FILE             a raw image of `fruix system image': it is looked at instead, with FreeBSD's own reading of its partitions
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=${here%/*/*}
say() { printf 'fsck: %s\n' "$*" >&2; }
[ -n "${FREEBSD_GUEST:-}" ] || { say "say how FreeBSD is run: FREEBSD_GUEST=COMMAND"; exit 1; }
"$checkout/build-aux/install-packages" python3
if [ -n "${IMAGE:-}" ]; then
  :
elif [ -z "${MKIMAGE:-}" ]; then
  export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
  cargo build --quiet --locked --release --manifest-path "$checkout/Cargo.toml" -p fruix-freebsd --example mkimage
  MKIMAGE=${CARGO_TARGET_DIR:-$checkout/target}/release/examples/mkimage
fi
work=$(mktemp -d /var/tmp/fruix-fsck.XXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
mkdir "$work/t"
kinds=""
make_image() { "$MKIMAGE" --directory "$work/tree" --under-root --check --compare "${@:2}" "$work/t/$1.ufs" >"$work/log" || { cat "$work/log"; exit 1; }; }
files() { find . -type f ! -name 'sparse' ! -name tail ! -name 'n*n' -print0 | LC_ALL=C sort -z | xargs -0 cat; }
if [ -n "${IMAGE:-}" ]; then
  cp --sparse=always "$IMAGE" "$work/t/system.raw"
  chmod u+w "$work/t/system.raw"
else
  kinds="usual small"
  python3 "$here/readers.py" make "$work/tree" 1500
  # Odd names are for the readers; the guest's shell goes over the rest.
  rm "$work"/tree/odd*
  make_image usual --size $((128 << 20))
  make_image small --size $((96 << 20)) --block 4096 --fragment 512 --no-soft-updates
  (cd "$work/tree" && files | sha256sum | cut -d' ' -f1) >"$work/t/sha256"
  find "$work/tree" | wc -l >"$work/t/count"
fi
echo "kinds='$kinds'" >"$work/t/run.sh"
cat >>"$work/t/run.sh" <<'END'
set -u
status=0
expect() { if [ "$2" = "$3" ]; then echo "ok $1"; else echo "NOT OK $1: $2, not $3"; status=1; fi; }
check() {
  fsck_ffs -n "/dev/$1" >/tmp/fsck.log 2>&1
  result=$?
  # Its questions have a `?'; without one, and with status 0, there is nothing that it would change.
  if [ $result -eq 0 ] && ! grep -q '[?]' /tmp/fsck.log; then echo "ok $2"; else echo "NOT OK $2"; cat /tmp/fsck.log; status=1; fi
}
if [ -f /t/system.raw ]; then
  unit=$(mdconfig -a -t vnode -f /t/system.raw) || exit 1
  gpart show "$unit"
  expect "system: the table's state" "$(gpart list "$unit" | sed -n 's/^ *state: //p')" OK
  # The last partition is the root file system.
  root=$(cd /dev && ls -d "${unit}"p* | tail -n 1)
  check "$root" "system: fsck_ffs -n of what was made"
  mount "/dev/$root" /mnt || exit 1
  find /mnt | wc -l
  find /mnt -type f -print0 | xargs -0 cat >/dev/null && echo "ok system: reading" || { echo "NOT OK system: reading"; status=1; }
  cp -R /mnt/etc /mnt/root/new && rm -rf /mnt/var/tmp && rm /mnt/firstboot && dd if=/dev/zero of=/mnt/root/large bs=1m count=20 2>/dev/null &&
    echo "ok system: writing" || { echo "NOT OK system: writing"; status=1; }
  umount /mnt || status=1
  check "$root" "system: fsck_ffs -n after writing"
  mdconfig -d -u "$unit"
fi
for kind in $kinds; do
  unit=$(mdconfig -a -t vnode -f "/t/$kind.ufs") || exit 1
  check "$unit" "$kind: fsck_ffs -n of what was made"
  mount "/dev/$unit" /mnt || exit 1
  expect "$kind: entries" "$(find /mnt | wc -l | tr -d ' ')" "$(cat /t/count)"
  expect "$kind: bytes" "$(cd /mnt && find . -type f ! -name sparse ! -name tail ! -name 'n*n' -print0 | LC_ALL=C sort -z | xargs -0 cat | sha256)" "$(cat /t/sha256)"
  expect "$kind: sparse" "$(dd if=/mnt/sparse bs=1m skip=5120 count=1 2>/dev/null | head -c 13)" "in the middle"
  expect "$kind: holes" "$(($(du -k /mnt/sparse | cut -f1) < 1000))" 1
  expect "$kind: links" "$(stat -f %l /mnt/link-1)" 3
  expect "$kind: setuid" "$(stat -f %Mp%Lp /mnt/mode-4755)" 4755
  # What a system does: makes and removes directories and files, grows, shortens, links, fills holes.
  cp -R /sbin /mnt/one/ && mkdir -p /mnt/new/a/b/c && mv /mnt/deep/0 /mnt/new/a/ && rm -rf /mnt/d1 /mnt/d2 &&
    echo more >>/mnt/double && truncate -s 5000 /mnt/indirect && ln /mnt/double /mnt/double-2 && rm /mnt/link-1 &&
    dd if=/dev/zero of=/mnt/sparse bs=1m seek=100 count=3 conv=notrunc 2>/dev/null && chflags uchg /mnt/double && echo "ok $kind: writing" ||
    { echo "NOT OK $kind: writing"; status=1; }
  umount /mnt || status=1
  check "$unit" "$kind: fsck_ffs -n after writing"
  mdconfig -d -u "$unit"
  [ $kind = usual ] || continue
  truncate -s +200m "/t/$kind.ufs" && unit=$(mdconfig -a -t vnode -f "/t/$kind.ufs") || exit 1
  growfs -y "/dev/$unit" >/tmp/growfs.log 2>&1 && echo "ok $kind: growing" || { echo "NOT OK $kind: growing"; cat /tmp/growfs.log; status=1; }
  check "$unit" "$kind: fsck_ffs -n after growing"
  mdconfig -d -u "$unit"
done
exit $status
END
# shellcheck disable=SC2086 # A command with its options.
$FREEBSD_GUEST "$work/t"
say "FreeBSD finds nothing wrong"
