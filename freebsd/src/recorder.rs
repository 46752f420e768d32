//! A kernel that is only data: it notes what is asked of it, keeps what would be there, and fails when told to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use crate::{
    DeviceRule, Entry, Features, Found, Jail, JailId, Kernel, Lookup, MountId, MountPoint, MountRequest, Parameter, Source, Value,
};

/// See the module. What is not in `sources` is a directory.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    /// What was asked, one line each.
    pub operations: Vec<String>,
    /// What is found at sources of mounts.
    pub sources: BTreeMap<PathBuf, Found>,
    /// The operation, counted from 0, that fails with [`Recorder::FAILURE`]; those that only ask count, too.
    pub fail_at: Option<usize>,
    /// What is there, and how long mounts are reported as something else than was found.
    pub replaced: Option<PathBuf>,
    /// The jails that exist.
    pub living: Vec<(JailId, String)>,
    /// What is mounted, oldest first.
    pub mounted: Vec<MountPoint>,
    /// Limits.
    pub limits: Vec<String>,
    /// Device rulesets.
    pub rulesets: BTreeMap<u16, Vec<DeviceRule>>,
    /// What it has.
    pub has: Features,
    last: i32,
}

impl Recorder {
    /// The error of an operation that is made to fail: `EIO`, which is no error that a caller treats specially.
    pub const FAILURE: i32 = libc::EIO;

    /// A kernel with these features.
    #[must_use]
    pub fn new(has: Features) -> Recorder {
        Recorder { has, ..Recorder::default() }
    }

    /// Whether nothing is there that has to be undone.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.living.is_empty() && self.mounted.is_empty() && self.limits.is_empty()
    }

    /// All operations, one a line.
    #[must_use]
    pub fn text(&self) -> String {
        self.operations.iter().fold(String::new(), |text, line| text + line + "\n")
    }

    fn note(&mut self, operation: String) -> io::Result<()> {
        let number = self.operations.len();
        self.operations.push(operation);
        if self.fail_at == Some(number) {
            return Err(io::Error::from_raw_os_error(Self::FAILURE));
        }
        Ok(())
    }

    fn next(&mut self) -> i32 {
        self.last += 1;
        self.last
    }
}

fn described(entry: &Entry) -> String {
    match entry {
        Entry::Dir { path, mode, gid } => {
            let group = gid.map(|gid| format!(" group {gid}")).unwrap_or_default();
            format!("directory {} mode {mode:o}{group}", path.display())
        }
        Entry::File { path, contents } => format!("file {} {:?}", path.display(), String::from_utf8_lossy(contents)),
        Entry::Link { path, target } => format!("link {} -> {}", path.display(), target.display()),
        Entry::Users { path, users } => {
            let users: Vec<String> = users.iter().map(|user| format!("{}:{}:{}", user.name, user.uid, user.gid)).collect();
            format!("users {} {}", path.display(), users.join(" "))
        }
    }
}

impl Kernel for Recorder {
    fn make(&mut self, _root: &Path, entry: &Entry) -> io::Result<()> {
        self.note(described(entry))
    }

    fn make_place(&mut self, _root: &Path, path: &Path, dir: bool) -> io::Result<()> {
        self.note(format!("place {}{}", path.display(), if dir { "/" } else { "" }))
    }

    fn find(&mut self, path: &Path, lookup: Lookup) -> io::Result<Found> {
        self.note(format!("find {} {lookup:?}", path.display()))?;
        Ok(self.sources.get(path).cloned().unwrap_or_else(|| Found::Dir(Source { path: path.to_owned(), inode: 1 })))
    }

    fn mount(&mut self, request: &MountRequest) -> Result<(), (io::Error, String)> {
        let MountRequest { kind, path, from, options, read_only } = request;
        let mut line = format!("mount {kind} {}", path.display());
        if let Some(from) = from {
            let _ = write!(line, " from {}", from.path.display());
        }
        for (name, value) in options {
            let _ = write!(line, " {name}={value}");
        }
        line += if *read_only { " nosuid ro" } else { " nosuid" };
        self.note(line).map_err(|error| (error, "as told".to_owned()))?;
        let id = MountId(self.next(), 0);
        self.mounted.push(MountPoint { id, path: path.clone(), kind: (*kind).to_owned() });
        Ok(())
    }

