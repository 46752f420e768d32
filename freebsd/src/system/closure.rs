//! The closure of a system: everything that follows from its description, as one directory in the store.
//!
//! ```text
//! activate                 makes /run/current-system this system, in a running one
//! boot/                    links to the base's, loader.conf, and lua/local.lua
//! early                    what process 1 runs before rc(8): the system that the loader chose becomes the current one
//! etc/                     links to the base's, and what is made from the description
//! files/                   files of one's own
//! metadata/                freebsd-source.scm, freebsd-base.scm, store-layout.scm
//! parameters.scm           the description itself
//! profile/                 links to the base's programs, libraries and data, as below /
//! shepherd/                init.scm, and pid1, for the init modes that have the Shepherd
//! usr/local/               rc(8) scripts, and links to programs that are not the base's
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::accounts::Accounts;
use super::base::TIME;
use super::canon::{self, string};
use super::capabilities;
use super::generation;
use super::model::{OperatingSystem, Problem};
use super::needs;
use super::source::FreebsdSource;
use crate::tree::{Content, Entry, Node, Tree, TreeError, show};

/// The link that leads to the system that runs.
pub const CURRENT_SYSTEM: &str = "/run/current-system";
/// The link to the system that the loader starts when nothing else is on trial: the last one that was up. On the disk `/run/current-system` leads
/// here; when the machine runs, a tmpfs with a link of its own is over that.
pub const BOOT_SYSTEM: &str = "/boot/system";
/// The link to the system that the machine was started with, as long as it runs.
pub const BOOTED_SYSTEM: &str = "/run/booted-system";
/// The file that is there from when the machine is up until it is started again.
pub const UP: &str = "/run/ready";
/// Where programs are that run with other rights than their user's, and files that not everybody may read: in a store nothing can be that. Not below
/// /run, which is empty when the machine starts, nor where another file system may be mounted.
pub const PRIVILEGED: &str = "etc/privileged";
/// What the console says when the system is up, before the name of the marker.
pub const READY_LINE: &str = "fruix: system is ready: ";

/// The directories of a base that become links to the profile.
pub const PROFILE_DIRECTORIES: [&str; 14] = [
    "bin",
    "lib",
    "libexec",
    "rescue",
    "sbin",
    "usr/bin",
    "usr/include",
    "usr/lib",
    "usr/lib32",
    "usr/libdata",
    "usr/libexec",
    "usr/sbin",
    "usr/share",
    "usr/tests",
];

/// What a closure is made of.
#[derive(Debug)]
pub struct Ingredients<'a> {
    /// The description. Local files in it are store paths already.
    pub system: &'a OperatingSystem,
    /// The packages by name, each with its store path and its files, whose content is below that path.
    pub packages: &'a BTreeMap<String, (String, Tree)>,
    /// The store path of the closure itself.
    pub path: &'a str,
    /// The store directory.
    pub store: &'a str,
    /// The hash of what the base was made from.
    pub source: &'a str,
}

/// A closure that was composed.
#[derive(Clone, Debug)]
pub struct Closure {
    /// Its files, by their paths in it.
    pub tree: Tree,
    /// The packages' files together.
    pub base: Tree,
    /// Who there is.
    pub accounts: Accounts,
}

/// Whether a file of the base cannot be as it should in a store.
#[must_use]
pub fn is_privileged(entry: &Entry) -> bool {
    matches!(entry.node, Node::File(_)) && (entry.mode & 0o7000 != 0 || entry.mode & 0o004 == 0 || entry.uid != 0 || entry.gid != 0)
}

