# shellcheck shell=sh disable=SC2154,SC2034,SC2164 # one script together with common.sh; the derivation gives the rest
# loader.sh : the boot programs.
restore_tools
# A program that tries bhyve's loader on the machine itself wants the system's headers, which are of another part, and is not installed.
sed -i.orig -E 's/^(SUBDIR.*[^A-Za-z_])test([^A-Za-z_].*)?$/\1\2/' stand/userboot/Makefile
say "the boot programs"
for target in _build-metadata everything; do
  mk "$target" SUBDIR_OVERRIDE=stand
done
# The installation takes the machine's locales along, which may have none.
mkdir /tmp/locale
export PATH_LOCALE=/tmp/locale
mk installworld SUBDIR_OVERRIDE=stand -DNO_ROOT DESTDIR="$stage"
numbers
finish
