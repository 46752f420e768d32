#!/bin/bash
# readers.sh [--short] : images of ours through other people's readers: sleuthkit, GRUB, dissect.ffs; sgdisk, fsck.fat, mtools, qemu-img.
#
# The tree has 100,000 files (2,000 with --short): sparse, empty, 10 GiB, names of 255 bytes, deep directories, hard links, modes, odd names.
#   MKIMAGE=FILE   another mkimage than the one that is built here (freebsd/examples/mkimage.rs)
#   FRUIX_IMAGES=DIR  where the tree and the images go (a new directory below /var/tmp; 3 GB, 0.2 GB with --short)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=${here%/*/*}
FRUIX_CACHE=${FRUIX_CACHE:-/var/cache/fruix}
say() { printf 'readers: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
files=100000
case ${1:-} in
  --short) files=2000 ;;
  '') ;;
  *) fail "usage: readers.sh [--short]" ;;
esac

"$checkout/build-aux/install-packages" python3 python3-pip sleuthkit grub-common gdisk dosfstools mtools qemu-utils
python=$FRUIX_CACHE/python-dissect.ffs-3.12
if [ ! -e "$python/ok" ]; then
  rm -rf "$python"
  python3 -m pip install -q --no-compile --disable-pip-version-check --root-user-action=ignore --target "$python" dissect.ffs==3.12
  touch "$python/ok"
fi
if [ -z "${MKIMAGE:-}" ]; then
  export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
  cargo build --quiet --locked --release --manifest-path "$checkout/Cargo.toml" -p fruix-freebsd --example mkimage
  MKIMAGE=${CARGO_TARGET_DIR:-$checkout/target}/release/examples/mkimage
fi

work=${FRUIX_IMAGES:-$(mktemp -d /var/tmp/fruix-readers.XXXXXX)}
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
mkdir -p "$work"
tree=$work/tree
say "a tree of $files files"
python3 "$here/readers.py" make "$tree" "$files"

# Each option of the format that changes where things are.
for options in "" "--block 4096 --fragment 512" "--block 65536 --fragment 65536"; do
  [ -z "$options" ] || [ "$files" -le 2000 ] || continue
  # shellcheck disable=SC2086 # Options are words.
  "$MKIMAGE" --directory "$tree" --under-root --check --compare $options "$work/root.ufs" >"$work/log" || { cat "$work/log"; fail "mkimage $options"; }
  say "image ${options:-of the usual kind}: $(grep '^image' "$work/log")"
  PYTHONPATH=$python python3 "$here/readers.py" dissect "$tree" "$work/root.ufs"
  python3 "$here/readers.py" sleuthkit "$tree" "$work/root.ufs" 0
  python3 "$here/readers.py" grub "$tree" "$work/root.ufs"
  # The same bytes from a copy of the tree that was made in another order; the second time is not the first.
  if [ -z "$options" ] && [ "$files" -le 2000 ]; then
    mkdir "$work/copy"
    (cd "$tree" && find . -depth -print0 | sort -rz | cpio --quiet -0pdm --sparse "$work/copy" 2>/dev/null) || cp -a "$tree/." "$work/copy"
    "$MKIMAGE" --directory "$work/copy" --under-root "$work/again.ufs" >/dev/null
    cmp "$work/root.ufs" "$work/again.ufs" || fail "another copy of the tree gives another image"
    rm -rf "$work/copy" "$work/again.ufs"
  fi
  rm "$work/root.ufs"
done

say "a disk"
head -c 700000 /dev/urandom >"$work/loader"
size=$((2 << 30))
[ "$files" -le 2000 ] || size=$((8 << 30))
disk() { "$MKIMAGE" --directory "$tree" --under-root --esp "$work/loader" --swap $((8 << 20)) --size "$size" "$@" >"$work/log" || { cat "$work/log"; fail "mkimage $*"; }; }
disk --check "$work/disk.img"
root=$(sed -n 's/^partition .* type=freebsd-ufs .* start=\([0-9]*\) .*/\1/p' "$work/log")
sgdisk -v "$work/disk.img" >"$work/sgdisk"
grep -q '^No problems found' "$work/sgdisk" || { cat "$work/sgdisk"; fail "sgdisk finds fault"; }
mmls "$work/disk.img" | grep -q "0*$((root / 512)) .*rootfs" || fail "mmls does not find the root file system"
python3 "$here/readers.py" sleuthkit "$tree" "$work/disk.img" $((root / 512))
dd if="$work/disk.img" of="$work/esp" bs=1M skip=1 count=34 status=none
truncate -s $((34 << 20)) "$work/esp"
fsck.fat -n "$work/esp" >"$work/fsck" || { cat "$work/fsck"; fail "fsck.fat finds fault"; }
mcopy -n -i "$work/disk.img@@1M" ::/EFI/BOOT/BOOTX64.EFI "$work/loader.back"
cmp "$work/loader" "$work/loader.back" || fail "mtools read another loader"
disk --qcow2 "$work/disk.qcow2"
qemu-img check -q "$work/disk.qcow2" || fail "qemu-img finds fault"
qemu-img compare -q -f raw -F qcow2 "$work/disk.img" "$work/disk.qcow2" || fail "the qcow2 is another disk"
say "all readers agree"
