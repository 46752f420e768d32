#!/bin/bash
# generations.sh FILE OUT CLIENT... : a machine goes from one system to another and back, as directories; part of inside.sh.
#
# A machine that was made of the first system and is deployed the second one has just what a machine has that is made of the second, and the other way
# round.  What somebody changed meanwhile stays.  A deployment that is killed leaves one of the two current, and the next one ends it.  Of systems that a
# machine can leave by itself the links and files are looked at that the loader, process 1 and rc(8) go by; these run in machine.sh.  A system that a machine's
# store does not have comes from elsewhere.
set -euo pipefail
file=$1 out=$2
shift 2
client=("$@")
fail() {
  echo "FAILED: generations: $*" >&2
  exit 1
}
mkdir "$out"
second=$(dirname "$file")/second.toml
sed -e 's/^host-name = .*/host-name = "second"/' -e 's/^version = .*/version = "0.2"/' -e 's/^path = "base"/path = "base2"/' -e 's/^port = .*/port = 2223/' \
  -e 's|^home = "/home/anna"|home = "/home/anna"\nshell = "/bin/sh"|' "$file" >"$second"
cat >>"$second" <<'END'
[[files]]
path = "/usr/local/etc/second.conf"
text = "of the second\n"
[[users]]
name = "bert"
uid = 1002
group = "staff"
home = "/home/bert"
ssh-keys = ["ssh-ed25519 AAAA bert"]
[services.ntpd]
END
base=$(dirname "$file")/base
cp -r "$base" "${base}2"
echo more >>"${base}2/bin/sh"
install -m 755 "$base/sbin/init" "${base}2/usr/sbin/ntpd"
install -m 755 "$base/sbin/init" "${base}2/etc/rc.d/ntpd"
echo new >"${base}2/etc/new"
mkdir "${base}2/etc/new.d"
echo deep >"${base}2/etc/new.d/deep"
rm "${base}2/etc/termcap"
chmod -R go+rX "$(dirname "$file")"

# Two with the program that goes back, and with files that become directories, and the other way round.
for number in 3 4; do
  cp -r "${base}2" "$base$number"
  install -m 755 "$base/sbin/init" "$base$number/usr/sbin/daemon"
  echo "$number" >>"$base$number/sbin/init"
  printf '\177ELF\2\1\1\11' >"$(dirname "$file")/fruixd"
  { sed -e "s/^host-name = .*/host-name = \"number$number\"/; s/^path = \"base2\"/path = \"base$number\"/" "$second"
    printf '[services.fruixd]\nprogram = "fruixd"\nclient = "fruixd"\n[loader]\nof%s = 1\n' "$number"
    printf '[[files]]\npath = "/usr/local/etc/%s"\ntext = "%s\\n"\n' turns/deep/er "$number" changed "$number" "only$number" "$number"
  } >"$(dirname "$file")/system$number.toml"
done
sed -i 's|/usr/local/etc/turns/deep/er|/usr/local/etc/turns|' "$(dirname "$file")/system4.toml"
chmod -R go+rX "$(dirname "$file")"

for number in 1 2 3 4; do
  os=$(dirname "$file")/system$number.toml
  case $number in 1) os=$file ;; 2) os=$second ;; esac
  "${client[@]}" system rootfs --rootfs="$out/root$number" "$os" >"$out/made$number" 2>>"$out/log" || fail "no root file system"
  rm -f "$out/root$number/firstboot"
done
closure() { sed -n 's/^closure_path=//p' "$out/made$1"; }
# All but the store and what knows of it, and the times.
list() { (cd "$1" && find . \( -path ./frx -o -path ./boot/system -o -path ./boot/generations -o -path ./run \) -prune -o -printf '%p %y %m %U:%G %l ' \( -type f -exec md5sum -z {} \; -o -true \) -printf '\n' | tr -d '\0' | sed "s|$1||g" | sort); }
is() { # MACHINE NUMBER
  diff <(list "$1") <(list "$out/root$2") >"$out/differs" || fail "a machine with the system $2 has not what it should: $(head -n 5 "$out/differs")"
  [ "$(readlink "$1/boot/system")" = "$(closure "$2")" ] || fail "the current system is $(readlink "$1/boot/system"), not the $2"
}
# machine DIR [FIRST SECOND]: its store has the second system, too.
machine() {
  rm -rf "$1"
  cp -a "$out/root${2:-1}" "$1"
  cp -a -n "$out/root${3:-2}/frx/store/." "$1/frx/store/"
}
run() { "${client[@]}" system "$@" >"$out/said" 2>>"$out/log"; }

