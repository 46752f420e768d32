#!/bin/bash
# run.sh [--client=1.2] [--jobs=N] [--keep] [--accept] [SCRIPT...] : each script against guix-daemon 1.5.0 and against fruixd.
#
# Each daemon starts on an empty store of its own.  What is compared: all that the client printed (results, errors with their
# status, lines of log), the database, the store and the state on the disk, the logs, and what is left in /tmp.
# `normalise.sed' is the whole list of what may differ anywhere; what a script does differently on purpose stands in
# scripts/NAME.diff, and docs/differences.md says why.  A script is a file of scripts/, whose head may say:
#   ;; daemon: FLAGS    further flags for the daemons           ;; user: NAME    who runs the client (default root)
#   ;; clients: 1.2     runs with the 1.2.0 client too          ;; size: 20m     of the file system of store and state
#   ;; limit: 10        seconds for the client, if one side takes for ever
#   ;; env: A=B ...     for the daemons
# NAME.diff-1.2 stands in the place of NAME.diff where the older client makes a difference.
# --client=1.2 runs the scripts that say so with the client of Guix 1.2.0.  --accept writes NAME.diff anew.
set -euo pipefail
shopt -s nullglob
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=${here%/*/*}
FRUIX_CACHE=${FRUIX_CACHE:-/var/cache/fruix}
say() { printf 'differential: %s\n' "$*" >&2; }
[ "$(id -u)" -eq 0 ] || { say "needs root, to start daemons with build users"; exit 1; }

client=1.5 jobs=2 keep="" accept="" scripts=()
for argument in "$@"; do
  case $argument in
    --client=*) client=${argument#*=} ;;
    --jobs=*) jobs=${argument#*=} ;;
    --keep) keep=yes ;;
    --accept) accept=yes ;;
    -*) say "unknown option $argument"; exit 64 ;;
    *) argument=${argument##*/}; scripts+=("${argument%.*}") ;;
  esac
done
if [ ${#scripts[@]} -eq 0 ]; then
  for script in "$here"/scripts/*.{scm,sh}; do
    script=${script##*/}
    scripts+=("${script%.*}")
  done
fi

[ -n "${FRUIX_DIFF_NO_BUILD:-}" ] || "$checkout/build-aux/provision" all
root=$("$checkout/build-aux/provision" frontend)
packages=$("$checkout/build-aux/provision" packages)
case $client in
  1.5) client_root=$root ;;
  1.2) client_root=$("$checkout/build-aux/provision" guix-1.2) ;;
  *) say "there is client 1.5 and 1.2"; exit 64 ;;
esac
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
[ -n "${FRUIX_DIFF_NO_BUILD:-}" ] ||
  cargo build --quiet --locked --release --manifest-path "$checkout/Cargo.toml" -p fruix-compat-tests --bin store-dump
dump=$checkout/target/release/store-dump

work=$(mktemp -d "${FRUIX_TEST_STORES:-/var/tmp}/fruix-diff.XXXXXX")
chmod 755 "$work"
clean_up() {
  local status=$?
  if [ -n "$keep" ]; then say "kept in $work"; else rm -rf "$work"; fi
  exit "$status"
}
trap clean_up EXIT
# A copy: cargo may write the next one while this one runs.
install "$(readlink -f "${FRUIXD:-$checkout/target/fruixd}")" "$work/fruixd"
install "$dump" "$work/store-dump"

script_of() { # NAME
  local suffix
  for suffix in scm sh; do [ ! -e "$here/scripts/$1.$suffix" ] || echo "$here/scripts/$1.$suffix"; done
}
head_of() { sed -n "1,15s/^[;#]* *$2: *//p" "$1" | head -n 1; } # FILE KEY

# one NAME : both sides at once, and their difference in $work/NAME/diff.
one() {
  local name=$1 script side
  script=$(script_of "$name")
  [ -n "$script" ] || { echo "no such script" >"$work/$name.failed"; return; }
  mkdir "$work/$name"
  for side in guix-daemon fruixd; do
    # Each side mounts its own there; others who test may take the directory away.
    mkdir -p "$work/$name/$side" /frx
    SIDE=$side ROOT=$root CLIENT_ROOT=$client_root PACKAGES=$packages OUT=$work/$name/$side SCRIPT=$script \
      FLAGS=$(head_of "$script" daemon) AS=$(head_of "$script" user) SIZE=$(head_of "$script" size) LIMIT=$(head_of "$script" limit) DAEMON_ENV=$(head_of "$script" env) \
      FRUIXD=$work/fruixd DUMP=$work/store-dump CHECKOUT=$checkout CLIENT=$client \
      unshare --mount --pid --fork --kill-child --mount-proc --propagation private \
      "$here/side.sh" </dev/null >"$work/$name/$side/side.log" 2>&1 &
  done
  wait
  for side in guix-daemon fruixd; do
    cat "$work/$name/$side/client" "$work/$name/$side/dump" 2>/dev/null | sed -E -f "$here/normalise.sed" >"$work/$name/$side/all" || true
    [ -e "$work/$name/$side/done" ] || echo "$side did not get to the end: $(tail -n 5 "$work/$name/$side/side.log" | tr '\n' ' ')" >>"$work/$name.failed"
  done
  # Two daemons agree easily about a script that is wrong.
  local wrong='unbound-variable|wrong-number-of-args|misc-error|[Ss]yntax error|applet not found|^client status [1-9]'
  if grep -a -q -E "$wrong" "$work/$name/fruixd/all"; then
    { echo "the script is wrong:" && grep -a -m 3 -E "$wrong" "$work/$name/fruixd/all"; } >>"$work/$name.failed"
  fi
  diff -U0 "$work/$name/guix-daemon/all" "$work/$name/fruixd/all" | sed -e '1,2d' -e '/^@@/d' >"$work/$name/diff" || true
  local expected=$here/scripts/$name.diff
  [ "$client" = 1.5 ] || [ ! -e "$here/scripts/$name.diff-$client" ] || expected=$here/scripts/$name.diff-$client
  [ -e "$expected" ] || expected=/dev/null
  if [ -n "$accept" ] && [ ! -e "$work/$name.failed" ]; then
    local file=$here/scripts/$name.diff same=/dev/null
    if [ "$client" != 1.5 ]; then
      [ ! -e "$file" ] || same=$file
      file=$file-$client
    fi
    if cmp -s "$work/$name/diff" "$same"; then rm -f "$file"; else cp "$work/$name/diff" "$file"; fi
  elif ! diff -u --label "expected difference" "$expected" --label "difference" "$work/$name/diff" >"$work/$name/unexpected"; then
    cat "$work/$name/unexpected" >>"$work/$name.failed"
  fi
}

failed=() ran=0 start=$SECONDS
todo=()
for name in "${scripts[@]}"; do
  file=$(script_of "$name")
  if [ "$client" != 1.5 ] && [ -n "$file" ] && [ "$(head_of "$file" clients)" != "$client" ]; then continue; fi
  todo+=("$name")
done
for name in "${todo[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
  (trap - EXIT; one "$name") &
done
wait
for name in "${todo[@]}"; do
  ran=$((ran + 1))
  if [ -e "$work/$name.failed" ]; then
    failed+=("$name")
    say "DISAGREE $name"
    head -n "${FRUIX_DIFF_LINES:-60}" "$work/$name.failed" >&2
  fi
done
say "$ran scripts with client $client in $((SECONDS - start)) s, ${#failed[@]} failed${failed[*]:+: ${failed[*]}}"
[ ${#failed[@]} -eq 0 ]
