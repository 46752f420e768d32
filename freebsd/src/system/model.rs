//! What a FreeBSD system is: the parts of a system file, and what must hold among them.

use std::collections::{BTreeMap, BTreeSet};

use super::fields::{Check, Missing, parts, size};
use super::native::{self, FreebsdBuild};
use super::packages;
use super::pkg::{Circles, PkgRepository};
use super::source::FreebsdSource;

/// The kind of a base that is made of packages.
pub const PKGBASE: &str = "pkgbase";
/// Where the repository of a base stands.
pub const BASE_REPOSITORY: &str = "base.repository";
/// Where the repository of packages stands.
pub const REPOSITORY: &str = "repository";

/// How the system starts. The values are those of `init-mode`.
pub const INIT_MODES: [&str; 3] = ["freebsd-init", "freebsd-init+rc.d-shepherd", "shepherd-pid1"];

parts! {
    /// A FreeBSD system, as a file describes it.
    pub struct OperatingSystem = "operating-system" {
        /// The machine's name.
        pub host_name = "host-name": String, Missing::Required, Check::HostName;
        /// The FreeBSD that the system is made of.
        pub base = "base": FreebsdBase, Missing::Required, Check::Any;
        /// The package with the kernel, which the loader finds in /boot/kernel.
        pub kernel = "kernel": String, Missing::Text("kernel"), Check::OneOf(packages::NAMES);
        /// The package with the loader.
        pub bootloader = "bootloader": String, Missing::Text("bootloader"), Check::OneOf(packages::NAMES);
        /// The packages of the base that the system is given besides.
        pub base_packages = "base-packages": Vec<String>,
            Missing::Texts(&["runtime", "userland", "libc", "rc-scripts", "sh", "openssl", "zlib"]), Check::OneOf(packages::NAMES);
        /// Packages of FreeBSD's ports, which come to be in /usr/local.
        pub repository = "repository": Option<PkgRepository>, Missing::Absent, Check::Any;
        /// What becomes process 1, and what starts services.
        pub init_mode = "init-mode": String, Missing::Text("freebsd-init"), Check::OneOf(&INIT_MODES);
        /// The file that is made when the system is up.
        pub ready_marker = "ready-marker": String, Missing::Text("/var/lib/fruix/ready"), Check::Path;
        /// The time zone, a name below /usr/share/zoneinfo.
        pub time_zone = "time-zone": String, Missing::Text("UTC"), Check::Token;
        /// What a user reads after logging in.
        pub motd = "motd": String, Missing::Text(""), Check::Any;
        /// Users, besides those of the base. One of the base with the same name is replaced.
        pub users = "users": Vec<User>, Missing::Empty, Check::Any;
        /// Groups, besides those of the base. One of the base with the same name is replaced.
        pub groups = "groups": Vec<Group>, Missing::Empty, Check::Any;
        /// What is mounted where. One of them is `/`.
        pub file_systems = "file-systems": Vec<FileSystem>, Missing::Required, Check::Any;
        /// What runs.
        pub services = "services": Services, Missing::Part, Check::Any;
        /// Variables of the loader, after those that the system needs.
        pub loader = "loader": BTreeMap<String, String>, Missing::Empty, Check::DottedName;
        /// Variables of rc.conf, after those of the services.
        pub rc_conf = "rc-conf": BTreeMap<String, String>, Missing::Empty, Check::ShellName;
        /// Variables of the kernel, set at boot.
        pub sysctl = "sysctl": BTreeMap<String, String>, Missing::Empty, Check::DottedName;
        /// Further names for hosts: an address for each name.
        pub hosts = "hosts": BTreeMap<String, String>, Missing::Empty, Check::DottedName;
        /// Files of one's own.
        pub files = "files": Vec<ExtraFile>, Missing::Empty, Check::Any;
        /// The disk image.
        pub image = "image": Image, Missing::Part, Check::Any;
    }

    /// Where a FreeBSD comes from.
    pub struct FreebsdBase = "freebsd-base" {
        /// What to call it; several may be in the store side by side.
        pub name = "name": String, Missing::Text("freebsd"), Check::Word;
        /// Its version, such as 15.1-RELEASE.
        pub version = "version": String, Missing::Required, Check::Word;
        /// `local-tree`: a directory as `make installworld installkernel distribution` leaves it. `freebsd-sets`: archives such as base.txz and kernel.txz. `pkgbase`: packages of a repository such as FreeBSD-base. `source`: built from its source.
        pub kind = "kind": String, Missing::Required, Check::OneOf(&["local-tree", "freebsd-sets", PKGBASE, native::SOURCE]);
        /// The directory of a local-tree, relative to the file.
        pub path = "path": Option<String>, Missing::Absent, Check::LocalPath;
        /// The mtree that has owners, modes and flags, relative to the directory. Without such a file everything is root's, with the modes that it has.
        pub manifest = "manifest": String, Missing::Text("METALOG"), Check::LocalPath;
        /// The archives of freebsd-sets.
        pub sets = "sets": Vec<FreebsdSet>, Missing::Empty, Check::Any;
        /// The repository of pkgbase, and the packages of it that the base is made of.
        pub repository = "repository": Option<PkgRepository>, Missing::Absent, Check::Any;
        /// The source that it is built from. With another kind it is recorded in the system, and neither fetched nor looked at.
        pub source = "source": Option<FreebsdSource>, Missing::Absent, Check::Any;
        /// How it is built from its source.
        pub build = "build": Option<FreebsdBuild>, Missing::Absent, Check::Any;
    }

    /// An archive of FreeBSD: a tar, plain or compressed with xz.
    pub struct FreebsdSet = "freebsd-set" {
        /// Where to download it.
        pub url = "url": Option<String>, Missing::Absent, Check::Url;
        /// Or the file, relative to the system file.
        pub path = "path": Option<String>, Missing::Absent, Check::LocalPath;
        /// Its SHA-256.
        pub sha256 = "sha256": String, Missing::Required, Check::Sha256;
    }

    /// A user.
    pub struct User = "user" {
        /// The login name.
        pub name = "name": String, Missing::Required, Check::Login;
        /// The number.
        pub uid = "uid": u64, Missing::Required, Check::Range(0, 4_294_967_294);
        /// The group that files of the user belong to.
        pub group = "group": String, Missing::Required, Check::Login;
        /// Further groups.
        pub groups = "groups": Vec<String>, Missing::Empty, Check::Login;
        /// The full name.
        pub comment = "comment": String, Missing::Text(""), Check::Passwd;
        /// The home directory, which is made.
        pub home = "home": String, Missing::Text("/nonexistent"), Check::Path;
        /// What starts at login.
        pub shell = "shell": String, Missing::Text("/usr/sbin/nologin"), Check::Path;
        /// The password as crypt(3) writes it; `*` lets nobody in, the empty text everybody.
        pub password = "password": String, Missing::Text("*"), Check::Passwd;
        /// The class in login.conf.
        pub class = "class": String, Missing::Text(""), Check::Passwd;
        /// Keys for ssh, as in authorized_keys.
        pub ssh_keys = "ssh-keys": Vec<String>, Missing::Empty, Check::Line;
    }

    /// A group.
    pub struct Group = "group" {
        /// The name.
        pub name = "name": String, Missing::Required, Check::Login;
        /// The number.
        pub gid = "gid": u64, Missing::Required, Check::Range(0, 4_294_967_294);
        /// Users that belong to it besides those that name it.
        pub members = "members": Vec<String>, Missing::Empty, Check::Login;
    }

    /// A line of fstab.
    pub struct FileSystem = "file-system" {
        /// Where it is mounted; `none` for swap.
        pub mount_point = "mount-point": String, Missing::Required, Check::Token;
        /// The device, or the name that the kind of file system takes. The image's are /dev/gpt/rootfs, /dev/gpt/swap and /dev/gpt/efi.
        pub device = "device": String, Missing::Required, Check::Token;
        /// The kind.
        pub kind = "type": String, Missing::Required,
            Check::OneOf(&["ufs", "tmpfs", "devfs", "fdescfs", "procfs", "linprocfs", "linsysfs", "msdosfs", "nullfs", "nfs", "zfs", "cd9660", "swap"]);
        /// Options of mount(8), with commas between.
        pub options = "options": String, Missing::Text("rw"), Check::Token;
        /// In which pass fsck(8) checks it; 0 for never.
        pub pass = "pass": u64, Missing::Number(0), Check::Range(0, 9);
    }

    /// A file with a text of one's own.
    pub struct ExtraFile = "file" {
        /// Where it is, below /etc, /usr/local, /var or /root.
        pub path = "path": String, Missing::Required, Check::Path;
        /// What it says.
        pub text = "text": String, Missing::Required, Check::Any;
        /// Its mode, in octal.
        pub mode = "mode": String, Missing::Text("0644"), Check::OneOf(&["0400", "0444", "0500", "0555", "0600", "0640", "0644", "0700", "0750", "0755"]);
        /// Whose it is.
        pub user = "user": String, Missing::Text("root"), Check::Login;
        /// Of which group.
        pub group = "group": String, Missing::Text("wheel"), Check::Login;
    }

    /// The services. One runs when its table is there.
    pub struct Services = "services" {
        /// The server of secure shells.
        pub sshd = "sshd": Option<Sshd>, Missing::Absent, Check::Any;
        /// Addresses by DHCP.
        pub dhcp = "dhcp": Option<Dhcp>, Missing::Absent, Check::Any;
        /// The time from servers.
        pub ntpd = "ntpd": Option<Ntpd>, Missing::Absent, Check::Any;
        /// The log.
        pub syslogd = "syslogd": Option<Syslogd>, Missing::Absent, Check::Any;
        /// What runs at times.
        pub cron = "cron": Option<Cron>, Missing::Absent, Check::Any;
        /// Jails that start with the system.
        pub jails = "jails": Vec<Jail>, Missing::Empty, Check::Any;
        /// GNU Shepherd, for the init modes that have it.
        pub shepherd = "shepherd": Option<Shepherd>, Missing::Absent, Check::Any;
        /// fruixd, the build daemon.
        pub fruixd = "fruixd": Option<Fruixd>, Missing::Absent, Check::Any;
    }

    /// The server of secure shells.
    pub struct Sshd = "sshd-service" {
        /// The port.
        pub port = "port": u64, Missing::Number(22), Check::Range(1, 65535);
        /// Whether root may log in.
        pub permit_root_login = "permit-root-login": String, Missing::Text("prohibit-password"), Check::OneOf(&["yes", "no", "prohibit-password"]);
        /// Whether passwords are accepted.
        pub password_authentication = "password-authentication": bool, Missing::Flag(false), Check::Any;
        /// Users that may log in; all, if none is named.
        pub allow_users = "allow-users": Vec<String>, Missing::Empty, Check::Login;
    }

    /// Addresses by DHCP.
    pub struct Dhcp = "dhcp-service" {
        /// The interfaces; every one that is there, if none is named.
        pub interfaces = "interfaces": Vec<String>, Missing::Empty, Check::Word;
        /// Whether the start waits for an address.
        pub wait = "wait": bool, Missing::Flag(false), Check::Any;
    }

    /// The time from servers.
    pub struct Ntpd = "ntpd-service" {
        /// The servers.
        pub servers = "servers": Vec<String>, Missing::Texts(&["0.freebsd.pool.ntp.org", "2.freebsd.pool.ntp.org"]), Check::HostName;
        /// Whether to set the clock at once at boot.
        pub sync_on_start = "sync-on-start": bool, Missing::Flag(true), Check::Any;
    }

    /// The log.
    pub struct Syslogd = "syslogd-service" {
        /// Flags of syslogd(8).
        pub flags = "flags": String, Missing::Text("-ss"), Check::Line;
    }

    /// What runs at times.
    pub struct Cron = "cron-service" {
        /// Lines of crontab(5), each with its user in the sixth column.
        pub jobs = "jobs": Vec<String>, Missing::Empty, Check::Line;
    }

    /// A jail.
    pub struct Jail = "jail" {
        /// Its name.
        pub name = "name": String, Missing::Required, Check::Login;
        /// Its root directory.
        pub path = "path": String, Missing::Required, Check::Path;
        /// Its host name; its own name, if none is given.
        pub host_name = "host-name": Option<String>, Missing::Absent, Check::HostName;
        /// What runs in it.
        pub command = "command": String, Missing::Text("/bin/sh /etc/rc"), Check::Line;
        /// The user of the machine that runs it.
        pub user = "user": String, Missing::Text("root"), Check::Login;
        /// Further parameters of jail(8).
        pub parameters = "parameters": BTreeMap<String, String>, Missing::Empty, Check::DottedName;
    }

    /// GNU Shepherd. No FreeBSD base has it.
    pub struct Shepherd = "shepherd-service" {
        /// A directory, relative to the file, with bin/shepherd, bin/herd, bin/guile and what they need, made for FreeBSD.
        pub path = "path": String, Missing::Required, Check::LocalPath;
        /// Lines of Scheme for the end of its configuration.
        pub configuration = "configuration": String, Missing::Text(""), Check::Any;
    }

    /// fruixd, the build daemon.
    pub struct Fruixd = "fruixd-service" {
        /// The program fruixd for FreeBSD, relative to the file.
        pub program = "program": String, Missing::Required, Check::LocalPath;
        /// The program fruix for FreeBSD, relative to the file.
        pub client = "client": Option<String>, Missing::Absent, Check::LocalPath;
        /// How many build users there are.
        pub build_users = "build-users": u64, Missing::Number(8), Check::Range(1, 200);
        /// The uid of the first; the others follow. The group fruixbuild has the same number.
        pub first_uid = "first-uid": u64, Missing::Number(30_001), Check::Range(1000, 60_000);
        /// Whether builders see the system's own programs and libraries, read-only at their usual places. What they make then depends on these.
        pub base = "base": bool, Missing::Flag(false), Check::Any;
        /// Flags of fruixd.
        pub flags = "flags": Vec<String>, Missing::Empty, Check::Token;
    }

    /// The disk image.
    pub struct Image = "image" {
        /// How much the disk holds; `auto` for what it needs and a quarter more.
        pub capacity = "capacity": String, Missing::Text("auto"), Check::Token;
        /// Swap; 0 for none.
        pub swap = "swap": String, Missing::Text("0"), Check::Size;
        /// The EFI system partition.
        pub esp = "esp": String, Missing::Text("64M"), Check::Size;
        /// `uefi`, or `uefi+bios`, which needs gptboot, pmbr and loader in the base.
        pub firmware = "firmware": String, Missing::Text("uefi"), Check::OneOf(&["uefi", "uefi+bios"]);
        /// The form of the file.
        pub format = "format": String, Missing::Text("raw"), Check::OneOf(&["raw", "qcow2"]);
        /// Whether the root file system grows to the disk at the first boot.
        pub grow = "grow": bool, Missing::Flag(true), Check::Any;
    }
}

