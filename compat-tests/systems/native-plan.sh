#!/bin/bash
# native-plan.sh [--keep] : bases that are built, with the real daemon and a source and a toolchain that are stand-ins: a few files, and busybox.
#
# What is shown:
#   - tools, kernel, boot programs and runtime are built in the sandbox, whose root is the toolchain; the closure of a system has their files;
#   - what is there is not built again; a changed line builds what reads it, and nothing else; `--check' finds the same bytes;
#   - each output tells from what it was made; the closure refers neither to toolchain nor source;
#   - patches change the source, and one that does not apply is refused with its line before anything is built.
# FRUIX_SYSTEMS_NO_BUILD takes the programs that are there (FRUIXD, FRUIX).  Needs root, for a daemon with build users.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=${here%/*/*}

fail() {
  echo "native-plan: FAILED: $*" >&2
  tail -n 25 "$OUT/log" >&2 2>/dev/null || true
  exit 1
}

outside() {
  local keep=${1:-} status=0
  [ "$(id -u)" -eq 0 ] || { echo "native-plan: needs root, to start a daemon with build users" >&2; exit 1; }
  "$checkout/build-aux/install-packages" busybox-static
  [ -n "${FRUIX_SYSTEMS_NO_BUILD:-}" ] || "$checkout/build-aux/provision" fruixd
  WORK=$(mktemp -d "${FRUIX_TEST_STORES:-/var/tmp}/fruix-native.XXXXXX")
  chmod 755 "$WORK"
  export WORK OUT=$WORK/out
  mkdir -p "$WORK/bin" "$OUT/frx" /frx
  install "$(readlink -f "${FRUIXD:-$checkout/target/fruixd}")" "$WORK/bin/fruixd"
  install "$(readlink -f "${FRUIX:-$checkout/target/fruix}")" "$WORK/bin/fruix"
  unshare --mount --pid --fork --kill-child --mount-proc --propagation private "$here/native-plan.sh" inside </dev/null || status=$?
  if [ "$keep" = --keep ]; then echo "native-plan: kept in $WORK" >&2; else rm -rf "$WORK"; fi
  exit "$status"
}
[ "${1:-}" = inside ] || outside "$@"

# shellcheck source=compat-tests/systems/namespace.sh
. "$here/namespace.sh"
start=$SECONDS
cd "$WORK"
: >"$OUT/log"
fruix=(env -i "${environment[@]}" "$WORK/bin/fruix" system)
value() { sed -n "s/^$1=//p" "$OUT/said"; }
run() { "${fruix[@]}" "$@" >"$OUT/said" 2>"$OUT/told" || { cat "$OUT/told" >>"$OUT/log"; fail "fruix system $*"; }; cat "$OUT/told" >>"$OUT/log"; }
built() { sed -n "s/^fruix-test: builds //p" "$OUT/told" | tr '\n' ' '; }

# A toolchain whose programs are in its root.
mkdir -p toolchain/usr/bin toolchain/usr/lib
cp /bin/busybox toolchain/usr/bin/busybox
ln -s usr/bin toolchain/bin
ln -s usr/lib toolchain/lib
for program in awk cat chmod cp cut date echo grep head ls mkdir mv rm sed sh sort touch tr uname wc; do ln -s busybox toolchain/usr/bin/$program; done
for program in clang clang++ clang-cpp ld.lld; do ln -s busybox toolchain/usr/bin/$program; done
printf '#!/bin/sh\necho 2\n' >toolchain/usr/bin/getconf
chmod 755 toolchain/usr/bin/getconf

