# shellcheck shell=sh disable=SC2154,SC2034,SC2164 # one script together with common.sh; the derivation gives the rest
# tools.sh : make, and the tools that a build of FreeBSD makes for itself before all else.
if [ "$make" != /usr/bin/make ]; then
  say "make"
  mkdir -p "$obj/bmake/bin" "$obj/bmake/share/mk" /tmp/bmake
  (
    cd /tmp/bmake
    sh "$src/contrib/bmake/configure" --with-default-sys-path=".../share/mk:$obj/bmake/share/mk" --with-machine=amd64 --without-filemon \
      --prefix="$obj/bmake"
    sh make-bootstrap.sh
    cp bmake "$make"
  )
  cp contrib/bmake/mk/*.mk "$obj/bmake/share/mk/"
fi
for target in _worldtmp _legacy _bootstrap-tools _cross-tools; do
  say "$target"
  mk "$target"
done
# What is left of their making is not needed.
say "keeping the tools"
mkdir -p "$out/obj/tmp/src/amd64.amd64"
[ ! -d "$obj/bmake" ] || cp -R -P -p "$obj/bmake" "$out/obj/bmake"
cp -R -P -p "$objtop/tmp" "$out/obj/tmp/src/amd64.amd64/tmp"
for file in "$objtop"/*.mk; do
  [ ! -e "$file" ] || cp -p "$file" "$out/obj/tmp/src/amd64.amd64/"
done
write_info >"$out/.freebsd-native-build-info.scm"
