//! Systems: wrong files and what is said of them, one meaning of TOML and canonical text, users' databases, patterns.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use fruix_drv::{Hash, StoreDir, StorePath, aterm, verify_output_paths};
use fruix_freebsd::system::accounts::Accounts;
use fruix_freebsd::system::derivations::{PLATFORM, Sources, VERSION, plan, version};
use fruix_freebsd::system::model::OperatingSystem;
use fruix_freebsd::system::packages::{NAMES, lists, matches};
use fruix_freebsd::system::toml::{Located, RepositoryFile, SourceFile, SystemFile};
use fruix_freebsd::system::{base, canon, capabilities, closure, disk, needs, rootfs, sets::Sets, table};
use fruix_freebsd::tree::{Content, Entry, Node, Tree};

const BASE: &str = r#"host-name = "test"
[base]
version = "15.1-RELEASE"
kind = "local-tree"
path = "tree"
[[file-systems]]
mount-point = "/"
device = "/dev/gpt/rootfs"
type = "ufs"
"#;

fn read(text: &str) -> OperatingSystem {
    SystemFile::parse(Path::new("os.toml"), text).unwrap_or_else(|problems| panic!("{problems:?}")).system
}

#[test]
fn every_wrong_file_is_told_line_field_and_remedy() {
    let count = wrong_files("wrong-systems", |text| SystemFile::parse(Path::new("os.toml"), text).err());
    assert!(count >= 40, "{count}");
}

#[test]
fn every_wrong_source_is_told_line_field_and_remedy() {
    let count = wrong_files("wrong-sources", |text| SourceFile::parse(Path::new("os.toml"), text).err());
    assert!(count >= 20, "{count}");
}

#[test]
fn every_wrong_repository_is_told_line_field_and_remedy() {
    let count = wrong_files("wrong-repositories", |text| {
        let locked = |file: RepositoryFile| {
            let problems = file.repositories.iter().filter_map(|(field, repository, circles)| repository.locked(field, *circles).err());
            let located: Vec<Located> = problems.map(|problem| file.origin.locate(problem)).collect();
            (!located.is_empty()).then_some(located)
        };
        RepositoryFile::parse(Path::new("os.toml"), text).map_or_else(Some, locked)
    });
    assert!(count >= 15, "{count}");
}

#[test]
fn every_wrong_build_is_told_line_field_and_remedy() {
    let count = wrong_files("wrong-builds", |text| SystemFile::parse(Path::new("os.toml"), text).err());
    assert!(count >= 20, "{count}");
}

/// A file below `tests`: blocks of `--- what is wrong`, the file (`@base` stands for a right beginning), `===`, and what is said of it.
/// With `UPDATE_WRONG_SYSTEMS` set, what is said is written there anew.
fn wrong_files(golden: &str, problems: impl Fn(&str) -> Option<Vec<Located>>) -> usize {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(golden);
    let text = std::fs::read_to_string(&golden).unwrap();
    let (mut count, mut anew) = (0, String::new());
    for block in text.split_inclusive("\n---\n").map(|block| block.trim_end_matches("---\n")) {
        let (head, expected) = block.split_once("===\n").unwrap();
        let (name, file) = head.split_once('\n').unwrap();
        let problems = problems(&file.replace("@base\n", BASE)).unwrap_or_else(|| panic!("{name}: nothing is said"));
        let said: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        let _ = write!(anew, "{name}\n{file}===\n{said}---\n");
        if std::env::var_os("UPDATE_WRONG_SYSTEMS").is_none() {
            assert_eq!(said, expected, "{name}");
        }
        for line in said.lines() {
            let (place, rest) = line.split_once(": ").unwrap();
            assert!(place.strip_prefix("os.toml:").unwrap().parse::<usize>().unwrap() > 0, "{line}");
            assert!(rest.contains(": ") && rest.contains("; "), "{line}");
        }
        count += 1;
    }
    if std::env::var_os("UPDATE_WRONG_SYSTEMS").is_some() {
        std::fs::write(&golden, anew.trim_end_matches("---\n").to_owned() + "---\n").unwrap();
    }
    count
}

const FULL: &str = r#"
motd = "a \"quoted\" line\n\tand \\ another"
[[users]]
name = "anna"
uid = 1001
group = "people"
groups = ["wheel"]
home = "/home/anna"
shell = "/bin/sh"
ssh-keys = ["ssh-ed25519 AAAA anna@example"]
[[groups]]
name = "people"
gid = 1001
[services.sshd]
allow-users = ["anna"]
[services.dhcp]
[services.cron]
jobs = ["@daily root true"]
[[services.jails]]
name = "web"
path = "/jails/web"
[services.fruixd]
program = "fruixd"
client = "fruix"
build-users = 2
base = true
[loader]
"kern.hz" = 100
[rc-conf]
b = true
a = "x"
[hosts]
other = "10.0.0.1"
[[files]]
path = "/etc/secret"
text = "hidden"
mode = "0600"
user = "anna"
"#;