# A source whose make is a script: targets of FreeBSD's that copy what is in it.
mkdir -p source/{bin/ls,sys/amd64/conf,sys/kern,sys/sys,stand/lua,etc/rc.d,etc/mtree,contrib/bmake/mk,share/mk,lib}
echo 'ls 1' >source/bin/ls/ls.c
echo 'kernel 1' >source/sys/kern/kern_exec.c
echo 'param 1' >source/sys/sys/param.h
echo 'options' >source/sys/amd64/conf/GENERIC
echo 'loader 1' >source/stand/lua/loader.lua
mkdir source/stand/userboot
printf 'SUBDIR= test\n' >source/stand/userboot/Makefile
echo 'all:' | tee source/Makefile source/share/mk/sys.mk source/contrib/bmake/mk/sys.mk >/dev/null
printf 'root:*:0:0::0:0:root:/root:/bin/sh\n' >source/etc/master.passwd
printf 'wheel:*:0:root\n' >source/etc/group
echo '#!/bin/sh' >source/etc/rc
echo 'cp /tmp/src/contrib/bmake/make-bootstrap.sh .' >source/contrib/bmake/configure
cat >source/contrib/bmake/make-bootstrap.sh <<'END'
cp /tmp/src/contrib/bmake/script bmake
chmod 755 bmake
END
cat >source/contrib/bmake/script <<'END'
#!/bin/sh
set -eu
destination="" config="" target=""
for argument; do
  case $argument in
    DESTDIR=*) destination=${argument#*=} ;;
    KERNCONF=*) config=${argument#*=} ;;
    -* | *=*) ;;
    *) target=$argument ;;
  esac
done
[ "$PWD" = /tmp/src ] && [ -z "${TMPDIR:-}" ] && grep -q '^WITHOUT_GAMES=$' /tmp/src.conf || exit 9
objtop=$MAKEOBJDIRPREFIX/tmp/src/amd64.amd64
# put FILE MODE : installs its standard input
put() {
  mkdir -p "$destination/${1%/*}"
  cat >"$destination/$1"
  echo "./$1 type=file uname=root gname=wheel mode=$2 time=$(date +%s).5" >>"$destination/METALOG"
}
case $target in
  _bootstrap-tools) echo 'fruix-test: builds tools'; mkdir -p "$objtop/tmp/legacy"; cat sys/sys/param.h >"$objtop/tmp/legacy/tool" ;;
  buildkernel) echo 'fruix-test: builds kernel'; cat "$objtop/tmp/legacy/tool" sys/kern/kern_exec.c "sys/amd64/conf/$config" >"$objtop/kernel" ;;
  installkernel) put boot/kernel/kernel 0444 <"$objtop/kernel" ;;
  _includes) echo 'fruix-test: builds runtime' ;;
  installworld)
    if [ -d stand ]; then
      echo 'fruix-test: builds loader'
      put boot/lua/loader.lua 0444 <stand/lua/loader.lua
      for file in loader.efi loader_lua.efi; do echo stand-in | put boot/$file 0555; done
    else
      for file in bin/sh sbin/init sbin/growfs usr/sbin/nologin; do echo '#!/bin/sh' | put $file 0555; done
      put bin/ls 0555 <bin/ls/ls.c
      put usr/bin/su 04555 <bin/ls/ls.c
    fi ;;
  distribution)
    for file in rc master.passwd group; do put etc/$file 0644 <etc/$file; done
    echo '#!/bin/sh' | put etc/rc.d/growfs 0555 ;;
