#!/bin/bash
# sources.sh [--keep] : `fruix source' with a daemon, and one tree as directory, as git repository and as src.txz.
#
# What is shown:
#   - the three have one effective identity, through the daemon, from the cache, for root and for another user; a changed line has another;
#   - a cache, a store and a directory that were tampered with are named, not used, and mended;
#   - `update' follows a branch that moved and writes its pin into the file, comments kept; `verify' does not follow it;
#   - what is wrong is one line with file, line, field and remedy, and status 1;
#   - a system tells the source that it declares.
# FRUIX_SYSTEMS_NO_BUILD takes the programs that are there (FRUIXD, FRUIX).  Needs root, for a daemon with build users.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=${here%/*/*}

fail() {
  echo "sources: FAILED: $*" >&2
  tail -n 15 "$OUT/log" "$OUT/said" >&2 2>/dev/null || true
  exit 1
}

outside() {
  local keep=${1:-} status=0
  [ "$(id -u)" -eq 0 ] || { echo "sources: needs root, to start a daemon with build users" >&2; exit 1; }
  for program in git:git python3:python3 xz:xz-utils tar:tar; do
    command -v "${program%:*}" >/dev/null || "$checkout/build-aux/install-packages" "${program#*:}"
  done
  [ -n "${FRUIX_SYSTEMS_NO_BUILD:-}" ] || "$checkout/build-aux/provision" fruixd
  WORK=$(mktemp -d "${FRUIX_TEST_STORES:-/var/tmp}/fruix-sources.XXXXXX")
  chmod 755 "$WORK"
  export WORK OUT=$WORK/out
  mkdir -p "$WORK/bin" "$OUT/frx" /frx
  install "$(readlink -f "${FRUIXD:-$checkout/target/fruixd}")" "$WORK/bin/fruixd"
  install "$(readlink -f "${FRUIX:-$checkout/target/fruix}")" "$WORK/bin/fruix"
  unshare --mount --pid --fork --kill-child --mount-proc --propagation private "$here/sources.sh" inside </dev/null || status=$?
  if [ "$keep" = --keep ]; then echo "sources: kept in $WORK" >&2; else rm -rf "$WORK"; fi
  exit "$status"
}
[ "${1:-}" = inside ] || outside "$@"

# shellcheck source=compat-tests/systems/namespace.sh
. "$here/namespace.sh"
start=$SECONDS
cd "$WORK"
root=(env -i "${environment[@]}" "$WORK/bin/fruix" source)
other=(setpriv --reuid=33001 --regid=33000 --clear-groups env -i "${environment[@]}" XDG_CACHE_HOME=/run/home/cache "$WORK/bin/fruix" source)
# value KEY : of what was printed last.
value() { sed -n "s/^$1=//p" "$OUT/said"; }
# says STATUS LINE COMMAND... : the command ends so, and its standard error has a line that is, or begins with, LINE.
says() {
  local expected=$1 line=$2 status=0
  shift 2
  "$@" >"$OUT/said" 2>"$OUT/told" || status=$?
  cat "$OUT/told" >>"$OUT/log"
  [ "$status" -eq "$expected" ] || fail "status $status, not $expected: ${*: -3}"
  [ -z "$line" ] || grep -q -F -- "$line" "$OUT/told" || { cat "$OUT/told" >&2; fail "nobody says: $line"; }
}
as_git() { git -c user.name=test -c user.email=test@example.org -c init.defaultBranch=main -C "$WORK/tree" "$@" >>"$OUT/log" 2>&1; }

