//! `store-dump FRX TMP`: everything that a daemon left, as lines that two daemons' dumps can be compared by.
//!
//! FRX has the directories `store`, `var` (with `db` and `log`) and `etc`; TMP is where builds were made. No daemon may run any more. What is
//! left out or made alike is in `compat-tests/differential/normalise.sed` and, for what only this program sees, here: times are `now` unless they
//! are those of the store (0 and 1), database keys are replaced by what they stand for, contents of `.links` are counted by name only.

use std::error::Error;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(frx), Some(tmp)) = (args.next(), args.next()) else {
        return Err("usage: store-dump FRX TMP".into());
    };
    let db = frx.join("var/db/db.sqlite");
    if db.exists() {
        database(&db)?;
    }
    for dir in ["store", "var", "etc"] {
        files(&frx, &frx.join(dir), "disk")?;
    }
    files(&tmp, &tmp, "tmp")?;
    Ok(())
}

fn database(path: &Path) -> Result<()> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let queries = [
        ("schema", "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"),
        (
            "valid",
            "SELECT path, hash, narSize, deriver, CASE WHEN abs(registrationTime - strftime('%s', 'now')) < 3600 THEN 'now' ELSE registrationTime END \
             FROM ValidPaths ORDER BY path",
        ),
        (
            "refs",
            "SELECT a.path, b.path FROM Refs LEFT JOIN ValidPaths a ON referrer = a.id LEFT JOIN ValidPaths b ON reference = b.id ORDER BY 1, 2",
        ),
        ("outputs", "SELECT p.path, o.id, o.path FROM DerivationOutputs o LEFT JOIN ValidPaths p ON drv = p.id ORDER BY 1, 2"),
        (
            "failed",
            "SELECT path, CASE WHEN abs(time - strftime('%s', 'now')) < 3600 THEN 'now' ELSE time END FROM FailedPaths ORDER BY path",
        ),
        ("journal", "PRAGMA journal_mode"),
        ("integrity", "PRAGMA integrity_check"),
    ];
    for (name, query) in queries {
        let mut statement = db.prepare(query)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let mut line = format!("db {name}");
            for column in 0..columns {
                let text = match row.get_ref(column)? {
                    ValueRef::Null => "NULL".to_owned(),
                    ValueRef::Integer(number) => number.to_string(),
                    ValueRef::Real(number) => number.to_string(),
                    ValueRef::Text(text) | ValueRef::Blob(text) => String::from_utf8_lossy(text).into_owned(),
                };
                line.push(' ');
                line += &text.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            println!("{line}");
            if name == "valid"
                && let Ok(path) = row.get::<_, String>(0)
                && let Ok(hash) = row.get::<_, String>(1)
            {
                let found = fruix_store::hash_path(Path::new(&path)).map(|(found, _)| format!("sha256:{}", found.base16()));
                match found {
                    Ok(found) if found == hash => {}
                    Ok(found) => println!("db {path}: the disk has {found}"),
                    Err(_) => println!("db {path}: the disk cannot be read"),
                }
            }
        }
    }
    Ok(())
}

fn time(seconds: i64) -> String {
    if (0..=1).contains(&seconds) { seconds.to_string() } else { "now".to_owned() }
}

fn files(base: &Path, path: &Path, what: &str) -> Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    let shown = path.strip_prefix(base)?.display().to_string();
    let kind = metadata.file_type();
    let (letter, detail) = if kind.is_dir() {
        ('d', String::new())
    } else if kind.is_symlink() {
        ('l', format!(" -> {}", fs::read_link(path)?.display()))
    } else if kind.is_file() {
        ('f', String::new())
    } else if kind.is_fifo() {
        ('p', String::new())
    } else if kind.is_socket() {
        ('s', String::new())
    } else {
        ('?', String::new())
    };
    let log = shown.starts_with("var/log/drvs/");
    let in_links = shown.starts_with("store/.links/");
    let in_db = shown.starts_with("var/db/");
    let mut line = format!("{what} {shown} {letter} {:04o} {}:{}", metadata.permissions().mode() & 0o7777, metadata.uid(), metadata.gid());
    if kind.is_file() && !in_db && !log {
        line += &format!(" {}", metadata.len());
    }
    if !in_db && shown.contains('/') && !shown.starts_with("var/") {
        line += &format!(" {}", time(metadata.mtime()));
    }
    if kind.is_file() && shown.starts_with("store/") && !in_links {
        line += &format!(" links={}", metadata.nlink());
    }
    println!("{line}{detail}");
    if kind.is_dir() {
        let mut names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            files(base, &path.join(name), what)?;
        }
    } else if log && kind.is_file() {
        println!("log {shown}:");
        for line in String::from_utf8_lossy(&unpacked(path)?).split('\n') {
            println!("log | {line}");
        }
    } else if kind.is_file() && metadata.len() < 4096 && !in_links && !in_db {
        let text = fs::read(path)?;
        println!("{what} {shown} = {}", text.escape_ascii());
    }
    Ok(())
}

fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    let mut text = Vec::new();
    // A builder that was killed together with its daemon leaves half a stream: what there is counts.
    let read = match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut text),
        Some("bz2") => bzip2::read::MultiBzDecoder::new(&bytes[..]).read_to_end(&mut text),
        _ => {
            text = bytes;
            Ok(0)
        }
    };
    if let Err(error) = read {
        text.extend_from_slice(format!("[{}]", error.kind()).as_bytes());
    }
    Ok(text)
}
