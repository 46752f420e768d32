//! What the daemon offers on one platform only: flags, and looking at the host.

use crate::sandbox::plan::Limit;

/// What builders may use, in the words of the command line, of `rctl`, what then happens, and whether the amount is one of bytes.
const RESOURCES: [(&str, &str, &str, bool); 5] = [
    ("memory", "memoryuse", "sigkill", true),
    ("processes", "maxproc", "deny", false),
    ("files", "openfiles", "deny", false),
    ("cpu", "pcpu", "deny", false),
    ("time", "wallclock", "sigkill", false),
];

/// Flags of this platform.
#[cfg(not(target_os = "freebsd"))]
#[derive(Clone, Debug, Default, clap::Args)]
// The daemon's own flags are a group of the structure's name.
#[group(id = "platform")]
pub struct Flags {}

/// Flags of this platform.
#[cfg(target_os = "freebsd")]
#[derive(Clone, Debug, Default, clap::Args)]
// The daemon's own flags are a group of the structure's name.
#[group(id = "platform")]
pub struct Flags {
    /// Limit what a build uses: memory (bytes, or with k, m, g, t), processes, files, cpu (percents of one processor), time (seconds); may be given
    /// several times
    #[arg(long, value_name = "RESOURCE=AMOUNT")]
    limit: Vec<String>,
    /// Do not start where the kernel has no resource limits
    #[arg(long)]
    require_limits: bool,
    /// Say what this machine lacks for builds in jails and how to get it, and exit
    #[arg(long)]
    check_host: bool,
}

#[cfg(not(target_os = "freebsd"))]
impl Flags {
    /// The limits that were asked for.
    ///
    /// # Errors
    /// None.
    pub fn limits(&self) -> Result<Vec<Limit>, String> {
        Ok(Vec::new())
    }

    /// Whether builds must not run without the limits.
    #[must_use]
    pub fn require_limits(&self) -> bool {
        false
    }
}

#[cfg(target_os = "freebsd")]
impl Flags {
    /// The limits that were asked for.
    ///
    /// # Errors
    /// One is not understood; the text says what is expected.
    pub fn limits(&self) -> Result<Vec<Limit>, String> {
        self.limit.iter().map(|text| limit(text)).collect()
    }

    /// Whether the daemon is to look at the host only.
    #[must_use]
    pub fn check_host(&self) -> bool {
        self.check_host
    }

    /// Whether builds must not run without the limits.
    #[must_use]
    pub fn require_limits(&self) -> bool {
        self.require_limits
    }
}

/// A limit as the command line has it.
#[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
fn limit(text: &str) -> Result<Limit, String> {
    let expected = || {
        let names: Vec<&str> = RESOURCES.iter().map(|(name, ..)| *name).collect();
        format!("`{text}' is no limit: RESOURCE=AMOUNT is expected, with one of {} and a number above 0", names.join(", "))
    };
    let (name, amount) = text.split_once('=').ok_or_else(expected)?;
    let (_, resource, action, bytes) = RESOURCES.iter().find(|(known, ..)| *known == name).ok_or_else(expected)?;
    let amount = amount.to_ascii_lowercase();
    let (digits, unit) = match amount.strip_suffix(['k', 'm', 'g', 't']) {
        Some(digits) if *bytes => (digits, amount.get(digits.len()..).unwrap_or_default()),
        _ => (amount.as_str(), ""),
    };
    let unit = match unit {
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => 1_u64,
    };
    let amount = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|amount| *amount > 0);
    Ok(Limit { resource: (*resource).to_owned(), action: (*action).to_owned(), amount: amount.ok_or_else(expected)? })
}

/// One thing that builds in jails want, and whether it is there.
#[cfg(target_os = "freebsd")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub what: String,
    /// `None`: it is there. Otherwise what it is for and how to get it.
    pub missing: Option<String>,
    /// Whether nothing can be built without it.
    pub needed: bool,
}

/// Looks at the host: what builds in jails want of kernel, users and mounts.
#[cfg(target_os = "freebsd")]
#[must_use]
pub fn check_host(settings: &crate::config::Settings) -> Vec<Check> {
    use fruix_freebsd::Kernel as _;
    let mut checks = Vec::new();
    let mut check = |what: &str, there: bool, needed: bool, hint: String| {
        checks.push(Check { what: what.to_owned(), missing: (!there).then_some(hint), needed });
    };
    let root = nix::unistd::geteuid().is_root();
    check("root", root, true, "jails and mounts are root's: start fruixd as root".to_owned());
    let features = fruix_freebsd::Host.features().unwrap_or_default();
    let release = format!("FreeBSD 14.0 or later (this is {})", features.release);
    check(&release, features.release >= 1_400_000, true, "older kernels cannot mount single files: upgrade".to_owned());
    for (name, needed) in [("nullfs", true), ("devfs", true), ("fdescfs", false)] {
        let hint = format!("`kldload {name}', and {name}_load=\"YES\" in /boot/loader.conf");
        check(name, features.has_file_system(name), needed, hint);
    }
    let vnet =
        "builders have no Internet sockets at all, not even a loopback: use a kernel with options VIMAGE, as GENERIC has it".to_owned();
    check("network stacks of jails' own (VIMAGE)", features.vnet, false, vnet);
    let ipc = features.parameters.iter().any(|parameter| parameter == "sysvshm");
    check("System V IPC", ipc, false, "`kldload sysvshm sysvsem sysvmsg': builds that use it fail".to_owned());
    let racct = "no limits on memory, processes, files and time: kern.racct.enable=1 in /boot/loader.conf, and start anew".to_owned();
    check("resource limits (rctl)", features.limits, settings.require_limits, racct);
    let rules = fruix_freebsd::provide_ruleset(&mut fruix_freebsd::Host, &fruix_freebsd::builder_devices());
    check("devfs rules", rules.is_ok(), true, "the devfs rule subsystem cannot be used: is this a jail?".to_owned());
    let group = settings.build_users_group.as_deref().unwrap_or("_fruixd");
    let members = nix::unistd::Group::from_name(group).ok().flatten().map_or(0, |group| group.mem.len());
    let hint = format!(
        "`service fruixd setup' makes them, or: pw groupadd {group} -g 35000; for n in 1 2 3 4 5 6 7 8; do pw useradd {group}$n -u 3500$n -g {group} \
         -G {group} -d /nonexistent -s /usr/sbin/nologin; done"
    );
    check(
        &format!("build users in the group `{group}', and --build-users-group"),
        members > 0 && settings.build_users_group.is_some(),
        true,
        hint,
    );
    let store = std::path::Path::new(settings.store_dir.as_str());
    check(&format!("the store directory {}", store.display()), store.is_dir(), true, format!("mkdir -p {}", store.display()));
    let flags = nix::sys::statfs::statfs(store).map(|statfs| statfs.flags());
    let writable = flags.is_ok_and(|flags| !flags.contains(nix::mount::MntFlags::MNT_RDONLY));
    check("a writable store", writable, true, "the store's file system is mounted read-only".to_owned());
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_understood() {
        let of = |text| limit(text).map(|limit| (limit.resource, limit.action, limit.amount));
        assert_eq!(of("memory=4g"), Ok(("memoryuse".to_owned(), "sigkill".to_owned(), 4 << 30)));
        assert_eq!(of("memory=1000K").unwrap().2, 1_024_000);
        assert_eq!(of("processes=200"), Ok(("maxproc".to_owned(), "deny".to_owned(), 200)));
        for wrong in ["memory", "memory=", "memory=0", "memory=-1", "memory=18446744073709551615k", "processes=1k", "disk=1", "memory=1é"]
        {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
