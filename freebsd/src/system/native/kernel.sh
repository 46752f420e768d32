# shellcheck shell=sh disable=SC2154,SC2034,SC2164 # one script together with common.sh; the derivation gives the rest
# kernel.sh : a kernel and its modules.
#   config   the name of a configuration
#   file     where it is, if it is not one of the source
#   modules  `all', or names; nothing for none
restore_tools
confdir=$src/sys/amd64/conf
if [ -n "${file:-}" ]; then
  cp "$file" "$confdir/$config"
fi
case ${modules:-} in
  '') set -- -DNO_MODULES ;;
  all) set -- ;;
  *) set -- "MODULES_OVERRIDE=$modules" ;;
esac
say "the kernel $config"
mk buildkernel KERNCONF="$config" "$@"
mk installkernel KERNCONF="$config" "$@" -DNO_ROOT DESTDIR="$stage"
numbers
finish