m=$out/machine
cp -a "$out/root1" "$m"
! run deploy --root="$m" "$second" || fail "a machine is deployed what it does not have"
grep -q "does not have $(closure 2)" "$out/log" || fail "what a machine does not have is not told"
is "$m" 1
rm -rf "$m"
machine "$m"
is "$m" 1
snapshot() { find "$m" -path "$m/frx/var" -prune -o -printf '%p %T@ %i\n' | sort | md5sum; }
before=$(snapshot)
run deploy --dry-run --root="$m" "$second" || fail "a dry run ends badly"
grep -q '^dry_run=yes' "$out/said" || fail "a dry run does not say so"
[ "$(snapshot)" = "$before" ] || fail "a dry run changes something"
run deploy --root="$m" "$second" || fail "no deployment"
is "$m" 2
grep -q '^services=ntpd:start,sshd:restart$' "$out/said" || fail "services: $(grep ^services= "$out/said")"
grep -q '^reboot_needed=no' "$out/said" || fail "the kernel is the same, and a reboot is needed"
run list-generations --root="$m"
grep -q "^generation=1 current=no .*closure_path=$(closure 1)$" "$out/said" && grep -q "^generation=2 current=yes .* base=freebsd-0.2 " "$out/said" ||
  fail "generations: $(cat "$out/said")"
run diff --root="$m"
for line in '-host-name "stand-in"' '+host-name "second"' '+file /etc/new' '-file /etc/termcap' '+file /home/bert' '!closure etc/rc.conf'; do
  grep -q -F -x -e "$line" "$out/said" || fail "the difference lacks: $line"
done
run rollback --root="$m" || fail "no way back"
is "$m" 1
run switch-generation --root="$m" +1
is "$m" 2
[ "$(cd "$m/boot/generations" && echo *)" = "1.conf 2.conf" ] || fail "the loader cannot choose among generations"
grep -q "^kernel=\"$(closure 1)/boot/kernel\"$" "$m/boot/generations/1.conf" || fail "a generation at the loader: $(cat "$m/boot/generations/1.conf")"
! run delete-generations --root="$m" 2 || fail "the current generation can be deleted"
run delete-generations --root="$m"
run list-generations --root="$m"
[ "$(grep -c . "$out/said")" = 1 ] && [ ! -e "$m/boot/generations/1.conf" ] || fail "after a deletion: $(cat "$out/said")"

# Somebody else's changes stay.
rm -rf "$m"
machine "$m"
sed -i -e 's/^anna:[^:]*:/anna:$6$secret:/' -e '1i # a comment' -e '$a carl:*:1003:20::0:0:Carl:/home/carl:/bin/sh' "$m/etc/master.passwd"
echo mine >"$m/etc/stand-in"
echo mine >"$m/usr/local/etc/second.conf"
run deploy --root="$m" "$second" || fail "no deployment to a machine that was changed"
grep -q '^anna:$6$secret:1001:.*:/bin/sh$' "$m/etc/master.passwd" || fail "a password is lost, or a shell is not changed: $(grep anna "$m/etc/master.passwd")"
grep -q '^carl:' "$m/etc/passwd" && grep -q '^bert:' "$m/etc/passwd" || fail "users are lost"
grep -q '^# a comment$' "$m/etc/master.passwd" || fail "a comment is lost"
[ "$(cat "$m/etc/stand-in")" = mine ] || fail "a changed file that both systems have is lost"
[ "$(cat "$m/usr/local/etc/second.conf" "$m/usr/local/etc/second.conf.fruixnew")" = $'mine\nof the second' ] || fail "a changed file is lost"
run rollback --root="$m" || fail "no way back on a machine that was changed"
echo first >"$m/usr/local/etc/second.conf.fruixnew"
run deploy --root="$m" "$second" || fail "no second deployment to a machine that was changed"
[ "$(cat "$m/usr/local/etc/second.conf.fruixnew" "$m/usr/local/etc/second.conf.fruixnew.1")" = $'first\nof the second' ] || fail "what was beside a file is lost"
run rollback --root="$m"
grep -q '^anna:$6$secret:1001:.*:/usr/sbin/nologin$' "$m/etc/master.passwd" && grep -q '^carl:' "$m/etc/passwd" || fail "going back loses users"
! grep -q '^bert:' "$m/etc/passwd" || fail "a user of the other system stays"