fn full() -> OperatingSystem {
    // What stands before the first table belongs to the top.
    let (top, tables) = FULL.split_once("[[users]]").unwrap();
    read(&format!("{top}{BASE}[[users]]{tables}"))
}

#[test]
fn canonical_text_is_read_back_and_does_not_depend_on_the_order_of_fields() {
    let system = full();
    let text = canon::print(&system);
    assert_eq!(canon::parse::<OperatingSystem>(&text).unwrap(), system);
    assert!(text.contains(" (rc-conf ((\"a\" . \"x\") (\"b\" . \"YES\")))\n"), "{text}");
    let swapped = BASE.replace("version = \"15.1-RELEASE\"\nkind = \"local-tree\"", "kind = \"local-tree\"\nversion = \"15.1-RELEASE\"");
    assert_eq!(canon::print(&read(&swapped)), canon::print(&read(BASE)));
    for damage in
        ["", "(", "(operating-system)", "(operating-system (host-name \"x\"))", &text.replace("host-name", "hostname"), &text[1..]]
    {
        canon::parse::<OperatingSystem>(damage).expect_err(damage);
    }
}

fn item(name: &str) -> StorePath {
    StorePath::from_base_name(format!("{}-{name}", "0".repeat(32))).unwrap()
}

#[test]
fn derivations_have_the_paths_that_follow_from_them_and_do_not_know_where_files_were() {
    let dir = StoreDir::new("/frx/store");
    let system = full();
    let sources =
        Sources { tree: Some(item("freebsd-tree")), fruixd: Some(item("fruixd")), client: Some(item("fruix")), ..Sources::default() };
    let planned = plan(&system, &sources, &dir, PLATFORM).unwrap();
    let mut known: BTreeMap<StorePath, Hash> = BTreeMap::new();
    for text in planned.texts.iter().filter(|text| text.name.ends_with(".drv")) {
        let drv = aterm::parse(&dir, &text.text).unwrap();
        let mut input = |path: &StorePath| known.get(path).cloned().ok_or("unknown");
        verify_output_paths(&dir, text.name.trim_end_matches(".drv"), &drv, &mut input).unwrap();
        let hash = fruix_drv::hash_derivation_modulo(&dir, &drv, &mut input).unwrap();
        known.insert(text.path.clone(), hash);
        assert_eq!(text.references, drv.references());
        // A builder that makes something else is another builder.
        let builder = drv.builder.to_string();
        assert_eq!(
            drv.env.iter().find(|(name, _)| *name == VERSION).map(|(_, value)| value.to_string()),
            Some(version(&builder).unwrap().to_string())
        );
    }
    let mut elsewhere = system.clone();
    elsewhere.base.path = Some("/another/place".into());
    elsewhere.services.fruixd.as_mut().unwrap().program = "/somewhere/else".into();
    assert_eq!(plan(&elsewhere, &sources, &dir, PLATFORM).unwrap(), planned);
    // Another size of the disk is another image of the same root.
    elsewhere.image.capacity = "8G".into();
    let larger = plan(&elsewhere, &sources, &dir, PLATFORM).unwrap();
    assert_eq!(larger.rootfs, planned.rootfs);
    assert_ne!(larger.image, planned.image);
    elsewhere.host_name = "other".into();
    assert_ne!(plan(&elsewhere, &sources, &dir, PLATFORM).unwrap().system, planned.system);
}

#[test]
fn patterns_stand_for_what_they_say() {
    for (pattern, path, expected) in [
        ("boot", "boot", true),
        ("boot/**", "boot", false),
        ("boot/**", "boot/kernel/kernel", true),
        ("usr/lib/lib*.so", "usr/lib/libfoo.so", true),
        ("usr/lib/lib*.so", "usr/lib/libfoo.so.1", false),
        ("usr/lib/lib*.so", "usr/lib/lib/foo.so", false),
        ("lib/libc.so.*", "lib/libc.so.7", true),
        ("a*b*c", "axbxbxc", true),
        ("**", "", true),
        ("**/x", "a/b/x", true),
        ("a", "ab", false),
        ("ab", "a", false),
    ] {
        assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), expected, "{pattern} {path}");
    }
    let lists = lists();
    assert_eq!(lists.iter().map(|list| list.name.as_str()).collect::<Vec<_>>(), NAMES);
    assert!(lists.iter().all(|list| !list.patterns.is_empty()));
}

