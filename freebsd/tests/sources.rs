//! Sources: one tree from directories and archives, derivations, and pins that are written into files.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use fruix_drv::{Hash, StoreDir, StorePath, aterm, hash_derivation_modulo, verify_output_paths};
use fruix_freebsd::system::derivations::{PLATFORM, PlanError, Sources, plan_packages, plan_source};
use fruix_freebsd::system::pkg::{Locked, PkgItem, archive, signature, sum};
use fruix_freebsd::system::source::{self, Effective, FreebsdSource};
use fruix_freebsd::system::toml::{RepositoryFile, SourceFile, SystemFile};
use fruix_freebsd::tree::{Content, Node, Tree};

fn shown(tree: &Tree) -> BTreeMap<String, String> {
    let show = |node: &Node| match node {
        Node::File(file) => match &file.content {
            Content::Host(path) => fs::read_to_string(path).unwrap(),
            Content::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        },
        Node::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
        other => other.kind().to_owned(),
    };
    tree.iter()
        .map(|(path, entry)| (String::from_utf8_lossy(path).into_owned(), format!("{:o} {}", entry.mode, show(&entry.node))))
        .collect()
}

fn source_archive(to: &Path, prefix: &str) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut put = |kind: tar::EntryType, name: &str, mode: u32, link: &str, text: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1001);
        header.set_mtime(1_700_000_000);
        header.set_size(text.len() as u64);
        let name = format!("{prefix}{name}");
        if link.is_empty() {
            tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        } else {
            tar.append_link(&mut header, name, link).unwrap();
        }
    };
    use tar::EntryType::{Directory, Link, Regular, Symlink, XGlobalHeader};
    // What `git archive' begins with.
    put(XGlobalHeader, "pax_global_header", 0o666, "", "52 comment=0123456789012345678901234567890123456789\n");
    put(Directory, "sys/empty/", 0o700, "", "");
    put(Regular, "sys/kern.c", 0o640, "", "int kern;\n");
    put(Link, "sys/same.c", 0o640, &format!("{prefix}sys/kern.c"), "");
    put(Regular, "configure", 0o750, "", "#!/bin/sh\n");
    put(Symlink, "link", 0o777, "sys/kern.c", "");
    put(Regular, ".git/config", 0o644, "", "[core]\n");
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    xz.write_all(&tar.into_inner().unwrap()).unwrap();
    fs::write(to, xz.finish().unwrap()).unwrap();
}

