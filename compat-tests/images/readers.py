"""readers.py make TREE FILES | dissect TREE IMAGE | sleuthkit TREE IMAGE SECTOR | grub TREE IMAGE : see readers.sh."""

import hashlib
import os
import random
import re
import stat
import subprocess
import sys


def make(top, count):
    chance = random.Random(15)
    os.makedirs(top)
    os.chdir(top)
    for n in range(count):
        directory = "d%d/e%d" % (n % 40, n // 2000)
        os.makedirs(directory, exist_ok=True)
        size = chance.choice((0, 1, 100, 511, 4095, 4096, 4097, 9000, 33000))
        with open("%s/%05d" % (directory, n), "wb") as f:
            f.write(chance.randbytes(size))
    os.makedirs("one")
    for n in range(max(3000, count // 10)):
        with open("one/%s-%d" % ("x" * (n % 200), n), "wb") as f:
            f.write(b"%d" % n)
    for mode in (0o4755, 0o2755, 0o1777, 0o000, 0o444):
        with open("mode-%04o" % mode, "wb") as f:
            f.write(b"m")
        os.chmod("mode-%04o" % mode, mode)
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    with open("n" * 255, "wb") as f:
        f.write(b"long")
    with open(b"odd \\ \xc3\xa9 #=*?[x]", "wb") as f:
        f.write(b"odd")
    deep = "deep"
    for n in range(100):
        os.makedirs(deep)
        deep += "/%d" % n
    with open("deep/0/bottom", "wb") as f:
        f.write(b"b")
    os.link("deep/0/bottom", "link-1")
    os.link("deep/0/bottom", "one/link-2")
    for length in (1, 119, 120, 1000):
        os.symlink("t" * length, "symlink-%d" % length)
    # Through one and two levels of indirect blocks, and holes over three.
    with open("indirect", "wb") as f:
        f.write(chance.randbytes(13 * 65536 + 77))
    with open("double", "wb") as f:
        for _ in range(18 if count <= 2000 else 150):
            f.write(chance.randbytes(1 << 20))
    with open("sparse", "wb") as f:
        f.seek(10 << 30)
        f.seek(5 << 30)
        f.write(b"in the middle")
        f.truncate(10 << 30)
    with open("tail", "wb") as f:
        f.seek(300 << 20)
        f.write(b"at the end")


def walk(top):
    """path, status of everything below, as bytes relative to it"""
    top = os.fsencode(top)
    pending = [b""]
    while pending:
        path = pending.pop()
        status = os.lstat(os.path.join(top, path)) if path else os.lstat(top)
        yield path, status
        if stat.S_ISDIR(status.st_mode):
            pending += [os.path.join(path, name) for name in os.listdir(os.path.join(top, path))]


def wrong(what):
    sys.exit("readers: %s" % what)


def sample(file, size):
    """the bytes of a file, or of a large one the parts where something is"""
    if size <= 400 << 20:
        return hashlib.sha256(file.read(size)).digest()
    parts = []
    for place in (0, 1 << 20, (5 << 30) - 5, 5 << 30, (6 << 30) + 1, size - 4096):
        file.seek(place)
        parts.append(file.read(4096))
    return b"".join(parts)


def dissect(top, image):
    from dissect.ffs import FFS

    fs = FFS(open(image, "rb"))
    checked = 0
    inodes = {}
    pending = [(b"", fs.get("/"))]
    found = {}
    while pending:
        path, node = pending.pop()
        found[path] = node
        if node.is_dir():
            for name, child in node.listdir().items():
                if name not in (".", ".."):
                    pending.append((os.path.join(path, name.encode("utf-8", "surrogateescape")), child))
    expected = dict(walk(top))
    if found.keys() != expected.keys():
        wrong("dissect.ffs lists other paths: %r" % sorted(found.keys() ^ expected.keys())[:5])
    for path, status in expected.items():
        node = found[path]
        there = node.inode
        kind = stat.S_IFMT(status.st_mode)
        facts = (there.di_mode, there.di_uid, there.di_gid, there.di_mtime, there.di_mtimensec)
        # --under-root: all of root, at one time.
        if facts != (status.st_mode if kind != stat.S_IFLNK else kind | 0o777, 0, 0, 1700000000, 0):
            wrong("dissect.ffs: %r: %r, not %o" % (path, facts, status.st_mode))
        if kind != stat.S_IFDIR:
            if there.di_nlink != status.st_nlink:
                wrong("dissect.ffs: %r: %d links, not %d" % (path, there.di_nlink, status.st_nlink))
            if inodes.setdefault(status.st_ino, node.inum) != node.inum:
                wrong("dissect.ffs: %r is another file than its other names" % path)
        if kind == stat.S_IFLNK:
            if node.link.encode() != os.readlink(os.path.join(os.fsencode(top), path)):
                wrong("dissect.ffs: %r leads to %r" % (path, node.link))
        elif kind == stat.S_IFREG:
            if there.di_size != status.st_size:
                wrong("dissect.ffs: %r: %d bytes" % (path, there.di_size))
            with open(os.path.join(os.fsencode(top), path), "rb") as f:
                if sample(node.open(), status.st_size) != sample(f, status.st_size):
                    wrong("dissect.ffs: %r: other bytes" % path)
        checked += 1
    print("readers: dissect.ffs: %d entries, every byte" % checked, file=sys.stderr)


def some(top, most):
    """files to be read one by one: all that are special, and some others"""
    files = sorted((path, status) for path, status in walk(top) if stat.S_ISREG(status.st_mode))
    special = [(path, status) for path, status in files if b"/" not in path and status.st_size < 1 << 30]
    others = [file for file in files if b"/" in file[0]]
    return special + random.Random(1).sample(others, min(most, len(others)))


def sleuthkit(top, image, sector):
    listing = subprocess.run(["fls", "-o", sector, "-f", "ufs2", "-r", "-p", image], check=True, capture_output=True).stdout
    found = {}
    for line in listing.splitlines():
        parts = re.fullmatch(rb"(.)/(.) (\* )?(\d+)(?:\(realloc\))?:\t(.*)", line, re.S)
        if parts and not parts[5].startswith(b"$OrphanFiles"):
            found[parts[5]] = (parts[1], int(parts[4]))
    kinds = {stat.S_IFDIR: b"d", stat.S_IFREG: b"r", stat.S_IFLNK: b"l"}
    # sleuthkit shows what is not printable as `^'.
    shown = {re.sub(rb"[\x00-\x1f]", b"^", path): status for path, status in walk(top) if path}
    if found.keys() != shown.keys():
        wrong("sleuthkit lists other paths: %r" % sorted(found.keys() ^ shown.keys())[:5])
    for path, status in shown.items():
        if found[path][0] != kinds[stat.S_IFMT(status.st_mode)]:
            wrong("sleuthkit: %r is a %r" % (path, found[path][0]))
    read = 0
    for path, status in some(top, 100):
        # sleuthkit 4.11 counts block numbers on through a hole, and stops where there are no such blocks.
        if status.st_size > os.path.getsize(image):
            continue
        bytes_ = subprocess.run(["icat", "-o", sector, "-f", "ufs2", image, str(found[path][1])], check=True, capture_output=True).stdout
        with open(os.path.join(os.fsencode(top), path), "rb") as f:
            if f.read() != bytes_:
                wrong("sleuthkit: %r: other bytes" % path)
        read += 1
    print("readers: sleuthkit: %d entries listed, %d files read" % (len(found), read), file=sys.stderr)


def grub(top, image):
    read = 0
    for path, status in some(top, 60):
        if b" " in path or b"mode-0000" in path:
            continue
        result = subprocess.run(["grub-fstest", image, "cmp", b"(loop0)/" + path, os.path.join(os.fsencode(top), path)], capture_output=True)
        if result.returncode or result.stderr:
            wrong("grub: %r: %r" % (path, result.stderr[:300]))
        read += 1
    print("readers: grub: %d files read" % read, file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], int(sys.argv[3]))
    else:
        {"dissect": dissect, "sleuthkit": sleuthkit, "grub": grub}[sys.argv[1]](*sys.argv[2:])