/// A reader of hash files: the bucket of a key's hash has its value.
fn find(database: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| usize::from(u16::from_be_bytes([database[at], database[at + 1]]));
    let long = |at: usize| u32::from_be_bytes(database[at..at + 4].try_into().unwrap());
    let hash = key.iter().fold(0_u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(u32::from(*byte)));
    let bucket = (hash & long(40)).min(hash & long(48).max(hash & long(44))) & long(40);
    let page = (bucket as usize + 1) * 4096;
    let mut end = 4096;
    (0..word(page) / 2).find_map(|pair| {
        let (key_at, data_at) = (word(page + 2 + pair * 4), word(page + 4 + pair * 4));
        let found = &database[page + key_at..page + end] == key;
        let data = database[page + data_at..page + key_at].to_vec();
        end = data_at;
        found.then_some(data)
    })
}

#[test]
fn classes_of_users_are_found_with_what_they_refer_to() {
    let text = "# a comment\ndefault:\\\n\t:path=/bin:\\\n\t:umask=022:\n\nstaff:\\\n\t:tc=default:\nru|Russian Users:\\\n\t:lang=ru:\\\n\t:tc=default:\\\n\t:last\n\
                staff:second:\nlost:tc=nobody:\n";
    let database = capabilities::database(text).unwrap();
    for (key, value) in [
        ("default", "\0default:\t:path=/bin:\t:umask=022:\0"),
        ("staff", "\0staff:\t:\t:path=/bin:\t:umask=022:\0"),
        ("ru|Russian Users", "\0ru|Russian Users:\t:lang=ru:\t:\t:path=/bin:\t:umask=022:\t:last\0"),
        ("ru", "\u{2}ru|Russian Users"),
        ("Russian Users", "\u{2}ru|Russian Users"),
        ("lost", "\u{1}lost:tc=nobody:\0"),
    ] {
        assert_eq!(find(&database, key.as_bytes()).map(|value| String::from_utf8(value).unwrap()).as_deref(), Some(value), "{key}");
    }
    // Then libc reads the text.
    assert_eq!(capabilities::database("a:tc=b:\nb:tc=a:\n"), None);
    assert_eq!(capabilities::database(&format!("a:x={}:\n", "x".repeat(4090))), None);
}

/// The hash of what FreeBSD 15.1's pwd_mkdb(8) makes of the same `master.passwd`, which is the built-in one with two users more.
#[test]
fn databases_of_users_find_everybody_by_each_key() {
    let accounts = Accounts::compose(&full(), None, None).unwrap();
    assert!(accounts.master.contains("anna:*:1001:1001::0:0::/home/anna:/bin/sh\n"));
    assert!(accounts.group.contains("wheel:*:0:root,anna\n") && accounts.group.contains("fruixbuild:*:30001:fruixbuild01,fruixbuild02\n"));
    assert!(!accounts.passwd.contains("$6$"));
    for (database, password) in [(&accounts.database, "*"), (&accounts.secure_database, "")] {
        for (place, line) in (1_u32..).zip(accounts.master.lines()) {
            let fields: Vec<&str> = line.split(':').collect();
            let by_name = find(database, &[b"\x41", fields[0].as_bytes()].concat()).unwrap();
            let password = if fields[0] == "root" { password } else { "*" };
            assert!(by_name.starts_with(format!("{}\0{password}\0", fields[0]).as_bytes()), "{line}");
            assert_eq!(find(database, &[&b"\x42"[..], &place.to_be_bytes()].concat()).unwrap(), by_name);
            assert_eq!(find(database, &[&b"\x43"[..], &fields[2].parse::<u32>().unwrap().to_be_bytes()].concat()).unwrap(), by_name);
        }
        assert_eq!(find(database, b"\xFFVERSION").unwrap(), [4]);
    }
    let clash = FULL.replace("uid = 1001", "uid = 22");
    let (top, tables) = clash.split_once("[[users]]").unwrap();
    let error = Accounts::compose(&read(&format!("{top}{BASE}[[users]]{tables}")), None, None).unwrap_err();
    assert!(error.contains("`sshd' and `anna' both have the number 22"), "{error}");
}

