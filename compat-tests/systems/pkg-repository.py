#!/usr/bin/env python3
"""pkg-repository.py DIR KEY PUB SUMS : twenty packages in pkg's own format, and their catalogue, signed.

DIR is the repository: All/*.pkg, packagesite.pkg, data.pkg, meta.conf.  KEY signs, PUB is its public half (PEM).  SUMS is `sha256' (as pkg up to
2.7 has them) or `blake2b' (from 2.8 on).  $DAMAGE names one thing that is wrong; what is there, DAMAGES below says.  Formats: pkg-create(8),
pkg-repo(8), and what pkg itself wrote.  Nothing here is fruixd's.
"""
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

directory, key, pub, sums = sys.argv[1:5]
damage = os.environ.get("DAMAGE", "")

# Name: dependencies. What has no number in its name has one version.
PACKAGES = {
    "libiconv": [], "indexinfo": [], "gettext-runtime": ["indexinfo"], "readline": ["indexinfo"], "ncurses": [],
    "bash": ["gettext-runtime", "readline"], "pcre2": [], "glib": ["gettext-runtime", "libiconv", "pcre2"],
    "openssl": [], "curl": ["openssl"], "git": ["curl", "pcre2", "glib"], "vim": ["ncurses", "gettext-runtime"],
    "tmux": ["ncurses"], "perl5": [], "sudo": ["gettext-runtime"], "python311": ["openssl", "readline"],
    "libsigc++": [], "www-server": ["openssl", "perl5"], "meta-all": ["bash", "vim", "git"], "zsh": ["ncurses", "pcre2"],
}
VERSIONS = {"bash": "5.3.3_1,1", "python311": "3.11.14~rc1", "glib": "2.84.4,2"}
DAMAGES = [
    "unsigned", "other-signature", "changed-after-signing", "no-key", "manifest-sum", "manifest-missing-file", "not-in-manifest", "dotdot", "through-link", "link-later",
    "device", "pipe", "missing-dependency", "circle", "other-name", "other-version", "other-dependencies", "bomb", "duplicate-package", "duplicate-file",
    "two-with-one-file", "no-manifest", "other-machine", "path-out", "manifest-json", "catalogue-json", "own-name", "hard-link-out", "bad-sum",
]
assert damage == "" or damage in DAMAGES, damage

B32 = "ybndrfg8ejkmcpqxot1uwisza345h769"


def total(data):
    """A sum as catalogues and manifests have it."""
    if sums == "sha256":
        return hashlib.sha256(data).hexdigest()
    bits = int.from_bytes(hashlib.blake2b(data).digest(), "little")
    return "2$" + "".join(B32[bits >> 5 * at & 31] for at in range(103))


def in_manifest(data):
    return ("1$" if sums == "sha256" else "") + total(data)


def of_link(target):
    # As pkg computes it: an absolute target without its slash, and with the NUL at the end.
    return in_manifest((target[1:] + "\0" if target.startswith("/") else target).encode())


def packed(tar, ending):
    if ending == "txz":
        return subprocess.run(["xz", "-1c"], input=tar, stdout=subprocess.PIPE, check=True).stdout
    return subprocess.run(["zstd", "-qc", "--ultra", "-20"] if ending == "ultra" else ["zstd", "-qc"], input=tar, stdout=subprocess.PIPE, check=True).stdout


def entry(tar, name, data=b"", kind=tarfile.REGTYPE, mode=0o644, link="", user="root", group="wheel", flags=None):
    item = tarfile.TarInfo(name)
    item.pax_headers = {}
    item.type, item.mode, item.linkname, item.uname, item.gname = kind, mode, link, user, group
    item.size = len(data) if kind == tarfile.REGTYPE else 0
    if flags:
        item.pax_headers["SCHILY.fflags"] = flags
    if not name.isascii():
        # As pkg writes it where the locale has no such letters.
        item.pax_headers["hdrcharset"] = "BINARY"
    tar.addfile(item, io.BytesIO(data))