# The tree: something to execute, a link, a file with two names, an odd name; and what git does not hold.
mkdir -p tree/sys/kern tree/bin/sh
printf 'int main(void) { return 0; }\n' >tree/sys/kern/init_main.c
printf '#!/bin/sh\necho 15.1\n' >tree/sys/newvers.sh
chmod 755 tree/sys/newvers.sh
printf 'copy\n' >tree/COPYRIGHT
ln tree/COPYRIGHT tree/bin/sh/COPYRIGHT
ln -s ../sys/newvers.sh tree/bin/version
printf 'odd\n' >'tree/a b-ä.c'
head -c 200000 /dev/urandom >tree/sys/firmware.bin
export HOME=/run/home
as_git init || fail "git init"
as_git add -A
as_git commit -m one
as_git tag -a -m 'a tag that is an object' v1
as_git tag main-is-no-tag
mkdir tree/empty
chmod 600 tree/COPYRIGHT
mkdir -p www/usr
ln -s "$WORK/tree" www/usr/src
tar -C www --exclude .git -chf - --hard-dereference usr/src 2>>"$OUT/log" | xz -1 >www/followed.txz
rm www/usr/src
cp -a tree www/usr/src
(cd www && tar --exclude .git -cf - usr/src | xz -1 >src.txz)
rm -r www/usr
git clone --bare -q tree www/src.git 2>>"$OUT/log"
git -C www/src.git update-server-info
python3 -c '
import http.server, functools, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
open(sys.argv[2], "w").write(str(server.server_address[1]))
server.serve_forever()' "$WORK/www" "$OUT/port" >/dev/null 2>"$OUT/requests" &
for ((i = 0; i < 200; i++)); do [ -s "$OUT/port" ] && break || sleep 0.05; done
ip link set lo up 2>/dev/null || true
site=http://127.0.0.1:$(cat "$OUT/port")
chmod -R go+rX tree www

printf '[source]\nkind = "local-tree"\npath = "tree"\n' >local.toml
printf '# pinned by fruix\n[source] # a branch\nname = "main"\nkind = "git"\nurl = "%s/src.git"\nref = "main" # moves\n\n# the end\n' "$site" >git.toml
printf 'source = { kind = "src-txz", url = "%s/src.txz" }\n' "$site" >txz.toml
printf '[source]\nkind = "src-txz"\npath = "www/src.txz"\n' >file.toml

