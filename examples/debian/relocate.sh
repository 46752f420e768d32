# The builder of debian-toolchain, run by Debian's static bash: copy the tree of unpacked packages $packages to $out such
# that its programs find their loader, libraries and data there and nowhere else.
# shellcheck shell=bash disable=SC2154 # $packages and $out come from the derivation
set -euo pipefail

from=$packages/usr
triplet=x86_64-linux-gnu
libraries=$out/lib/$triplet
loader=$libraries/ld-linux-x86-64.so.2

# Debian's static busybox serves until the copies work.
"$from/bin/busybox" mkdir applets
"$from/bin/busybox" --install -s "$PWD/applets"
export PATH=$PWD/applets

echo "copying $from"
mkdir "$out"
for directory in bin include lib lib64 libexec sbin share; do
  cp -dR "$from/$directory" "$out/$directory"
done
chmod -R u+w "$out"
ln -s . "$out/usr" # what gcc and ld look for below their system root

# The sandbox switches address randomization off, where a loader that is started by hand collides with the heap; linux64
# switches it on again.
patchelf() {
  linux64 "$from/lib/$triplet/ld-linux-x86-64.so.2" --library-path "$from/lib/$triplet" "$from/bin/patchelf" "$@"
}

echo "relocating programs"
count=0
find "$out/bin" "$out/libexec" "$libraries/guile" -type f -perm -u+x | sort >files
while read -r file; do
  if [ "$(head -c 4 "$file" | tail -c 3)" = ELF ]; then
    patchelf --print-interpreter "$file" >/dev/null 2>&1 || continue # static, or a library
    # DT_RPATH of a program serves its libraries too, so that these need no change.  First the path, then in a second call
    # the interpreter: the other way round patchelf breaks programs that are not position-independent, such as cc1.
    patchelf --force-rpath --set-rpath "$libraries" "$file"
    patchelf --set-interpreter "$loader" "$file"
    count=$((count + 1))
  else
    sed -i -E "1s|^#! */bin/(ba)?sh|#!$out/bin/bash|" "$file"
  fi
done <files
echo "relocated $count programs"

# wrap PROGRAM ARGUMENTS LINE... : replace the file behind PROGRAM by a script that runs LINEs, then the file with ARGUMENTS,
# under the name that the script was called by (gcc finds its own directories from it).
wrap() {
  local file arguments=$2 moved
  file=$(readlink -f "$out/bin/$1")
  moved=$out/libexec/wrapped/${file##*/}
  shift 2
  mkdir -p "$out/libexec/wrapped"
  mv "$file" "$moved"
  {
    echo "#!$out/bin/bash"
    [ $# -eq 0 ] || printf '%s\n' "$@"
    echo "exec -a \"\$0\" $moved $arguments \"\$@\""
  } >"$file"
  chmod 755 "$file"
  echo "wrapped $file"
}

wrap gcc "--sysroot=$out -B$out/bin/ -Wl,--dynamic-linker=$loader -Wl,-rpath,$libraries"
wrap cpp "--sysroot=$out"
# Guile aborts without gconv modules, and reads file names wrongly without a UTF-8 locale, which glibc does not carry inside.
wrap guile-3.0 "" \
  "export GUILE_SYSTEM_PATH=$out/share/guile/3.0" \
  "export GUILE_SYSTEM_COMPILED_PATH=$libraries/guile/3.0/ccache" \
  "export GUILE_SYSTEM_EXTENSIONS_PATH=$libraries/guile/3.0/extensions:$libraries" \
  "export GCONV_PATH=$libraries/gconv" \
  "export LOCPATH=$out/lib/locale"
wrap file "--magic-file $out/lib/file/magic.mgc"

# What Debian's alternatives and maintainer scripts would have made.
ln -s bash "$out/bin/sh"
ln -s gcc "$out/bin/cc"
ln -s gawk "$out/bin/awk"
ln -s guile-3.0 "$out/bin/guile"
ln -s which.debianutils "$out/bin/which"
