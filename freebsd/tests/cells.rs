//! Jails against a kernel that is only data: the order of what is done, and that nothing stays whatever fails.
//!
//! `FRUIX_TEST_ACCEPT=1` writes the golden files anew.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use fruix_freebsd::{
    Cell, DeviceRule, Entry, Error, FIRST_RULESET, Features, Found, Kernel as _, Limit, Lookup, Mounted, Network, Recorder, Rights, Source,
    User, builder_devices, provide_ruleset, set_up, tear_down,
};

fn features() -> Features {
    let names = [
        "name",
        "path",
        "vnet",
        "ip4",
        "ip4.addr",
        "ip6",
        "sysvmsg",
        "sysvsem",
        "sysvshm",
        "allow.set_hostname",
        "allow.suser",
        "allow.mount",
        "allow.mount.nullfs",
        "allow.raw_sockets",
    ];
    Features {
        release: 1_501_000,
        vnet: true,
        limits: true,
        file_systems: ["nullfs", "devfs", "fdescfs"].map(str::to_owned).to_vec(),
        parameters: names.map(str::to_owned).to_vec(),
    }
}

fn cell() -> Cell {
    let host = |source: &str, target: &str, read_only, lookup, optional| Mounted::Host {
        source: source.into(),
        target: target.into(),
        read_only,
        lookup,
        optional,
    };
    let users =
        vec![User { name: "build".into(), uid: 35001, gid: 35000, comment: "Builder".into(), home: "/".into(), shell: "/noshell".into() }];
    Cell {
        name: "fruixd-x-1-2".into(),
        root: "/frx/store/x.drv.chroot/top".into(),
        entries: vec![
            Entry::Dir { path: "/tmp".into(), mode: 0o1777, gid: None },
            Entry::Users { path: "/etc/pwd.db".into(), users },
            Entry::Dir { path: "/frx/store".into(), mode: 0o1775, gid: Some(35000) },
        ],
        mounts: vec![
            host("/frx/store/a", "/frx/store/a", true, Lookup::Strict, false),
            host("/frx/store/file", "/frx/store/file", true, Lookup::Strict, false),
            host("/frx/store/link", "/frx/store/link", true, Lookup::Strict, false),
            host("/none", "/none", true, Lookup::Follow, true),
            host("/var/tmp/b", "/tmp/b", false, Lookup::Link, false),
            Mounted::Devices { target: "/dev".into() },
            Mounted::Descriptors { target: "/dev/fd".into() },
        ],
        rights: Rights { host_name: "localhost".into(), network: Network::None, ruleset: 17990 },
        limits: vec![Limit { resource: "maxproc".into(), action: "deny".into(), amount: 100 }],
    }
}

fn recorder(features: Features) -> Recorder {
    let mut kernel = Recorder::new(features);
    let file = Source { path: "/frx/store/file".into(), inode: 7 };
    kernel.sources.insert("/frx/store/file".into(), Found::File(file));
    kernel.sources.insert("/frx/store/link".into(), Found::Link("a/b".into()));
    kernel.sources.insert("/none".into(), Found::Missing);
    kernel
}

fn golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("FRUIX_TEST_ACCEPT").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert!(text == expected, "{name}:\n{text}");
}

fn life(cell: &Cell, features: Features) -> String {
    let mut kernel = recorder(features.clone());
    set_up(&mut kernel, cell, &features).unwrap();
    kernel.operations.push("(the builder runs)".to_owned());
    tear_down(&mut kernel, &cell.name, &cell.root, false).unwrap();
    assert!(kernel.is_clean());
    kernel.text()
}

#[test]
fn a_life_is_as_written() {
    golden("ordinary", &life(&cell(), features()));
    let fixed = Cell { rights: Rights { network: Network::Host, ..cell().rights }, ..cell() };
    golden("fixed-output", &life(&fixed, features()));
    let poor =
        Features { release: 1_400_097, vnet: false, limits: false, file_systems: vec!["nullfs".into(), "devfs".into()], ..features() };
    golden("old-kernel", &life(&cell(), poor));
}

#[test]
fn whatever_fails_nothing_stays() {
    let cell = cell();
    let mut whole = recorder(features());
    set_up(&mut whole, &cell, &features()).unwrap();
    let steps = whole.operations.len();
    assert!(steps > 20);
    for step in 0..steps {
        let mut kernel = recorder(features());
        kernel.fail_at = Some(step);
        let (error, undoing) = *set_up(&mut kernel, &cell, &features()).unwrap_err();
        assert_eq!(error.errno(), Some(Recorder::FAILURE), "step {step}: {error}");
        assert!(undoing.is_none() && kernel.is_clean(), "step {step}: {error}\n{}", kernel.text());
    }
}

#[test]
fn a_failure_while_taking_down_stops_nothing_else() {
    let cell = cell();
    let mut whole = recorder(features());
    set_up(&mut whole, &cell, &features()).unwrap();
    let before = whole.operations.len();
    let mut clean = whole.clone();
    tear_down(&mut clean, &cell.name, &cell.root, true).unwrap();
    for step in before..clean.operations.len() {
        let mut kernel = whole.clone();
        kernel.fail_at = Some(step);
        assert!(tear_down(&mut kernel, &cell.name, &cell.root, true).is_err(), "step {step}");
        // A second try finds what is left.
        tear_down(&mut kernel, &cell.name, &cell.root, true).unwrap();
        assert!(kernel.is_clean(), "step {step}\n{}", kernel.text());
    }
}

#[test]
fn others_are_left_alone() {
    let (ours, mut theirs) = (cell(), cell());
    theirs.name = "fruixd-x-1-20".into();
    theirs.root = "/frx/store/x.drv.chroot/top2".into();
    let mut kernel = recorder(features());
    set_up(&mut kernel, &ours, &features()).unwrap();
    set_up(&mut kernel, &theirs, &features()).unwrap();
    let mounts = kernel.mounted.len() / 2;
    tear_down(&mut kernel, &ours.name, &ours.root, true).unwrap();
    assert_eq!(kernel.living.len(), 1);
    assert_eq!((kernel.mounted.len(), kernel.limits.len()), (mounts, 1));
    assert!(kernel.mounted.iter().all(|mount| mount.path.starts_with(&theirs.root)));
}

#[test]
fn an_input_that_is_swapped_while_it_is_mounted_is_seen() {
    let mut kernel = recorder(features());
    kernel.replaced = Some("/frx/store/a".into());
    let (error, undoing) = *set_up(&mut kernel, &cell(), &features()).unwrap_err();
    assert!(matches!(error, Error::Replaced { ref path } if path == Path::new("/frx/store/a")), "{error}");
    assert!(undoing.is_none() && kernel.is_clean());
}

#[test]
fn a_ruleset_is_made_once_and_no_other_is_touched() {
    let mut kernel = Recorder::default();
    kernel.rulesets.insert(FIRST_RULESET, vec![DeviceRule::Other]);
    let rules = builder_devices();
    assert_eq!(rules.first(), Some(&DeviceRule::HideAll));
    assert_eq!(provide_ruleset(&mut kernel, &rules).unwrap(), FIRST_RULESET + 1);
    assert_eq!(kernel.device_rules(FIRST_RULESET + 1).unwrap(), rules);
    let before = kernel.rulesets.clone();
    assert_eq!(provide_ruleset(&mut kernel, &rules).unwrap(), FIRST_RULESET + 1);
    assert_eq!(kernel.rulesets, before);
}