/// With hundreds of users the buckets become more, and the file stays one that every reader understands.
#[test]
fn many_users_make_more_buckets() {
    let mut system = full();
    let user = system.users[0].clone();
    system.users.extend((0..900).map(|number| {
        let comment = "x".repeat(80);
        fruix_freebsd::system::model::User { name: format!("user{number}"), uid: 5000 + number, comment, ..user.clone() }
    }));
    let accounts = Accounts::compose(&system, None, None).unwrap();
    let long = |at: usize| u32::from_be_bytes(accounts.database[at..at + 4].try_into().unwrap());
    assert!(long(40) > 7, "{}", long(40));
    assert_eq!(accounts.database.len(), (long(40) as usize + 3) * 4096);
}

/// A base of a few files: cut, composed, and made a root in which everything is where it is looked for.
#[test]
fn a_small_base_becomes_a_root() {
    let directory = tempfile::tempdir().unwrap();
    let stage = directory.path().join("stage");
    for (path, text) in [
        ("boot/kernel/kernel", "kernel"),
        ("boot/loader", "bios"),
        ("boot/loader.efi", "efi"),
        ("bin/sh", "sh"),
        ("etc/rc", "rc"),
        ("etc/defaults/rc.conf", "sshd_enable=\"NO\"\nntpd_enable=\"NO\"\ngateway_enable=\"NO\"\n"),
        ("etc/login.conf", "default:"),
        ("etc/rc.d/cron", "rcvar=cron_enable"),
        ("etc/rc.d/dhclient", "dhclient"),
        ("etc/rc.d/growfs", "growfs"),
        ("etc/rc.d/jail", "jail"),
        ("etc/rc.d/routing", "checkyesno gateway_enable"),
        ("etc/rc.d/sshd", "sshd"),
        ("sbin/dhclient", "dhclient"),
        ("sbin/growfs", "growfs"),
        ("sbin/init", "init"),
        ("usr/bin/su", "su"),
        ("usr/sbin/cron", "cron"),
        ("usr/sbin/daemon", "daemon"),
        ("usr/sbin/jail", "jail"),
        ("usr/sbin/sshd", "sshd"),
        ("usr/share/misc/termcap", "caps"),
        ("var/db/x", "x"),
    ] {
        std::fs::create_dir_all(stage.join(path).parent().unwrap()).unwrap();
        std::fs::write(stage.join(path), text).unwrap();
    }
    std::os::unix::fs::symlink("../usr/share/misc/termcap", stage.join("etc/termcap")).unwrap();
    // One inode, as a store may make of equal files.
    std::fs::hard_link(stage.join("bin/sh"), stage.join("bin/ash")).unwrap();
    std::fs::write(
        stage.join("METALOG"),
        "#mtree 2.0\n/set type=file uid=0 gid=0\n./usr/bin/su mode=04555 flags=schg\n./bin/ash mode=0755\n./bin/sh mode=0755\n/set type=dir uid=5 gid=6\n\
         ./var/db mode=0700\n./gone type=file mode=0644\n./tmp uid=0 gid=0 mode=01777\n",
    )
    .unwrap();
    let tree = base::read(&stage, "METALOG").unwrap();
    assert!(tree.get("METALOG").is_none() && tree.get("gone").is_none());
    assert!(matches!(tree.get("bin/ash").unwrap(), Entry { node: Node::File(_), mode: 0o755, .. }));
    assert_eq!(tree.get("usr/bin/su").unwrap().flags, 0x2_0000);

    let packages = base::cut(&tree, &lists()).unwrap();
    let mut at = BTreeMap::new();
    for (name, files) in &packages {
        let path = directory.path().join(name);
        base::write(files, &path, &path, "source").unwrap();
        let (read, source) = base::read_package(&path).unwrap();
        assert_eq!(source, "source");
        assert_eq!(read.len(), files.len());
        at.insert(name.clone(), (path.to_str().unwrap().to_owned(), read));
    }
    assert!(at["kernel"].1.get("boot/kernel/kernel").is_some() && at["sh"].1.get("bin/sh").is_some());

    let system = full();
    let path = "/frx/store/aaa-system";
    let ingredients = closure::Ingredients { system: &system, packages: &at, path, store: "/frx/store", source: "source" };
    let closure = closure::compose(&ingredients).unwrap();
    what_a_base_lacks_is_told(&ingredients);
    let kept = |name: &str| closure.tree.get(name).map(|entry| entry.node.clone());
    assert_eq!(kept("profile/bin/sh"), Some(Node::Symlink(format!("{}/bin/sh", at["sh"].0).into_bytes())));
    assert_eq!(kept("profile/usr/bin/su"), Some(Node::Symlink(b"/etc/privileged/usr/bin/su".to_vec())));
    assert_eq!(kept("etc/termcap"), Some(Node::Symlink(b"../usr/share/misc/termcap".to_vec())));

    // Builders see the base: its directories, and the packages to which these lead.
    let script = match &closure.tree.get("usr/local/etc/rc.d/fruixd").unwrap().node {
        Node::File(file) => match &file.content {
            Content::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            Content::Host(path) => panic!("{path:?}"),
        },
        other => panic!("{other:?}"),
    };
    for directory in [format!("/bin={path}/profile/bin"), format!("/usr/bin={path}/profile/usr/bin"), at["sh"].0.clone()] {
        assert!(script.contains(&format!(" --chroot-directory={directory} ")), "{directory}: {script}");
    }

    let database = directory.path().join("db");
    std::fs::write(&database, "db").unwrap();
    let root = rootfs::compose(rootfs::Ingredients {
        system: &system,
        closure: &closure,
        path,
        items: vec![(path.to_owned(), Tree::new())],
        store: "/frx/store",
        state: "/frx/var",
        database: (&database, 2),
    });
    // An item that is nothing is no item.
    assert!(root.is_err() || root.as_ref().unwrap().get(path).is_none());
    let root = rootfs::compose(rootfs::Ingredients {
        system: &system,
        closure: &closure,
        path,
        items: Vec::new(),
        store: "/frx/store",
        state: "/frx/var",
        database: (&database, 2),
    })
    .unwrap();
    let link = |name: &str| match &root.get(name).unwrap().node {
        Node::Symlink(target) => String::from_utf8(target.clone()).unwrap(),
        other => panic!("{name}: {other:?}"),
    };
    let mode = |name: &str| {
        let Entry { mode, uid, gid, .. } = root.get(name).unwrap();
        (*mode, *uid, *gid)
    };
    assert_eq!(link("bin"), "/run/current-system/profile/bin");
    assert_eq!((link("run/current-system"), link("boot/system")), ("/boot/system".to_owned(), path.to_owned()));
    assert_eq!(link("etc/rc"), "/run/current-system/etc/rc");
    assert_eq!(link("etc/termcap"), "../usr/share/misc/termcap");
    assert_eq!(link("boot/kernel/kernel"), "/run/current-system/boot/kernel/kernel");
    assert_eq!(link("usr/local/sbin/fruixd"), "/run/current-system/usr/local/sbin/fruixd");
    assert_eq!(link("usr/local/bin/fruix"), "/run/current-system/usr/local/bin/fruix");
    assert_eq!(kept("usr/local/bin/fruix"), Some(Node::Symlink(b"fruix".to_vec())));
    assert_eq!(mode("etc/privileged/usr/bin/su"), (0o4555, 0, 0));
    assert_eq!(mode("etc/master.passwd"), (0o600, 0, 0));
    assert_eq!(mode("etc/secret"), (0o600, 1001, 0));
    assert_eq!(mode("var/db"), (0o700, 5, 6));
    assert_eq!(mode("home/anna/.ssh/authorized_keys"), (0o600, 1001, 1001));
    for regular in ["etc/login.conf", "etc/login.conf.db", "boot/loader", "etc/spwd.db", "frx/var/db/db.sqlite", "var/db/x"] {
        assert!(matches!(root.get(regular).unwrap().node, Node::File(_)), "{regular}");
    }
}

