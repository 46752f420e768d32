#!/bin/bash
# bench.sh [TREE] : our UFS2 writer and FreeBSD's makefs(8) on the same tree, in turns, with ratios.
#
# TREE is a directory; without one, 20,000 files of 1 byte to 256 KiB are made.
#   MAKEFS=FILE    makefs: FreeBSD's own, built for this machine, or its port; required
#   MKIMAGE=FILE   another mkimage than the one that is built here (freebsd/examples/mkimage.rs)
#   TURNS=5        how many runs of each
# Each file system is 1 GiB larger than the tree, with blocks of 32 KiB.  makefs is told to leave holes (-Z).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=${here%/*/*}
say() { printf 'bench: %s\n' "$*" >&2; }
[ -n "${MAKEFS:-}" ] || { say "say where makefs is: MAKEFS=FILE"; exit 1; }
if [ -z "${MKIMAGE:-}" ]; then
  export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
  cargo build --quiet --locked --release --manifest-path "$checkout/Cargo.toml" -p fruix-freebsd --example mkimage
  MKIMAGE=${CARGO_TARGET_DIR:-$checkout/target}/release/examples/mkimage
fi
"$checkout/build-aux/install-packages" python3 time
work=$(mktemp -d /var/tmp/fruix-images.XXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
tree=${1:-}
if [ -z "$tree" ]; then
  tree=$work/tree
  python3 - "$tree" <<'END'
import os, random, sys
chance = random.Random(4)
for n in range(20000):
    d = "%s/%d/%d" % (sys.argv[1], n % 50, n // 1000)
    os.makedirs(d, exist_ok=True)
    with open("%s/%d" % (d, n), "wb") as f:
        f.write(chance.randbytes(int(2 ** chance.uniform(0, 18))))
END
fi
size=$((($(du -s --block-size=1M "$tree" | cut -f1) + 1024) << 20))

python3 - "$MKIMAGE" "$MAKEFS" "$tree" "$work" "$size" "${TURNS:-5}" <<'END'
import os, statistics, subprocess, sys, time
mkimage, makefs, tree, work, size, turns = sys.argv[1:]
sides = {
    "mkimage": [mkimage, "--directory", tree, "--size", size, work + "/ours"],
    "makefs": [makefs, "-Z", "-t", "ffs", "-o", "version=2,bsize=32768,fsize=4096,softupdates=1", "-s", size, work + "/theirs", tree],
}
files = {"mkimage": work + "/ours", "makefs": work + "/theirs"}
results = {side: [] for side in sides}
for turn in range(int(turns) + 1):
    for side, command in sides.items():
        if os.path.exists(files[side]):
            os.unlink(files[side])
        os.sync()
        start = time.monotonic()
        # The memory of a child counts from its parent's, hence a small parent.
        subprocess.run(["time", "-f", "%U %S %M", "-o", work + "/usage", *command], check=True, stdout=subprocess.DEVNULL)
        taken = time.monotonic() - start
        with open(work + "/usage") as f:
            user, system, memory = map(float, f.read().split())
        # The first turn warms the caches.
        if turn:
            results[side].append((taken, user + system, memory / 1024, os.stat(files[side]).st_blocks / 2048))
names = ("seconds", "CPU seconds", "memory MiB", "on disk MiB")
medians = {side: [statistics.median(values) for values in zip(*results[side])] for side in sides}
print("| median of %s | mkimage | makefs | ratio |\n|---|---|---|---|" % turns)
for name, ours, theirs in zip(names, medians["mkimage"], medians["makefs"]):
    print("| %s | %.2f | %.2f | %.2f |" % (name, ours, theirs, ours / theirs))
END
