//! FreeBSD itself.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use super::names::{self, Db, Dbt, DevfsRule, HashInfo, InAliasreq, ReaperKill, SockaddrIn, Text};
use crate::{DeviceRule, Features, Jail, JailId, MountId, MountPoint, MountRequest, Parameter, User, Value};

/// The longest message that the kernel adds to an error, with its NUL.
const MESSAGE: usize = 255;
/// The longest name of a jail, with its NUL.
const JAIL_NAME: usize = 256;

unsafe extern "C" {
    fn rctl_add_rule(rule: Text, length: usize, out: *mut c_char, out_length: usize) -> c_int;
    fn rctl_remove_rule(filter: Text, length: usize, out: *mut c_char, out_length: usize) -> c_int;
    fn dbopen(file: Text, flags: c_int, mode: c_int, kind: c_int, info: *const c_void) -> *mut Db;
    fn modfind(name: Text) -> c_int;
    fn kldload(name: Text) -> c_int;
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Bytes up to the first NUL.
fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Names and values as `nmount`, `jail_set` and `jail_get` take them. The kernel may write into a value.
#[derive(Default)]
struct Options(Vec<Vec<u8>>);

impl Options {
    fn bytes(&mut self, name: &str, value: &[u8]) {
        self.0.push([name.as_bytes(), b"\0"].concat());
        self.0.push(value.to_vec());
    }

    fn text(&mut self, name: &str, value: &[u8]) -> io::Result<()> {
        self.bytes(name, c_string(value)?.as_bytes_with_nul());
        Ok(())
    }

    /// The value at which the kernel may have written, by its place in the order of names.
    fn value(&self, place: usize) -> &[u8] {
        self.0.get(place * 2 + 1).map(Vec::as_slice).unwrap_or_default()
    }

    fn number(&self, place: usize) -> i32 {
        self.value(place).try_into().map_or(-1, i32::from_ne_bytes)
    }

    fn vectors(&mut self) -> Vec<libc::iovec> {
        let vector = |value: &mut Vec<u8>| libc::iovec {
            iov_base: if value.is_empty() { std::ptr::null_mut() } else { value.as_mut_ptr().cast() },
            iov_len: value.len(),
        };
        self.0.iter_mut().map(vector).collect()
    }

    fn call(&mut self, function: unsafe extern "C" fn(*mut libc::iovec, libc::c_uint, c_int) -> c_int, flags: c_int) -> io::Result<c_int> {
        let mut vectors = self.vectors();
        let count = libc::c_uint::try_from(vectors.len()).map_err(io::Error::other)?;
        // SAFETY: the vectors point to the buffers of `self`, which live through the call and are as long as they say; the functions are those
        // of the three system calls that take such vectors.
        check(unsafe { function(vectors.as_mut_ptr(), count, flags) })
    }
}

fn silent(error: io::Error) -> (io::Error, String) {
    (error, String::new())
}

pub(crate) fn create_jail(parameters: &[Parameter], owned: bool) -> Result<Jail, (io::Error, String)> {
    let mut options = Options::default();
    options.bytes("errmsg", &[0; MESSAGE]);
    let mut flags = names::JAIL_CREATE;
    if owned {
        flags |= names::JAIL_OWN_DESC;
        options.bytes("desc", &(-1_i32).to_ne_bytes());
    }
    for Parameter { name, value } in parameters {
        match value {
            Value::Int(number) => options.bytes(name, &number.to_ne_bytes()),
            Value::Text(text) => options.text(name, text.as_bytes()).map_err(silent)?,
            Value::Path(path) => options.text(name, path.as_os_str().as_bytes()).map_err(silent)?,
            Value::Set => options.bytes(name, &[]),
        }
    }
    match options.call(libc::jail_set, flags) {
        Ok(id) => {
            let fd: RawFd = if owned { options.number(1) } else { -1 };
            // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
            let owner = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
            if let Some(owner) = &owner {
                close_on_exec(owner.as_fd()).map_err(silent)?;
            }
            Ok(Jail { id, owner })
        }
        Err(error) => Err((error, String::from_utf8_lossy(until_nul(options.value(0))).into_owned())),
    }
}

fn close_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

pub(crate) fn jails() -> io::Result<Vec<(JailId, String)>> {
    let mut jails = Vec::new();
    let mut last = 0_i32;
    loop {
        let mut options = Options::default();
        options.bytes("lastjid", &last.to_ne_bytes());
        options.bytes("name", &[0; JAIL_NAME]);
        match options.call(libc::jail_get, 0) {
            Ok(id) => {
                jails.push((id, String::from_utf8_lossy(until_nul(options.value(1))).into_owned()));
                last = id;
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(jails),
            Err(error) => return Err(error),
        }
    }
}

pub(crate) fn find_jail(name: &str) -> io::Result<Option<JailId>> {
    let mut options = Options::default();
    options.text("name", name.as_bytes())?;
    match options.call(libc::jail_get, 0) {
        Ok(id) => Ok(Some(id)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn remove_jail(jail: JailId) -> io::Result<()> {
    // SAFETY: no memory is passed.
    match check(unsafe { libc::jail_remove(jail) }) {
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) && error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Enters a jail: root and working directory become the jail's root.
///
/// # Errors
/// There is no such jail, or the caller is not root.
pub fn attach_jail(jail: JailId) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::jail_attach(jail) }).map(drop)
}

pub(crate) fn mount(request: &MountRequest) -> Result<(), (io::Error, String)> {
    let mut options = Options::default();
    options.bytes("errmsg", &[0; MESSAGE]);
    options.text("fstype", request.kind.as_bytes()).map_err(silent)?;
    options.text("fspath", request.path.as_os_str().as_bytes()).map_err(silent)?;
    if let Some(source) = &request.from {
        options.text("from", source.path.as_os_str().as_bytes()).map_err(silent)?;
    }
    for (name, value) in &request.options {
        options.text(name, value.as_bytes()).map_err(silent)?;
    }
    let flags = names::MNT_NOSUID | if request.read_only { names::MNT_RDONLY } else { 0 };
    let flags = c_int::try_from(flags).map_err(|error| silent(io::Error::other(error)))?;
    match options.call(libc::nmount, flags) {
        Ok(_) => Ok(()),
        Err(error) => Err((error, String::from_utf8_lossy(until_nul(options.value(0))).into_owned())),
    }
}

pub(crate) fn mounts() -> io::Result<Vec<MountPoint>> {
    let mut room = 64;
    loop {
        // SAFETY: an all-zero `statfs` is a valid one.
        let mut table: Vec<libc::statfs> = vec![unsafe { std::mem::zeroed() }; room];
        let size = libc::c_long::try_from(size_of_val(table.as_slice())).map_err(io::Error::other)?;
        // SAFETY: the buffer is as large as is said.
        let count = check(unsafe { libc::getfsstat(table.as_mut_ptr(), size, names::MNT_NOWAIT) })?;
        let count = usize::try_from(count).unwrap_or(0);
        if count == room {
            // There may be more.
            room *= 4;
            continue;
        }
        table.truncate(count);
        return Ok(table.iter().map(mount_point).collect());
    }
}

fn mount_point(statfs: &libc::statfs) -> MountPoint {
    let text = |chars: &[c_char]| -> Vec<u8> { chars.iter().map(|char| char.cast_unsigned()).take_while(|byte| *byte != 0).collect() };
    // SAFETY: `fsid_t` is two 32-bit integers, which the `libc` crate does not let us read.
    let [first, second]: [i32; 2] = unsafe { std::mem::transmute(statfs.f_fsid) };
    MountPoint {
        id: MountId(first, second),
        path: PathBuf::from(OsString::from_vec(text(&statfs.f_mntonname))),
        kind: String::from_utf8_lossy(&text(&statfs.f_fstypename)).into_owned(),
    }
}

pub(crate) fn unmount(id: MountId, force: bool) -> io::Result<()> {
    let name = c_string(format!("FSID:{}:{}", id.0, id.1).as_bytes())?;
    let flags = names::MNT_BYFSID | if force { names::MNT_FORCE } else { 0 };
    let flags = c_int::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the name is a live C string.
    check(unsafe { libc::unmount(name.as_ptr(), flags) }).map(drop)
}

fn rule(text: &str, function: unsafe extern "C" fn(Text, usize, *mut c_char, usize) -> c_int) -> io::Result<()> {
    let text = c_string(text.as_bytes())?;
    // SAFETY: the text is a live C string of that length; nothing is to be written.
    check(unsafe { function(text.as_ptr(), text.as_bytes_with_nul().len(), std::ptr::null_mut(), 0) }).map(drop)
}

pub(crate) fn add_limit(text: &str) -> io::Result<()> {
    rule(text, rctl_add_rule)
}

pub(crate) fn remove_limits(filter: &str) -> io::Result<()> {
    match rule(filter, rctl_remove_rule) {
        // No rule, or no limits at all.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOSYS | libc::EOPNOTSUPP)) => Ok(()),
        other => other,
    }
}

fn open_devices() -> io::Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path is a live C string.
    let fd = check(unsafe { libc::open(c"/dev".as_ptr(), flags) })?;
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn empty_rule(ruleset: u16, number: u16) -> DevfsRule {
    DevfsRule {
        dr_magic: names::DEVFS_MAGIC,
        dr_id: u32::from(ruleset) << 16 | u32::from(number),
        dr_icond: 0,
        dr_dswflags: 0,
        dr_pathptrn: [0; names::DEVFS_MAXPTRNLEN],
        dr_iacts: 0,
        dr_bacts: 0,
        dr_uid: 0,
        dr_gid: 0,
        dr_mode: 0,
        dr_incset: 0,
    }
}

pub(crate) fn device_rules(ruleset: u16) -> io::Result<Vec<DeviceRule>> {
    let devices = open_devices()?;
    let mut rules = Vec::new();
    let mut rule = empty_rule(ruleset, 0);
    loop {
        // SAFETY: the request takes a pointer to a `devfs_rule`, which lives through the call.
        match check(unsafe { libc::ioctl(devices.as_raw_fd(), names::DEVFSIO_RGETNEXT, &raw mut rule) }) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(rules),
            Err(error) => return Err(error),
        }
        let pattern = String::from_utf8_lossy(until_nul(&rule.dr_pathptrn)).into_owned();
        rules.push(match (rule.dr_icond, rule.dr_iacts, rule.dr_bacts) {
            (0, names::DRA_BACTS, names::DRB_HIDE) => DeviceRule::HideAll,
            (names::DRC_PATHPTRN, names::DRA_BACTS, names::DRB_UNHIDE) => DeviceRule::Show(pattern),
            _ => DeviceRule::Other,
        });
        rule = empty_rule(ruleset, u16::try_from(rule.dr_id & 0xffff).unwrap_or(u16::MAX));
    }
}

pub(crate) fn add_device_rule(ruleset: u16, number: u16, rule: &DeviceRule) -> io::Result<()> {
    let mut raw = empty_rule(ruleset, number);
    raw.dr_iacts = names::DRA_BACTS;
    match rule {
        DeviceRule::HideAll => raw.dr_bacts = names::DRB_HIDE,
        DeviceRule::Show(pattern) => {
            raw.dr_bacts = names::DRB_UNHIDE;
            raw.dr_icond = names::DRC_PATHPTRN;
            let room = raw.dr_pathptrn.get_mut(..pattern.len()).filter(|_| pattern.len() < names::DEVFS_MAXPTRNLEN);
            room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(pattern.as_bytes());
        }
        DeviceRule::Other => return Err(io::ErrorKind::InvalidInput.into()),
    }
    let devices = open_devices()?;
    // SAFETY: the request takes a pointer to a `devfs_rule`, which lives through the call.
    check(unsafe { libc::ioctl(devices.as_raw_fd(), names::DEVFSIO_RADD, &raw mut raw) }).map(drop)
}

/// A number that the kernel tells; `None` where it knows no such.
///
/// # Errors
/// The kernel refuses to tell, or it is no number of 32 bits.
pub fn sysctl_number(name: &str) -> io::Result<Option<i32>> {
    let name = c_string(name.as_bytes())?;
    let (mut value, mut size) = (0_i32, size_of::<i32>());
    // SAFETY: name, value and size live through the call, and the size is that of the value.
    match check(unsafe { libc::sysctlbyname(name.as_ptr(), (&raw mut value).cast(), &raw mut size, std::ptr::null(), 0) }) {
        Ok(_) if size == size_of::<i32>() => Ok(Some(value)),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks the kernel's tree of names for something: `query` is 1 for the name of `id`, 2 for what follows it.
fn sysctl_tree(query: c_int, id: &[c_int], answer: &mut [u8]) -> io::Result<usize> {
    let request = [&[0, query], id].concat();
    let count = libc::c_uint::try_from(request.len()).map_err(io::Error::other)?;
    let mut size = answer.len();
    // SAFETY: request and answer live through the call and are as long as they say.
    check(unsafe { libc::sysctl(request.as_ptr(), count, answer.as_mut_ptr().cast(), &raw mut size, std::ptr::null(), 0) })?;
    Ok(size)
}

fn jail_parameters() -> io::Result<Vec<String>> {
    const PREFIX: &str = "security.jail.param.";
    /// More than the kernel allows.
    const DEPTH: usize = 32;
    let mut id = vec![0; DEPTH];
    let mut length = DEPTH;
    let top = c_string(b"security.jail.param")?;
    // SAFETY: all pointers are to live memory; the length is that of `id`, in elements.
    check(unsafe { libc::sysctlnametomib(top.as_ptr(), id.as_mut_ptr(), &raw mut length) })?;
    id.truncate(length);
    let mut found = Vec::new();
    loop {
        let mut next = [0_u8; DEPTH * size_of::<c_int>()];
        let size = match sysctl_tree(2, &id, &mut next) {
            Ok(size) => size,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
            Err(error) => return Err(error),
        };
        id = next
            .get(..size)
            .unwrap_or_default()
            .chunks_exact(4)
            .filter_map(|word| word.try_into().ok().map(c_int::from_ne_bytes))
            .collect();
        let mut name = [0; 512];
        sysctl_tree(1, &id, &mut name)?;
        let name = String::from_utf8_lossy(until_nul(&name)).into_owned();
        let Some(parameter) = name.strip_prefix(PREFIX) else { return Ok(found) };
        // That of a whole subsystem has an empty last component.
        found.push(parameter.trim_end_matches('.').to_owned());
    }
}

pub(crate) fn features() -> io::Result<Features> {
    let mut file_systems = Vec::new();
    for name in ["nullfs", "devfs", "fdescfs"] {
        let module = c_string(name.as_bytes())?;
        // SAFETY: the name is a live C string. Loading needs root and fails otherwise, which is as good as not having it.
        if unsafe { modfind(module.as_ptr()) >= 0 || kldload(module.as_ptr()) >= 0 } {
            file_systems.push(name.to_owned());
        }
    }
    Ok(Features {
        release: sysctl_number("kern.osreldate")?.and_then(|number| u32::try_from(number).ok()).unwrap_or(0),
        vnet: sysctl_number("kern.features.vimage")?.is_some_and(|number| number != 0),
        limits: racct_enabled()?,
        file_systems,
        parameters: jail_parameters()?,
    })
}

/// `kern.racct.enable` is a boolean of one byte.
fn racct_enabled() -> io::Result<bool> {
    let (mut value, mut size) = ([0_u8; 4], 4);
    // SAFETY: name, value and size live through the call, and the size is that of the value.
    let result =
        unsafe { libc::sysctlbyname(c"kern.racct.enable".as_ptr(), value.as_mut_ptr().cast(), &raw mut size, std::ptr::null(), 0) };
    match check(result) {
        Ok(_) => Ok(value != [0; 4]),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes `/etc/pwd.db` of a root that nobody else can change yet. The file must not exist.
pub(crate) fn write_user_database(path: &Path, users: &[User]) -> io::Result<()> {
    let records = super::user_records(users)?;
    let file = c_string(path.as_os_str().as_bytes())?;
    let info = HashInfo { bsize: 4096, ffactor: 32, nelem: 256, cachesize: 65536, hash: std::ptr::null(), lorder: names::BIG_ENDIAN };
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    // SAFETY: file name and description live through the call; the description is that of a hash.
    let db = unsafe { dbopen(file.as_ptr(), flags, 0o644, names::DB_HASH, (&raw const info).cast()) };
    if db.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut result = Ok(());
    for (mut key, mut value) in records {
        let mut key = Dbt { data: key.as_mut_ptr().cast(), size: key.len() };
        let value = Dbt { data: value.as_mut_ptr().cast(), size: value.len() };
        // SAFETY: the database is open, and both records live through the call, which copies them.
        if unsafe { ((*db).put)(db, &raw mut key, &raw const value, 0) } != 0 {
            result = Err(io::Error::last_os_error());
            break;
        }
    }
    // SAFETY: the database is open and not used afterwards.
    let closed = unsafe { ((*db).close)(db) };
    result.and_then(|()| check(closed).map(drop))
}

/// Which process returns from [`fork`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The new one.
    Child,
    /// The one that called, with the child's number.
    Parent(i32),
}

/// Forks. The caller must have one thread only, so that the child may do anything; that is checked.
///
/// # Errors
/// There are several threads, or the system refuses a process.
pub fn fork() -> io::Result<Forked> {
    if thread_count()? != 1 {
        return Err(io::Error::other("a process with several threads cannot start builders"));
    }
    // SAFETY: there is no other thread that could hold a lock or change memory.
    Ok(match check(unsafe { libc::fork() })? {
        0 => Forked::Child,
        pid => Forked::Parent(pid),
    })
}

fn thread_count() -> io::Result<usize> {
    let request = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, nix::unistd::getpid().as_raw()];
    // SAFETY: an all-zero `kinfo_proc` is a valid one.
    let mut info: libc::kinfo_proc = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::kinfo_proc>();
    // SAFETY: request, answer and size live through the call and are as long as they say.
    check(unsafe { libc::sysctl(request.as_ptr(), 4, (&raw mut info).cast(), &raw mut size, std::ptr::null(), 0) })?;
    usize::try_from(info.ki_numthreads).map_err(io::Error::other)
}

fn procctl(command: c_int, data: *mut c_void) -> io::Result<()> {
    // SAFETY: the callers below pass what the command takes: nothing, an `int`, a `procctl_reaper_kill`. Process 0 is the calling one.
    check(unsafe { libc::procctl(libc::P_PID, 0, command, data) }).map(drop)
}

/// Makes this process the one that adopts the orphans among its descendants, wherever they are.
///
/// # Errors
/// The system refuses.
pub fn become_reaper() -> io::Result<()> {
    procctl(names::PROC_REAP_ACQUIRE, std::ptr::null_mut())
}

/// As a reaper, sends a signal to all descendants.
///
/// # Errors
/// The system refuses. That there is none is no error.
pub fn signal_descendants(signal: c_int) -> io::Result<()> {
    let mut request = ReaperKill { rk_sig: signal, rk_flags: 0, rk_subtree: 0, rk_killed: 0, rk_fpid: 0, rk_pad0: [0; 15] };
    match procctl(names::PROC_REAP_KILL, (&raw mut request).cast()) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// The signal that this process gets when its parent ends.
///
/// # Errors
/// The system refuses.
pub fn set_death_signal(signal: c_int) -> io::Result<()> {
    set_trait(names::PROC_PDEATHSIG_CTL, signal)
}

fn set_trait(command: c_int, value: c_int) -> io::Result<()> {
    let mut value = value;
    procctl(command, (&raw mut value).cast())
}

/// From its next program on, this process and its children find their memory at the same addresses each time.
///
/// # Errors
/// The system refuses.
pub fn fix_addresses() -> io::Result<()> {
    set_trait(names::PROC_ASLR_CTL, names::PROC_ASLR_FORCE_DISABLE)
}

/// For this process and its children, set-user-id and set-group-id programs are as any other.
///
/// # Errors
/// The system refuses.
pub fn no_new_privileges() -> io::Result<()> {
    set_trait(names::PROC_NO_NEW_PRIVS_CTL, names::PROC_NO_NEW_PRIVS_ENABLE)
}

/// Until it runs another program, nobody but root reads this process's memory or its core.
///
/// # Errors
/// The system refuses.
pub fn forbid_tracing() -> io::Result<()> {
    set_trait(names::PROC_TRACE_CTL, names::PROC_TRACE_CTL_DISABLE)
}

/// What `ps` calls this process.
pub fn set_title(title: &CStr) {
    // SAFETY: format and argument are live C strings, and the format takes one.
    unsafe { libc::setproctitle(c"-%s".as_ptr(), title.as_ptr()) };
}

/// Gives the loopback interface of this process's network stack its address, 127.0.0.1; the kernel adds ::1.
///
/// # Errors
/// The stack is not the jail's own, or the caller is not root.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = |address: [u8; 4]| SockaddrIn {
        sin_len: u8::try_from(size_of::<SockaddrIn>()).unwrap_or(16),
        sin_family: u8::try_from(libc::AF_INET).unwrap_or(2),
        sin_port: 0,
        sin_addr: address,
        sin_zero: [0; 8],
    };
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().zip(b"lo0") {
        *to = *from;
    }
    let request = InAliasreq {
        ifra_name: name,
        ifra_addr: address([127, 0, 0, 1]),
        ifra_broadaddr: SockaddrIn { sin_len: 0, sin_family: 0, ..address([0; 4]) },
        ifra_mask: address([255, 0, 0, 0]),
        ifra_vhid: 0,
    };
    // SAFETY: the request takes a pointer to an `in_aliasreq`, which lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), names::SIOCAIFADDR, &raw const request) }).map(drop)
}

/// Closes all descriptors from `first` on.
pub fn close_from(first: RawFd) {
    // SAFETY: no memory is passed. Called in a process that is about to become another program, or that owns nothing beyond `first`.
    unsafe { libc::closefrom(first) };
}

/// Closes all descriptors but 0, 1, 2 and `kept`.
///
/// # Errors
/// The system refuses.
pub fn close_all_but(kept: BorrowedFd<'_>) -> io::Result<()> {
    let kept = kept.as_raw_fd();
    if kept > 3 {
        let last = libc::c_uint::try_from(kept - 1).map_err(io::Error::other)?;
        // SAFETY: no memory is passed. Called in a process that uses none of these and ends without dropping their owners.
        check(unsafe { libc::close_range(3, last, 0) })?;
    }
    close_from(kept.max(2) + 1);
    Ok(())
}

/// Asks the kernel something of unknown length, at most `limit` bytes; `None` where the process is gone or not to be asked about.
fn sysctl_bytes(request: &[c_int], limit: usize) -> io::Result<Option<Vec<u8>>> {
    /// More than any record; with less than that to spare, something may have been left out.
    const SPARE: usize = 8192;
    let count = libc::c_uint::try_from(request.len()).map_err(io::Error::other)?;
    let mut room = 64 << 10;
    while room <= limit {
        let mut size = room;
        let mut answer = vec![0_u8; room];
        // SAFETY: request and answer live through the call and are as long as they say.
        match check(unsafe { libc::sysctl(request.as_ptr(), count, answer.as_mut_ptr().cast(), &raw mut size, std::ptr::null(), 0) }) {
            Ok(_) if size <= room - SPARE => {
                answer.truncate(size);
                return Ok(Some(answer));
            }
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {}
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::ESRCH | libc::EPERM | libc::EACCES | libc::ENOENT | libc::EINVAL | libc::EBUSY) => Ok(None),
                    _ => Err(error),
                };
            }
        }
        room *= 2;
    }
    Err(io::Error::from_raw_os_error(libc::ENOMEM))
}

