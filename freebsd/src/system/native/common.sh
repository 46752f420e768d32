# shellcheck shell=sh disable=SC2154,SC2034,SC2164 # one script together with common.sh; the derivation gives the rest
# common.sh : what all builders of FreeBSD begin with. They run in a sandbox whose root is a toolchain (`builderRoot'); the derivation gives
#   source   a part of a source tree, patched
#   options  src.conf: WITH_ and WITHOUT_ lines
#   tools    what tools.sh made; not for tools.sh itself
#   info     a file for what it makes, which tells from what
# Whatever the names in the store are, everything is built in /tmp/src and /tmp/obj: files that are made have these names in them, or none.
set -eu
umask 022
unset TMPDIR TEMPDIR TMP TEMP PWD
export LC_ALL=C TZ=UTC HOME=/tmp/home MAKEOBJDIRPREFIX=/tmp/obj
PATH=/usr/bin:/bin:/usr/sbin:/sbin
for directory in /usr/lib/llvm-*/bin; do
  [ ! -d "$directory" ] || PATH=$directory:$PATH
done
# A toolchain of Clang alone has no cc.
mkdir /tmp/bin
PATH=/tmp/bin:$PATH
export PATH
for pair in cc:clang c++:clang++ cpp:clang-cpp; do
  command -v "${pair%:*}" >/dev/null || ln -s "$(command -v "${pair#*:}")" "/tmp/bin/${pair%:*}"
done
src=/tmp/src obj=/tmp/obj objtop=/tmp/obj/tmp/src/amd64.amd64 stage=/tmp/stage
jobs=${NIX_BUILD_CORES:-1}
[ "$jobs" -gt 0 ] 2>/dev/null || jobs=$(getconf _NPROCESSORS_ONLN)

say() { echo "fruix: $*"; }

# The source is copied: FreeBSD's makefiles ask for the true name of where they are, and it would be in what they make.
say "copying the source"
mkdir "$HOME" "$obj" "$stage"
cp -R -P -p "$source" "$src"
chmod -R u+w "$src"
cd "$src"
{ cat "$options" && echo 'WITH_REPRODUCIBLE_BUILD='; } >/tmp/src.conf

make=$obj/bmake/bin/bmake
if [ "$(uname -s)" = FreeBSD ]; then
  make=/usr/bin/make
else
  # The compiler for the machine that builds, and the same for FreeBSD.
  CC=$(command -v clang) CXX=$(command -v clang++) CPP=$(command -v clang-cpp)
  XCC=$CC XCXX=$CXX XCPP=$CPP XLD=$(command -v ld.lld)
  export CC CXX CPP XCC XCXX XCPP XLD
fi

# mk ARGUMENT... : FreeBSD's build.
mk() {
  "$make" -j"$jobs" TARGET=amd64 TARGET_ARCH=amd64 SRCCONF=/tmp/src.conf SRC_ENV_CONF=/dev/null __MAKE_CONF=/dev/null -DWITH_AUTO_OBJ \
    -DWITHOUT_CLEAN "$@"
}

# restore_tools : brings the tools to where they were made.
restore_tools() {
  cp -R -p "$tools/obj/." "$obj"
  chmod -R u+w "$obj"
}

# write_info : tells in the output from what it was made; the store items are known here only.
write_info() {
  cat "$info"
  [ -z "${tools:-}" ] || echo " (tools . \"$tools\")"
  echo " (toolchain . \"$builderRoot\"))"
}

# finish : makes the output of what is staged. The list of files tells times of some, and is in the order in which they were installed side by side.
finish() {
  grep -v '^#' "$stage/METALOG" | sed 's/ time=[0-9.]*//' | sort -u >/tmp/METALOG
  { echo '#mtree 2.0' && cat /tmp/METALOG; } >"$stage/METALOG"
  write_info >"$stage/.freebsd-native-build-info.scm"
  chmod -R u+w "$stage"
  cp -R -P -p "$stage" "$out"
}