# What cannot be understood, and who would become somebody else, is told, and nothing is changed.
for line in 'carl:$6$c:1003:20:Carl:/home/carl:/bin/sh' 'carl:*:100x:20::0:0:C:/:/bin/sh' 'carl:*:1002:20::0:0:C:/:/bin/sh' 'bert:*:1007:20::0:0:B:/:/bin/sh'; do
  rm -rf "$m"
  machine "$m"
  echo "$line" >>"$m/etc/master.passwd"
  before=$(snapshot)
  ! run deploy --root="$m" "$second" || fail "deployed to a machine with the line: $line"
  tail -n 1 "$out/log" | grep -q '/etc/master.passwd:.*nothing was changed' || fail "the line is not told: $line: $(tail -n 1 "$out/log")"
  [ "$(snapshot)" = "$before" ] || fail "something is changed in spite of the line: $line"
done

# A user hinders nobody in his own directory, not even himself where it can be helped.
machine "$m"
install -d "$m/home/bert/.ssh/authorized_keys.fruix-unfinished/full/of"
chown -R 1002:20 "$m/home/bert"
chmod 700 "$m/home/bert/.ssh"
run deploy --root="$m" "$second" || fail "a user hinders a deployment: $(tail -n 1 "$out/log")"
[ "$(cat "$m/home/bert/.ssh/authorized_keys")" = 'ssh-ed25519 AAAA bert' ] || fail "a user has hindered what is for him"
machine "$m"
install -d "$m/home/bert"
touch "$m/home/bert/.ssh"
chown -R 1002:20 "$m/home/bert"
run deploy --root="$m" "$second" || fail "a user's file hinders a deployment: $(tail -n 1 "$out/log")"
[ -f "$m/home/bert/.ssh" ] && [ -e "$m/usr/local/etc/second.conf" ] || fail "a user's file is lost, or more is left out than that"

# What says between which systems the machine was, and does not, is in nobody's way.
machine "$m"
mkdir -p "$m/frx/var/profiles"
printf '/etc\n../../root\n' >"$m/frx/var/profiles/system.move"
run deploy --root="$m" "$second" || fail "a wrong system.move is in the way: $(tail -n 1 "$out/log")"
is "$m" 2

# What a user has put in the way is not followed.
rm -rf "$m"
machine "$m"
rm -rf "${m:?}/home"
mkdir "$out/elsewhere"
ln -s "$out/elsewhere" "$m/home"
! run deploy --root="$m" "$second" || fail "a link is followed"
grep -q 'behind `/home' "$out/log" || fail "a link in the way is not named"
[ -z "$(ls "$out/elsewhere")" ] || fail "something was written behind a link"

# What cannot be done is undone: a directory that cannot be written to.
rm -rf "$m"
machine "$m"
if chattr +i "$m/usr/local/etc" 2>/dev/null; then
  status=0
  run deploy --root="$m" "$second" || status=$?
  chattr -i "$m/usr/local/etc"
  [ "$status" -eq 1 ] || fail "deployed where nothing can be written"
  is "$m" 1
  grep -q 'the machine has gone back to' "$out/log" || fail "going back is not told"
fi