def package(name):
    version = VERSIONS.get(name, "1.0")
    text = f"#!/bin/sh\necho {name}\n".encode()
    files = [
        (f"/usr/local/bin/{name}", dict(data=text, mode=0o755)),
        (f"/usr/local/bin/{name}-hard", dict(kind=tarfile.LNKTYPE, mode=0o755, link=f"/usr/local/bin/{name}", same=text)),
        (f"/usr/local/lib/lib{name}.so", dict(kind=tarfile.SYMTYPE, link=f"lib{name}.so.1")),
        (f"/usr/local/lib/lib{name}.so.1", dict(data=f"{name} {version}\n".encode() * 200)),
        (f"/usr/local/share/{name}/ä 50%.txt", dict(data=b"odd\n")),
        (f"/usr/local/share/{name}/absolute", dict(kind=tarfile.SYMTYPE, link=f"/usr/local/bin/{name}")),
        (f"/usr/local/share/{name}/" + "long/" * 30 + "name", dict(data=b"long\n")),
    ]
    scripts, users = {}, []
    if name == "sudo":
        files.append(("/usr/local/libexec/sudo-helper", dict(data=b"privileged\n", mode=0o4755, flags="schg")))
        files.append(("/usr/local/etc/sudo.secret", dict(data=b"secret\n", mode=0o440)))
    if name == "www-server":
        files.append(("/usr/local/www/index.html", dict(data=b"<html>\n", user="www", group="www")))
        files.append(("/usr/local/etc/rc.d/www-server", dict(data=b"#!/bin/sh\n", mode=0o755)))
        files.append(("/usr/local/www/odd", dict(data=b"odd\n", user="squid", group="www")))
        scripts, users = {"post-install": "touch /RUN", "pre-deinstall": "rm -rf /"}, ["www"]
    manifest_name, manifest_version, deps = name, version, {d: {"origin": f"misc/{d}", "version": VERSIONS.get(d, "1.0")} for d in PACKAGES[name]}
    flat, extra = None, []
    if name == "readline":
        if damage == "dotdot":
            files.append(("/usr/local/../../../etc/passwd", dict(data=b"root\n")))
        elif damage == "through-link":
            files.append(("/usr/local/out", dict(kind=tarfile.SYMTYPE, link="/tmp")))
            files.append(("/usr/local/out/file", dict(data=b"out\n")))
        elif damage == "link-later":
            files.append(("/usr/local/later/file", dict(data=b"out\n")))
            files.append(("/usr/local/later", dict(kind=tarfile.SYMTYPE, link="/tmp")))
        elif damage == "device":
            files.append(("/usr/local/null", dict(kind=tarfile.CHRTYPE)))
        elif damage == "pipe":
            files.append(("/usr/local/pipe", dict(kind=tarfile.FIFOTYPE)))
        elif damage == "hard-link-out":
            files.append(("/usr/local/shadow", dict(kind=tarfile.LNKTYPE, link="/etc/master.passwd", same=b"")))
        elif damage == "other-name":
            manifest_name = "readlin"
        elif damage == "other-version":
            manifest_version = "1.0_1"
        elif damage == "other-dependencies":
            deps = {}
        elif damage == "bomb":
            files.append(("/usr/local/bomb", dict(data=b"\0" * (64 << 20))))
            flat = 100000
        elif damage == "own-name":
            files.append(("/METALOG", dict(data=b"#mtree\n")))
        elif damage == "duplicate-file":
            extra.append(("/usr/local/bin/readline", dict(data=text, mode=0o755)))
        elif damage == "two-with-one-file":
            files.append(("/usr/local/bin/ncurses", dict(data=b"mine\n")))
        elif damage == "not-in-manifest":
            extra.append(("/usr/local/bin/hidden", dict(data=b"hidden\n")))
    about = {"users": users, "scripts": scripts}
    line = write(name, version, manifest_name, manifest_version, deps, files, extra, flat, about)
    line["deps"] = {d: {"origin": f"misc/{d}", "version": VERSIONS.get(d, "1.0")} for d in PACKAGES[name]}
    if not PACKAGES[name]:
        del line["deps"]
    if name == "readline" and damage == "path-out":
        line["path"] = line["repopath"] = "../../../etc/passwd"
    return line


def write(name, version, manifest_name, manifest_version, deps, files, extra, flat, more):
    """Writes the archive of a package; its line in the catalogue."""
    listed = {}
    for path, about in files:
        about = dict(about)
        kind = about.get("kind", tarfile.REGTYPE)
        total_of = of_link(about["link"]) if kind == tarfile.SYMTYPE else in_manifest(about.get("same", about.get("data", b"")))
        quoted = "".join(c if ord(c) < 128 and c != "%" else "".join(f"%{b:02x}" for b in c.encode()) for c in path)
        if sums == "sha256":
            listed[quoted] = total_of
        else:
            listed[quoted] = {"sum": total_of, "uname": about.get("user", "root"), "gname": about.get("group", "wheel"), "perm": "%04o" % about.get("mode", 0o644)}
    if name == "readline" and damage == "manifest-sum":
        listed["/usr/local/bin/readline"] = in_manifest(b"other")
    if name == "readline" and damage == "bad-sum":
        listed["/usr/local/bin/readline"] = "7$abc"
    if name == "readline" and damage == "manifest-missing-file":
        listed["/usr/local/bin/gone"] = in_manifest(b"gone")
    manifest = {
        "name": manifest_name, "origin": f"misc/{name}", "version": manifest_version, "comment": "a package", "maintainer": "test@example.org",
        "www": "https://example.org", "abi": "FreeBSD:15:aarch64" if damage == "other-machine" and name == "readline" else "FreeBSD:15:amd64",
        "arch": "freebsd:15:x86:64", "prefix": "/usr/local",
        "flatsize": flat if flat is not None else sum(len(about.get("data", b"")) for _, about in files), "desc": "nothing\nmore", "deps": deps,
    }
    compact = dict(manifest)
    empty = f"/usr/local/share/{name}-empty"
    full = {**manifest, "files": listed, "directories": {empty: "y"} if name in PACKAGES else {}, **more}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry(tar, "+COMPACT_MANIFEST", json.dumps(compact).encode())
        if not (damage == "no-manifest" and name == "readline"):
            text = json.dumps(full, separators=(",", ":")).encode()
            entry(tar, "+MANIFEST", text[:-20] if damage == "manifest-json" and name == "readline" else text)
        for path, about in files + extra:
            about = {name: value for name, value in about.items() if name != "same"}
            entry(tar, path, **about)
        if name in PACKAGES:
            entry(tar, empty, kind=tarfile.DIRTYPE, mode=0o755)
    os.makedirs(f"{directory}/All", exist_ok=True)
    path = f"All/{name}-{version}.pkg"
    data = packed(buffer.getvalue(), {"curl": "txz", "perl5": "ultra"}.get(name, "tzst")) if name != "zsh" else buffer.getvalue()
    if name == "vim":
        # Two frames: the tar in the middle of a file.
        middle = len(buffer.getvalue()) // 2
        data = packed(buffer.getvalue()[:middle], "tzst") + packed(buffer.getvalue()[middle:], "tzst")
    with open(f"{directory}/{path}", "wb") as file:
        file.write(data)
    line = {**compact, "name": name, "version": version, "sum": total(data), "path": path, "repopath": path, "pkgsize": len(data)}
    return line


