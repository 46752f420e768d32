#!/bin/bash
# inside.sh : what boot.sh does in namespaces of its own.  PLACE, WORK, CHECKOUT and GUIX say where and what.
set -euo pipefail
out=$WORK/$PLACE
fail() {
  echo "FAILED: $*" >&2
  exit 1
}
# shellcheck source=compat-tests/systems/namespace.sh
OUT=$out . "$(dirname "${BASH_SOURCE[0]}")/namespace.sh"
# The second place is another user's, with another clock and other limits on his files.
client=(env -i "${environment[@]}" "$WORK/bin/fruix")
file=$WORK/system.toml
if [ "$PLACE" = two ]; then
  umask 077
  client=(setpriv --reuid=33001 --regid=33000 --clear-groups env -i "${environment[@]}" TZ=Asia/Tokyo "$WORK/bin/fruix")
  file=$WORK/elsewhere/other.toml
fi

if [ "$PLACE" = one ]; then
  # Nobody to ask yet: what is wrong is said all the same, and nothing is made.
  sed 's/^uid = 1001/uid = 0/' "$file" >"$out/wrong.toml"
  status=0
  "${client[@]}" system image "$out/wrong.toml" >"$out/said" 2>&1 || status=$?
  [ "$status" -eq 1 ] || fail "a wrong file ends with status $status"
  expected="$out/wrong.toml:18: users[1].uid: 0 is root's; write another number, 1001 for instance"
  [ "$(cat "$out/said")" = "$expected" ] || fail "a wrong file is called: $(cat "$out/said")"
  sed 's/^path = "base"/path = "nowhere"/' "$file" >"$out/wrong.toml"
  ! "${client[@]}" system image "$out/wrong.toml" >"$out/said" 2>&1 || fail "a missing base is taken"
  grep -q "^$out/wrong.toml:6: base.path: .*; name a directory" "$out/said" || fail "a missing base is called: $(cat "$out/said")"
  sed "s|^port = 2222|\n[services.ntpd]|; s|^path = \"base\"|path = \"$WORK/base\"|" "$file" >"$out/wrong.toml"
  ! "${client[@]}" system image "$out/wrong.toml" >"$out/said" 2>&1 || fail "a service without a program is taken"
  expected="$out/wrong.toml:13: services.ntpd: the base has no /usr/sbin/ntpd; leave it out, or name a base that has it"
  [ "$(cat "$out/said")" = "$expected" ] || fail "a service without a program is called: $(cat "$out/said")"
  dd if=/dev/urandom of="$WORK/base/usr/share/misc/larger" bs=1M count=80 status=none
  ! "${client[@]}" system image --disk-capacity=140M "$file" >"$out/said" 2>&1 || fail "a disk that is too small is taken"
  rm "$WORK/base/usr/share/misc/larger"
  grep -q '^[^ ]*: image.capacity: `140M. does not hold the ESP, the swap and 8[0-9] MiB of the base; write more' "$out/said" ||
    fail "a disk that is too small is called: $(cat "$out/said")"
  { sed "s|^path = \"base\"|path = \"$WORK/base\"|" "$file"; printf '[services.fruixd]\nprogram = "%s"\n' "$(readlink -f /bin/sh)"; } >"$out/wrong.toml"
  ! "${client[@]}" system image "$out/wrong.toml" >"$out/said" 2>&1 || fail "a program for Linux is taken"
  grep -q "^$out/wrong.toml:[0-9]*: services.fruixd.program: .* is no program for FreeBSD; " "$out/said" ||
    fail "a program for Linux is called: $(cat "$out/said")"
  [ -z "$(find /frx/store -mindepth 1 -print -quit)" ] || fail "something was written to the store"
fi

start_daemon "$out/log" || fail "fruixd does not start"

# A root file system before the image, in one place: the order of builds makes no difference.
[ "$PLACE" = one ] || "${client[@]}" system rootfs "$file" >>"$out/log" 2>&1 || fail "no root file system"
"${client[@]}" system image "$file" >"$out/made" 2>>"$out/log" || fail "no image"
grep '^raw_sha256=' "$out/made" >"$out/sha256"
for key in closure_path kernel_store bootloader_store runtime_store base_package_stores native_base_store_count freebsd_source_kind \
  freebsd_source_file ready_marker disk_image image_size_bytes store_item_count esp_fstype root_fstype; do
  grep -q "^$key=." "$out/made" || fail "$key is missing"