/// A field that needs what the base has not is told with its field and what to do, by the builder too.
fn what_a_base_lacks_is_told(ingredients: &closure::Ingredients<'_>) {
    for (without, more, field, problem) in [
        ("usr/sbin/sshd", "", "services.sshd", "the base has no /usr/sbin/sshd"),
        ("etc/rc.d/sshd", "", "services.sshd", "the base has no /etc/rc.d/sshd"),
        ("sbin/dhclient", "", "services.dhcp", "the base has no /sbin/dhclient"),
        ("etc/rc.d/cron", "", "services.cron", "the base has no /etc/rc.d/cron"),
        ("usr/sbin/jail", "", "services.jails", "the base has no /usr/sbin/jail"),
        ("usr/sbin/daemon", "", "services.fruixd", "the base has no /usr/sbin/daemon"),
        ("etc/rc.d/growfs", "", "image.grow", "the base has no /etc/rc.d/growfs"),
        ("boot/kernel/kernel", "", "kernel", "the base has no /boot/kernel/kernel"),
        ("sbin/init", "", "base", "the base has no /sbin/init"),
        ("", "[services.ntpd]", "services.ntpd", "the base has no /usr/sbin/ntpd"),
        ("", "[services.syslogd]", "services.syslogd", "the base has no /usr/sbin/syslogd"),
        ("", "[rc-conf]\nntpd_enable = true", "rc-conf.ntpd_enable", "the base has no script for `ntpd' in /etc/rc.d"),
        // One that only another one's script knows, one that is off, and one that comes with a package some day.
        ("", "[rc-conf]\ngateway_enable = true\nsshd_enable = true\nntpd_enable = false\nnginx_enable = true", "", ""),
        (
            "",
            "[[users]]\nname = \"eva\"\nuid = 1002\ngroup = \"wheel\"\nshell = \"/bin/csh\"",
            "users[2].shell",
            "the base has no /bin/csh",
        ),
        ("", "[[users]]\nname = \"eva\"\nuid = 1002\ngroup = \"wheel\"\nshell = \"/usr/local/bin/zsh\"", "", ""),
        (
            "",
            "[[file-systems]]\nmount-point = \"/x\"\ndevice = \"/y\"\ntype = \"nullfs\"",
            "file-systems[2].type",
            "the base has no /sbin/mount_nullfs",
        ),
    ] {
        let (top, tables) = FULL.split_once("[[users]]").unwrap();
        let tables =
            if more.starts_with("[rc-conf]") { tables.replace("[rc-conf]\n", &format!("{more}\n")) } else { format!("{tables}{more}\n") };
        let file = SystemFile::parse(Path::new("os.toml"), &format!("{top}{BASE}[[users]]{tables}")).unwrap();
        let mut packages = ingredients.packages.clone();
        if !without.is_empty() {
            packages.values_mut().for_each(|(_, files)| files.remove(without));
        }
        let said = closure::compose(&closure::Ingredients { system: &file.system, packages: &packages, ..*ingredients }).err();
        let mut base = Tree::new();
        packages.into_values().for_each(|(_, files)| base.merge(files).unwrap());
        let told = needs::lacking(&file.system, &base);
        assert_eq!(told.len(), usize::from(!field.is_empty()), "{without} {more}: {told:?}");
        match (told.into_iter().next(), said) {
            (None, None) => {}
            (Some(told), Some(said)) => {
                assert_eq!((told.field.as_str(), told.problem.as_str()), (field, problem));
                assert_eq!(said, format!("{field}: {problem}; {}", told.remedy));
                // A line of the field, or of the table that it is in.
                assert!(file.origin.locate(told).line > 1 || matches!(field, "kernel" | "image.grow"), "{field}");
            }
            (told, said) => panic!("{told:?} {said:?}"),
        }
    }
}

