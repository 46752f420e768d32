//! Closures on their way from one store to another: `fruix system export`, and `--from` of what needs a closure.
//!
//! What is written has the form of a binary cache without compression: `nix-cache-info`, and for each path `HASH.narinfo` and `nar/NAME.nar`; a directory,
//! or a tar of it in an order in which each path comes after those that it refers to, so that it can be taken in as it comes.
//!
//! There is no signature: whoever says `--from` is root, and trusts the directory or the machine that he names. Hashes are checked, so what was damaged on
//! the way is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal as _, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fruix_drv::narinfo::{MAX_NARINFO, NarInfo, UNCOMPRESSED};
use fruix_drv::{Hash, StoreDir, StorePath};
use fruix_protocol::ops;
use fruix_store::{Config, PathInfo, Store, TempRoots};

use super::{Failure, Site};

/// The file that says whose store it is.
const CACHE_INFO: &str = "nix-cache-info";
/// The directory of archives.
const ARCHIVES: &str = "nar";
/// What a tar's sizes are rounded up to.
const BLOCK: u64 = 512;

/// Where a closure comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// A directory that `export` wrote.
    Directory(PathBuf),
    /// A file that it wrote; `-` for standard input.
    Archive(PathBuf),
    /// Another machine, by ssh(1): `[USER@]HOST`.
    Machine(String),
}

impl std::str::FromStr for From {
    type Err = String;

    fn from_str(word: &str) -> Result<From, String> {
        if let Some(host) = word.strip_prefix("ssh://") {
            let host = host.trim_end_matches('/');
            let plain = |c: char| c.is_ascii_alphanumeric() || "@.-_:[]%".contains(c);
            return match host.chars().next() {
                Some(first) if first != '-' && host.chars().all(plain) => Ok(From::Machine(host.to_owned())),
                _ => Err("is no ssh://[USER@]HOST".to_owned()),
            };
        }
        let path = PathBuf::from(word);
        Ok(if path.is_dir() { From::Directory(path) } else { From::Archive(path) })
    }
}

fn archive_name(path: &StorePath) -> String {
    format!("{ARCHIVES}/{}.nar", path.base_name())
}

fn cache_info(store_dir: &StoreDir) -> String {
    format!("StoreDir: {}\n", store_dir.as_str())
}

/// Refuses a cache of another store: its paths mean nothing here.
fn same_store(store_dir: &StoreDir, text: &str) -> Result<(), Failure> {
    match text.lines().find_map(|line| line.strip_prefix("StoreDir: ")) {
        Some(found) if found == store_dir.as_str() => Ok(()),
        Some(found) => Err(format!("it has paths of `{found}', and this store is `{}'", store_dir.as_str()).into()),
        None => Err(format!("it has no {CACHE_INFO} that says which store it is of").into()),
    }
}

/// The closure of `paths`, references before what refers to them.
async fn closure(site: &Site, paths: &[StorePath]) -> Result<Vec<NarInfo>, Failure> {
    let mut client = site.connect().await?;
    let mut infos = BTreeMap::new();
    let mut wanted = paths.to_vec();
    while let Some(path) = wanted.pop() {
        if infos.contains_key(&path) {
            continue;
        }
        let found = client.query_path_info(ops::QueryPathInfo { path: path.clone() }).await?;
        wanted.extend(found.references.iter().cloned());
        let info = NarInfo {
            path: path.clone(),
            url: archive_name(&path),
            compression: UNCOMPRESSED.to_owned(),
            nar_hash: found.hash,
            nar_size: found.nar_size,
            references: found.references.into_iter().collect(),
            deriver: found.deriver,
        };
        infos.insert(path, info);
    }
    in_order(infos)
}

