//! The certificate authorities that downloads trust.
//!
//! The sandbox shows a builder no file of the host, so the daemon collects them once ([`collect`]), writes them to a file that the
//! sandbox shows, and names it in [`super::BuiltinInput::ca_bundle`].

use super::BuiltinError;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use ureq::tls::{Certificate, PemItem, parse_pem};

/// Most bytes of certificates taken.
pub(super) const MAX_LEN: u64 = 16 << 20;

/// Variables that name a file, the first that is set wins.
const FILE_VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "NIX_SSL_CERT_FILE"];
/// Variables that name a directory, looked at after those that name a file.
const DIR_VARIABLES: [&str; 2] = ["GUIX_TLS_CERTIFICATE_DIRECTORY", "SSL_CERT_DIR"];
/// Where systems keep their bundle.
const USUAL_FILES: [&str; 8] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/etc/ssl/cert.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
    "/run/current-system/profile/etc/ssl/certs/ca-certificates.crt",
];

/// The host's certificate authorities as PEM text, from where `variable` (the environment) says or else from the usual places.
/// `None` where the host has none: downloads then use the list compiled in.
///
/// # Errors
/// A place named by a variable cannot be read, or holds no certificate. The caller warns, and may go on with `None`.
pub fn collect(variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<Vec<u8>>, BuiltinError> {
    let named = |names: &[&str]| names.iter().find_map(|name| variable(name).filter(|v| !v.is_empty())).map(PathBuf::from);
    if let Some(file) = named(&FILE_VARIABLES) {
        return read_bundle(&file).map(Some);
    }
    if let Some(dir) = named(&DIR_VARIABLES) {
        return read_directory(&dir).map(Some);
    }
    Ok(USUAL_FILES.iter().find_map(|file| read_bundle(Path::new(file)).ok()))
}

fn read_bundle(file: &Path) -> Result<Vec<u8>, BuiltinError> {
    let pem = read_limited(file, MAX_LEN).map_err(BuiltinError::io("reading", file))?;
    certificates(&pem, file)?;
    Ok(pem)
}

/// The certificates of a directory: its `*.pem` files or, where there are none, its `*.crt` files.
fn read_directory(dir: &Path) -> Result<Vec<u8>, BuiltinError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(BuiltinError::io("reading", dir))? {
        names.push(entry.map_err(BuiltinError::io("reading", dir))?.path());
    }
    names.sort();
    let mut pem = Vec::new();
    for extension in ["pem", "crt"] {
        for name in names.iter().filter(|n| n.extension().is_some_and(|e| e == extension)) {
            let room = MAX_LEN.saturating_sub(u64::try_from(pem.len()).unwrap_or(u64::MAX));
            // Such directories are full of dangling links and of files that only some users may read.
            if let Ok(bytes) = read_limited(name, room) {
                pem.extend(bytes);
                pem.push(b'\n');
            }
        }
        if !pem.is_empty() {
            break;
        }
    }
    certificates(&pem, dir)?;
    Ok(pem)
}

/// Reads a regular file of at most `max` bytes. Opening never waits, whatever stands there.
pub(super) fn read_limited(file: &Path, max: u64) -> std::io::Result<Vec<u8>> {
    let handle = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    if !handle.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    handle.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).map_or(true, |len| len > max) {
        return Err(std::io::Error::other("file too large"));
    }
    Ok(bytes)
}

/// The certificates in PEM text from `origin`: at least one.
pub(super) fn certificates(pem: &[u8], origin: &Path) -> Result<Vec<Certificate<'static>>, BuiltinError> {
    let found: Vec<_> = parse_pem(pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(BuiltinError::CaBundle { path: origin.to_owned(), reason: "no certificate found".to_owned() });
    }
    Ok(found)
}