# On trial.  As after a start of system NUMBER, with the loader's hand on the file for one start.
started() {
  ln -sfn "$(closure "$1")" "$m/run/current-system"
  ln -sfn "$(closure "$1")" "$m/run/booted-system"
  [ ! -e "$m/boot/nextboot.conf" ] || printf 'nextboot_enable="NO" ' | dd of="$m/boot/nextboot.conf" conv=notrunc status=none
}
four=$(dirname "$file")/system4.toml
machine "$m" 3 4
started 3
run deploy --root="$m" "$four" || fail "no deployment on trial: $(tail -n 1 "$out/log")"
grep -q '^fallback=yes$' "$out/said" || fail "a deployment on trial says: $(cat "$out/said")"
[ "$(readlink "$m/run/current-system") $(readlink "$m/boot/system")" = "$(closure 4) $(closure 3)" ] || fail "on trial, it is not current, or lasts"
[ "$(head -n 1 "$m/boot/nextboot.conf")" = 'nextboot_enable="YES"' ] || fail "the loader is not told: $(cat "$m/boot/nextboot.conf")"
for line in "kernel=\"$(closure 4)/boot/kernel\"" "init_path=\"$(closure 4)/profile/sbin/init\"" "init_script=\"$(closure 4)/early\"" 'of4="1"' \
  'exec="unset of3"' 'fruix.trial="2"' 'debug.debugger_on_panic="0"'; do
  grep -q -F -x -e "$line" "$m/boot/nextboot.conf" || fail "the loader is not told $line: $(cat "$m/boot/nextboot.conf")"
done
[ "$(cat "$m/usr/local/etc/only3" "$m/usr/local/etc/only4" "$m/usr/local/etc/turns")" = $'3\n4\n4' ] || fail "on trial, the former system lacks something"
! run delete-generations --root="$m" 1 || fail "the generation that a failure would lead back to can be deleted"
# It fails, for want of a file.
init=$(readlink -f "$(closure 4)/profile/sbin/init")
mv "$init" "$out/init"
started 3
run settle --root="$m" || fail "no way back from a trial: $(tail -n 1 "$out/log")"
mv "$out/init" "$init"
is "$m" 3
run list-generations --root="$m"
grep -q '^generation=1 current=yes lasts=yes ' "$out/said" || fail "after a trial that failed: $(cat "$out/said")"
# It does not.
run deploy --root="$m" "$four"
started 4
run settle --root="$m"
run settle --ready --root="$m" || fail "a system that is up does not last: $(tail -n 1 "$out/log")"
is "$m" 4
# Back, but cut off in any step, and started again with either.
for turn in 3 4; do
  machine "$m" 4 3
  started 4
  (timeout --signal=KILL 0.4 "${client[@]}" system switch-generation --root="$m" "$(closure 3)" || exit 1) >/dev/null 2>&1 || true
  started "$turn"
  run settle --root="$m" || fail "cut off: $(tail -n 1 "$out/log")"
  run settle --ready --root="$m" || fail "cut off: $(tail -n 1 "$out/log")"
  is "$m" "$turn"
done

# A machine whose store does not have the system gets it from a directory, an archive, a pipe, or another machine; what was damaged on the way is refused.
run export --to="$out/cache" "$(closure 2)" || fail "no export to a directory: $(tail -n 1 "$out/log")"
grep -q '^StoreDir: /frx/store$' "$out/cache/nix-cache-info" || fail "an export does not say of which store it is"
written=$(find "$out/cache" -printf '%p %T@ %i\n' | sort | md5sum)
run export --to="$out/cache" "$(closure 2)" || fail "no second export to a directory"
[ "$(find "$out/cache" -printf '%p %T@ %i\n' | sort | md5sum)" = "$written" ] || fail "a second export writes again"
run export "$(closure 2)" || fail "no export as an archive: $(tail -n 1 "$out/log")"
mv "$out/said" "$out/closure.tar"
# Another machine, as far as fruix sees it.
mkdir "$out/bin"
cat >"$out/bin/ssh" <<END
#!/bin/sh
[ "\$1|\$2|\$3" = "--|root@elsewhere|fruix system export '$(closure 2)'" ] || exit 9
cat "$out/closure.tar"
END
chmod 755 "$out/bin/ssh"
# there [--as=UID] WORD...: fruix system on the machine, whose store is its own.
there() {
  # shellcheck disable=SC2016 # for the inner shell
  unshare --mount --propagation private bash -c 'mount --bind "$1" /frx && shift && exec "$@"' there "$m/frx" "${client[@]:0:${#client[@]}-1}" \
    "PATH=$out/bin:/usr/bin:/bin" "${client[-1]}" system "$@" --root="$m" >"$out/said" 2>"$out/errors"
}
fresh() {
  rm -rf "$m"
  cp -a "$out/root1" "$m"
}
refused() { # WHAT FROM: nothing comes of it, and it is said in one line
  fresh
  ! there switch-generation --from="$2" "$(closure 2)" <"${3:-/dev/null}" || fail "taken: $1"
  grep -q "$1" "$out/errors" || fail "instead of $1: $(cat "$out/errors")"
  is "$m" 1
}
for from in "$out/cache" "$out/closure.tar" - ssh://root@elsewhere; do
  fresh
  there switch-generation --from="$from" "$(closure 2)" <"$out/closure.tar" || fail "nothing comes from $from: $(cat "$out/errors")"
  is "$m" 2
  [ -z "$(find "$m/frx/store" -maxdepth 1 -name '*staging*' -print -quit)" ] || fail "from $from: something is left"
  there switch-generation --from="$from" "$(closure 2)" <"$out/closure.tar" || fail "nothing comes from $from again: $(cat "$out/errors")"
  ! grep -q 'new paths' "$out/errors" || fail "from $from: what is there comes again"
