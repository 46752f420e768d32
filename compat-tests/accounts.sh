# shellcheck shell=bash
# accounts.sh : sourced in a mount namespace with a /run of its own, for the users that a daemon's builds and clients are.

# accounts NAME FIRST COUNT PEOPLE CLIENT... : in the place of this machine's users, with the same numbers on every machine, root, nobody, build users
# NAME1 to NAMECOUNT whose numbers follow FIRST, that of their group guixbuild, and CLIENTs, each NAME:NUMBER:HOME, of the group people, number PEOPLE.
accounts() {
  local name=$1 first=$2 count=$3 people=$4 builders="" client i
  shift 4
  {
    grep '^\(root\|nobody\):' /etc/passwd
    for ((i = 1; i <= count; i++)); do
      echo "$name$i:x:$((first + i)):$first::/var/empty:/usr/sbin/nologin"
      builders+=${builders:+,}$name$i
    done
    for client; do echo "${client%%:*}:x:$(cut -d: -f2 <<<"$client"):$people::${client##*:}:/bin/sh"; done
  } >/run/passwd
  {
    grep '^\(root\|nogroup\|kvm\|tty\):' /etc/group
    echo "guixbuild:x:$first:$builders"
    echo "people:x:$people:"
  } >/run/group
  mount --bind /run/passwd /etc/passwd
  mount --bind /run/group /etc/group
}