/// What does not hold, and how to make it hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field, such as `users[2].shell`; items count from 1.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl Problem {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem { field: field.into(), problem: problem.into(), remedy: remedy.into() }
    }
}

/// Users that every FreeBSD has, so that they may be named; those of the base in full are only known once it is there.
const BASE_USERS: [&str; 11] = ["root", "daemon", "operator", "bin", "sshd", "_dhcp", "ntpd", "www", "nobody", "unbound", "uucp"];
/// Groups that every FreeBSD has.
const BASE_GROUPS: [&str; 14] =
    ["wheel", "daemon", "kmem", "sys", "tty", "operator", "mail", "bin", "staff", "guest", "sshd", "video", "www", "nobody"];

impl OperatingSystem {
    /// What does not hold among the fields. Each field for itself was checked when it was read.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        self.base_problems(&mut found);
        self.account_problems(&mut found);
        self.mount_problems(&mut found);
        self.service_problems(&mut found);
        self.image_problems(&mut found);
        self.other_problems(&mut found);
        found.extend(super::needs::unselected(self));
        found
    }

    /// The repositories that it names, each with where it stands.
    pub fn repositories(&self) -> impl Iterator<Item = (&'static str, &PkgRepository, Circles)> {
        let base = self.base.repository.as_ref().map(|repository| (BASE_REPOSITORY, repository, Circles::Allowed));
        let own = self.repository.as_ref().map(|repository| (REPOSITORY, repository, Circles::Refused));
        base.into_iter().chain(own)
    }

    /// The names of users that may be used.
    fn known_users(&self) -> BTreeSet<&str> {
        BASE_USERS.into_iter().chain(self.users.iter().map(|user| user.name.as_str())).collect()
    }

    fn known_groups(&self) -> BTreeSet<&str> {
        BASE_GROUPS.into_iter().chain(self.groups.iter().map(|group| group.name.as_str())).collect()
    }

    fn base_problems(&self, found: &mut Vec<Problem>) {
        let base = &self.base;
        native::problems(base, found);
        match base.kind.as_str() {
            "local-tree" if base.path.is_none() => {
                found.push(Problem::new("base.path", "is missing for a local-tree", "name the directory with the built FreeBSD"));
            }
            "local-tree" if !base.sets.is_empty() => {
                found.push(Problem::new("base.sets", "makes no sense for a local-tree", "leave it out, or write kind = \"freebsd-sets\""));
            }
            "freebsd-sets" if base.sets.is_empty() => {
                found.push(Problem::new("base.sets", "is missing for freebsd-sets", "name base.txz and kernel.txz with their sha256"));
            }
            "freebsd-sets" if base.path.is_some() => {
                found.push(Problem::new("base.path", "makes no sense for freebsd-sets", "leave it out, or write kind = \"local-tree\""));
            }
            PKGBASE if base.repository.is_none() => {
                found.push(Problem::new("base.repository", "is missing for pkgbase", "name the repository and the packages of it"));
            }
            PKGBASE if base.path.is_some() => {
                found.push(Problem::new("base.path", "makes no sense for pkgbase", "leave it out, or write kind = \"local-tree\""));
            }
            PKGBASE if !base.sets.is_empty() => {
                found.push(Problem::new("base.sets", "makes no sense for pkgbase", "leave it out, or write kind = \"freebsd-sets\""));
            }
            kind if kind != PKGBASE && base.repository.is_some() => {
                let problem = format!("makes no sense for {kind}");
                found.push(Problem::new("base.repository", problem, "leave it out, or write kind = \"pkgbase\""));
            }
            _ => {}
        }
        for (prefix, repository, _) in self.repositories() {
            found.extend(repository.problems(prefix));
        }
        for (index, set) in base.sets.iter().enumerate() {
            if set.url.is_some() == set.path.is_some() {
                let problem = if set.url.is_some() { "has both url and path" } else { "has neither url nor path" };
                found.push(Problem::new(item("base.sets", index), problem, "give one of the two"));
            }
        }
        found.extend(base.source.iter().flat_map(|source| source.problems("base.source")));
        let mut seen = BTreeSet::new();
        for (index, name) in self.base_packages.iter().enumerate() {
            if !seen.insert(name) {
                found.push(Problem::new(item("base-packages", index), format!("`{name}' is there twice"), "leave one out"));
            }
        }
    }

    fn account_problems(&self, found: &mut Vec<Problem>) {
        unique(found, "users", "name", self.users.iter().map(|user| user.name.clone()));
        unique(found, "users", "uid", self.users.iter().map(|user| user.uid.to_string()));
        unique(found, "groups", "name", self.groups.iter().map(|group| group.name.clone()));
        unique(found, "groups", "gid", self.groups.iter().map(|group| group.gid.to_string()));
        let (users, groups) = (self.known_users(), self.known_groups());
        let no_group =
            |name: &str| (format!("there is no group `{name}'"), format!("add [[groups]] with name = \"{name}\", or name another"));
        for (index, user) in self.users.iter().enumerate() {
            let field = item("users", index);
            if !groups.contains(user.group.as_str()) {
                let (problem, remedy) = no_group(&user.group);
                found.push(Problem::new(format!("{field}.group"), problem, remedy));
            }
            for name in user.groups.iter().filter(|name| !groups.contains(name.as_str())) {
                let (problem, remedy) = no_group(name);
                found.push(Problem::new(format!("{field}.groups"), problem, remedy));
            }
            if user.name == "root" && user.uid != 0 {
                found.push(Problem::new(format!("{field}.uid"), format!("root cannot have uid {}", user.uid), "write uid = 0"));
            }
            if user.name != "root" && user.name != "toor" && user.uid == 0 {
                found.push(Problem::new(format!("{field}.uid"), "0 is root's", "write another number, 1001 for instance"));
            }
            for (name, path) in [("home", &user.home), ("shell", &user.shell)] {
                if path.contains(':') {
                    found.push(Problem::new(
                        format!("{field}.{name}"),
                        format!("`{path}' has a colon"),
                        "write a path without one: passwd(5) has none",
                    ));
                }
            }
            if !user.ssh_keys.is_empty() && user.home == "/nonexistent" {
                found.push(Problem::new(format!("{field}.ssh-keys"), "need a home directory", "write home = \"/home/NAME\""));
            }
        }
        for (index, group) in self.groups.iter().enumerate() {
            for name in group.members.iter().filter(|name| !users.contains(name.as_str())) {
                found.push(unknown_user(format!("{}.members", item("groups", index)), name));
            }
        }
    }

    fn mount_problems(&self, found: &mut Vec<Problem>) {
        let mut seen = BTreeSet::new();
        for (index, fs) in self.file_systems.iter().enumerate() {
            let field = item("file-systems", index);
            let swap = fs.kind == "swap";
            if swap != (fs.mount_point == "none") {
                let (problem, remedy) = if swap {
                    ("swap is mounted nowhere", "write mount-point = \"none\"")
                } else {
                    ("only swap is mounted nowhere", "name a directory")
                };
                found.push(Problem::new(format!("{field}.mount-point"), problem, remedy));
            } else if !swap && let Some((problem, remedy)) = Check::Path.problem(&fs.mount_point) {
                found.push(Problem::new(format!("{field}.mount-point"), problem, remedy));
            }
            if !swap && !seen.insert(fs.mount_point.as_str()) {
                let problem = format!("`{}' is mounted twice", fs.mount_point);
                found.push(Problem::new(format!("{field}.mount-point"), problem, "leave one out, or mount it elsewhere"));
            }
            if fs.mount_point == "/" && fs.kind != "ufs" {
                found.push(Problem::new(format!("{field}.type"), format!("the root cannot be {}", fs.kind), "write type = \"ufs\""));
            }
            // fsck(8) of a kind that has no checker stops the boot.
            if fs.pass != 0 && !matches!(fs.kind.as_str(), "ufs" | "msdosfs") {
                found.push(Problem::new(format!("{field}.pass"), format!("{} has no checker", fs.kind), "write pass = 0"));
            }
        }
        if !self.file_systems.iter().any(|fs| fs.mount_point == "/") {
            found.push(Problem::new(
                "file-systems",
                "none is mounted on `/'",
                "add [[file-systems]] with mount-point = \"/\", device = \"/dev/gpt/rootfs\", type = \"ufs\"",
            ));
        }
    }

    fn service_problems(&self, found: &mut Vec<Problem>) {
        let users = self.known_users();
        let services = &self.services;
        if let Some(sshd) = &services.sshd {
            for name in sshd.allow_users.iter().filter(|name| !users.contains(name.as_str())) {
                found.push(unknown_user("services.sshd.allow-users", name));
            }
        }
        unique(found, "services.jails", "name", services.jails.iter().map(|jail| jail.name.clone()));
        for (index, jail) in services.jails.iter().enumerate() {
            let field = item("services.jails", index);
            if !users.contains(jail.user.as_str()) {
                found.push(unknown_user(format!("{field}.user"), &jail.user));
            }
            if jail.path == "/" {
                found.push(Problem::new(format!("{field}.path"), "a jail on `/' confines nothing", "name a directory of its own"));
            }
        }
        for (index, job) in services.cron.iter().flat_map(|cron| &cron.jobs).enumerate() {
            let field = item("services.cron.jobs", index);
            let words: Vec<&str> = job.split_whitespace().collect();
            let user_at = if job.starts_with('@') { 1 } else { 5 };
            match (words.get(user_at), words.get(user_at + 1)) {
                (Some(user), Some(_)) if users.contains(user) => {}
                (Some(user), Some(_)) => found.push(unknown_user(field, user)),
                _ => found.push(Problem::new(field, "is no line of crontab(5)", "write \"MINUTE HOUR DAY MONTH WEEKDAY USER COMMAND\"")),
            }
        }
        let wants_shepherd = self.init_mode != "freebsd-init";
        if wants_shepherd && services.shepherd.is_none() {
            found.push(Problem::new(
                "init-mode",
                format!("`{}' needs GNU Shepherd, which no FreeBSD base has", self.init_mode),
                "add [services.shepherd] with the path of one built for FreeBSD, or write init-mode = \"freebsd-init\"",
            ));
        }
        if !wants_shepherd && services.shepherd.is_some() {
            found.push(Problem::new(
                "services.shepherd",
                "is not started with init-mode = \"freebsd-init\"",
                "write init-mode = \"freebsd-init+rc.d-shepherd\" or \"shepherd-pid1\"",
            ));
        }
        if let Some(fruixd) = &services.fruixd {
            let last = fruixd.first_uid.saturating_add(fruixd.build_users);
            for (index, user) in self.users.iter().enumerate().filter(|(_, user)| (fruixd.first_uid..last).contains(&user.uid)) {
                let problem = format!("{} is the uid of a build user of fruixd", user.uid);
                found.push(Problem::new(
                    format!("{}.uid", item("users", index)),
                    problem,
                    "write another, or change services.fruixd.first-uid",
                ));
            }
        }
    }

    fn image_problems(&self, found: &mut Vec<Problem>) {
        let image = &self.image;
        let bytes = |text: &str| size(text).unwrap_or(0);
        if image.capacity != "auto" {
            match size(&image.capacity) {
                None => found.push(Problem::new(
                    "image.capacity",
                    format!("`{}' is not allowed", image.capacity),
                    "write \"auto\", or a number of bytes with K, M, G or T, such as \"2G\"",
                )),
                Some(capacity) if capacity < bytes(&image.esp).saturating_add(bytes(&image.swap)).saturating_add(64 << 20) => {
                    found.push(Problem::new(
                        "image.capacity",
                        format!("`{}' does not even hold the ESP, the swap and 64M", image.capacity),
                        "write more, or \"auto\"",
                    ));
                }
                Some(_) => {}
            }
        }
        if bytes(&image.esp) < 34 << 20 {
            found.push(Problem::new("image.esp", format!("`{}' is too small for FAT32", image.esp), "write at least 34M"));
        }
        let swaps = self.file_systems.iter().enumerate().find(|(_, fs)| fs.device == "/dev/gpt/swap");
        match swaps {
            Some((index, _)) if bytes(&image.swap) == 0 => found.push(Problem::new(
                format!("{}.device", item("file-systems", index)),
                "the image has no swap partition",
                "write swap = \"1G\" below [image], or leave it out",
            )),
            None if bytes(&image.swap) != 0 => found.push(Problem::new(
                "image.swap",
                "no file system uses the swap",
                "add [[file-systems]] with mount-point = \"none\", device = \"/dev/gpt/swap\", type = \"swap\"",
            )),
            _ => {}
        }
    }

    fn other_problems(&self, found: &mut Vec<Problem>) {
        let (users, groups) = (self.known_users(), self.known_groups());
        unique(found, "files", "path", self.files.iter().map(|file| file.path.clone()));
        for (index, file) in self.files.iter().enumerate() {
            let field = item("files", index);
            if !["/etc/", "/usr/local/", "/var/", "/root/"].iter().any(|start| file.path.starts_with(start)) {
                let problem = format!("`{}' is not below /etc, /usr/local, /var or /root", file.path);
                found.push(Problem::new(format!("{field}.path"), problem, "name a file there"));
            }
            if GENERATED.contains(&file.path.as_str()) {
                let problem = format!("`{}' is made from the other fields", file.path);
                found.push(Problem::new(format!("{field}.path"), problem, "use those (see docs/systems.md)"));
            }
            if !users.contains(file.user.as_str()) {
                found.push(unknown_user(format!("{field}.user"), &file.user));
            }
            if !groups.contains(file.group.as_str()) {
                let remedy = format!("add [[groups]] with name = \"{}\", or name another", file.group);
                found.push(Problem::new(format!("{field}.group"), format!("there is no group `{}'", file.group), remedy));
            }
        }
        if !self.ready_marker.starts_with("/var/") {
            let problem = format!("`{}' is not below /var, where a running system writes", self.ready_marker);
            found.push(Problem::new("ready-marker", problem, "write ready-marker = \"/var/lib/fruix/ready\""));
        }
        for (name, value) in &self.hosts {
            if value.parse::<std::net::IpAddr>().is_err() {
                found.push(Problem::new(format!("hosts.{name}"), format!("`{value}' is no address"), "write an IPv4 or IPv6 address"));
            }
        }
        for (field, pairs) in [("loader", &self.loader), ("rc-conf", &self.rc_conf), ("sysctl", &self.sysctl)] {
            for (name, value) in pairs.iter().filter(|(_, value)| value.contains('"')) {
                found.push(Problem::new(
                    format!("{field}.{name}"),
                    format!("`{value}' has a quotation mark"),
                    "leave it out: values are quoted",
                ));
            }
        }
        for name in super::generation::taken(&self.loader) {
            let problem = "is how generations are started";
            found.push(Problem::new(format!("loader.{name}"), problem, "leave it out: rc scripts are for what a start needs besides"));
        }
        if self.time_zone.split('/').any(|name| matches!(name, "" | "." | "..")) {
            let problem = format!("`{}' is not allowed", self.time_zone);
            found.push(Problem::new("time-zone", problem, "write a name such as UTC or Europe/Paris"));
        }
    }
}

