//! Bases that are built: what files say of them, which part of a source each build reads, patches, and derivations that depend on that and nothing else.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use fruix_drv::{Hash, StoreDir, StorePath, aterm, hash_derivation_modulo, verify_output_paths};
use fruix_freebsd::system::derivations::{NativeSources, PLATFORM, Plan, Sources, plan, plan_source};
use fruix_freebsd::system::model::OperatingSystem;
use fruix_freebsd::system::native::{self, BUILDS};
use fruix_freebsd::system::toml::SystemFile;
use fruix_freebsd::tree::{Content, Entry, Node, Tree};

const SYSTEM: &str = r#"host-name = "x"
[base]
version = "15.1"
kind = "source"
[base.source]
kind = "local-tree"
path = "/usr/src"
[base.build]
toolchain = "toolchain"
kernel-config = "conf/SMALL"
kernel-modules = ["if_bridge"]
options = ["WITHOUT_GAMES"]
patches = ["fixes/one.patch"]
[[file-systems]]
mount-point = "/"
device = "/dev/gpt/rootfs"
type = "ufs"
"#;

fn tree(files: &[(&str, &str)]) -> Tree {
    let mut tree = Tree::new();
    for (path, text) in files {
        tree.insert(path, Entry::file(0o644, text.as_bytes())).unwrap();
    }
    fruix_freebsd::system::source::normalise(tree).unwrap()
}

fn text(tree: &Tree, path: &str) -> Option<String> {
    match &tree.get(path)?.node {
        Node::File(file) => match &file.content {
            Content::Bytes(bytes) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
            Content::Host(path) => Some(std::fs::read_to_string(path).unwrap()),
        },
        _ => None,
    }
}

/// The builds that read a file.
fn readers(path: &str) -> BTreeSet<&'static str> {
    let tree = tree(&[(path, "x"), ("Makefile", "y")]);
    BUILDS.iter().filter(|build| native::part(&tree, &build.part()).unwrap().get(path).is_some()).map(|build| build.name).collect()
}

#[test]
fn a_file_is_in_the_parts_that_read_it() {
    for (path, expected) in [
        ("bin/ls/ls.c", "runtime"),
        ("usr.sbin/jail/jail.c", "runtime"),
        ("lib/libc/stdio/printf.c", "runtime"),
        ("sys/kern/kern_exec.c", "kernel"),
        ("sys/dev/virtio/block/virtio_blk.c", "kernel"),
        ("sys/amd64/conf/GENERIC", "kernel"),
        ("sys/modules/if_bridge/Makefile", "kernel"),
        ("stand/lua/loader.lua", "loader"),
        ("stand/Makefile", "loader"),
        ("sys/netinet/libalias/alias.c", "kernel runtime"),
        ("usr.sbin/config/main.cc", "runtime tools"),
        ("sys/sys/param.h", "kernel loader runtime tools"),
        ("sys/conf/newvers.sh", "kernel loader runtime tools"),
        ("share/mk/bsd.prog.mk", "kernel loader runtime tools"),
        ("Makefile.inc1", "kernel loader runtime tools"),
        ("release/Makefile", ""),
        ("sys/contrib/device-tree/src/arm/x.dts", ""),
    ] {
        assert_eq!(readers(path), expected.split_whitespace().collect(), "{path}");
    }
}

