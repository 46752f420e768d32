#!/bin/bash
# pkg.sh [--keep] : `fruix pkg' with a daemon, and a repository of twenty packages with dependencies in pkg's own format, which pkg-repository.py makes.
#
# What is shown:
#   - catalogue, signature, hashes and dependencies are pinned in the file; each package becomes a store item that refers to what it depends on,
#     all become one profile, and a collection keeps what that needs;
#   - sums as pkg up to 2.7 has them and as later ones, signatures with fingerprints and with a key, repositories over http and as files, with and
#     without meta.conf; `--check';
#   - what is damaged is refused, each with one line that has file, line, field and remedy;
#   - a base of packages is that which the same files as a tree come to, and a system has the profile in /usr/local.
# FRUIX_SYSTEMS_NO_BUILD takes the programs that are there (FRUIXD, FRUIX).  Needs root, for a daemon with build users.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=${here%/*/*}

fail() {
  echo "pkg: FAILED: $*" >&2
  tail -n 15 "$OUT/log" "$OUT/said" >&2 2>/dev/null || true
  exit 1
}

outside() {
  local keep=${1:-} status=0
  [ "$(id -u)" -eq 0 ] || { echo "pkg: needs root, to start a daemon with build users" >&2; exit 1; }
  for program in python3:python3 xz:xz-utils zstd:zstd openssl:openssl; do
    command -v "${program%:*}" >/dev/null || "$checkout/build-aux/install-packages" "${program#*:}"
  done
  [ -n "${FRUIX_SYSTEMS_NO_BUILD:-}" ] || "$checkout/build-aux/provision" fruixd
  WORK=$(mktemp -d "${FRUIX_TEST_STORES:-/var/tmp}/fruix-pkg.XXXXXX")
  chmod 755 "$WORK"
  export WORK OUT=$WORK/out
  mkdir -p "$WORK/bin" "$OUT/frx" /frx
  install "$(readlink -f "${FRUIXD:-$checkout/target/fruixd}")" "$WORK/bin/fruixd"
  install "$(readlink -f "${FRUIX:-$checkout/target/fruix}")" "$WORK/bin/fruix"
  unshare --mount --pid --fork --kill-child --mount-proc --propagation private "$here/pkg.sh" inside </dev/null || status=$?
  if [ "$keep" = --keep ]; then echo "pkg: kept in $WORK" >&2; else rm -rf "$WORK"; fi
  exit "$status"
}
[ "${1:-}" = inside ] || outside "$@"

# shellcheck source=compat-tests/systems/namespace.sh
. "$here/namespace.sh"
start=$SECONDS
cd "$WORK"
client=(env -i "${environment[@]}" "$WORK/bin/fruix")
pkg=("${client[@]}" pkg)
# value KEY : of what was printed last.
value() { sed -n "s/^$1=//p" "$OUT/said"; }
# says STATUS LINE COMMAND... : the command ends so, and its standard error has a line that begins with LINE.
says() {
  local expected=$1 line=$2 status=0
  shift 2
  "$@" >"$OUT/said" 2>"$OUT/told" || status=$?
  cat "$OUT/told" >>"$OUT/log"
  [ "$status" -eq "$expected" ] || { cat "$OUT/told" >&2; fail "status $status, not $expected: ${*: -3}"; }
  [ -z "$line" ] || awk -v line="$line" 'index($0, line) == 1 { found = 1 } END { exit !found }' "$OUT/told" ||
    { cat "$OUT/told" >&2; fail "nobody says: $line"; }
}
repository() { python3 "$here/pkg-repository.py" "$WORK/www/$1" key.pem pub.pem "${2:-blake2b}"; }

