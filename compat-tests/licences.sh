#!/bin/bash
# licences.sh : every crate that fruixd is built from has a licence that goes with BSD-2-Clause, and comes from the registry.
#
# A check of our own, since cargo-deny would take longer to build than everything else here together.
set -euo pipefail
cd "$(dirname "$0")/.."

allowed='0BSD|Apache-2\.0( WITH LLVM-exception)?|BSD-[23]-Clause|CDLA-Permissive-2\.0|ISC|MIT|Unicode-3\.0|Unlicense|Zlib|bzip2-1\.0\.6'

# Whether all of "A AND B", or one of "A OR B", are allowed.
all_of() {
  local part
  while IFS= read -r part; do "$1" "$part" || return 1; done <<<"${2// AND /$'\n'}"
}
one_of() {
  local part
  while IFS= read -r part; do ! "$1" "$part" || return 0; done <<<"${2// OR /$'\n'}"
  return 1
}
is_allowed() { [[ $1 =~ ^($allowed)$ ]]; }
inner_one() { one_of is_allowed "${1//[()]/}"; }
inner_all() { all_of is_allowed "$1"; }
acceptable() {
  case $1 in
    *'('*) all_of inner_one "$1" ;; # "(A OR B) AND C"
    *) one_of inner_all "$1" ;;     # AND binds tighter
  esac
}

failed=
while IFS='|' read -r crate licence; do
  [ -n "$crate" ] || continue
  # The old way to write it: "A/B", or "A / B".
  either=${licence// \/ /\/}
  acceptable "${either//\// OR }" || {
    echo "licences: $crate: '$licence' is not among those allowed" >&2
    failed=yes
  }
done < <(cargo tree --locked --workspace --target x86_64-unknown-linux-musl --target x86_64-unknown-freebsd \
  --edges normal,build --prefix none --format '{p}|{l}' | sed 's/ (\*)$//' | sort -u)

# No fork, no git checkout: what is in Cargo.lock is from one registry, or ours.
sources=$(sed -n 's/^source = //p' Cargo.lock | sort -u)
case $sources in
  '"registry+'*) [ "$(wc -l <<<"$sources")" -eq 1 ] ;;
  *) false ;;
esac || {
  printf 'licences: Cargo.lock has crates from more than one registry:\n%s\n' "$sources" >&2
  failed=yes
}
[ -z "$failed" ] || exit 1
echo "licences: all crates have a licence that is allowed, and come from the registry" >&2