#[test]
fn patches_change_a_source_or_say_why_not() {
    let source = || tree(&[("lib/Makefile", "a\nb\nc\n"), ("bin/old.c", "gone\n"), ("script", "#!/bin/sh\n")]);
    let mut plain = source();
    let patch = "a note\n--- lib/Makefile.orig\t2026\n+++ src/lib/Makefile\t2026\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n";
    native::apply(&mut plain, patch.as_bytes()).unwrap();
    assert_eq!(text(&plain, "lib/Makefile").unwrap(), "a\nB\nc\n");

    let mut git = source();
    let patch = "From 0123 Mon Sep 17 00:00:00 2001\nSubject: several\n\n---\n\
        diff --git a/bin/new.c b/bin/new.c\nnew file mode 100755\nindex 000..111\n--- /dev/null\n+++ b/bin/new.c\n@@ -0,0 +1 @@\n+new\n\
        diff --git a/bin/old.c b/bin/old.c\ndeleted file mode 100644\nindex 111..000\n--- a/bin/old.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-gone\n\
        diff --git a/lib/Makefile b/lib/Makefile\nindex 1..2 100644\n--- a/lib/Makefile\n+++ b/lib/Makefile\n@@ -2,2 +2,3 @@\n b\n c\n+d\n";
    native::apply(&mut git, patch.as_bytes()).unwrap();
    assert_eq!(text(&git, "lib/Makefile").unwrap(), "a\nb\nc\nd\n");
    assert_eq!((text(&git, "bin/new.c").unwrap().as_str(), git.get("bin/new.c").unwrap().mode), ("new\n", 0o755));
    assert!(git.get("bin/old.c").is_none());

    let hunk = "@@ -1 +1 @@\n-x\n+y\n";
    for (patch, expected) in [
        (format!("--- a/lib/Makefile\n+++ b/lib/Makefile\n{hunk}"), "`lib/Makefile': error applying hunk #1"),
        (format!("--- a/nothing\n+++ b/nothing\n{hunk}"), "`nothing' is not in the source"),
        (format!("--- a/lib\n+++ b/lib\n{hunk}"), "`lib' is no file"),
        ("--- /dev/null\n+++ b/script\n@@ -0,0 +1 @@\n+x\n".into(), "`script' is already in the source"),
        (
            "diff --git a/script b/other\nsimilarity index 100%\nrename from script\nrename to other\n".into(),
            "`script' is renamed or copied",
        ),
        (
            "diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+x\n\\ No newline at end of file\n".into(),
            "`l' would be a symbolic link",
        ),
        ("--- /dev/null\n+++ b/../../etc/passwd\n@@ -0,0 +1 @@\n+x\n".into(), "`../../etc/passwd'"),
        ("nothing at all\n".into(), "is no patch"),
        (String::new(), "is no patch"),
    ] {
        let said = native::apply(&mut source(), patch.as_bytes()).unwrap_err();
        assert!(said.starts_with(expected), "{patch}: {said}");
    }
}

fn item(name: &str) -> StorePath {
    StorePath::from_base_name(format!("{}-{name}", "0".repeat(32))).unwrap()
}

fn system(text: &str) -> OperatingSystem {
    SystemFile::parse(Path::new("os.toml"), text).unwrap_or_else(|problems| panic!("{problems:?}")).system
}

fn planned(text: &str, tree: &Tree, source: &str) -> Plan {
    let dir = StoreDir::new("/frx/store");
    let system = system(text);
    let made = plan_source(system.base.source.as_ref().unwrap(), Some(item(source)), &dir, PLATFORM).unwrap();
    // Any hash will do that depends on what is in a part.
    let sum = |tree: &Tree| Hash::sha256(format!("{tree:?}")).base16();
    let parts = BUILDS.iter().map(|build| (build.name, sum(&native::part(tree, &build.part()).unwrap()))).collect();
    let native = NativeSources {
        source: made.source,
        parts,
        toolchain: item("freebsd-toolchain"),
        patches: vec![item("freebsd-source.patch")],
        kernel_config: Some(item("freebsd-kernel-config")),
    };
    plan(&system, &Sources { native: Some(native), ..Sources::default() }, &dir, PLATFORM).unwrap()
}

/// What differs between two plans: builds and packages by name.
fn differences(one: &Plan, other: &Plan) -> Vec<String> {
    let outs = |plan: &Plan| -> BTreeMap<String, StorePath> {
        let builds = plan.native.builds.iter().map(|(name, build)| (format!("build {name}"), build.outputs["out"].clone()));
        let packages = plan.packages.iter().map(|(name, path)| (name.clone(), path.clone()));
        builds.chain(packages).chain([("system".to_owned(), plan.system.outputs["out"].clone())]).collect()
    };
    let (one, other) = (outs(one), outs(other));
    assert_eq!(one.len(), other.len());
    one.into_iter().filter(|(name, path)| other[name] != *path).map(|(name, _)| name).collect()
}