openssl genrsa -out key.pem 2048 2>>"$OUT/log"
openssl rsa -in key.pem -pubout -out pub.pem 2>>"$OUT/log"
openssl genrsa -out other.pem 2048 2>>"$OUT/log"
openssl rsa -in other.pem -pubout -out other-pub.pem 2>>"$OUT/log"
fingerprint=$(sha256sum pub.pem | cut -d' ' -f1)
mkdir www
repository good
: >"$OUT/server"
python3 -u -m http.server --bind 127.0.0.1 --directory www 0 >"$OUT/server" 2>"$OUT/requests" &
for ((i = 0; i < 200; i++)); do
  site=http://127.0.0.1:$(sed -n 's/.* port \([0-9]*\) .*/\1/p' "$OUT/server")
  [ "$site" = http://127.0.0.1: ] || break
  sleep 0.05
done
start_daemon "$OUT/log" || fail "fruixd does not start"

# Pinned.
declaration() { # NAME REPOSITORY [WANTED] : the file NAME.toml
  cat >"$1.toml" <<END
# packages for tests
[repository]
name = "test"
url = "$2" # here
fingerprints = ["$fingerprint"]
packages = [${3:-\"meta-all\", \"misc/www-server\", \"sudo\", \"python311\", \"libsigc++\", \"tmux\", \"zsh\"}]

# the end
END
}
declaration good "$site/good"
says 1 "good.toml:2: repository.sha256: is missing: nothing says which catalogue is meant; run \`fruix pkg update'" "${pkg[@]}" build good.toml
says 0 '' "${pkg[@]}" update --dry-run good.toml
[ "$(value pkg_changed)/$(value written)" = yes/no ] || fail "a dry run: $(cat "$OUT/said")"
says 0 '' "${pkg[@]}" update good.toml
[ "$(value pkg_catalogue_count)/$(value pkg_locked_count)" = 20/20 ] || fail "updated: $(cat "$OUT/said")"
pin=$(sha256sum www/good/packagesite.pkg | cut -d' ' -f1)
if ! grep -q "^sha256 = \"$pin\"$" good.toml || ! grep -q '^# the end$' good.toml || ! grep -q ' # here$' good.toml; then fail "written is $(cat good.toml)"; fi
bash_sum=$(sha256sum www/good/All/bash-5.3.3_1,1.pkg | cut -d' ' -f1)
grep -q -x -F "  \"bash 5.3.3_1,1 $bash_sum All/bash-5.3.3_1,1.pkg gettext-runtime readline\"," good.toml || fail "locked is $(cat good.toml)"
cp good.toml pinned.toml
says 0 '' "${pkg[@]}" update good.toml
[ "$(value pkg_changed)" = no ] && cmp -s good.toml pinned.toml || fail "what has not moved has changed"

# Items and a profile.
says 0 '' "${pkg[@]}" build --root "$WORK/profile" good.toml
[ "$(value pkg_scripts_not_run)" = "www-server: post-install pre-deinstall" ] || fail "scripts: $(cat "$OUT/said")"
grep -q 'www-server: files of squid:www are root' "$OUT/told" || fail "nobody tells of the unknown owner"
profile=$(value pkg_profile_store)
item() { value pkg_stores | tr , '\n' | sed -n "s/^$1=//p"; }
cp "$OUT/said" stores
[ "$(value pkg_stores | tr , '\n' | wc -l)" -eq 20 ] || fail "there are not twenty items"
[ "$(readlink -f profile)" = "$profile" ] && [ ! -e /RUN ] || fail "no profile"
for name in $(value pkg_stores | tr , '\n' | sed 's/=.*//'); do
  out=$(item "$name")
  [ "$("$profile/usr/local/bin/$name")" = "$name" ] && [ "$(readlink "$profile/usr/local/bin/$name")" = "$out/usr/local/bin/$name" ] ||
    fail "$name is not in the profile"
  [ "$("$out/usr/local/bin/$name-hard")" = "$name" ] && [ -L "$out/usr/local/lib/lib$name.so" ] && [ -d "$out/usr/local/share/$name-empty" ] &&
    [ "$(cat "$out/usr/local/share/$name/ä 50%.txt")" = odd ] || fail "$name: $(find "$out")"
  [ "$(readlink "$out/usr/local/share/$name/absolute")" = "/usr/local/bin/$name" ] || fail "$name: an absolute link"
  grep -q "^{\"name\":\"$name\"" "$out/+MANIFEST" || fail "$name: no manifest"
done
grep -q '^./usr/local/libexec/sudo-helper type=file uid=0 gid=0 mode=4755 time=1.0 flags=schg ' "$(item sudo)/METALOG" || fail "METALOG: $(cat "$(item sudo)/METALOG")"
grep -q '^./usr/local/www/index.html type=file uid=80 gid=80 ' "$(item www-server)/METALOG" || fail "METALOG: $(cat "$(item www-server)/METALOG")"
# What depends refers.
"${client[@]}" path-info "$(item bash)" >"$OUT/info"
for name in gettext-runtime readline; do
  grep -q -F "$(item $name)" "$OUT/info" || fail "bash does not refer to $name: $(cat "$OUT/info")"
done
"${client[@]}" gc >>"$OUT/log" 2>&1
for name in indexinfo git glib; do [ -d "$(item $name)" ] || fail "a collection took $name"; done
says 0 '' "${pkg[@]}" build --check good.toml
says 0 '' "${pkg[@]}" verify good.toml
[ "$(value pkg_verified)" = yes ] || fail "not verified: $(cat "$OUT/said")"

# The same in other ways: older sums, a file, a key, no meta.conf; a part of it.
OLD=1 SIGNATURE=pubkey repository old sha256
declaration old "file://$WORK/www/old" '"bash", "vim"'
sed -i "s/^fingerprints.*/pubkey = \"pub.pem\"/" old.toml
says 0 '' "${pkg[@]}" update old.toml
[ "$(value pkg_locked_count)" -eq 6 ] || fail "bash and vim need $(cat "$OUT/said")"
says 0 '' "${pkg[@]}" build old.toml
cmp -s "$(item vim)/usr/local/lib/libvim.so.1" "$profile/usr/local/lib/libvim.so.1" || fail "vim is another one"
says 0 '' "${pkg[@]}" verify old.toml
# Another user, from an empty cache and store.
kept=$profile
rm profile
"${client[@]}" gc >>"$OUT/log" 2>&1
[ ! -e "$kept" ] || fail "the profile is still there"
chmod a+r ./*.toml ./*.pem
says 0 '' setpriv --reuid=33001 --regid=33000 --clear-groups env -i "${environment[@]}" XDG_CACHE_HOME=/run/home/cache "$WORK/bin/fruix" pkg verify good.toml
[ "$(value pkg_profile_store)" = "$kept" ] && [ -e "$kept" ] || fail "another user has another profile"

# Damaged: by name, in one line.
refused=0
some='bash gettext-runtime indexinfo readline ncurses vim'
# damaged DAMAGE COMMAND LINE : a repository that was made so, and what is said of it.
damaged() {
  ONLY="$some" DAMAGE=$1 repository "$1" "${sums:-sha256}"
  declaration "$1" "$site/$1" '"bash"'
  [ "$2" = update ] || says 0 '' "${pkg[@]}" update "$1.toml"
  says 1 "$1.toml:${3//SITE/$site/$1}" "${pkg[@]}" "$2" "$1.toml"
  refused=$((refused + 1))
}
asks="; do not use it, and ask who made the repository"
damaged unsigned update "4: repository.url: SITE/packagesite.pkg: the catalogue is not signed$asks"
damaged other-signature update "4: repository.url: SITE/packagesite.pkg: the signature is not of this catalogue: one of the two was changed$asks"
damaged changed-after-signing update "4: repository.url: SITE/packagesite.pkg: the signature is not of this catalogue"
damaged no-key update "5: repository.fingerprints: SITE/packagesite.pkg has a signature without its key$asks"
damaged missing-dependency update "6: repository.packages[1]: \`readline' depends on \`gone', which the catalogue does not have; ask"
damaged circle update "6: repository.packages[1]: dependencies lead in a circle: bash -> gettext-runtime -> indexinfo -> bash; ask"
damaged duplicate-package update "6: repository.packages[1]: \`bash' depends on \`readline': the catalogue has \`readline' 2 times (1.0, 1.1); ask"
damaged other-machine update "6: repository.packages[1]: \`readline' is for FreeBSD:15:aarch64, and systems are made for amd64; name"
damaged path-out update "6: repository.packages[1]: the path of \`readline' in the catalogue \`../../../etc/passwd' is not allowed; ask"
damaged catalogue-json update "4: repository.url: the catalogue in SITE/packagesite.pkg: line 4: "
of="repository.locked[3]: package readline-1.0:"
damaged manifest-sum build "11: $of \`usr/local/bin/readline': has the sum "
sums=blake2b damaged bad-sum build "11: $of the manifest's file \`usr/local/bin/readline' has a sum of kind \`7', and 0, 1, 2 and 5 are known$asks"
damaged manifest-missing-file build "11: $of \`usr/local/bin/gone' is in the manifest, and not in the archive$asks"
damaged not-in-manifest build "11: $of \`usr/local/bin/hidden': is in the archive, and not in the manifest$asks"
damaged dotdot build "11: $of the manifest's file \`/usr/local/../../../etc/passwd': \`..' leads out of the tree$asks"
damaged through-link build "11: $of \`usr/local/out/file': is to be written through \`usr/local/out', which is no directory$asks"
damaged link-later build "11: $of \`usr/local/later/file': is below a link$asks"
damaged device build "11: $of \`usr/local/null': is a device, which no package has$asks"
damaged pipe build "11: $of \`usr/local/pipe': is a pipe, which no package has$asks"
damaged hard-link-out build "11: $of \`usr/local/shadow': is another name of \`etc/master.passwd', which is not there$asks"
damaged other-name build "11: $of the name in its manifest is \`readlin', and the catalogue says \`readline'$asks"
damaged other-version build "11: $of the version in its manifest is \`1.0_1', and the catalogue says \`1.0'$asks"
damaged other-dependencies build "11: $of its manifest depends on nothing, and the catalogue says indexinfo$asks"
damaged bomb build "11: $of \`usr/local/bomb': unpacked, it is more than the 100000 bytes that its manifest says (flatsize)$asks"
damaged own-name build "11: $of \`METALOG': is a name that the store item needs itself$asks"
damaged duplicate-file build "11: $of \`usr/local/bin/readline': is already there as a file$asks"
damaged no-manifest build "11: $of \`/usr/local/bin/readline' is before the manifest, which must come first$asks"
damaged manifest-json build "11: $of the manifest is not understood: "
[ ! -e /tmp/file ] || fail "a package wrote outside"
ONLY="$some" DAMAGE=two-with-one-file repository two sha256
declaration two "$site/two" '"bash", "vim"'
says 0 '' "${pkg[@]}" update two.toml
says 1 "two.toml:6: repository.packages: \`usr/local/bin/ncurses' is in the packages ncurses and readline; leave one of them out" "${pkg[@]}" build two.toml

# A key that nobody trusts, and one that is another.
sed "s/$fingerprint/$(sha256sum other-pub.pem | cut -d' ' -f1)/" good.toml >wrong.toml
says 1 "wrong.toml:5: repository.fingerprints: $site/good/packagesite.pkg is signed with the key $fingerprint, which is not among them; write" "${pkg[@]}" update wrong.toml
sed 's/pub.pem/other-pub.pem/' old.toml >wrong.toml
says 1 "wrong.toml:4: repository.url: file://$WORK/www/old/packagesite.txz: the signature is not of this catalogue" "${pkg[@]}" update wrong.toml
sed 's/pub.pem/old.toml/' old.toml >wrong.toml
says 1 "wrong.toml:5: repository.pubkey: the key of file://$WORK/www/old/packagesite.txz is no PEM with a public key; look at" "${pkg[@]}" update wrong.toml
# Archives that changed after the catalogue was signed: before and after they were pinned.
ONLY="$some" repository changed blake2b
declaration changed "$site/changed" '"readline"'
printf x >>www/changed/All/readline-1.0.pkg
says 1 "changed.toml:6: repository.packages: package readline-1.0: $site/changed/All/readline-1.0.pkg has the sum 2$" "${pkg[@]}" update changed.toml
ONLY="$some" repository changed sha256
says 0 '' "${pkg[@]}" update changed.toml
printf x >>www/changed/All/readline-1.0.pkg
says 1 "changed.toml:10: repository.locked[2]: package readline-1.0: could not be had from $site/changed/All/readline-1.0.pkg: " "${pkg[@]}" build changed.toml
grep -q '^hash mismatch for store item' "$OUT/told" || fail "nobody says that the archive is another"
truncate -s 600 www/changed/All/readline-1.0.pkg
says 1 "changed.toml:10: repository.locked[2]: package readline-1.0: could not be had from " "${pkg[@]}" build changed.toml
rm www/changed/All/readline-1.0.pkg
says 1 "changed.toml:10: repository.locked[2]: package readline-1.0: could not be had from " "${pkg[@]}" build changed.toml
sed "s|$site|file://$WORK/www|" changed.toml >wrong.toml
ONLY="$some" repository changed blake2b
printf x >>www/changed/All/readline-1.0.pkg
says 1 "wrong.toml:10: repository.locked[2]: package readline-1.0: file://$WORK/www/changed/All/readline-1.0.pkg has the sha256 " "${pkg[@]}" build wrong.toml
# The pin is another catalogue's, the lines are others'; the cache was changed.
cache=/frx/var/cache/fruix/freebsd-repository
sed "s/^sha256 = .*/sha256 = \"$fingerprint\"/" good.toml >wrong.toml
says 1 "wrong.toml:7: repository.sha256: $site/good/packagesite.pkg has the sha256 $pin; the repository has moved, or was changed: run" "${pkg[@]}" verify wrong.toml
sed 's/"bash 5.3.3_1,1 /"bash 5.3.3_2,1 /' good.toml >wrong.toml
says 1 "wrong.toml:12: repository.locked[4]: the catalogue says \`bash 5.3.3_1,1 " "${pkg[@]}" verify wrong.toml
sed '/"indexinfo /d' good.toml >wrong.toml
says 1 "wrong.toml:9: repository.locked[1]: \`gettext-runtime' depends on \`indexinfo', which is not there before it; run" "${pkg[@]}" build wrong.toml
printf 'x' | dd of="$cache/$pin" bs=1 seek=500 conv=notrunc status=none
says 1 "$cache/$pin: has the sha256 " "${pkg[@]}" verify good.toml
says 0 '' "${pkg[@]}" verify good.toml
sed 's/"tmux"/"emacs"/' good.toml >wrong.toml
says 1 "wrong.toml:6: repository.packages[6]: the catalogue has no \`emacs'; name" "${pkg[@]}" update wrong.toml
declaration wrong "$site/nowhere"
says 1 "wrong.toml:4: repository.url: $site/nowhere has none of packagesite.pkg, packagesite.tzst, packagesite.txz; look" "${pkg[@]}" update wrong.toml
# A base of packages is what the same files are as a directory, and a system has the profile in /usr/local.
mkdir -p base/boot/kernel base/etc base/sbin base/bin base/usr/share/misc
echo '#!/bin/sh' | tee base/etc/rc base/bin/sh >base/sbin/init
chmod 755 base/etc/rc base/bin/sh base/sbin/init
echo kernel >base/boot/kernel/kernel
echo loader >base/boot/loader.efi
echo text >base/usr/share/misc/ascii
echo copyright >base/COPYRIGHT
BASE=base repository base
cat >system.toml <<END
host-name = "x"
[base]
version = "15.1"
kind = "pkgbase"
[base.repository]
url = "$site/base"
fingerprints = ["$fingerprint"]
packages = ["FreeBSD-kernel-generic", "FreeBSD-runtime"]
[repository]
url = "$site/good"
fingerprints = ["$fingerprint"]
packages = ["bash", "sudo", "www-server"]
[[file-systems]]
mount-point = "/"
device = "/dev/gpt/rootfs"
type = "ufs"
[image]
grow = false
END
says 1 "system.toml:5: base.repository.sha256: is missing" "${client[@]}" system build system.toml
says 0 '' "${pkg[@]}" update system.toml
[ "$(value pkg_locked_count | xargs)" = "3 8" ] || fail "both are locked: $(cat "$OUT/said")"
says 0 '' "${pkg[@]}" verify system.toml
says 0 '' "${client[@]}" system rootfs --rootfs="$WORK/root" system.toml
closure=$(value closure_path) stores=$(value base_package_stores),$(value kernel_store),$(value bootloader_store)
profile=$(value pkg_profile_store)
[ "$(readlink root/usr/local/bin/bash)" = /run/current-system/usr/local/bin/bash ] && [ "$(tail -n 1 "root$(readlink "root$closure/usr/local/bin/bash")")" = "echo bash" ] || fail "no bash in the root: $(find root/usr/local)"
[ "$(stat -c %a:%F root/usr/local/libexec/sudo-helper)" = "4755:regular file" ] && [ "$(stat -c %a root/usr/local/etc/sudo.secret)" = 440 ] ||
  fail "what is privileged is no copy: $(ls -lR root/usr/local)"
[ -d "root$profile" ] && [ -L root/usr/local/etc/rc.d/www-server ] || fail "the profile is not in the root"
sed -e '/^\[base.repository\]/,/^\[repository\]/{/^\[repository\]/!d}' -e 's/^kind = .*/kind = "local-tree"\npath = "base"/' system.toml >tree.toml
says 0 '' "${client[@]}" system build tree.toml
others=$(value base_package_stores),$(value kernel_store),$(value bootloader_store)
[ "$stores" != "$others" ] || fail "nothing was made of packages"
paste -d' ' <(tr , '\n' <<<"$stores") <(tr , '\n' <<<"$others") | while read -r one other; do
  diff -r --exclude=METALOG "$one" "$other" >>"$OUT/log" &&
    cmp -s <(sed "1d; s|$one|PACKAGE|" "$one/METALOG") <(sed "1d; s|$other|PACKAGE|" "$other/METALOG") || fail "$one and $other differ"
done
kill "$daemon"
wait "$daemon" 2>/dev/null || true
echo "pkg: twenty packages, $refused damaged repositories and more refused by name, in $((SECONDS - start)) s"