done
if [ "$PLACE" = two ]; then
  # Another version of the base lives beside this one: packages and closures of both are in the store.
  sed 's/^version = .*/version = "0.2"/' "$file" >"$WORK/elsewhere/newer.toml"
  chmod 644 "$WORK/elsewhere/newer.toml"
  "${client[@]}" system build "$WORK/elsewhere/newer.toml" >"$out/newer" 2>>"$out/log" || fail "no second version"
  for key in closure_path kernel_store runtime_store; do
    older=$(sed -n "s/^$key=//p" "$out/made") newer=$(sed -n "s/^$key=//p" "$out/newer")
    if [ "$older" = "$newer" ] || [ ! -d "$older" ] || [ ! -d "$newer" ]; then fail "versions share $key: $older $newer"; fi
  done
  grep -q -F '(version . "0.2")' "$(sed -n 's/^closure_path=//p' "$out/newer")/metadata/freebsd-base.scm" ||
    fail "the second version's closure does not say so"
  exit 0
fi

"${client[@]}" system image --check "$file" >/dev/null 2>>"$out/log" || fail "built again, the image differs"
sum=$(sha256sum "$WORK/base.tar")
sed "s|^kind = .*|kind = \"freebsd-sets\"|; s|^path = \"base\"|sets = [{ path = \"$WORK/base.tar\", sha256 = \"${sum%% *}\" }]|" "$file" >"$out/wrong.toml"
status=0
"${client[@]}" system image "$out/wrong.toml" >"$out/said" 2>"$out/errors" || status=$?
[ "$status" -eq 1 ] || fail "sets without a service's program end with status $status"
expected="services.sshd: the base has no /usr/sbin/sshd; leave it out, or name a base that has it"
[ "$(tail -n 1 "$out/errors")" = "$out/wrong.toml:11: $expected" ] || fail "sets without a service's program are called: $(cat "$out/errors")"
grep -q -F "$expected" <(grep -v "^$out" "$out/errors") || fail "the builder does not name the field: $(cat "$out/errors")"

if [ -n "$GUIX" ]; then
  (cd "$WORK" && env "${environment[@]}" "$CHECKOUT/build-aux/enter-root" "$GUIX" \
    guix build -L "$CHECKOUT/guile" -d -f system.scm) >"$out/scheme" 2>>"$out/log" || fail "Scheme gives no derivation"
  [ "image_derivation=$(cat "$out/scheme")" = "$(grep ^image_derivation= "$out/made")" ] ||
    fail "Scheme and TOML differ: $(cat "$out/scheme")"
fi

image=$(sed -n 's/^disk_image=//p' "$out/made")
boot() { "${client[@]}" system boot --accel=tcg --memory=256 --image="$1" --boot-timeout="$2" "$file" >"$out/console" 2>&1; }
boot "$image" 100 || fail "the image does not boot"
for line in 'fruix stand-in kernel' 'hostname="stand-in"' 'sshd_enable="YES"' '(version . "0.1")'; do
  grep -a -q -F "$line" "$out/console" || fail "the loader does not say: $line"
done

# The same harness finds what is broken.  Offsets: partitions begin at 1 MiB, the ESP is 64 MiB.
damage() { # NAME OFFSET LENGTH
  cp --sparse=always "$image" "$out/damaged"
  chmod u+w "$out/damaged"
  dd if=/dev/zero of="$out/damaged" bs=512 seek=$(($2 / 512)) count=$(($3 / 512)) conv=notrunc status=none
  if [ "$1" = GPT ]; then truncate --size=-1M "$out/damaged"; fi
  ! boot "$out/damaged" 15 || fail "the image boots without its $1"
  rm "$out/damaged"
}
damage GPT 512 33280
damage ESP 1048576 4096
damage superblock $((65 * 1048576 + 65536)) 8192

"$CHECKOUT/compat-tests/systems/generations.sh" "$file" "$out/generations" "${client[@]}"

if [ -n "${FREEBSD_BASE:-}" ]; then
  sed "s|^path = .*|path = \"$FREEBSD_BASE\"|; s|^version = .*|version = \"15.1-RELEASE\"|" "$CHECKOUT/examples/minimal.toml" >"$out/real.toml"
  "${client[@]}" system boot --accel=tcg "$out/real.toml" >"$out/console" 2>&1 || fail "the real FreeBSD does not boot"
  grep -a -E '^(ready|total)_seconds=' "$out/console"
fi
kill "$daemon"
wait "$daemon" 2>/dev/null || true