/// Whether `path` is in one of the directories that become links to the profile.
#[must_use]
pub fn in_profile(path: &[u8]) -> bool {
    PROFILE_DIRECTORIES.iter().any(|dir| path.strip_prefix(dir.as_bytes()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/")))
}

/// The text of a file of `tree`.
pub(super) fn text(tree: &Tree, path: &str) -> Option<String> {
    let Node::File(file) = &tree.get(path)?.node else { return None };
    match &file.content {
        Content::Bytes(bytes) => String::from_utf8(bytes.to_vec()).ok(),
        Content::Host(path) => std::fs::read_to_string(path).ok(),
    }
}

/// Composes a closure.
///
/// # Errors
/// What is missing or contradictory, in words for the user.
pub fn compose(ingredients: &Ingredients<'_>) -> Result<Closure, String> {
    let Ingredients { system, packages, path, .. } = ingredients;
    let tell = |error: TreeError| error.to_string();
    let mut base = Tree::new();
    for (_, files) in packages.values() {
        base.merge(files.clone()).map_err(tell)?;
    }
    base.complete(&Entry::dir(0o755).time(TIME));
    if let Some(Problem { field, problem, remedy }) = needs::lacking(system, &base).into_iter().next() {
        return Err(format!("{field}: {problem}; {remedy}"));
    }
    let accounts = Accounts::compose(system, text(&base, "etc/master.passwd").as_deref(), text(&base, "etc/group").as_deref())?;

    let mut tree = Tree::new();
    for (name, entry) in base.iter() {
        let target = match &entry.node {
            Node::Dir => continue,
            Node::Symlink(target) => target.clone(),
            Node::File(_) if in_profile(name) && is_privileged(entry) => [b"/", PRIVILEGED.as_bytes(), b"/", name].concat(),
            Node::File(file) => match &file.content {
                Content::Host(path) => path.as_os_str().as_encoded_bytes().to_vec(),
                Content::Bytes(_) => return Err(format!("`{}' is in no package", show(name))),
            },
            Node::HardLink(_) => return Err(format!("`{}' is a hard link", show(name))),
        };
        let to = if in_profile(name) {
            [b"profile/", name].concat()
        } else if name.starts_with(b"etc/") || name.starts_with(b"boot/") || name.starts_with(b"usr/local/") && !is_privileged(entry) {
            name.to_vec()
        } else {
            continue;
        };
        tree.insert(to, Entry::symlink(target)).map_err(tell)?;
    }
    if let Some(fruixd) = &system.services.fruixd {
        let programs = [("sbin/fruixd", Some(&fruixd.program)), ("bin/fruix", fruixd.client.as_ref())];
        for (name, program) in programs.into_iter().filter_map(|(name, program)| Some((name, program?))) {
            tree.insert(format!("usr/local/{name}"), Entry::symlink(program.as_bytes())).map_err(tell)?;
        }
    }
    // Programs are links to the packages, which must be there, too.
    let seen: Vec<String> = PROFILE_DIRECTORIES
        .iter()
        .filter(|name| tree.iter().any(|(path, _)| path.starts_with(format!("profile/{name}/").as_bytes())))
        .map(|name| format!("/{name}={path}/profile/{name}"))
        .chain(packages.values().map(|(path, _)| path.clone()))
        .collect();
    let mut put = |name: String, mode: u16, text: String| tree.replace(name, Entry::file(mode, text.into_bytes())).map_err(tell);
    for (name, text) in etc(ingredients, &base) {
        put(format!("etc/{name}"), 0o644, text)?;
    }
    for (name, bytes) in [("master.passwd", &accounts.master), ("passwd", &accounts.passwd), ("group", &accounts.group)]
        .map(|(name, text)| (name, text.clone()))
    {
        put(format!("etc/{name}"), 0o644, bytes)?;
    }
    let variables = loader_variables(system, path);
    put("boot/loader.conf".into(), 0o644, variables.iter().map(|(name, value)| format!("{name}=\"{value}\"\n")).collect())?;
    if base.get("boot/lua/loader.lua").is_some() {
        put("boot/lua/local.lua".into(), 0o644, generation::LOADER.to_owned())?;
    }
    put("activate".into(), 0o755, activate(path))?;
    put("early".into(), 0o755, generation::early(path))?;
    put("parameters.scm".into(), 0o644, canon::print(*system))?;
    for (name, text) in metadata(ingredients) {
        put(format!("metadata/{name}.scm"), 0o644, text)?;
    }
    for (name, text) in rc_scripts(system, &seen) {
        put(format!("usr/local/etc/rc.d/{name}"), 0o755, text)?;
    }
    if let Some(shepherd) = &system.services.shepherd {
        put("shepherd/init.scm".into(), 0o644, shepherd_configuration(system, &shepherd.configuration))?;
        put("shepherd/pid1".into(), 0o755, pid1(path, &shepherd.path))?;
    }
    for file in &system.files {
        put(format!("files{}", file.path), 0o644, file.text.clone())?;
    }
    if system.time_zone != "UTC" {
        let zone = format!("/usr/share/zoneinfo/{}", system.time_zone);
        tree.replace("etc/localtime", Entry::symlink(zone)).map_err(tell)?;
    }
    for (name, database) in [("pwd.db", &accounts.database), ("spwd.db", &accounts.secure_database)] {
        tree.replace(format!("etc/{name}"), Entry::file(0o644, database.clone())).map_err(tell)?;
    }
    let own = system.files.iter().find(|file| file.path == "/etc/login.conf").map(|file| file.text.clone());
    if let Some(database) = own.or_else(|| text(&base, "etc/login.conf")).and_then(|text| capabilities::database(&text)) {
        tree.replace("etc/login.conf.db", Entry::file(0o644, database)).map_err(tell)?;
    }
    tree.complete(&Entry::dir(0o755));
    Ok(Closure { tree, base, accounts })
}

/// What is declared counts, and not what is known.
fn add(pairs: &BTreeMap<String, String>, known: &mut Vec<(String, String)>) {
    for (name, value) in pairs {
        match known.iter_mut().find(|(other, _)| other == name) {
            Some(pair) => pair.1.clone_from(value),
            None => known.push((name.clone(), value.clone())),
        }
    }
}

fn quoted(pairs: &BTreeMap<String, String>, known: &mut Vec<(String, String)>) -> String {
    add(pairs, known);
    known.iter().map(|(name, value)| format!("{name}=\"{value}\"\n")).collect()
}

/// The variables that the loader is given for the system whose closure is at `path`.
pub(super) fn loader_variables(system: &OperatingSystem, path: &str) -> Vec<(String, String)> {
    let root = system.file_systems.iter().find(|fs| fs.mount_point == "/");
    let mut known: Vec<(String, String)> = [
        ("autoboot_delay", "1"),
        ("beastie_disable", "YES"),
        ("loader_logo", "none"),
        ("console", "comconsole"),
        ("boot_serial", "YES"),
        ("boot_multicons", "YES"),
        ("comconsole_speed", "115200"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    if let Some(root) = root {
        known.push(("vfs.root.mountfrom".into(), format!("{}:{}", root.kind, root.device)));
    }
    // By its own name: what /run/current-system is follows from which of these is run.
    known.push(if system.init_mode == "shepherd-pid1" {
        ("init_exec".into(), format!("{path}/shepherd/pid1"))
    } else {
        ("init_script".into(), format!("{path}/early"))
    });
    if system.services.fruixd.is_some() {
        known.push(("kern.racct.enable".into(), "1".into()));
    }
    add(&system.loader, &mut known);
    known
}

/// The texts of /etc that follow from the description.
fn etc(ingredients: &Ingredients<'_>, base: &Tree) -> Vec<(String, String)> {
    let system = ingredients.system;
    let services = &system.services;
    let mut files = vec![
        ("rc.conf".to_owned(), rc_conf(system, base)),
        ("fstab".to_owned(), fstab(system)),
        ("hosts".to_owned(), hosts(system)),
        ("shells".to_owned(), shells(system)),
        ("motd".to_owned(), system.motd.clone()),
        ("motd.template".to_owned(), system.motd.clone()),
        ("sysctl.conf".to_owned(), system.sysctl.iter().map(|(name, value)| format!("{name}={value}\n")).collect()),
    ];
    if text(base, "etc/ttys").is_none() {
        let mut ttys = "console\tnone\tunknown\toff secure\n".to_owned();
        for number in 0..4 {
            let _ = writeln!(ttys, "ttyu{number}\t\"/usr/libexec/getty 3wire\"\tvt100\tonifconsole secure");
        }
        files.push(("ttys".to_owned(), ttys));
    }
    if let Some(sshd) = &services.sshd {
        let answer = |yes: bool| if yes { "yes" } else { "no" };
        let passwords = answer(sshd.password_authentication);
        let mut conf = format!(
            "Port {}\nPermitRootLogin {}\nPasswordAuthentication {passwords}\nKbdInteractiveAuthentication {passwords}\nUsePAM {passwords}\n\
             AuthorizedKeysFile .ssh/authorized_keys\nUseDNS no\n",
            sshd.port, sshd.permit_root_login,
        );
        if !sshd.allow_users.is_empty() {
            let _ = writeln!(conf, "AllowUsers {}", sshd.allow_users.join(" "));
        }
        if base.get("usr/libexec/sftp-server").is_some() {
            conf.push_str("Subsystem sftp /usr/libexec/sftp-server\n");
        }
        files.push(("ssh/sshd_config".to_owned(), conf));
    }
    if let Some(ntpd) = &services.ntpd {
        let mut conf: String = ntpd.servers.iter().map(|server| format!("pool {server} iburst\n")).collect();
        conf.push_str("tos minclock 3 maxclock 6\nrestrict default limited kod nomodify notrap noquery nopeer\nrestrict source limited kod nomodify notrap noquery\nrestrict 127.0.0.1\nrestrict ::1\nleapfile \"/var/db/ntpd.leap-seconds.list\"\n");
        files.push(("ntp.conf".to_owned(), conf));
    }
    if let Some(cron) = &services.cron
        && !cron.jobs.is_empty()
    {
        let path = "SHELL=/bin/sh\nPATH=/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin\n";
        files.push(("cron.d/fruix".to_owned(), cron.jobs.iter().fold(path.to_owned(), |text, job| text + job + "\n")));
    }
    if !services.jails.is_empty() {
        let mut conf = String::new();
        for jail in &services.jails {
            let host = jail.host_name.as_ref().unwrap_or(&jail.name);
            let mut known: Vec<(String, String)> = [
                ("path", jail.path.as_str()),
                ("host.hostname", host),
                ("exec.system_user", &jail.user),
                ("exec.start", &jail.command),
                ("exec.stop", ""),
                ("persist", "true"),
                ("mount.devfs", "true"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
            quoted(&jail.parameters, &mut known);
            let _ = writeln!(conf, "{} {{", jail.name);
            for (name, value) in known.iter().filter(|(_, value)| !value.is_empty()) {
                let _ = match value.as_str() {
                    "true" => writeln!(conf, "\t{name};"),
                    _ => writeln!(conf, "\t{name} = \"{}\";", value.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$")),
                };
            }
            conf.push_str("}\n");
        }
        files.push(("jail.conf".to_owned(), conf));
    }
    files
}

fn rc_conf(system: &OperatingSystem, base: &Tree) -> String {
    let services = &system.services;
    let enabled = |service: bool| if service { "YES" } else { "NO" }.to_owned();
    let mut known: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| known.push((name.to_owned(), value));
    set("hostname", system.host_name.clone());
    set("root_rw_mount", "YES".into());
    set("fsck_y_enable", "YES".into());
    set("background_fsck", "NO".into());
    set("dumpdev", "NO".into());
    set("sendmail_enable", "NONE".into());
    set("update_motd", "NO".into());
    set("sshd_enable", enabled(services.sshd.is_some()));
    set("ntpd_enable", enabled(services.ntpd.is_some()));
    set("syslogd_enable", enabled(services.syslogd.is_some()));
    set("cron_enable", enabled(services.cron.is_some()));
    set("jail_enable", enabled(!services.jails.is_empty()));
    if base.get("boot/kernel/linker.hints").is_none() {
        // There are no modules to load for devices, and to look for them takes long.
        set("devmatch_enable", "NO".into());
    }
    if let Some(dhcp) = &services.dhcp {
        let how = if dhcp.wait { "SYNCDHCP" } else { "DHCP" };
        match dhcp.interfaces.as_slice() {
            [] => set("ifconfig_DEFAULT", how.into()),
            interfaces => interfaces.iter().for_each(|name| set(&format!("ifconfig_{}", name.replace(['.', '-'], "_")), how.into())),
        }
    }
    if let Some(ntpd) = &services.ntpd {
        set("ntpd_sync_on_start", enabled(ntpd.sync_on_start));
    }
    if let Some(syslogd) = &services.syslogd {
        set("syslogd_flags", syslogd.flags.clone());
    }
    if !services.jails.is_empty() {
        set("jail_list", services.jails.iter().map(|jail| jail.name.as_str()).collect::<Vec<_>>().join(" "));
    }
    if system.image.grow {
        set("growfs_enable", "YES".into());
    }
    if services.fruixd.is_some() {
        set("fruixd_enable", "YES".into());
        set("rctl_enable", "YES".into());
    }
    quoted(&system.rc_conf, &mut known)
}

fn fstab(system: &OperatingSystem) -> String {
    let mut text = "# Device\tMountpoint\tFStype\tOptions\tDump\tPass\n".to_owned();
    for fs in &system.file_systems {
        let options = if fs.kind == "swap" && fs.options == "rw" { "sw" } else { &fs.options };
        let pass = if fs.mount_point == "/" && fs.pass == 0 { 1 } else { fs.pass };
        let _ = writeln!(text, "{}\t{}\t{}\t{options}\t0\t{pass}", fs.device, fs.mount_point, fs.kind);
    }
    text
}

fn hosts(system: &OperatingSystem) -> String {
    let name = &system.host_name;
    let mut text = format!("::1\t\tlocalhost {name}\n127.0.0.1\tlocalhost {name}\n");
    for (name, address) in &system.hosts {
        let _ = writeln!(text, "{address}\t{name}");
    }
    text
}

fn shells(system: &OperatingSystem) -> String {
    let mut shells = vec!["/bin/sh".to_owned(), "/bin/csh".to_owned(), "/bin/tcsh".to_owned()];
    for user in &system.users {
        if user.shell != "/usr/sbin/nologin" && !shells.contains(&user.shell) {
            shells.push(user.shell.clone());
        }
    }
    shells.join("\n") + "\n"
}

fn activate(path: &str) -> String {
    format!(
        "#!/bin/sh\n\
         # Makes this system the current one: /etc, /boot and the profile are links below {CURRENT_SYSTEM}.\n\
         set -e\n\
         root=${{1:-}}\n\
         mkdir -p \"$root/run\"\n\
         ln -s '{path}' \"$root{CURRENT_SYSTEM}.new\"\n\
         mv -h \"$root{CURRENT_SYSTEM}.new\" \"$root{CURRENT_SYSTEM}\"\n"
    )
}

fn ready_commands(system: &OperatingSystem) -> String {
    let marker = &system.ready_marker;
    let directory = marker.rsplit_once('/').map_or("/", |(directory, _)| directory);
    let lasts = if has_client(system) { format!("{SETTLE} --ready > /dev/console 2>&1; ") } else { String::new() };
    format!("mkdir -p '{directory}' && echo ready > '{marker}' && {{ : > {UP}; {lasts}echo '{READY_LINE}{marker}' > /dev/console; }}")
}

/// Whether the machine has a program that can go back to another generation.
pub(super) fn has_client(system: &OperatingSystem) -> bool {
    system.services.fruixd.as_ref().is_some_and(|fruixd| fruixd.client.is_some())
}

/// What brings the machine's files and the system that was started together.
const SETTLE: &str = "/usr/local/bin/fruix system settle";

/// The scripts for rc(8). `base` is what a builder sees that sees the base: directories, as fruixd's flag has them.
fn rc_scripts(system: &OperatingSystem, base: &[String]) -> Vec<(&'static str, String)> {
    let services = &system.services;
    let mut scripts = Vec::new();
    let mut last = vec!["FILESYSTEMS", "NETWORKING", "SERVERS", "DAEMON", "LOGIN"];
    for (there, name) in [
        (services.sshd.is_some(), "sshd"),
        (services.cron.is_some(), "cron"),
        (!services.jails.is_empty(), "jail"),
        (services.fruixd.is_some(), "fruixd"),
    ] {
        if there {
            last.push(name);
        }
    }
    let script = |name: &str, requires: &str, keyword: &str, body: &str| {
        format!(
            "#!/bin/sh\n# PROVIDE: {name}\n# REQUIRE: {requires}\n{keyword}\n. /etc/rc.subr\nname={name}\nrcvar={name}_enable\n: \"${{{name}_enable:=YES}}\"\n{body}\nload_rc_config $name\nrun_rc_command \"$1\"\n"
        )
    };
    // Before anything else that may write: the marker is of this start, and the machine's files are of this system.
    let settle = if has_client(system) { format!(" {SETTLE};") } else { String::new() };
    let body = format!("start_cmd=fruix_settle_start\nfruix_settle_start() {{ rm -f '{}';{settle} :; }}\nstop_cmd=:", system.ready_marker);
    let text = script("fruix_settle", "FILESYSTEMS", "# BEFORE: netif syslogd\n# KEYWORD: nojail", &body);
    scripts.push(("fruix-settle", text));
    if let Some(fruixd) = &services.fruixd {
        let shown = base.iter().filter(|_| fruixd.base).map(|directory| format!("--chroot-directory={directory}"));
        let (program, flags) = (&fruixd.program, shown.chain(fruixd.flags.iter().cloned()).collect::<Vec<_>>().join(" "));
        let body = format!(
            "pidfile=/var/run/fruixd.pid\ncommand=/usr/sbin/daemon\nprocname='{program}'\nstart_precmd=fruixd_prestart\nfruixd_prestart() {{ mkdir -p /var/log; }}\n\
             command_args=\"-p $pidfile -o /var/log/fruixd.log '{program}' --build-users-group=fruixbuild {flags}\""
        );
        scripts.push(("fruixd", script("fruixd", "FILESYSTEMS DAEMON", "# KEYWORD: shutdown", &body)));
    }
    if let Some(shepherd) = &services.shepherd
        && system.init_mode == "freebsd-init+rc.d-shepherd"
    {
        let body = format!(
            "pidfile=/var/run/shepherd.pid\ncommand=/usr/sbin/daemon\n\
             command_args=\"-f -p $pidfile '{}/bin/shepherd' -I -c {CURRENT_SYSTEM}/shepherd/init.scm -l /var/log/shepherd.log -s /var/run/shepherd.sock\"",
            shepherd.path
        );
        scripts.push(("fruix-shepherd", script("fruix_shepherd", &last.join(" "), "# KEYWORD: shutdown", &body)));
    }
    if system.init_mode == "freebsd-init" {
        let body = format!("start_cmd=fruix_ready_start\nfruix_ready_start() {{ {}; }}\nstop_cmd=:", ready_commands(system));
        scripts.push((
            "fruix-ready",
            script("fruix_ready", &last.join(" "), "# KEYWORD: nostart_if_jailed", &body).replace("nostart_if_jailed", "nojail"),
        ));
    }
    scripts
}

fn shepherd_configuration(system: &OperatingSystem, more: &str) -> String {
    let command = string(&ready_commands(system));
    // The console is the terminal of process 1's session, and a getty takes it only by that name: it revokes the name that it opens.
    let getty = if system.init_mode == "shepherd-pid1" {
        "(register-services\n (list (service '(console)\n   #:start (make-forkexec-constructor '(\"/usr/libexec/getty\" \"3wire\" \"console\"))\n   #:stop (make-kill-destructor)\n   #:respawn? #t)))\n(start-service (lookup-service 'console))\n"
    } else {
        ""
    };
    format!(
        ";; What the Shepherd does when it starts.\n(use-modules (shepherd service))\n\
         (register-services\n (list (service '(fruix-ready)\n   #:one-shot? #t\n   #:start (lambda _ (zero? (system* \"/bin/sh\" \"-c\" {command}))))))\n\
         {getty}(start-service (lookup-service 'fruix-ready))\n{more}"
    )
}

fn pid1(path: &str, shepherd: &str) -> String {
    format!(
        "#!/bin/sh\n# Process 1: what rc(8) does at boot, then the Shepherd.\n\
         PATH=/sbin:/bin:/usr/sbin:/usr/bin\nexport PATH\n'{path}/early' </dev/console >/dev/console 2>&1\n/bin/sh /etc/rc autoboot </dev/console >/dev/console 2>&1\n\
         # The login will have the console to itself.\n\
         exec '{shepherd}/bin/shepherd' -c {CURRENT_SYSTEM}/shepherd/init.scm -l /var/log/shepherd.log -s /var/run/shepherd.sock \
         </dev/null >>/var/log/shepherd.out 2>&1\n"
    )
}

fn metadata(ingredients: &Ingredients<'_>) -> Vec<(&'static str, String)> {
    let Ingredients { system, packages, path, store, source } = ingredients;
    let base = &system.base;
    // Where no source is declared, the base is all that is known of it.
    let known = || FreebsdSource {
        name: base.name.clone(),
        kind: base.kind.clone(),
        url: None,
        path: None,
        reference: None,
        commit: None,
        sha256: Some((*source).to_owned()),
    };
    let declared = base.source.clone().unwrap_or_else(known).declared();
    let stores: String = packages.iter().map(|(name, (path, _))| format!("\n  ({name} . {})", string(path))).collect();
    vec![
        ("freebsd-source", format!("{declared}\n")),
        (
            "freebsd-base",
            format!(
                "((name . {})\n (version . {})\n (source .\n  {declared})\n (made-from . {})\n (packages .{stores}))\n",
                string(&base.name),
                string(&base.version),
                string(source)
            ),
        ),
        (
            "store-layout",
            format!(
                "((store . {})\n (system . {})\n (current-system . {})\n (freebsd-source .\n  {declared})\n (packages .{stores}))\n",
                string(store),
                string(path),
                string(CURRENT_SYSTEM)
            ),
        ),
    ]
}