/// What the other fields make, and [`OperatingSystem::files`] must not.
const GENERATED: [&str; 15] = [
    "/etc/rc.conf",
    "/etc/fstab",
    "/etc/hosts",
    "/etc/passwd",
    "/etc/master.passwd",
    "/etc/pwd.db",
    "/etc/spwd.db",
    "/etc/group",
    "/etc/shells",
    "/etc/motd",
    "/etc/motd.template",
    "/etc/ttys",
    "/etc/sysctl.conf",
    "/etc/jail.conf",
    "/etc/crontab",
];

/// `users[2]`: the item at `index`, counted from 1.
#[must_use]
pub fn item(field: &str, index: usize) -> String {
    format!("{field}[{}]", index.saturating_add(1))
}

fn unknown_user(field: impl Into<String>, name: &str) -> Problem {
    let remedy = format!("add [[users]] with name = \"{name}\", or name another");
    Problem::new(field, format!("there is no user `{name}'"), remedy)
}

fn unique(found: &mut Vec<Problem>, field: &str, key: &str, values: impl Iterator<Item = String>) {
    let mut seen = BTreeSet::new();
    for (index, value) in values.enumerate() {
        if !seen.insert(value.clone()) {
            found.push(Problem::new(format!("{}.{key}", item(field, index)), format!("`{value}' is there twice"), "write another"));
        }
    }
}