def archive(name, member, data, ending="tzst"):
    digest = hashlib.sha256(data).hexdigest().encode()
    signature = subprocess.run(["openssl", "dgst", "-sha256", "-sign", key, "-binary"], input=digest, stdout=subprocess.PIPE, check=True).stdout
    if damage == "other-signature":
        signature = bytes([signature[0] ^ 1]) + signature[1:]
    if damage == "changed-after-signing":
        data = data.replace(b'"comment":"a package"', b'"comment":"another"', 1)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        if damage == "unsigned":
            pass
        elif os.environ.get("SIGNATURE") == "pubkey":
            entry(tar, "signature", signature + b"\0")
        else:
            entry(tar, f"{member}.sig", signature)
            if damage != "no-key":
                with open(pub, "rb") as file:
                    entry(tar, f"{member}.pub", file.read())
        entry(tar, member, data)
    with open(f"{directory}/{name}.{'pkg' if ending == 'tzst' else ending}", "wb") as file:
        file.write(packed(buffer.getvalue(), ending))


if damage == "missing-dependency":
    PACKAGES["readline"] = ["indexinfo", "gone"]
elif damage == "circle":
    PACKAGES["indexinfo"] = ["bash"]
wanted = os.environ.get("ONLY", "").split()
base = os.environ.get("BASE")
if base:
    # A base in three packages, two of which need each other.
    PACKAGES.clear()
    parts = {"FreeBSD-kernel-generic": ["boot/kernel"], "FreeBSD-runtime": ["bin", "sbin"], "FreeBSD-rc": ["etc", "boot/loader.efi", "usr", "COPYRIGHT"]}
    needs = {"FreeBSD-kernel-generic": [], "FreeBSD-runtime": ["FreeBSD-rc"], "FreeBSD-rc": ["FreeBSD-runtime"]}
    lines = []
    for name, tops in parts.items():
        found = []
        for top in tops:
            for at, _, names in [(f"{base}/{top}", [], None)] if os.path.isfile(f"{base}/{top}") else os.walk(f"{base}/{top}"):
                for path in [at] if names is None else [f"{at}/{n}" for n in names]:
                    with open(path, "rb") as file:
                        found.append((path[len(base):], dict(data=file.read(), mode=os.stat(path).st_mode & 0o777)))
        deps = {d: {"origin": f"base/{d}", "version": "15.1"} for d in needs[name]}
        lines.append(write(name, "15.1", name, "15.1", deps, sorted(found), [], None, {}))
else:
    lines = [package(name) for name in PACKAGES if not wanted or name in wanted]
if damage == "duplicate-package":
    lines.append({**next(line for line in lines if line["name"] == "readline"), "version": "1.1"})
texts = [json.dumps(line, separators=(",", ":")) for line in lines]
if damage == "catalogue-json":
    texts[3] = texts[3][:-5]
site = "".join(text + "\n" for text in texts).encode()
if os.environ.get("OLD"):
    # As repositories were before meta.conf.
    archive("packagesite", "packagesite.yaml", site, "txz")
else:
    archive("packagesite", "packagesite.yaml", site)
    archive("data", "data", json.dumps({"groups": [], "packages": lines}).encode())
    with open(f"{directory}/meta.conf", "w", encoding="utf-8") as file:
        file.write('version = 2;\npacking_format = "tzst";\nmanifests = "packagesite.yaml";\ndata = "data";\nfilesite = "files";\n'
                   'manifests_archive = "packagesite";\nfilesite_archive = "files";\n')