#[test]
fn derivations_depend_on_what_a_build_reads_and_on_nothing_else() {
    let files = [
        ("Makefile", "all:"),
        ("bin/ls/ls.c", "1"),
        ("sys/kern/kern_exec.c", "1"),
        ("stand/lua/loader.lua", "1"),
        ("contrib/bmake/configure", "1"),
        ("sys/sys/param.h", "1"),
    ];
    let before = planned(SYSTEM, &tree(&files), "source");
    let runtime = ["build runtime", "libc", "openssl", "rc-scripts", "runtime", "sh", "system", "userland", "zlib"];
    let changed = |path: &str| {
        let other: Vec<_> = files.iter().map(|(name, text)| (*name, if *name == path { "2" } else { text })).collect();
        // Another tree is another source item.
        differences(&before, &planned(SYSTEM, &tree(&other), "other"))
    };
    assert_eq!(differences(&before, &planned(SYSTEM, &tree(&files), "other")), [""; 0], "a source of another name, the same content");
    assert_eq!(changed("bin/ls/ls.c"), runtime);
    assert_eq!(changed("sys/kern/kern_exec.c"), ["build kernel", "kernel", "system"]);
    assert_eq!(changed("stand/lua/loader.lua"), ["bootloader", "build loader", "system"]);
    assert_eq!(changed("sys/sys/param.h").len(), before.packages.len() + 5);
    let with = |from: &str, to: &str| differences(&before, &planned(&SYSTEM.replace(from, to), &tree(&files), "source"));
    assert_eq!(with("\"if_bridge\"", "\"if_epair\""), ["build kernel", "kernel", "system"]);
    assert_eq!(with("WITHOUT_GAMES", "WITHOUT_MAN").len(), before.packages.len() + 5);
    assert_eq!(with("host-name = \"x\"", "host-name = \"y\""), ["system"]);

    // As a client computes them; and what is built has neither network nor names of the source's item.
    let dir = StoreDir::new("/frx/store");
    let mut hashes: BTreeMap<StorePath, Hash> = BTreeMap::new();
    let made = plan_source(system(SYSTEM).base.source.as_ref().unwrap(), Some(item("source")), &dir, PLATFORM).unwrap();
    for text in made.texts.iter().chain(&before.texts).filter(|text| text.name.ends_with(".drv")) {
        let drv = aterm::parse(&dir, &text.text).unwrap();
        let mut input = |path: &StorePath| hashes.get(path).cloned().ok_or_else(|| format!("{path:?}"));
        verify_output_paths(&dir, &text.name.replace(".drv", ""), &drv, &mut input).unwrap();
        hashes.insert(text.path.clone(), hash_derivation_modulo(&dir, &drv, &mut input).unwrap());
        let native = text.name.starts_with("freebsd-native-");
        assert_eq!(drv.platform, if native { "x86_64-linux" } else { PLATFORM }, "{}", text.name);
        if native {
            assert_eq!(drv.builder, "/frx/store/00000000000000000000000000000000-freebsd-toolchain/bin/sh");
            assert!(drv.input_srcs.contains(&item("freebsd-toolchain")) && !drv.input_srcs.contains(&item("source")));
        }
    }
    let info = before.texts.iter().find(|text| text.name == "freebsd-native-kernel.scm").unwrap();
    let info = String::from_utf8(info.text.clone()).unwrap();
    for line in [
        "(declared-base .",
        "(declared-source .",
        "(part . kernel)",
        "(kernel-config . \"SMALL\")",
        "(kernel-modules \"if_bridge\")",
        "(options \"WITHOUT_GAMES\")",
    ] {
        assert!(info.contains(line), "{info}");
    }
}
