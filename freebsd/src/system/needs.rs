//! What a system needs of its base: for each field the files without which it would be accepted and do nothing.

use std::collections::BTreeMap;

use super::closure::{in_profile, text};
use super::model::{OperatingSystem, Problem, item};
use super::packages;
use crate::tree::{Node, Tree, show};

/// What every system needs of its base, with the field that says where it comes from.
const ALWAYS: [(&str, &str); 4] = [("kernel", "boot/kernel/kernel"), ("base", "sbin/init"), ("base", "etc/rc"), ("base", "bin/sh")];

/// The program of mount(8) for a type of file system; the kernel mounts the others by itself.
const MOUNTS: [(&str, &str); 4] =
    [("cd9660", "sbin/mount_cd9660"), ("msdosfs", "sbin/mount_msdosfs"), ("nfs", "sbin/mount_nfs"), ("nullfs", "sbin/mount_nullfs")];

/// Where the scripts are that read the variables of rc.conf.
const SCRIPTS: [&[u8]; 3] = [b"etc/rc.d/", b"usr/local/etc/rc.d/", b"etc/rc"];

/// The fields of a system with the files that they need, as paths without a slash in front.
fn needs(system: &OperatingSystem) -> Vec<(String, String)> {
    let services = &system.services;
    let mut found: Vec<(String, String)> = Vec::new();
    let mut need = |field: &str, paths: &[&str]| found.extend(paths.iter().map(|path| (field.to_owned(), (*path).to_owned())));
    for (field, path) in ALWAYS {
        need(field, &[path]);
    }
    for (there, field, paths) in [
        (services.sshd.is_some(), "services.sshd", &["usr/sbin/sshd", "etc/rc.d/sshd"][..]),
        (services.dhcp.is_some(), "services.dhcp", &["sbin/dhclient", "etc/rc.d/dhclient"]),
        (services.ntpd.is_some(), "services.ntpd", &["usr/sbin/ntpd", "etc/rc.d/ntpd"]),
        (services.syslogd.is_some(), "services.syslogd", &["usr/sbin/syslogd", "etc/rc.d/syslogd"]),
        (services.cron.is_some(), "services.cron", &["usr/sbin/cron", "etc/rc.d/cron"]),
        (!services.jails.is_empty(), "services.jails", &["usr/sbin/jail", "etc/rc.d/jail"]),
        (services.fruixd.is_some(), "services.fruixd", &["usr/sbin/daemon"]),
        (system.init_mode == "freebsd-init+rc.d-shepherd", "services.shepherd", &["usr/sbin/daemon"]),
        (system.init_mode == "shepherd-pid1", "init-mode", &["usr/libexec/getty"]),
        (system.image.grow, "image.grow", &["sbin/growfs", "etc/rc.d/growfs"]),
    ] {
        if there {
            need(field, paths);
        }
    }
    for (index, fs) in system.file_systems.iter().enumerate() {
        if let Some((_, path)) = MOUNTS.iter().find(|(kind, _)| *kind == fs.kind) {
            need(&format!("{}.type", item("file-systems", index)), &[path]);
        }
    }
    for (index, user) in system.users.iter().enumerate() {
        // What is elsewhere may come later, with a package; and who has no nologin does not log in either.
        let shell = user.shell.trim_start_matches('/');
        if in_profile(shell.as_bytes()) && shell != "usr/sbin/nologin" {
            need(&format!("{}.shell", item("users", index)), &[shell]);
        }
    }
    if system.time_zone != "UTC" {
        need("time-zone", &[&format!("usr/share/zoneinfo/{}", system.time_zone)]);
    }
    found
}

/// Packages that a system needs and does not take, whatever its base is: one problem for each.
pub(super) fn unselected(system: &OperatingSystem) -> Vec<Problem> {
    let selected =
        |name: &str| name == system.kernel || name == system.bootloader || system.base_packages.iter().any(|other| other == name);
    let lists = packages::lists();
    let mut missing: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (field, path) in needs(system) {
        let holds =
            |list: &&packages::PackageList| list.patterns.iter().any(|pattern| packages::matches(pattern.as_bytes(), path.as_bytes()));
        if let Some(list) = lists.iter().find(holds).filter(|list| !selected(&list.name)) {
            missing.entry(&list.name).or_default().push(format!("/{path} for {field}"));
        }
    }
    let problem = |(name, files): (&str, Vec<String>)| {
        let problem = format!("`{name}' is not among them, which has {}", files.join(", "));
        Problem::new("base-packages", problem, format!("add \"{name}\""))
    };
    missing.into_iter().map(problem).collect()
}

/// What of a system's needs `base`, the files of its packages, does not have: one problem for each field.
#[must_use]
pub fn lacking(system: &OperatingSystem, base: &Tree) -> Vec<Problem> {
    let mut found: Vec<Problem> = Vec::new();
    for (field, path) in needs(system) {
        if base.get(&path).is_some_and(|entry| entry.node != Node::Dir) || found.iter().any(|problem| problem.field == field) {
            continue;
        }
        let problem = format!("the base has no /{path}");
        let remedy = match field.as_str() {
            "kernel" => "name a base with a kernel: of a release's sets, kernel.txz too".to_owned(),
            "base" => "name a whole base: of a release's sets, base.txz".to_owned(),
            "image.grow" => "write grow = false below [image], or name a base that has it".to_owned(),
            "time-zone" => "write the name of a file below /usr/share/zoneinfo".to_owned(),
            _ if field.ends_with(".shell") => "write a shell that is there, such as /bin/sh".to_owned(),
            _ => "leave it out, or name a base that has it".to_owned(),
        };
        found.push(Problem::new(field, problem, remedy));
    }
    // A service of the base that is enabled by its variable: one that the base knows, and has no script for.
    let defaults = text(base, "etc/defaults/rc.conf").unwrap_or_default();
    let on = |value: &str| ["yes", "true", "on", "1"].iter().any(|yes| value.eq_ignore_ascii_case(yes));
    for (name, _) in system.rc_conf.iter().filter(|(_, value)| on(value)) {
        let Some(stem) = name.strip_suffix("_enable").filter(|_| has_word(&defaults, name)) else { continue };
        let mut scripts =
            base.iter().filter(|(path, entry)| entry.node != Node::Dir && SCRIPTS.iter().any(|start| path.starts_with(start)));
        let named = format!("etc/rc.d/{stem}");
        if !scripts.any(|(path, _)| path == named.as_bytes() || text(base, &show(path)).is_some_and(|text| has_word(&text, name))) {
            let problem = format!("the base has no script for `{stem}' in /etc/rc.d");
            found.push(Problem::new(format!("rc-conf.{name}"), problem, "leave it out, or name a base that has it"));
        }
    }
    found
}

/// Whether `word` stands in `text` by itself.
fn has_word(text: &str, word: &str) -> bool {
    text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_').any(|other| other == word)
}