done
there rollback || fail "no way back from a system that came: $(cat "$out/errors")"
is "$m" 1
refused 'is no ssh://' ssh://-oProxyCommand=x
refused 'failed there' ssh://root@nowhere
refused 'No such file' "$out/nothing"
refused 'this is nothing that' "$out/log"
head -c 30000 "$out/closure.tar" >"$out/short.tar"
refused 'failed\|ends\|unexpected\|EOF\|cut off\|truncated' "$out/short.tar"
refused 'failed\|ends\|unexpected\|EOF\|cut off\|truncated' - "$out/short.tar"
info=$(cd "$out/cache" && basename "$(closure 2)" | sed 's/-.*/.narinfo/')
archive=$out/cache/nar/$(basename "$(closure 2)").nar
damaged() { # WHAT FILE SED
  cp "$2" "$out/whole"
  sed -i "$3" "$2"
  ! cmp -s "$2" "$out/whole" || fail "nothing damaged: $3"
  refused "$1" "$out/cache"
  cp "$out/whole" "$2"
}
damaged 'has hash' "$archive" '0,/second/s//sekond/'
damaged 'has hash\|size' "$out/cache/$info" 's/^NarSize: ./NarSize: 9/'
damaged "\`NarHash' is wrong" "$out/cache/$info" 's/^NarHash: sha256:/NarHash: sha256:e/'
damaged 'is of another path' "$out/cache/$info" 's|^StorePath: /frx/store/.|StorePath: /frx/store/z|'
damaged 'is elsewhere' "$out/cache/$info" 's|^URL: |URL: ../|'
damaged 'is compressed' "$out/cache/$info" 's|^Compression: none|Compression: zstd|'
damaged "of \`/gnu/store'" "$out/cache/nix-cache-info" 's|/frx/store|/gnu/store|'
rm "$archive"
refused 'No such file' "$out/cache"

# Killed at any moment of the time that it takes.
turns=${FRUIX_DEPLOYMENTS:-12} killed=0
second_closure=$(closure 2)
rm -rf "$m"
machine "$m"
begun=$(date +%s%N)
run switch-generation --root="$m" "$second_closure"
took=$((($(date +%s%N) - begun) / 1000000 + 10))
for turn in $(seq 1 "$turns"); do
  rm -rf "$m"
  machine "$m"
  after=$((took * turn / turns))
  # In a shell of its own, which says nothing of what was killed.
  (timeout --signal=KILL "$((after / 1000)).$(printf %03d $((after % 1000)))" "${client[@]}" system switch-generation --root="$m" "$second_closure" || exit 1) \
    >/dev/null 2>&1 || killed=$((killed + 1))
  current=$(readlink "$m/boot/system") || fail "killed in turn $turn, there is no current system"
  [ "$current" = "$(closure 1)" ] || [ "$current" = "$second_closure" ] || fail "killed in turn $turn, the current system is $current"
  run switch-generation --root="$m" "$second_closure" || fail "killed in turn $turn, it cannot be done again"
  # What was unfinished is gone, too.
  is "$m" 2
done
[ "$killed" -gt 0 ] || fail "none of $turns was killed"
echo "generations: there and back, $killed of $turns killed after up to $took ms"