/// `infos` so that each comes after those that it refers to.
fn in_order(mut infos: BTreeMap<StorePath, NarInfo>) -> Result<Vec<NarInfo>, Failure> {
    let mut ordered = Vec::with_capacity(infos.len());
    let mut missing: BTreeMap<StorePath, usize> = BTreeMap::new();
    let mut referrers: BTreeMap<StorePath, Vec<StorePath>> = BTreeMap::new();
    for info in infos.values() {
        let others = info.references.iter().filter(|reference| **reference != info.path);
        missing.insert(info.path.clone(), others.clone().count());
        for reference in others {
            referrers.entry(reference.clone()).or_default().push(info.path.clone());
        }
    }
    let mut ready: BTreeSet<StorePath> = missing.iter().filter(|(_, count)| **count == 0).map(|(path, _)| path.clone()).collect();
    while let Some(path) = ready.pop_first() {
        for referrer in referrers.remove(&path).unwrap_or_default() {
            if let Some(count) = missing.get_mut(&referrer) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    ready.insert(referrer);
                }
            }
        }
        ordered.extend(infos.remove(&path));
    }
    match infos.into_keys().next() {
        None => Ok(ordered),
        Some(path) => Err(format!("{path} refers to itself through others, or to something that is not there").into()),
    }
}

/// Counts what is written through it, and hashes it.
struct Counted<W> {
    inner: W,
    hasher: fruix_drv::Hasher,
}

impl<W: Write> Counted<W> {
    fn new(inner: W) -> Counted<W> {
        Counted { inner, hasher: fruix_drv::Hasher::new(fruix_drv::HashAlgo::Sha256) }
    }

