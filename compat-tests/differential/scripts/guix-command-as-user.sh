# shellcheck shell=bash disable=SC2016
# user: alice
# The guix command itself, as an ordinary user: building with a root, keeping, checking, sizes, references, logs.
guix() { "$ENTER" "$CLIENT_ROOT" guix "$@"; }
cd /tmp/alice || exit
cat >good.scm <<'SCM'
(use-modules (guix store) (guix derivations) (guix monads))
(lambda ()
  (mlet* %store-monad ((bash (interned-file (getenv "BASH_STATIC") "bash-static")))
    ((store-lift derivation) "good" bash '("-c" "echo good; echo contents > $out") #:sources (list bash))))
SCM
sed 's/"good"/"bad"/; s/echo contents > $out/exit 3/' good.scm >bad.scm
run() {
  echo "\$ $*"
  "$@" >out 2>&1
  local status=$?
  # Collections go about it in no particular order.
  case $* in *gc*) sed "s/^\[.*\] deleting '/deleting '/" out | sort ;; *) cat out ;; esac
  echo "status $status"
}
run guix build --no-grafts --no-offload -f good.scm --root=root
run guix build --no-grafts --no-offload -f good.scm
run guix build --no-grafts --no-offload -f good.scm --check
run guix build --no-grafts --no-offload -f bad.scm -K
run ls -la /tmp/guix-build-bad.drv-0
item=$(readlink root)
run guix build --log-file "$item"
run guix gc --references "$item"
run guix gc --requisites "$item"
run guix gc --derivers "$item"
run guix gc --referrers "$item"
run guix gc --verify
run guix gc -D "$item"
rm root
run guix gc -D "$item"
