//! FreeBSD's numbers and layouts. `headers` lists them for the test that compiles them with FreeBSD's headers.
#![cfg_attr(not(target_os = "freebsd"), allow(dead_code))]

use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void};

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $value:expr, $c:expr;)*) => {
        $($(#[$doc])* pub(crate) const $name: $type = $value;)*
        /// C expressions with the values that they must have.
        #[cfg(test)]
        fn numbers() -> Vec<(&'static str, i128)> {
            vec![$(($c, i128::from($name))),*]
        }
    };
}

numbers! {
    JAIL_CREATE: c_int = 0x01, "JAIL_CREATE";
    /// Since FreeBSD 15.
    JAIL_OWN_DESC: c_int = 0x80, "JAIL_OWN_DESC";
    JAIL_SYS_DISABLE: c_int = 0, "JAIL_SYS_DISABLE";
    JAIL_SYS_NEW: c_int = 1, "JAIL_SYS_NEW";
    JAIL_SYS_INHERIT: c_int = 2, "JAIL_SYS_INHERIT";
    MNT_RDONLY: u64 = 0x1, "MNT_RDONLY";
    MNT_NOSUID: u64 = 0x8, "MNT_NOSUID";
    MNT_FORCE: u64 = 0x0008_0000, "MNT_FORCE";
    MNT_BYFSID: u64 = 0x0800_0000, "MNT_BYFSID";
    MNT_NOWAIT: c_int = 2, "MNT_NOWAIT";
    DEVFS_MAGIC: u32 = 0xdb0a_087a, "DEVFS_MAGIC";
    DRC_PATHPTRN: c_int = 0x2, "DRC_PATHPTRN";
    DRA_BACTS: c_int = 0x1, "DRA_BACTS";
    DRB_HIDE: c_int = 0x1, "DRB_HIDE";
    DRB_UNHIDE: c_int = 0x2, "DRB_UNHIDE";
    DEVFSIO_RADD: c_ulong = 0xc0ec_4400, "DEVFSIO_RADD";
    DEVFSIO_RGETNEXT: c_ulong = 0xc0ec_4404, "DEVFSIO_RGETNEXT";
    SIOCAIFADDR: c_ulong = 0x8044_692b, "SIOCAIFADDR";
    PROC_REAP_ACQUIRE: c_int = 2, "PROC_REAP_ACQUIRE";
    PROC_REAP_KILL: c_int = 6, "PROC_REAP_KILL";
    PROC_PDEATHSIG_CTL: c_int = 11, "PROC_PDEATHSIG_CTL";
    PROC_TRACE_CTL: c_int = 7, "PROC_TRACE_CTL";
    PROC_TRACE_CTL_DISABLE: c_int = 2, "PROC_TRACE_CTL_DISABLE";
    PROC_ASLR_CTL: c_int = 13, "PROC_ASLR_CTL";
    PROC_ASLR_FORCE_DISABLE: c_int = 2, "PROC_ASLR_FORCE_DISABLE";
    PROC_NO_NEW_PRIVS_CTL: c_int = 19, "PROC_NO_NEW_PRIVS_CTL";
    PROC_NO_NEW_PRIVS_ENABLE: c_int = 1, "PROC_NO_NEW_PRIVS_ENABLE";
    DB_HASH: c_int = 1, "DB_HASH";
    BIG_ENDIAN: c_int = 4321, "BIG_ENDIAN";
    PW_KEYBYNAME: u8 = 0x31, "_PW_KEYBYNAME";
    PW_KEYBYNUM: u8 = 0x32, "_PW_KEYBYNUM";
    PW_KEYBYUID: u8 = 0x33, "_PW_KEYBYUID";
    PWD_VERSION: u8 = 4, "_PWD_CURRENT_VERSION";
    PWF_ALL: u32 = 0x3ff, "(_PWF_NAME|_PWF_PASSWD|_PWF_UID|_PWF_GID|_PWF_CHANGE|_PWF_CLASS|_PWF_GECOS|_PWF_DIR|_PWF_SHELL|_PWF_EXPIRE)";
}

/// The key under which a user database has its version.
pub(crate) const PWD_VERSION_KEY: &[u8] = b"\xffVERSION";
/// The longest pattern of a device rule, with its NUL.
pub(crate) const DEVFS_MAXPTRNLEN: usize = 200;

/// `struct devfs_rule` of `<fs/devfs/devfs.h>`.
#[repr(C)]
pub(crate) struct DevfsRule {
    pub(crate) dr_magic: u32,
    pub(crate) dr_id: u32,
    pub(crate) dr_icond: c_int,
    pub(crate) dr_dswflags: c_int,
    pub(crate) dr_pathptrn: [u8; DEVFS_MAXPTRNLEN],
    pub(crate) dr_iacts: c_int,
    pub(crate) dr_bacts: c_int,
    pub(crate) dr_uid: u32,
    pub(crate) dr_gid: u32,
    pub(crate) dr_mode: u16,
    pub(crate) dr_incset: u16,
}

/// `struct sockaddr_in` of `<netinet/in.h>`.
#[repr(C)]
pub(crate) struct SockaddrIn {
    pub(crate) sin_len: u8,
    pub(crate) sin_family: u8,
    pub(crate) sin_port: u16,
    pub(crate) sin_addr: [u8; 4],
    pub(crate) sin_zero: [u8; 8],
}

/// `struct in_aliasreq` of `<netinet/in_var.h>`.
#[repr(C)]
pub(crate) struct InAliasreq {
    pub(crate) ifra_name: [u8; 16],
    pub(crate) ifra_addr: SockaddrIn,
    pub(crate) ifra_broadaddr: SockaddrIn,
    pub(crate) ifra_mask: SockaddrIn,
    pub(crate) ifra_vhid: c_int,
}

/// `struct procctl_reaper_kill` of `<sys/procctl.h>`.
#[repr(C)]
pub(crate) struct ReaperKill {
    pub(crate) rk_sig: c_int,
    pub(crate) rk_flags: c_uint,
    pub(crate) rk_subtree: c_int,
    pub(crate) rk_killed: c_uint,
    pub(crate) rk_fpid: c_int,
    pub(crate) rk_pad0: [c_uint; 15],
}

/// `DBT` of `<db.h>`.
#[repr(C)]
pub(crate) struct Dbt {
    pub(crate) data: *mut c_void,
    pub(crate) size: usize,
}

type Close = unsafe extern "C" fn(*mut Db) -> c_int;
type Del = unsafe extern "C" fn(*const Db, *const Dbt, c_uint) -> c_int;
type Get = unsafe extern "C" fn(*const Db, *const Dbt, *mut Dbt, c_uint) -> c_int;
type Put = unsafe extern "C" fn(*const Db, *mut Dbt, *const Dbt, c_uint) -> c_int;
type Seq = unsafe extern "C" fn(*const Db, *mut Dbt, *mut Dbt, c_uint) -> c_int;
type Sync = unsafe extern "C" fn(*const Db, c_uint) -> c_int;
type Fd = unsafe extern "C" fn(*const Db) -> c_int;

/// `DB` of `<db.h>`. Only what `dbopen` returns is used, where all functions are set.
#[repr(C)]
pub(crate) struct Db {
    pub(crate) kind: c_int,
    pub(crate) close: Close,
    pub(crate) del: Del,
    pub(crate) get: Get,
    pub(crate) put: Put,
    pub(crate) seq: Seq,
    pub(crate) sync: Sync,
    pub(crate) internal: *mut c_void,
    pub(crate) fd: Fd,
}

/// `HASHINFO` of `<db.h>`.
#[repr(C)]
pub(crate) struct HashInfo {
    pub(crate) bsize: c_uint,
    pub(crate) ffactor: c_uint,
    pub(crate) nelem: c_uint,
    pub(crate) cachesize: c_uint,
    pub(crate) hash: *const c_void,
    pub(crate) lorder: c_int,
}

/// A C string that is not to be changed.
pub(crate) type Text = *const c_char;

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;
    use std::path::Path;
    use std::process::Command;

    macro_rules! layout {
        ($facts:ident, $rust:ty, $c:literal, $($field:ident = $name:literal),*) => {
            $facts.push((concat!("sizeof(", $c, ")").to_owned(), size_of::<$rust>() as i128));
            $($facts.push((concat!("offsetof(", $c, ", ", $name, ")").to_owned(), offset_of!($rust, $field) as i128));)*
        };
    }

    fn facts() -> Vec<(String, i128)> {
        let mut facts: Vec<(String, i128)> = numbers().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        facts.push(("DEVFS_MAXPTRNLEN".to_owned(), DEVFS_MAXPTRNLEN as i128));
        facts.push(("sizeof(_PWD_VERSION_KEY)".to_owned(), PWD_VERSION_KEY.len() as i128 + 1));
        layout!(
            facts,
            DevfsRule,
            "struct devfs_rule",
            dr_magic = "dr_magic",
            dr_id = "dr_id",
            dr_icond = "dr_icond",
            dr_pathptrn = "dr_pathptrn",
            dr_iacts = "dr_iacts",
            dr_bacts = "dr_bacts",
            dr_uid = "dr_uid",
            dr_gid = "dr_gid",
            dr_mode = "dr_mode",
            dr_incset = "dr_incset"
        );
        layout!(
            facts,
            SockaddrIn,
            "struct sockaddr_in",
            sin_len = "sin_len",
            sin_family = "sin_family",
            sin_port = "sin_port",
            sin_addr = "sin_addr"
        );
        layout!(
            facts,
            InAliasreq,
            "struct in_aliasreq",
            ifra_name = "ifra_name",
            ifra_addr = "ifra_addr",
            ifra_broadaddr = "ifra_broadaddr",
            ifra_mask = "ifra_mask",
            ifra_vhid = "ifra_vhid"
        );
        layout!(
            facts,
            ReaperKill,
            "struct procctl_reaper_kill",
            rk_sig = "rk_sig",
            rk_flags = "rk_flags",
            rk_subtree = "rk_subtree",
            rk_killed = "rk_killed",
            rk_fpid = "rk_fpid"
        );
        layout!(facts, Dbt, "DBT", data = "data", size = "size");
        layout!(
            facts,
            Db,
            "DB",
            kind = "type",
            close = "close",
            del = "del",
            get = "get",
            put = "put",
            seq = "seq",
            sync = "sync",
            internal = "internal",
            fd = "fd"
        );
        layout!(
            facts,
            HashInfo,
            "HASHINFO",
            bsize = "bsize",
            ffactor = "ffactor",
            nelem = "nelem",
            cachesize = "cachesize",
            hash = "hash",
            lorder = "lorder"
        );
        facts
    }

    const HEADERS: [&str; 16] = [
        "stddef.h",
        "sys/param.h",
        "sys/types.h",
        "sys/time.h",
        "sys/ioccom.h",
        "sys/jail.h",
        "sys/mount.h",
        "sys/procctl.h",
        "sys/socket.h",
        "net/if.h",
        "netinet/in.h",
        "netinet/in_var.h",
        "sys/sockio.h",
        "fs/devfs/devfs.h",
        "db.h",
        "pwd.h",
    ];

    /// The compiler checks them: FreeBSD's own, or the one of `build-aux/cross-freebsd`.
    fn compile(facts: &[(String, i128)]) -> std::process::Output {
        let mut source: String = HEADERS.iter().map(|header| format!("#include <{header}>\n")).collect();
        for (name, value) in facts {
            if name == "JAIL_OWN_DESC" {
                source += &format!("#ifdef {name}\n_Static_assert({name} == {value}, \"{name}\");\n#endif\n");
            } else {
                source += &format!("_Static_assert((unsigned long long){name} == {value}ULL, \"{name}\");\n");
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("facts.c");
        std::fs::write(&file, source).unwrap();
        let compiler = if cfg!(target_os = "freebsd") {
            "cc".to_owned()
        } else {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../build-aux/cross-freebsd");
            let output = Command::new(script).arg("headers").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        Command::new(compiler).args(["-Wno-everything", "-c", "-o"]).args([dir.path().join("facts.o"), file]).output().unwrap()
    }

    #[test]
    fn numbers_and_layouts_are_those_of_freebsds_headers() {
        if cfg!(target_os = "freebsd") && Command::new("cc").arg("--version").output().is_err() {
            eprintln!("skipped: there is no C compiler");
            return;
        }
        let right = facts();
        let output = compile(&right);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // A wrong one is seen.
        let wrong: Vec<_> = right.iter().map(|(name, value)| (name.clone(), value + i128::from(name == "MNT_BYFSID"))).collect();
        assert!(String::from_utf8_lossy(&compile(&wrong).stderr).contains("MNT_BYFSID"));
    }
}