    fn finish(self) -> (u64, Hash) {
        (self.hasher.count(), self.hasher.finish())
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.write_all(bytes.get(..count).unwrap_or_default())?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes the archive of a path, which must be what the database says.
fn dump(site: &Site, info: &NarInfo, to: &mut dyn Write) -> Result<(), Failure> {
    let mut counted = Counted::new(to);
    let path = site.store_dir.display(&info.path).to_string();
    fruix_store::dump_nar(Path::new(&path), &mut counted)?;
    if counted.finish() == (info.nar_size, info.nar_hash) {
        return Ok(());
    }
    Err(format!("`{path}' is not what was registered of it; `fruix gc --verify=contents,repair' mends the store").into())
}

/// `fruix system export`.
pub(super) async fn export(site: &Site, paths: &[PathBuf], to: Option<&Path>) -> Result<(), Failure> {
    let mut wanted = Vec::new();
    for path in paths {
        let path = std::fs::canonicalize(path).map_err(|error| format!("`{}': {error}", path.display()))?;
        wanted.push(site.store_path(&path)?);
    }
    let infos = closure(site, &wanted).await?;
    match to {
        Some(directory) => export_to(site, &infos, directory),
        None if io::stdout().is_terminal() => Err("this would write an archive to the terminal; say --to=DIR, or send it to a file".into()),
        None => {
            let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
            export_tar(site, &infos, &mut out)?;
            Ok(out.flush()?)
        }
    }
}

fn export_to(site: &Site, infos: &[NarInfo], directory: &Path) -> Result<(), Failure> {
    let told = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| format!("writing `{path}': {error}")
    };
    std::fs::create_dir_all(directory.join(ARCHIVES)).map_err(told(directory))?;
    let about = directory.join(CACHE_INFO);
    match std::fs::read_to_string(&about) {
        Ok(text) => same_store(&site.store_dir, &text).map_err(|error| format!("`{}': {error}", directory.display()))?,
        Err(_) => std::fs::write(&about, cache_info(&site.store_dir)).map_err(told(&about))?,
    }
    for (number, info) in (1..).zip(infos) {
        let text = directory.join(NarInfo::file_name(&info.path));
        if text.exists() {
            continue;
        }
        eprintln!("fruix: {number} of {}: {} ({})", infos.len(), info.path, fruix_store::show_bytes(i64::try_from(info.nar_size)?).trim());
        // The archive, then what tells of it; each whole under its name or not there.
        let put = |path: &Path, fill: &mut dyn FnMut(&mut File) -> Result<(), Failure>| -> Result<(), Failure> {
            let new = path.with_extension("unfinished");
            let mut file = File::create(&new).map_err(told(&new))?;
            fill(&mut file)?;
            file.sync_all().map_err(told(&new))?;
            Ok(std::fs::rename(&new, path).map_err(told(path))?)
        };
        put(&directory.join(&info.url), &mut |file| dump(site, info, file))?;
        put(&text, &mut |file| Ok(file.write_all(info.to_text(&site.store_dir).as_bytes())?))?;
    }
    Ok(())
}

fn export_tar(site: &Site, infos: &[NarInfo], out: &mut dyn Write) -> Result<(), Failure> {
    let head = |out: &mut dyn Write, name: &str, size: u64| -> Result<(), Failure> {
        let mut header = tar::Header::new_gnu();
        header.set_path(name)?;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        Ok(out.write_all(header.as_bytes())?)
    };
    let pad = |out: &mut dyn Write, size: u64| -> Result<(), Failure> {
        let rest = usize::try_from(size.next_multiple_of(BLOCK).saturating_sub(size))?;
        Ok(out.write_all([0; BLOCK as usize].get(..rest).unwrap_or_default())?)
    };
    let text = |out: &mut dyn Write, name: &str, text: &str| -> Result<(), Failure> {
        head(out, name, text.len() as u64)?;
        out.write_all(text.as_bytes())?;
        pad(out, text.len() as u64)
    };
    text(out, CACHE_INFO, &cache_info(&site.store_dir))?;
    for (number, info) in (0_usize..).zip(infos) {
        // The name tells nothing but that an archive follows: one of a store may be longer than a tar's header has room for.
        let url = format!("{ARCHIVES}/{number}.nar");
        text(out, &format!("{number}.narinfo"), &NarInfo { url: url.clone(), ..info.clone() }.to_text(&site.store_dir))?;
        head(out, &url, info.nar_size)?;
        dump(site, info, out)?;
        pad(out, info.nar_size)?;
    }
    Ok(out.write_all(&[0; 2 * BLOCK as usize])?)
}

/// Paths that came from elsewhere: roots until this is dropped.
pub(super) struct Arrived {
    store: Store,
    roots: TempRoots,
    new: usize,
}

/// Brings `closure` into the store.
pub(super) fn bring(site: &Site, from: &From, closure: &StorePath) -> Result<Arrived, Failure> {
    let mut config = Config::new(site.store_dir.clone(), site.state_dir.clone());
    config.log_dir.clone_from(&site.log_dir);
    let store = Store::open(config).map_err(|error| format!("{error} (only the owner of the store, root, brings in what others made)"))?;
    let mut arrived = Arrived { roots: store.temp_roots(), store, new: 0 };
    let result = match from {
        From::Directory(directory) => arrived.take_directory(directory, closure).map_err(|error| (directory.display().to_string(), error)),
        From::Archive(file) if file == Path::new("-") => {
            arrived.take_tar(&mut io::stdin().lock()).map_err(|error| ("standard input".to_owned(), error))
        }
        From::Archive(file) => File::open(file)
            .map_err(Failure::from)
            .and_then(|opened| arrived.take_tar(&mut BufReader::with_capacity(1 << 16, opened)))
            .map_err(|error| (file.display().to_string(), error)),
        From::Machine(host) => arrived.take_machine(host, closure).map_err(|error| (format!("ssh://{host}"), error)),
    };
    result.map_err(|(place, error)| format!("{place}: {error}"))?;
    if !arrived.store.is_valid(closure)? {
        return Err(format!("`{}' was not among what came", site.store_dir.display(closure)).into());
    }
    arrived.store.flush()?;
    if arrived.new > 0 {
        eprintln!("fruix: {} new paths", arrived.new);
    }
    Ok(arrived)
}

impl Arrived {
    fn take(&mut self, info: NarInfo, source: &mut dyn Read) -> Result<(), Failure> {
        if info.compression != UNCOMPRESSED {
            return Err(format!(
                "the archive of {} is compressed with `{}'; `fruix system export' writes it as it is",
                info.path, info.compression
            )
            .into());
        }
        let (path, size) = (info.path.clone(), info.nar_size);
        let info = PathInfo {
            path: info.path,
            nar_hash: info.nar_hash,
            references: info.references,
            deriver: info.deriver,
            registration_time: 0,
            nar_size: info.nar_size,
        };
        if self.store.add_from_elsewhere(&self.roots, &info, source)? {
            self.new = self.new.saturating_add(1);
            eprintln!("fruix: {path} ({})", fruix_store::show_bytes(i64::try_from(size)?).trim());
        }
        Ok(())
    }