/// What does not fit is told with its field; what is zeros fits.
#[test]
fn a_capacity_that_is_too_small_is_told() {
    let image = |capacity: &str| read(&format!("{BASE}[image]\ncapacity = \"{capacity}\"\n")).image;
    let mut tree = Tree::new();
    tree.insert("", Entry::dir(0o755)).unwrap();
    tree.insert("x", Entry::file(0o644, vec![7; 80 << 20])).unwrap();
    let problem = disk::too_small_for(&image("140M"), &tree).unwrap();
    assert_eq!(
        (problem.field.as_str(), problem.problem.as_str()),
        ("image.capacity", "`140M' does not hold the ESP, the swap and 80 MiB of the base")
    );
    assert_eq!(disk::too_small_for(&image("146M"), &tree), None);
    assert_eq!(disk::too_small_for(&image("auto"), &tree), None);
    let needed = disk::too_small(&image("140M"), &tree).unwrap();
    assert_eq!(needed.field, "image.capacity");
    let megabytes: u64 = needed.problem.split(' ').rev().nth(1).unwrap().parse().unwrap();
    assert!((147..170).contains(&megabytes), "{needed:?}");
    assert_eq!(disk::too_small(&image(&format!("{megabytes}M")), &tree), None);
    let mut zeros = Tree::new();
    zeros.insert("x", Entry::file(0o644, vec![0; 80 << 20])).unwrap();
    assert_eq!(disk::too_small_for(&image("140M"), &zeros), None);
}

/// A tree that somebody made up does not lead out of the directory that it is written to.
#[test]
fn nothing_is_written_below_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let outside = directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let mut tree = Tree::new();
    tree.insert("a", Entry::symlink(outside.as_os_str().as_encoded_bytes())).unwrap();
    tree.insert("a/b", Entry::file(0o644, "text".as_bytes())).unwrap();
    let error = base::write_files(&tree, &directory.path().join("tree")).unwrap_err();
    assert_eq!(error.to_string(), "`a/b': is below a link");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