    fn shows(&mut self, path: &Path, source: &Source) -> io::Result<bool> {
        self.note(format!("compare {} inode {}", path.display(), source.inode))?;
        Ok(self.replaced.as_ref() != Some(&source.path))
    }

    fn mounts_below(&mut self, root: &Path) -> io::Result<Vec<MountPoint>> {
        self.note(format!("mounts below {}", root.display()))?;
        Ok(self.mounted.iter().filter(|mount| mount.path.starts_with(root)).cloned().collect())
    }

    fn unmount(&mut self, id: MountId, force: bool) -> io::Result<()> {
        let found = self.mounted.iter().position(|mount| mount.id == id);
        let shown = found.and_then(|index| self.mounted.get(index)).map(|mount| mount.path.display().to_string()).unwrap_or_default();
        self.note(format!("unmount{} {shown}", if force { " by force" } else { "" }))?;
        let index = found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        // A kernel refuses to take away what something else is mounted on.
        let path = self.mounted.get(index).map(|mount| mount.path.clone()).unwrap_or_default();
        if self.mounted.iter().skip(index + 1).any(|mount| mount.path.starts_with(&path)) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        self.mounted.remove(index);
        Ok(())
    }

    fn create_jail(&mut self, parameters: &[Parameter], owned: bool) -> Result<Jail, (io::Error, String)> {
        let mut line = format!("jail{}", if owned { " owned" } else { "" });
        let mut jail_name = String::new();
        for Parameter { name, value } in parameters {
            let _ = match value {
                Value::Int(number) => write!(line, " {name}={number}"),
                Value::Text(text) => write!(line, " {name}={text}"),
                Value::Path(path) => write!(line, " {name}={}", path.display()),
                Value::Set => write!(line, " {name}"),
            };
            if let ("name", Value::Text(text)) = (name.as_str(), value) {
                jail_name.clone_from(text);
            }
        }
        self.note(line).map_err(|error| (error, "as told".to_owned()))?;
        let id = self.next();
        self.living.push((id, jail_name));
        Ok(Jail { id, owner: None })
    }

    fn jails(&mut self) -> io::Result<Vec<(JailId, String)>> {
        self.note("jails".to_owned())?;
        Ok(self.living.clone())
    }

    fn find_jail(&mut self, name: &str) -> io::Result<Option<JailId>> {
        self.note(format!("find jail {name}"))?;
        Ok(self.living.iter().find(|(_, other)| other == name).map(|(id, _)| *id))
    }

    fn remove_jail(&mut self, jail: JailId) -> io::Result<()> {
        let name = self.living.iter().find(|(id, _)| *id == jail).map(|(_, name)| name.clone()).unwrap_or_default();
        self.note(format!("remove jail {name}"))?;
        self.living.retain(|(id, _)| *id != jail);
        Ok(())
    }

    fn wait_for_children(&mut self) -> io::Result<()> {
        self.note("wait for children".to_owned())
    }

    fn add_limit(&mut self, rule: &str) -> io::Result<()> {
        self.note(format!("limit {rule}"))?;
        self.limits.push(rule.to_owned());
        Ok(())
    }

    fn remove_limits(&mut self, filter: &str) -> io::Result<()> {
        self.note(format!("remove limits {filter}"))?;
        let start = format!("{filter}:");
        self.limits.retain(|rule| !rule.starts_with(&start));
        Ok(())
    }

    fn device_rules(&mut self, ruleset: u16) -> io::Result<Vec<DeviceRule>> {
        self.note(format!("rules of {ruleset}"))?;
        Ok(self.rulesets.get(&ruleset).cloned().unwrap_or_default())
    }

    fn add_device_rule(&mut self, ruleset: u16, number: u16, rule: &DeviceRule) -> io::Result<()> {
        self.note(format!("rule {ruleset} {number} {rule:?}"))?;
        self.rulesets.entry(ruleset).or_default().push(rule.clone());
        Ok(())
    }

    fn features(&mut self) -> io::Result<Features> {
        self.note("features".to_owned())?;
        Ok(self.has.clone())
    }
}