    fn take_directory(&mut self, directory: &Path, closure: &StorePath) -> Result<(), Failure> {
        let store_dir = self.store.store_dir().clone();
        same_store(&store_dir, &std::fs::read_to_string(directory.join(CACHE_INFO)).unwrap_or_default())?;
        let mut infos = BTreeMap::new();
        let mut wanted = vec![closure.clone()];
        while let Some(path) = wanted.pop() {
            if infos.contains_key(&path) {
                continue;
            }
            let name = NarInfo::file_name(&path);
            let mut text = String::new();
            let opened = File::open(directory.join(&name)).map_err(|error| format!("{name} (of {path}): {error}"))?;
            opened.take(MAX_NARINFO as u64 + 1).read_to_string(&mut text)?;
            let info = NarInfo::parse(&store_dir, &text).map_err(|error| format!("{name}: {error}"))?;
            if info.path != path {
                return Err(format!("{name} is of another path, {}", info.path).into());
            }
            wanted.extend(info.references.iter().cloned());
            infos.insert(path, info);
        }
        for info in in_order(infos)? {
            let url = Path::new(&info.url);
            if url.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
                return Err(format!("the archive of {} is elsewhere: {:?}", info.path, info.url).into());
            }
            let file = File::open(directory.join(url)).map_err(|error| format!("{}: {error}", info.url))?;
            self.take(info, &mut BufReader::with_capacity(1 << 16, file))?;
        }
        Ok(())
    }

    fn take_tar(&mut self, input: &mut dyn Read) -> Result<(), Failure> {
        let store_dir = self.store.store_dir().clone();
        let mut told: Option<NarInfo> = None;
        let mut archive = tar::Archive::new(input);
        for (number, entry) in archive.entries()?.raw(true).enumerate() {
            let mut entry = entry.map_err(|error| match number {
                0 => {
                    format!("this is nothing that `fruix system export' wrote: {}", error.to_string().chars().take(100).collect::<String>())
                }
                _ => error.to_string(),
            })?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if let Some(info) = told.take_if(|info| info.url == name) {
                self.take(info, &mut entry)?;
                continue;
            }
            if let Some(info) = &told {
                return Err(format!("{name:?} comes where the archive of {} should", info.path).into());
            }
            let mut text = String::new();
            (&mut entry).take(MAX_NARINFO as u64 + 1).read_to_string(&mut text)?;
            if number == 0 && name == CACHE_INFO {
                same_store(&store_dir, &text)?;
            } else if number > 0 && name.ends_with(".narinfo") {
                told = Some(NarInfo::parse(&store_dir, &text).map_err(|error| format!("{name}: {error}"))?);
            } else {
                return Err(format!(
                    "this is nothing that `fruix system export' wrote: it has {:?}",
                    name.chars().take(100).collect::<String>()
                )
                .into());
            }
        }
        match told {
            None => Ok(()),
            Some(info) => Err(format!("it ends before the archive of {}", info.path).into()),
        }
    }

    fn take_machine(&mut self, host: &str, closure: &StorePath) -> Result<(), Failure> {
        // The other shell sees a name of a store path, which has no quotation mark.
        let command = format!("fruix system export '{}'", self.store.store_dir().display(closure));
        let mut ssh = Command::new("ssh").args(["--", host, &command]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let result = match ssh.stdout.take() {
            Some(stdout) => self.take_tar(&mut BufReader::with_capacity(1 << 16, stdout)),
            None => Err("ssh gives nothing".into()),
        };
        // It has closed its output, or its output is closed: it ends.
        let status = ssh.wait()?;
        if !status.success() {
            return Err(format!("`{command}' failed there ({status})").into());
        }
        result
    }
}
