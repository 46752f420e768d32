# shellcheck shell=sh disable=SC2154,SC2034,SC2164 # one script together with common.sh; the derivation gives the rest
# runtime.sh : all but kernel and boot programs, and the files of /etc.
restore_tools
echo 'WITHOUT_BOOT=' >>/tmp/src.conf
for target in _build-tools _build-metadata _includes _libraries everything; do
  say "$target"
  mk "$target"
done
# The installation takes the machine's locales along, which may have none.
mkdir /tmp/locale
export PATH_LOCALE=/tmp/locale
mk installworld -DNO_ROOT DESTDIR="$stage"
mk distribution -DNO_ROOT DESTDIR="$stage"
numbers
finish