/// Calls `each` with bytes in which all paths stand that a process uses: its program, directories, open and mapped files, environment. They are the
/// kernel's own records, of every process that the caller may look at. What this process itself has open is not among them: it knows what it needs, and
/// what it syncs or hashes for a moment it does not.
///
/// # Errors
/// The kernel refuses to list processes.
pub fn for_each_process(mut each: impl FnMut(&[u8])) -> io::Result<()> {
    /// More than this is no answer.
    const LIMIT: usize = 256 << 20;
    /// More than the kernel reads of an environment, which is twice `PATH_MAX + ARG_MAX` (`get_ps_strings` of `sys/kern/kern_proc.c`).
    const ENVIRONMENT: usize = 4 << 20;
    let list = sysctl_bytes(&[libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PROC, 0], LIMIT)?.unwrap_or_default();
    let size = size_of::<libc::kinfo_proc>();
    if list.len() < size {
        return Err(io::ErrorKind::NotFound.into());
    }
    for record in list.chunks_exact(size) {
        let start = std::mem::offset_of!(libc::kinfo_proc, ki_pid);
        let Some(pid) = record.get(start..start + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes) else { continue };
        for what in [libc::KERN_PROC_PATHNAME, libc::KERN_PROC_FILEDESC, libc::KERN_PROC_VMMAP, libc::KERN_PROC_ENV, libc::KERN_PROC_CWD] {
            if what == libc::KERN_PROC_FILEDESC && u32::try_from(pid).is_ok_and(|pid| pid == std::process::id()) {
                continue;
            }
            let environment = what == libc::KERN_PROC_ENV;
            match sysctl_bytes(&[libc::CTL_KERN, libc::KERN_PROC, what, pid], if environment { ENVIRONMENT } else { LIMIT }) {
                Ok(Some(bytes)) => each(&bytes),
                Ok(None) => {}
                // It is in the process's own memory. One that ends has none any more, and one that wrote over it must not stop collections.
                Err(error) if environment && matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOEXEC | libc::EFAULT)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