#[test]
fn directories_and_archives_come_to_what_git_can_hold() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("tree");
    for (path, text, mode) in
        [("sys/kern.c", "int kern;\n", 0o600), ("configure", "#!/bin/sh\n", 0o755), (".git/HEAD", "x", 0o644), ("sys/.git", "x", 0o644)]
    {
        fs::create_dir_all(at.join(path).parent().unwrap()).unwrap();
        fs::write(at.join(path), text).unwrap();
        fs::set_permissions(at.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::hard_link(at.join("sys/kern.c"), at.join("sys/same.c")).unwrap();
    fs::create_dir_all(at.join("empty/below")).unwrap();
    symlink("sys/kern.c", at.join("link")).unwrap();
    // git's own socket is none of the source.
    let _socket = std::os::unix::net::UnixListener::bind(at.join(".git/socket")).unwrap();
    let tree = source::from_directory(&at).unwrap();
    let expected: BTreeMap<String, String> = [
        ("", "755 dir"),
        ("configure", "755 #!/bin/sh\n"),
        ("link", "755 -> sys/kern.c"),
        ("sys", "755 dir"),
        ("sys/kern.c", "644 int kern;\n"),
        ("sys/same.c", "644 int kern;\n"),
    ]
    .map(|(path, text)| (path.to_owned(), text.to_owned()))
    .into();
    assert_eq!(shown(&tree), expected);

    for (number, prefix) in ["usr/src/", "./usr/src/", ""].into_iter().enumerate() {
        let file = directory.path().join(format!("{number}.txz"));
        source_archive(&file, prefix);
        assert_eq!(shown(&source::from_archive(&file, &directory.path().join(number.to_string())).unwrap()), expected, "{prefix}");
    }
    // Only where everything is below it does the prefix go.
    let beside = directory.path().join("beside.txz");
    source_archive(&beside, "usr/src-15/");
    let kept = shown(&source::from_archive(&beside, &directory.path().join("kept")).unwrap());
    assert_eq!(kept["usr/src-15/sys/kern.c"], "644 int kern;\n");

    let pipe = at.join("sys/pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let error = source::from_directory(&at).unwrap_err().to_string();
    assert!(error.starts_with("`sys/pipe': is a device, a socket or a pipe"), "{error}");
    let error = source::from_directory(&at.join("empty")).unwrap_err().to_string();
    assert_eq!(error, "`.': holds no files");
}

fn read(text: &str) -> SourceFile {
    SourceFile::parse(Path::new("os.toml"), text).unwrap_or_else(|problems| panic!("{problems:?}"))
}

#[test]
fn derivations_follow_from_pins() {
    let dir = StoreDir::new("/frx/store");
    let (commit, sum) = ("0123456789012345678901234567890123456789", "a".repeat(64));
    let given = StorePath::from_base_name(format!("{}-freebsd-source-tree", "0".repeat(32))).unwrap();
    let git = format!("[source]\nkind = \"git\"\nurl = \"https://example.org/src.git\"\ncommit = \"{commit}\"\nsha256 = \"{sum}\"\n");
    let archive = format!("[source]\nkind = \"src-txz\"\nurl = \"https://example.org/src.txz?x=1\"\nsha256 = \"{sum}\"\n");
    let local = "[source]\nkind = \"local-tree\"\npath = \"/usr/src\"\n".to_owned();
    for (text, given, fetched) in [(&git, None, true), (&archive, None, true), (&local, Some(given.clone()), false)] {
        let source = read(text).source;
        assert_eq!(source.unpinned("source"), None);
        let plan = plan_source(&source, given, &dir, PLATFORM).unwrap();
        assert_eq!(plan.fetch.is_some(), fetched);
        let mut known: BTreeMap<StorePath, Hash> = BTreeMap::new();
        for text in plan.texts.iter().filter(|text| text.name.ends_with(".drv")) {
            let drv = aterm::parse(&dir, &text.text).unwrap();
            let mut input = |path: &StorePath| known.get(path).cloned().ok_or("unknown");
            verify_output_paths(&dir, text.name.trim_end_matches(".drv"), &drv, &mut input).unwrap();
            known.insert(text.path.clone(), hash_derivation_modulo(&dir, &drv, &mut input).unwrap());
        }
    }
    // Where a fixed output comes from makes no other of it.
    let moved = read(&git.replace("example.org", "example.com")).source;
    let plan = |source: &FreebsdSource| plan_source(source, None, &dir, PLATFORM).unwrap();
    assert_eq!(plan(&moved).input, plan(&read(&git).source).input);
    assert_ne!(plan(&moved).source, plan(&read(&git).source).source);
    // Nothing is made of what may be anything.
    for text in [git.replace(&format!("sha256 = \"{sum}\"\n"), ""), archive.replace(&format!("sha256 = \"{sum}\"\n"), "")] {
        let source = read(&text).source;
        assert_eq!(source.unpinned("source").unwrap().field, "source.sha256");
        assert!(matches!(plan_source(&source, None, &dir, PLATFORM), Err(PlanError::Source { .. })));
    }
    let text = source::metadata(&moved, &Effective { sha256: sum.clone(), commit: Some(commit.into()) });
    assert_eq!(source::effective(&text), Some(Effective { sha256: sum.clone(), commit: Some(commit.into()) }));
    let text = source::metadata(&read(&local).source, &Effective { sha256: sum.clone(), commit: None });
    assert_eq!(source::effective(&text), Some(Effective { sha256: sum, commit: None }));
    assert_eq!(source::effective("((declared . #f))"), None);
}

/// Comments, order, line ends and spaces stay; what cannot be kept is not written.
#[test]
fn pins_are_written_where_they_belong() {
    let (commit, sum) = ("1".repeat(40), "b".repeat(64));
    let (old, older) = ("0".repeat(40), "a".repeat(64));
    for (before, after) in [
        (
            format!(
                "# mine\n[source] # here\n  kind = \"git\"\n  url = \"https://a/b\"\n  ref = \"main\"   # moves\n  commit = '{old}' # pin\n  sha256=\"{older}\"\n# end\n"
            ),
            format!(
                "# mine\n[source] # here\n  kind = \"git\"\n  url = \"https://a/b\"\n  ref = \"main\"   # moves\n  commit = \"{commit}\" # pin\n  sha256=\"{sum}\"\n# end\n"
            ),
        ),
        (
            "[source]\r\n\tref = \"main\" # moves\r\n\tkind = \"git\"\r\n\turl = \"https://a/b\"".to_owned(),
            format!(
                "[source]\r\n\tref = \"main\" # moves\r\n\tcommit = \"{commit}\"\r\n\tsha256 = \"{sum}\"\r\n\tkind = \"git\"\r\n\turl = \"https://a/b\""
            ),
        ),
        (
            "source = { kind = \"git\", url = \"https://a/b\", ref = \"main\" } # one line".to_owned(),
            format!(
                "source = {{ kind = \"git\", url = \"https://a/b\", ref = \"main\", commit = \"{commit}\", sha256 = \"{sum}\" }} # one line"
            ),
        ),
        (
            "source.kind = \"git\"\nsource.url = \"https://a/b\"\nsource.ref = \"main\"".to_owned(),
            format!(
                "source.kind = \"git\"\nsource.url = \"https://a/b\"\nsource.ref = \"main\"\nsource.commit = \"{commit}\"\nsource.sha256 = \"{sum}\""
            ),
        ),
    ] {
        let pinned = read(&before).with_pin(Some(&commit), &sum).unwrap();
        assert_eq!(pinned, after);
        assert_eq!(read(&pinned).with_pin(Some(&commit), &sum).unwrap(), after);
    }
}

const LOCKED: &str = "locked = [\"readline 8.2 SUM1 All/readline.pkg\", \"bash 5.3_1,1 SUM2 All/bash.pkg readline\"]\n";

fn repository(url: &str) -> RepositoryFile {
    let (one, two, pin) = ("1".repeat(64), "2".repeat(64), "a".repeat(64));
    let text = format!(
        "[repository]\nurl = \"{url}\"\nfingerprints = [\"{pin}\"]\npackages = [\"bash\"]\nsha256 = \"{pin}\"\n{}",
        LOCKED.replace("SUM1", &one).replace("SUM2", &two)
    );
    RepositoryFile::parse(Path::new("pkg.toml"), &text).unwrap_or_else(|problems| panic!("{problems:?}"))
}

#[test]
fn packages_have_derivations_that_follow_from_what_is_locked() {
    let dir = StoreDir::new("/frx/store");
    let plan = |url: &str| plan_packages(&repository(url).repositories[0].1, &dir, PLATFORM).unwrap();
    let here = plan("https://example.org/repo");
    let mut known: BTreeMap<StorePath, Hash> = BTreeMap::new();
    for text in here.texts.iter().filter(|text| text.name.ends_with(".drv")) {
        let drv = aterm::parse(&dir, &text.text).unwrap();
        let mut input = |path: &StorePath| known.get(path).cloned().ok_or("unknown");
        verify_output_paths(&dir, text.name.trim_end_matches(".drv"), &drv, &mut input).unwrap();
        known.insert(text.path.clone(), hash_derivation_modulo(&dir, &drv, &mut input).unwrap());
    }
    let names: Vec<String> = here.packages.iter().map(|package| dir.display(&package.item.outputs["out"])).collect();
    assert!(names[0].ends_with("-freebsd-pkg-readline-8.2") && names[1].ends_with("-freebsd-pkg-bash-5.3_1_1"), "{names:?}");
    // Wherever it comes from, it is the same; a file's is the user's.
    let there = plan("http://example.com/other/");
    assert_eq!(there.packages[1].archive, here.packages[1].archive);
    assert_eq!(there.profile.outputs, here.profile.outputs);
    let files = plan("file:///repo");
    assert_eq!(files.files[1].path, here.packages[1].archive);
    assert_eq!((files.files[1].url.as_str(), &files.packages[1].download), ("file:///repo/All/bash.pkg", &None));
    // A base takes them as they are, in the order of the lines.
    let text = "host-name = \"x\"\n[base]\nversion = \"15.1\"\nkind = \"pkgbase\"\n[[file-systems]]\nmount-point = \"/\"\ndevice = \"/dev/gpt/rootfs\"\ntype = \"ufs\"\n";
    let mut system = SystemFile::parse(
        Path::new("os.toml"),
        &format!(
            "{text}[base.repository]\nurl = \"https://example.org/repo\"\nfingerprints = [\"{}\"]\npackages = [\"bash\"]\n",
            "a".repeat(64)
        ),
    )
    .unwrap()
    .system;
    assert!(matches!(fruix_freebsd::system::derivations::plan(&system, &Sources::default(), &dir, PLATFORM), Err(PlanError::Locked(_))));
    system.base.repository = Some(repository("https://example.org/repo").repositories[0].1.clone());
    system.repository.clone_from(&system.base.repository);
    let made = fruix_freebsd::system::derivations::plan(&system, &Sources::default(), &dir, PLATFORM).unwrap();
    assert_eq!(made.profile.as_ref().unwrap().outputs, here.profile.outputs);
    let drv = made.texts.iter().find(|text| text.path == made.bases[0].path).unwrap();
    let drv = aterm::parse(&dir, &drv.text).unwrap();
    let archives: Vec<String> = here.packages.iter().map(|package| dir.display(&package.archive)).collect();
    assert_eq!(drv.env.iter().find(|(name, _)| **name == "pkgs").unwrap().1.to_string(), archives.join(" "));
}

#[test]
fn locks_are_written_where_they_belong() {
    let locked = [Locked::parse(&format!("bash 5.4 {} All/bash.pkg", "3".repeat(64))).unwrap()];
    let pin = "c".repeat(64);
    let line = format!("\"{}\"", locked[0]);
    let head =
        format!("[repository] # here\nurl = \"https://a/b\" # there\nfingerprints = [\"{pin}\"]\npackages = [\n  \"bash\", # mine\n]");
    for (before, after) in [
        (format!("{head}\n# end\n"), format!("{head}\nsha256 = \"{pin}\"\nlocked = [\n  {line},\n]\n# end\n")),
        (
            format!("{head}\nlocked = [\"x\"] # old\nsha256 = '{}' # pin\n", "0".repeat(64)),
            format!("{head}\nlocked = [\n  {line},\n] # old\nsha256 = \"{pin}\" # pin\n"),
        ),
        (
            format!("repository = {{ url = \"https://a/b\", fingerprints = [\"{pin}\"], packages = [\"bash\"] }}"),
            format!(
                "repository = {{ url = \"https://a/b\", fingerprints = [\"{pin}\"], packages = [\"bash\"], sha256 = \"{pin}\", locked = [\n  {line},\n] }}"
            ),
        ),
    ] {
        let file = RepositoryFile::parse(Path::new("pkg.toml"), &before).unwrap_or_else(|problems| panic!("{problems:?}"));
        let pinned = file.with_pin("repository", &pin, &locked).unwrap();
        assert_eq!(pinned.text(), after);
        assert_eq!(pinned.with_pin("repository", &pin, &locked).unwrap().text(), after);
    }
}

/// Whatever bytes of an archive become, one at a time: it is refused, or the files are what the manifest says.
#[test]
fn archives_with_one_byte_changed_do_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let text = b"#!/bin/sh\n";
    let manifest = format!(
        "{{\"name\":\"a\",\"version\":\"1\",\"flatsize\":10,\"deps\":{{\"b\":{{\"origin\":\"x/b\",\"version\":\"1\"}}}},\"files\":{{\"/bin/a\":\"1${}\",\"/bin/l\":\"-\"}}}}",
        sum::hex(&<sha2::Sha256 as sha2::Digest>::digest(text))
    );
    let mut tar = tar::Builder::new(Vec::new());
    let mut put = |kind: tar::EntryType, name: &str, link: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(bytes.len() as u64);
        // An absolute name, which the library refuses to write.
        header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        header.set_cksum();
        tar.append(&header, bytes).unwrap();
    };
    put(tar::EntryType::Regular, "+MANIFEST", "", manifest.as_bytes());
    put(tar::EntryType::XHeader, "pax", "", b"28 SCHILY.fflags=schg,uarch\n");
    put(tar::EntryType::Regular, "/bin/a", "", text);
    put(tar::EntryType::Symlink, "/bin/l", "a", b"");
    let bytes = tar.into_inner().unwrap();
    let item = PkgItem { name: "a".into(), version: "1".into(), depends: vec!["b".into()] };
    let file = directory.path().join("a.pkg");
    let unpack = |bytes: &[u8], number: usize| {
        fs::write(&file, bytes).unwrap();
        let scratch = directory.path().join(number.to_string());
        let found = archive::unpack(&file, &scratch, &item);
        let same = found.as_ref().is_ok_and(|package| match &package.tree.get("bin/a").unwrap().node {
            Node::File(file) => matches!(&file.content, Content::Host(path) if fs::read(path).unwrap() == text),
            _ => false,
        });
        fs::remove_dir_all(&scratch).unwrap();
        (found, same)
    };
    let (whole, same) = unpack(&bytes, 0);
    assert!(same, "{whole:?}");
    assert_eq!(whole.unwrap().tree.get("bin/a").unwrap().flags, 0x2_0000 | 0x800);
    let mut refused = 0;
    for at in (0..bytes.len()).step_by(7) {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        match unpack(&changed, at + 1) {
            (Ok(_), same) => assert!(same, "byte {at}"),
            (Err(why), _) => {
                assert!(why.starts_with("package a-1: ") && why.ends_with("; do not use it, and ask who made the repository"), "{why}");
                refused += 1;
            }
        }
        // A catalogue's archive goes the same way.
        let _ = signature::extract(&file, &directory.path().join("catalogue")).map(|found| found.sha256);
        let _ = fs::remove_file(directory.path().join("catalogue"));
    }
    assert!(refused > bytes.len() / 28, "{refused} of {}", bytes.len());
    for length in [0, 100, 511, 512, 700, 1536, 2000] {
        assert!(unpack(&bytes[..length], length).0.is_err(), "{length}");
    }
}