/// Twice as many entries take twice the time, not four times: with the square of their number, these would take minutes.
#[test]
fn archives_of_many_entries_are_unpacked_soon() {
    let directory = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    for number in 0..150_000 {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o755);
        header.set_size(0);
        tar.append_link(&mut header, format!("link-{number}"), "target").unwrap();
    }
    let archive = directory.path().join("base.tar");
    std::fs::write(&archive, tar.into_inner().unwrap()).unwrap();
    let started = std::time::Instant::now();
    let mut sets = Sets::default();
    sets.add(&archive, &directory.path().join("unpacked")).unwrap();
    assert_eq!(sets.finish().unwrap().len(), 150_001);
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

/// A small set, as a release's `tar -cJf base.txz @METALOG` makes it, gives the files, owners and modes of the tree that it was made of. Its hard links
/// become symbolic ones, which lead to the same file.
#[test]
fn a_set_is_the_tree_that_it_was_made_of() {
    let directory = tempfile::tempdir().unwrap();
    let stage = directory.path().join("stage");
    let files = [
        ("usr/bin/su", "su"),
        ("usr/bin/vi", "vi"),
        ("rescue/cat", "crunched"),
        ("etc/master.passwd", "games:*:7:13::0:0:Games:/:/usr/sbin/nologin\n"),
        ("etc/group", "operator:*:5:\ngames:*:13:\n"),
        ("etc/pwd.db", "made anew"),
    ];
    for (path, text) in files {
        std::fs::create_dir_all(stage.join(path).parent().unwrap()).unwrap();
        std::fs::write(stage.join(path), text).unwrap();
    }
    std::os::unix::fs::symlink("bin/su", stage.join("usr/su")).unwrap();
    let metalog = "#mtree 2.0\n./usr type=dir uid=0 gid=0 mode=0755\n./usr/bin type=dir uid=0 gid=0 mode=0751\n\
                   ./usr/bin/su type=file uid=0 gname=operator mode=04555 flags=schg\n./rescue type=dir uid=7 gid=8 mode=0700\n\
                   ./usr/bin/vi type=file uname=games gname=games mode=0644\n";
    std::fs::write(stage.join("METALOG"), metalog).unwrap();
    let expected = base::read(&stage, "METALOG").unwrap();

    let tar_file = |compressed: bool| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut put = |kind: tar::EntryType, name: &str, (mode, uid, gid): (u32, u64, u64), link: &str, text: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(uid);
            header.set_gid(gid);
            header.set_mtime(1_700_000_000);
            // As bsdtar has it of a METALOG: names, and no numbers.
            match name {
                "./usr/bin/su" => {
                    header.set_groupname("operator").unwrap();
                    tar.append_pax_extensions([("SCHILY.fflags", b"schg".as_slice())]).unwrap();
                }
                "./usr/bin/vi" => {
                    header.set_username("games").unwrap();
                    header.set_groupname("games").unwrap();
                }
                "./rescue/" => header.set_username("nobody-knows").unwrap(),
                _ => {}
            }
            header.set_size(text.len() as u64);
            if link.is_empty() {
                tar.append_data(&mut header, name, text).unwrap();
            } else {
                tar.append_link(&mut header, name, link).unwrap();
            }
        };
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        put(Directory, "./", (0o755, 0, 0), "", b"");
        put(Directory, "./usr/", (0o755, 0, 0), "", b"");
        put(Directory, "./usr/bin/", (0o751, 0, 0), "", b"");
        put(Regular, "./usr/bin/su", (0o4555, 0, 0), "", b"su");
        put(Regular, "./usr/bin/vi", (0o644, 0, 0), "", b"vi");
        put(Link, "./usr/bin/ex", (0o644, 0, 0), "./usr/bin/vi", b"");
        put(Link, "./usr/ex", (0o644, 0, 0), "./usr/bin/vi", b"");
        put(Symlink, "./usr/su", (0o755, 0, 0), "bin/su", b"");
        put(Directory, "./rescue/", (0o700, 7, 8), "", b"");
        for (path, text) in files.iter().filter(|(path, _)| path.starts_with("etc/")) {
            put(Regular, &format!("./{path}"), (0o644, 0, 0), "", text.as_bytes());
        }
        put(Regular, "./rescue/cat", (0o644, 0, 0), "", b"crunched");
        put(Regular, "./METALOG", (0o644, 0, 0), "", b"each package has one of its own");
        let plain = tar.into_inner().unwrap();
        let path = directory.path().join(if compressed { "base.txz" } else { "base.tar" });
        if compressed {
            let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
            xz.write_all(&plain).unwrap();
            std::fs::write(&path, xz.finish().unwrap()).unwrap();
        } else {
            std::fs::write(&path, plain).unwrap();
        }
        path
    };
    let read = |tree: &Tree| -> BTreeMap<String, String> {
        let shown = tree.iter().map(|(path, entry)| {
            let content = match &entry.node {
                Node::File(file) => match &file.content {
                    Content::Host(path) => std::fs::read_to_string(path).unwrap(),
                    Content::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                },
                Node::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
                other => other.kind().to_string(),
            };
            (
                String::from_utf8_lossy(path).into_owned(),
                format!("{:o} {}:{} {:x} {content}", entry.mode, entry.uid, entry.gid, entry.flags),
            )
        });
        shown.collect()
    };
    let expected = read(&expected);
    for compressed in [false, true] {
        let archive = tar_file(compressed);
        let mut sets = Sets::default();
        sets.add(&archive, &directory.path().join(format!("unpacked-{compressed}"))).unwrap();
        let mut found = read(&sets.finish().unwrap());
        assert!(found.remove("usr/bin/ex").unwrap().ends_with("-> vi"));
        assert!(found.remove("usr/ex").unwrap().ends_with("-> bin/vi"));
        assert_eq!(found, expected);
        // Half an archive is none.
        let bytes = std::fs::read(&archive).unwrap();
        std::fs::write(&archive, &bytes[..bytes.len() / 2]).unwrap();
        Sets::default().add(&archive, &directory.path().join(format!("half-{compressed}"))).unwrap_err();
    }
}