esac
END
cat >system.toml <<'END'
host-name = "native"
[base]
version = "0.1"
kind = "source"
[base.source]
kind = "local-tree"
path = "source"
[base.build]
toolchain = "toolchain"
kernel-config = "GENERIC"
kernel-modules = []
options = ["WITHOUT_GAMES"]
[[file-systems]]
mount-point = "/"
device = "/dev/gpt/rootfs"
type = "ufs"
END
# changed PATH FROM TO : a file system-NAME.toml with a patch of a line of a file
changed() {
  printf -- '--- a/%s\n+++ b/%s\n@@ -1 +1 @@\n-%s\n+%s\n' "$1" "$1" "$2" "$3" >"${1##*/}.patch"
  sed "s|^kernel-modules.*|&\npatches = [\"${1##*/}.patch\"]|" system.toml >"${1##*/}.toml"
}
changed bin/ls/ls.c 'ls 1' 'ls 2'
changed sys/kern/kern_exec.c 'kernel 1' 'kernel 2'
changed stand/lua/loader.lua 'loader 1' 'loader 2'
changed etc/rc 'no such line' 'x'
chmod -R go+rX source toolchain ./*.toml ./*.patch

# Before there is a daemon.
run base --dry-run system.toml
cp "$OUT/said" plan
status=0
"${fruix[@]}" build rc.toml >"$OUT/said" 2>"$OUT/told" || status=$?
expected="rc.toml:12: base.build.patches[1]: \`$WORK/rc.patch' does not apply: \`etc/rc': error applying hunk #1; make it for this source, or leave it out"

start_daemon "$OUT/log" || fail "fruixd does not start"
status=0
"${fruix[@]}" build rc.toml >"$OUT/said" 2>"$OUT/told" || status=$?
[ "$status" -eq 1 ] && grep -q -F -x -- "$expected" "$OUT/told" || fail "a patch that does not apply: $status, $(cat "$OUT/told")"
sed 's/^kernel-config.*/kernel-config = "MISSING"/' system.toml >missing.toml
! "${fruix[@]}" build missing.toml >"$OUT/said" 2>"$OUT/told" || fail "a kernel that is not there"
grep -q '^missing.toml:10: base.build.kernel-config: the source has no sys/amd64/conf/MISSING; ' "$OUT/told" || fail "a missing kernel: $(cat "$OUT/told")"

run build system.toml
[ "$(built | tr ' ' '\n' | sort | tr '\n' ' ')" = "kernel loader runtime tools " ] || fail "what was built first: $(built)"
for key in tools kernel bootloader runtime; do
  store=$(value native_${key}_store)
  [ "$store" = "$(sed -n "s/^native_${key}_store=//p" plan)" ] || fail "the path of $key was not known before"
  grep -q -F "(toolchain . \"$(value native_toolchain_store)\")" "$store/.freebsd-native-build-info.scm" || fail "$key does not tell its toolchain"
  grep -q -F "(sha256 . \"" "$store/.freebsd-native-build-info.scm" || fail "$key does not tell its source"
done
[ "$(cat "$(value kernel_store)/boot/kernel/kernel")" = "$(printf 'param 1\nkernel 1\noptions')" ] || fail "the kernel is another one"
grep -q '^./usr/bin/su .*mode=04555' "$(value native_runtime_store)/METALOG" && ! grep -q time= "$(value native_runtime_store)/METALOG" || fail "METALOG"
closure=$(value closure_path)
for item in "$(value native_toolchain_store)" "$(value native_tools_store)" "$(value native_kernel_store)" "$(value native_runtime_source)"; do
  name=${item#/frx/store/}
  IFS=, read -r -a packages <<<"$(value base_package_stores)"
  ! grep -r -q "${name%%-*}" "$closure" "$(value kernel_store)" "${packages[@]}" || fail "the system refers to $item"
done
grep -q -F '(kind . local-tree)' "$closure/metadata/freebsd-source.scm" || fail "the closure does not tell its source"

run build system.toml
[ -z "$(built)" ] || fail "what is there was built again: $(built)"
run base --check system.toml
for change in ls.c:runtime kern_exec.c:kernel loader.lua:loader; do
  run build "${change%:*}.toml"
  [ "$(built)" = "${change#*:} " ] || fail "${change%:*} builds: $(built)"
done
run build ls.c.toml
[ "$(cat "$(value runtime_store | sed 's/-runtime$/-userland/')/bin/ls" 2>/dev/null || cat "$(value native_runtime_store)/bin/ls")" = 'ls 2' ] || fail "a patch that is not seen"
echo "native-plan: all passed in $((SECONDS - start)) s"