# Before there is a daemon: nothing is pinned, which is said, and pins are written.
says 1 'git.toml:2: source.commit: is missing: nothing says which tree is meant; run `fruix source update'\''' "${root[@]}" verify git.toml
says 0 '' "${root[@]}" show git.toml
[ "$(value freebsd_source_pinned)/$(value freebsd_source_store)" = no/ ] || fail "what is not pinned is shown as something"
says 0 '' "${root[@]}" update --dry-run git.toml
[ "$(value written)/$(value freebsd_source_changed)" = no/yes ] && ! grep -q commit git.toml || fail "a dry run writes"
for file in git txz file; do
  says 0 '' "${root[@]}" update $file.toml
  [ "$(value written)" = yes ] || fail "no pin was written to $file.toml"
done
first=$(git -C tree rev-parse HEAD)
pin=$(sed -n 's/^sha256 = "\(.*\)"/\1/p' git.toml)
expected="# pinned by fruix
[source] # a branch
name = \"main\"
kind = \"git\"
url = \"$site/src.git\"
ref = \"main\" # moves
commit = \"$first\"
sha256 = \"$pin\"

# the end"
[ "$(cat git.toml)" = "$expected" ] || fail "the pin is written so: $(cat git.toml)"
says 0 '' "${root[@]}" update git.toml
[ "$(value freebsd_source_changed)/$(value freebsd_source_old_commit)" = "no/$first" ] || fail "what has not moved has changed"

start_daemon "$OUT/log" || fail "fruixd does not start"
chmod a+r ./*.toml
cache=/frx/var/cache/fruix/freebsd-source
archive=$(sha256sum www/src.txz | cut -d' ' -f1)
[ "$(ls "$cache")" = "$(printf '%s\n' "$archive" "$pin" | sort)" ] || fail "the cache has $(ls "$cache")"

# One identity.
identity() { # FILE COMMAND... : verifies, and says what the tree is
  local file=$1
  shift
  says 0 '' "$@" verify "$file"
  [ "$(value freebsd_source_verified)/$(value freebsd_source_materialised)" = yes/yes ] || fail "$file is not verified"
  value freebsd_source_effective_sha256
}
requests=$(wc -l <"$OUT/requests")
for file in local git txz file; do
  [ "$(identity $file.toml "${root[@]}")" = "$pin" ] || fail "$file.toml has the identity $(value freebsd_source_effective_sha256), not $pin"
  out=$(value freebsd_source_store)
  grep -q -F "(effective ." "$out/freebsd-source.scm" && grep -q -F "$pin" "$out/freebsd-source.scm" || fail "$file: $(cat "$out/freebsd-source.scm")"
  [ ! -e "$out/src/empty" ] && [ ! -e "$out/src/.git" ] && [ -x "$out/src/sys/newvers.sh" ] && [ ! -x "$out/src/COPYRIGHT" ] && cmp -s "tree/a b-ä.c" "$out/src/a b-ä.c" &&
    [ "$(readlink "$out/src/bin/version")" = ../sys/newvers.sh ] || fail "$file: the tree is not what it was: $(find "$out")"
done
[ "$(wc -l <"$OUT/requests")" -eq "$requests" ] || fail "what is in the cache was fetched"
printf '[source]\nkind = "git"\nurl = "%s/src.git"\nref = "v1"\n' "file://$WORK/www" >tag.toml
says 0 '' "${root[@]}" update tag.toml
grep -q "^commit = \"$first\"" tag.toml || fail "the tag is at $(cat tag.toml)"
[ "$(identity tag.toml "${root[@]}")" = "$pin" ] || fail "another identity by a tag"
# Where an archive has files in the place of links, it is another tree.
sed 's/src\.txz/followed.txz/' file.toml | sed '/sha256/d' >followed.toml
says 0 '' "${root[@]}" update followed.toml
[ "$(identity followed.toml "${root[@]}")" != "$pin" ] || fail "a link is a file"
# Another user, whose cache is empty and whose store is gone: the daemon fetches.
env -i "${environment[@]}" "$WORK/bin/fruix" gc >>"$OUT/log" 2>&1
for file in git txz; do
  [ "$(identity $file.toml "${other[@]}")" = "$pin" ] || fail "another identity for another user"
done
[ "$(ls /run/home/cache/fruix/freebsd-source)" = "$(printf '%s\n' "$archive" "$pin" | sort)" ] || fail "the other user's cache has $(ls /run/home/cache/fruix/freebsd-source)"
[ "$(wc -l <"$OUT/requests")" -gt "$requests" ] || fail "nothing was fetched"
says 0 '' "${other[@]}" show --json git.toml
grep -q "\"freebsd_source_effective_commit\":\"$first\"" "$OUT/said" || fail "shown is $(cat "$OUT/said")"

# Tampered with: named, not used, fetched anew.
for sum in "$pin" "$archive"; do
  file=git.toml
  [ "$sum" = "$pin" ] || file=txz.toml
  for state in stored collected; do
    printf 'x' | dd of="$cache/$sum" bs=1 seek=500 conv=notrunc status=none
    [ "$state" = stored ] || env -i "${environment[@]}" "$WORK/bin/fruix" gc >>"$OUT/log" 2>&1
    says 1 "$cache/$sum: has the sha256 " "${root[@]}" verify "$file"
    grep -q 'it was changed; deleted, not used, fetched anew$' "$OUT/told" || fail "it is said: $(cat "$OUT/told")"
    [ "$(value freebsd_source_effective_sha256)/$(value freebsd_source_verified)" = "$pin/no" ] || fail "a changed cache was used"
    [ "$(sha256sum <"$cache/$sum")" = "$sum  -" ] || fail "the cache was not mended"
    says 0 '' "${root[@]}" verify "$file"
  done
done
out=$(value freebsd_source_store)
# Not what shares its inode.
rm "$out/src/COPYRIGHT"
echo changed >"$out/src/COPYRIGHT"
says 1 "$out: has the sha256 " "${root[@]}" verify txz.toml
repair=$(sed -n "s/.*run \`fruix build --repair \(.*\)'\$/\1/p" "$OUT/told")
env -i "${environment[@]}" "$WORK/bin/fruix" build --repair "$repair" >>"$OUT/log" 2>&1 || fail "no repair"
says 0 '' "${root[@]}" verify txz.toml

# A line, and nothing else, changes.
says 0 '' "${root[@]}" update local.toml
says 0 '' "${root[@]}" verify local.toml
old=$(value freebsd_source_store)
echo '/* one */' >>tree/sys/kern/init_main.c
says 1 "local.toml:4: source.sha256: \`$WORK/tree' has the sha256 " "${root[@]}" verify local.toml
as_git commit -a -m two
git -C tree push -q "$WORK/www/src.git" main 2>>"$OUT/log"
git -C www/src.git update-server-info
# The branch has moved; what is pinned has not.
[ "$(identity git.toml "${root[@]}")" = "$pin" ] || fail "a ref that moved makes another tree"
says 0 '' "${root[@]}" update git.toml
second=$(git -C tree rev-parse HEAD)
[ "$(value freebsd_source_old_commit)/$(value freebsd_source_commit)/$(value freebsd_source_old_sha256)" = "$first/$second/$pin" ] || fail "the branch is at $(cat "$OUT/said")"
moved=$(value freebsd_source_sha256)
[ "$moved" != "$pin" ] && [ "$(cat git.toml)" = "$(sed "s/$first/$second/; s/$pin/$moved/" <<<"$expected")" ] || fail "the new pin is written so: $(cat git.toml)"
says 0 '' "${root[@]}" update local.toml
for file in git local; do
  [ "$(identity $file.toml "${root[@]}")" = "$moved" ] || fail "$file.toml: another identity of the second tree"
done
[ "$(value freebsd_source_store)" != "$old" ] && [ -d "$old/src" ] || fail "the two are not side by side"
# A server that has something else under the name of an archive.
printf x >>www/src.txz
rm "$cache/$archive"
env -i "${environment[@]}" "$WORK/bin/fruix" gc >>"$OUT/log" 2>&1
says 1 "txz.toml:1: source.url: what is pinned could not be had from $site/src.txz: " "${root[@]}" verify txz.toml
grep -q '^hash mismatch for store item' "$OUT/told" || fail "nobody says that the archive is another"
says 1 "file.toml:4: source.sha256: \`$WORK/www/src.txz' has the sha256 " "${root[@]}" verify file.toml

# Wrong.
sed 's/"main" # moves/"gone"/' git.toml >wrong.toml
says 1 "wrong.toml:6: source.ref: $site/src.git has no branch or tag \`gone'; name one that is there (\`git ls-remote' lists them)" "${root[@]}" update wrong.toml
git -C www/src.git tag main v1 && git -C www/src.git update-server-info
says 1 "git.toml:6: source.ref: \`main' is a branch and a tag; write refs/heads/main or refs/tags/main" "${root[@]}" update git.toml
sed 's|"tree"|"nowhere"|' local.toml >wrong.toml
says 1 "wrong.toml:3: source.path: \`./nowhere': No such file" "${root[@]}" show ./wrong.toml
sed 's|"tree"|"git.toml"|' local.toml >wrong.toml
says 1 "wrong.toml:3: source.path: \`$WORK/git.toml' is no directory; name a directory" "${root[@]}" show wrong.toml
mkfifo tree/sys/pipe
says 1 "local.toml:3: source.path: \`$WORK/tree': \`sys/pipe': is a device, a socket or a pipe" "${root[@]}" show local.toml
rm tree/sys/pipe
printf '[sauce]\n' >wrong.toml
says 1 'wrong.toml:1: source: is missing; write a table [source]' "${root[@]}" show wrong.toml

# A system tells the source of its base.
mkdir -p base/boot/kernel base/etc base/sbin base/bin
echo '#!/bin/sh' | tee base/etc/rc base/bin/sh >base/sbin/init
chmod 755 base/etc/rc base/bin/sh base/sbin/init
echo kernel >base/boot/kernel/kernel
echo loader >base/boot/loader.efi
printf 'host-name = "x"\n[base]\nversion = "15.1"\nkind = "local-tree"\npath = "base"\n[base.source]\n' >system.toml
sed -n '3,8p' git.toml >>system.toml
printf '[[file-systems]]\nmount-point = "/"\ndevice = "/dev/gpt/rootfs"\ntype = "ufs"\n[image]\ngrow = false\n' >>system.toml
env -i "${environment[@]}" "$WORK/bin/fruix" system build system.toml >"$OUT/said" 2>>"$OUT/log" || fail "no system"
[ "$(value freebsd_source_kind)/$(value freebsd_source_ref)/$(value freebsd_source_commit)/$(value freebsd_source_sha256)" = "git/main/$second/$moved" ] ||
  fail "the system's source is $(cat "$OUT/said")"
for file in freebsd-source freebsd-base store-layout; do
  grep -q -F "(commit . \"$second\")" "$(value closure_path)/metadata/$file.scm" || fail "$file.scm: $(cat "$(value closure_path)/metadata/$file.scm")"
done
[ "$(identity system.toml "${root[@]}")" = "$moved" ] || fail "another identity by way of a system file"
kill "$daemon"
wait "$daemon" 2>/dev/null || true
echo "sources: one tree from four declarations, its caches and pins, in $((SECONDS - start)) s"