/// What others have of the table is what follows from it. With `UPDATE_TABLES` set, it is written anew.
#[test]
fn scheme_and_the_guide_have_the_table_as_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let update = std::env::var_os("UPDATE_TABLES").is_some();
    let module = root.join("guile/fruix/system/freebsd/table.scm");
    if update {
        std::fs::write(&module, table::scheme()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&module).unwrap(), table::scheme());
    let guide = root.join("docs/systems.md");
    let text = std::fs::read_to_string(&guide).unwrap();
    let (before, rest) = text.split_once("<!-- fields -->\n").unwrap();
    let (fields, after) = rest.split_once("<!-- end of fields -->").unwrap();
    if update {
        std::fs::write(&guide, format!("{before}<!-- fields -->\n{}<!-- end of fields -->{after}", table::markdown())).unwrap();
    } else {
        assert_eq!(fields, table::markdown());
    }
}

#[test]
fn what_comes_from_scheme_is_checked_again() {
    let text = canon::print(&full());
    for (good, bad) in [
        ("(host-name \"test\")", "(host-name \"te_st\")"),
        ("(uid 1001)", "(uid 99999999999)"),
        ("(init-mode \"freebsd-init\")", "(init-mode \"x\")"),
        ("((\"a\" . \"x\")", "((\"a b\" . \"x\")"),
    ] {
        assert!(text.contains(good), "{good}");
        let error = canon::parse::<OperatingSystem>(&text.replace(good, bad)).expect_err(bad);
        assert!(error.contains("; "), "{error}");
    }
}

/// With `FREEBSD_BASE=DIR`, an installed FreeBSD: its databases, which pwd_mkdb(8) made, are byte for byte what we make of its `master.passwd`.
#[test]
fn databases_are_those_of_a_real_base() {
    let Some(base) = std::env::var_os("FREEBSD_BASE") else { return };
    let etc = Path::new(&base).join("etc");
    let master = std::fs::read_to_string(etc.join("master.passwd")).unwrap();
    let accounts = Accounts::compose(&read(BASE), Some(&master), None).unwrap();
    assert_eq!(accounts.passwd.lines().count(), master.lines().filter(|line| !line.starts_with('#')).count());
    assert!(accounts.database == std::fs::read(etc.join("pwd.db")).unwrap(), "pwd.db");
    assert!(accounts.secure_database == std::fs::read(etc.join("spwd.db")).unwrap(), "spwd.db");
}

/// Each line is found without counting from the beginning, which would take this test a quarter of an hour.
#[test]
fn many_wrong_lines_are_told() {
    let text = "[a]\n".to_owned() + &(0..300_000).map(|number| format!("x{number}=1\n")).collect::<String>() + "[base]\nkind = 7\n";
    let problems = SystemFile::parse(Path::new("many.toml"), &text).unwrap_err();
    assert!(problems.iter().any(|problem| problem.to_string().starts_with("many.toml:300003: base.kind: ")), "{:?}", problems.last());
    let wide = "[[users]]\n".repeat(200_000);
    assert!(SystemFile::parse(Path::new("many.toml"), &wide).is_err());
}
