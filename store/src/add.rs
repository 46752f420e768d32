//! Adding files and texts to the store.
//!
//! What is added is named after its contents, so a path that is valid already is simply that: nothing is written. What is small is held in
//! memory until its name is known, what is larger in a file without a name; the rest goes straight into the staging directory while it is hashed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};

use fruix_drv::path::{fixed_output_path, text_path};
use fruix_drv::{Hash, HashAlgo, Hasher, StorePath, StorePathError, check_name};
use fruix_protocol::nar::{Event, Reader, Writer};

use crate::db::Patience;
use crate::failpoints::Writes;
use crate::fsutil::{Place, exists_at, remove_tree};
use crate::hashing::Hashers;
use crate::info::row_id;
use crate::links;
use crate::locks::{NEVER, Wait};
use crate::nar_fs::{create_file, finish_file, restore_at};
use crate::register::{OnDisk, Parsed};
use crate::staging::Staged;
use crate::{Error, PathInfo, Result, Store, TempRoots};

/// Archives up to this many bytes are held in memory, so that adding what is there already touches no disk.
const IN_MEMORY: usize = 256 * 1024;

/// Archives of directories up to this many bytes are held in a file, so that adding what is there already makes, and removes again, one file
/// and not thousands. A single file goes straight to where it will be: it could not be fewer.
const IN_FILE: u64 = if cfg!(test) { 1024 * 1024 } else { 128 * 1024 * 1024 };

/// Where an archive has the type of its root: behind three tokens of 24, 16 and 16 bytes and a length.
const TYPE_TOKEN: std::ops::Range<usize> = 64..73;

/// Bytes that are copied at once.
const CHUNK: usize = 128 * 1024;

/// References and outputs that an addition which is not to take long may have.
const FEW: usize = 64;

/// The step in which an archive is written to a file.
const SPOOL: &str = "add::spool";

fn bad_name(error: StorePathError) -> Error {
    Error::BadName { reason: error.to_string() }
}

impl Store {
    /// Adds a text file called `name` that refers to `references`, and makes it a root of `roots`. Derivations are added this way; their
    /// outputs are checked.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::NotValid`] for a reference, those of [`Store::check_outputs`] for derivations, and [`Error::Io`].
    pub fn add_text(&self, roots: &TempRoots, name: &str, contents: &[u8], references: &BTreeSet<StorePath>) -> Result<StorePath> {
        let path = text_path(self.store_dir(), name, contents, references).map_err(bad_name)?;
        roots.add(&path)?;
        let printed = self.print(&path);
        let (valid, missing) = self.db().snapshot("querying path in database", |db| {
            if row_id(db, &printed)?.is_some() {
                return Ok((true, None));
            }
            for reference in references {
                if row_id(db, &self.print(reference))?.is_none() {
                    return Ok((false, Some(reference)));
                }
            }
            Ok((false, None))
        })?;
        if valid {
            return Ok(path);
        }
        if let Some(missing) = missing {
            return Err(self.not_valid(missing));
        }
        let mut parsed = Parsed::new();
        if path.is_derivation() {
            let drv = self.parse_derivation(&path, contents)?;
            self.check_outputs(&path, &drv)?;
            parsed.insert(path.clone(), drv);
        }
        let (nar_hash, nar_size) = nar_of_file(contents)?;
        let info = PathInfo { path, nar_hash, references: references.clone(), deriver: None, registration_time: 0, nar_size };
        self.publish_file(info, parsed, contents, Patience::Endless)
    }

    /// Like [`Store::add_text`], unless that takes waiting for another process or a collection, or an error is to be told: then it returns
    /// `None`, having added nothing. For a text of some kilobytes it takes some hundred microseconds; for one that is there, some ten.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::Database`], [`Error::Io`].
    pub fn add_text_at_once(
        &self,
        roots: &TempRoots,
        name: &str,
        contents: &[u8],
        references: &BTreeSet<StorePath>,
    ) -> Result<Option<StorePath>> {
        if references.len() > FEW {
            return Ok(None);
        }
        let path = text_path(self.store_dir(), name, contents, references).map_err(bad_name)?;
        if !roots.try_add_all(std::slice::from_ref(&path))? {
            return Ok(None);
        }
        if self.db().memory.remembered(|answers| &mut answers.valid, &path) == Some(true) {
            return Ok(Some(path));
        }
        let place = self.place(&path);
        // What is not there is not valid, and the database need not be asked: after each change it would read itself anew.
        if exists_at(place.dir, &place.name).unwrap_or(true) {
            return Ok(self.is_valid(&path)?.then_some(path));
        }
        if self.config().sync_additions {
            return Ok(None);
        }
        // While these are held nobody else has the database open who minds locks, and nobody here changes more in it than a few rows.
        let Some(_alone) = self.inner.big_lock.alone() else { return Ok(None) };
        let Some(_brief) = self.db().brief() else { return Ok(None) };
        let mut parsed = Parsed::new();
        if path.is_derivation() {
            let Ok(drv) = self.parse_derivation(&path, contents) else { return Ok(None) };
            if drv.outputs.len() > FEW || !self.check_outputs_at_once(&path, &drv) {
                return Ok(None);
            }
            parsed.insert(path.clone(), drv);
        }
        let (nar_hash, nar_size) = nar_of_file(contents)?;
        let info = PathInfo { path, nar_hash, references: references.clone(), deriver: None, registration_time: 0, nar_size };
        // References that are missing are found out when it is registered; then it is removed again.
        Ok(self.publish_file(info, parsed, contents, Patience::Moment).ok())
    }

    /// Adds what one archive holds under the name `name`, and makes it a root of `roots`. The path follows from the hash of the archive with
    /// `recursive`, else from that of the one file in it, which then is added without its executable bit.
    ///
    /// `source` is read to the end of the archive and not further, also when the addition fails for a reason that does not lie in the
    /// archive, or for one that the archive goes on behind ([`fruix_protocol::nar::Error::goes_on`]). It is read in small pieces. Memory does not depend on the archive.
    ///
    /// # Errors
    /// [`Error::Nar`], [`Error::RegularFileExpected`], [`Error::BadName`], [`Error::Io`], and for derivations those of [`Store::check_outputs`].
    pub fn add_from_nar(&self, roots: &TempRoots, name: &str, recursive: bool, algo: HashAlgo, source: &mut dyn Read) -> Result<StorePath> {
        if let Err(error) = check_name(name) {
            Reader::new(source).skip_to_end()?;
            return Err(bad_name(error));
        }
        // A flat file is hashed by its contents, when they are at hand.
        let algos = if recursive { vec![HashAlgo::Sha256, algo] } else { Vec::new() };
        let mut recorder = Recorder::new(self, Hashing::new(source, &algos), recursive);
        match Reader::new(&mut recorder).skip_to_end() {
            _ if recorder.failed.is_some() => Err(recorder.failed.unwrap_or(Error::RegularFileExpected)),
            Ok(()) => {
                let (kept, hashing) = recorder.finish()?;
                match kept {
                    Kept::Memory(bytes) if !recursive => self.add_small_file(roots, name, algo, &bytes),
                    Kept::Memory(bytes) => self.add_tree(roots, name, self.finished(hashing, algo)?, &*bytes),
                    Kept::File(file) => self.add_tree(roots, name, self.finished(hashing, algo)?, BufReader::with_capacity(CHUNK, file)),
                }
            }
            Err(_) if recorder.full => {
                let (kept, hashing) = recorder.finish()?;
                match kept {
                    Kept::Memory(bytes) => self.add_large(roots, name, recursive, algo, &*bytes, hashing),
                    Kept::File(file) => self.add_large(roots, name, recursive, algo, BufReader::with_capacity(CHUNK, file), hashing),
                }
            }
            Err(source) => Err(Error::Nar { source }),
        }
    }

    /// Adds the path of `info` with its references, from another store: what is in the archive that `source` gives. Returns whether it was not there yet;
    /// if it was, `source` is not read. Whoever calls this has to trust whoever says that this is what such a path has.
    ///
    /// # Errors
    /// [`Error::NotValid`] for a reference that is not here, [`Error::OtherArchive`] when the archive has another hash or size than `info` says; nothing is
    /// added then. [`Error::Nar`], [`Error::Io`], and for derivations those of [`Store::check_outputs`].
    pub fn add_from_elsewhere(&self, roots: &TempRoots, info: &PathInfo, source: &mut dyn Read) -> Result<bool> {
        for reference in info.references.iter().filter(|reference| **reference != info.path) {
            if !self.hold(roots, reference)? {
                return Err(self.not_valid(reference));
            }
        }
        if self.hold(roots, &info.path)? {
            return Ok(false);
        }
        let staged = self.inner.staging.reserve("add");
        let mut hashing = Hashing::new(source, &[HashAlgo::Sha256]);
        restore_at(&mut Reader::new(&mut hashing), &staged.place())?;
        let hashes = self.finished(hashing, HashAlgo::Sha256)?;
        if (hashes.nar, hashes.nar_size) != (info.nar_hash, info.nar_size) {
            let (expected, found) = (info.nar_hash.to_string(), hashes.nar.to_string());
            return Err(Error::OtherArchive { path: self.print(&info.path), expected, found });
        }
        self.publish(info.clone(), &staged, |_| Ok(()))?;
        Ok(true)
    }

    fn finished(&self, hashing: Hashing<'_>, algo: HashAlgo) -> Result<Hashes> {
        hashing.finish(algo).map_err(Error::io("hashing", self.store_dir().as_str()))
    }

    /// Adds what is in a whole archive, whose hashes are known.
    fn add_tree(&self, roots: &TempRoots, name: &str, hashes: Hashes, archive: impl Read) -> Result<StorePath> {
        let path = fixed_output_path(self.store_dir(), true, &hashes.named, name).map_err(bad_name)?;
        if self.hold(roots, &path)? {
            return Ok(path);
        }
        let info = content_addressed(path, hashes.nar, hashes.nar_size);
        let staged = self.inner.staging.reserve("add");
        self.publish(info, &staged, |place| restore_at(&mut Reader::new(archive), place).map(drop))
    }

    /// Adds what is in an archive that is unpacked while it comes: `begun` is what came already, `rest` gives the rest.
    fn add_large(
        &self,
        roots: &TempRoots,
        name: &str,
        recursive: bool,
        algo: HashAlgo,
        begun: impl Read,
        mut rest: Hashing<'_>,
    ) -> Result<StorePath> {
        let staged = self.inner.staging.reserve("add");
        let mut reader = Reader::new(begun.chain(&mut rest));
        let result = if recursive {
            restore_at(&mut reader, &staged.place()).map(|_| None)
        } else {
            stage_file(&mut reader, &staged.place(), algo).map(Some)
        };
        let hashes = match result {
            Ok(None) => {
                drop(reader);
                self.finished(rest, algo)?
            }
            Ok(Some(hashes)) => hashes,
            Err(Error::Nar { source }) if !source.goes_on() => return Err(Error::Nar { source }),
            Err(error) => {
                reader.skip_to_end()?;
                return Err(error);
            }
        };
        let path = fixed_output_path(self.store_dir(), recursive, &hashes.named, name).map_err(bad_name)?;
        if self.hold(roots, &path)? {
            return Ok(path);
        }
        self.publish(content_addressed(path, hashes.nar, hashes.nar_size), &staged, |_| Ok(()))
    }

    fn add_small_file(&self, roots: &TempRoots, name: &str, algo: HashAlgo, archive: &[u8]) -> Result<StorePath> {
        let mut reader = Reader::new(archive);
        let Some(Event::File { .. }) = reader.next()? else { return Err(Error::RegularFileExpected) };
        let mut contents = Vec::with_capacity(archive.len());
        let mut buffer = [0; 4096];
        loop {
            match reader.read_data(&mut buffer)? {
                0 => break,
                got => contents.extend_from_slice(buffer.get(..got).unwrap_or_default()),
            }
        }
        let path = fixed_output_path(self.store_dir(), false, &Hash::of(algo, &contents), name).map_err(bad_name)?;
        if self.hold(roots, &path)? {
            return Ok(path);
        }
        let (nar_hash, nar_size) = nar_of_file(&contents)?;
        self.publish_file(content_addressed(path, nar_hash, nar_size), Parsed::new(), &contents, Patience::Endless)
    }

    /// Makes `path` a root, and says whether it is valid.
    fn hold(&self, roots: &TempRoots, path: &StorePath) -> Result<bool> {
        roots.add(path)?;
        self.is_valid(path)
    }

    /// Makes the path of `info`, a file with `contents`, valid, unless somebody else was faster. It must be a root already. `parsed` has it, if it
    /// is a derivation that was checked; what else has a derivation's name is checked here, since whatever is registered under such a name can
    /// be built.
    ///
    /// The file is written where it will be: one that is half there and not registered is nobody's, and one less is made and renamed.
    fn publish_file(&self, info: PathInfo, mut parsed: Parsed, contents: &[u8], patience: Patience) -> Result<StorePath> {
        let wait = if patience == Patience::Endless { Wait::Until(&NEVER) } else { Wait::No };
        let _lock = self.lock_path_briefly(&info.path, wait)?;
        if info.path.is_derivation() && !parsed.contains_key(&info.path) {
            let drv = self.parse_derivation(&info.path, contents)?;
            self.check_outputs(&info.path, &drv)?;
            parsed.insert(info.path.clone(), drv);
        }
        let place = self.place(&info.path);
        let mut written = write_file(&place, contents);
        if written.as_ref().is_err_and(|error| error.raw_os_error() == Some(nix::libc::EEXIST)) {
            // Somebody was faster, or did not get far.
            if self.is_valid(&info.path)? {
                return Ok(info.path);
            }
            remove_tree(place.dir, &place.name, &place.shown, 0)?;
            written = write_file(&place, contents);
        }
        let large = contents.len() as u64 >= links::MIN_SIZE;
        let linked = written.and_then(|()| if large { self.deduplicate(&place).map(drop) } else { Ok(()) });
        self.register_added(info, parsed, linked, patience)
    }

    /// Like [`Store::publish_file`], for an item that `create` makes, or that is there already, at `staged`.
    fn publish(&self, info: PathInfo, staged: &Staged, create: impl FnOnce(&Place<'_>) -> Result<()>) -> Result<StorePath> {
        let _lock = self.lock_path_briefly(&info.path, Wait::Until(&NEVER))?;
        if self.is_valid(&info.path)? {
            return Ok(info.path);
        }
        let place = staged.place();
        create(&place)?;
        let mut parsed = Parsed::new();
        if info.path.is_derivation() {
            let drv = self.read_derivation_at(&info.path, &place)?;
            self.check_outputs(&info.path, &drv)?;
            parsed.insert(info.path.clone(), drv);
        }
        self.deduplicate(&place)?;
        let placed = self.put_in_place(&place, &info.path);
        self.register_added(info, parsed, placed, Patience::Endless)
    }

    /// Registers what has been put where it belongs, or removes it if that or this has failed.
    fn register_added(&self, info: PathInfo, parsed: Parsed, placed: Result<()>, patience: Patience) -> Result<StorePath> {
        let path = info.path.clone();
        let result = placed.and_then(|()| {
            let mut on_disk = OnDisk::Yes;
            if self.config().sync_additions {
                // The file's contents and its name in one go: until it is registered nobody trusts either.
                self.sync_at(&self.place(&path))?;
                self.sync_store_dir()?;
            } else if self.config().durable {
                on_disk = OnDisk::Later;
            }
            self.insert(info, parsed, on_disk, patience)
        });
        let Err(error) = result else { return Ok(path) };
        // Somebody who minds no locks may have been faster.
        if !self.is_valid(&path)?
            && let Err(error) = remove_tree(self.dir(), path.base_name().as_ref(), &self.real_path(&path), 0)
        {
            tracing::warn!(%error, "cannot remove what could not be registered");
        }
        Err(error)
    }

    /// Where `path` is in the store directory.
    pub fn place(&self, path: &StorePath) -> Place<'_> {
        Place { dir: self.dir(), name: path.base_name().into(), shown: self.real_path(path) }
    }
}

fn content_addressed(path: StorePath, nar_hash: Hash, nar_size: u64) -> PathInfo {
    PathInfo { path, nar_hash, references: BTreeSet::new(), deriver: None, registration_time: 0, nar_size }
}

/// Hash and size of the archive of a file that is not executable.
fn nar_of_file(contents: &[u8]) -> Result<(Hash, u64)> {
    let mut writer = Writer::new(Hasher::new(HashAlgo::Sha256));
    writer.file(false, contents.len() as u64)?;
    writer.data(contents)?;
    let hasher = writer.finish()?;
    let size = hasher.count();
    Ok((hasher.finish(), size))
}

fn write_file(place: &Place<'_>, contents: &[u8]) -> Result<()> {
    let mut file = create_file(place, false)?;
    file.write_all(contents).map_err(Error::io("writing file", &place.shown))?;
    finish_file(&file, &place.shown)
}

/// What a path is named after, and its archive.
struct Hashes {
    named: Hash,
    nar: Hash,
    nar_size: u64,
}

/// Writes the one file in an archive to `place`, and hashes it both ways.
fn stage_file<R: Read>(reader: &mut Reader<R>, place: &Place<'_>, algo: HashAlgo) -> Result<Hashes> {
    let Some(Event::File { size, .. }) = reader.next()? else { return Err(Error::RegularFileExpected) };
    let mut named = Hashers::new(&[algo]);
    let mut nar = Writer::new(Hashers::new(&[HashAlgo::Sha256]));
    nar.file(false, size)?;
    let mut file = create_file(place, false)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let got = reader.read_data(&mut buffer)?;
        if got == 0 {
            break;
        }
        let bytes = buffer.get(..got).unwrap_or_default();
        named.update(bytes);
        nar.data(bytes)?;
        file.write_all(bytes).map_err(Error::io("writing file", &place.shown))?;
    }
    finish_file(&file, &place.shown)?;
    reader.skip_to_end()?;
    let nar = nar.finish()?;
    let nar_size = nar.count();
    let failed = Error::io("hashing", &place.shown);
    let both = named.finish_one().and_then(|named| Ok((named, nar.finish_one()?)));
    let (named, nar) = both.map_err(failed)?;
    Ok(Hashes { named, nar, nar_size })
}

/// Keeps what is read through it, until that is too much; then it fails, having read nothing that it did not keep.
struct Recorder<'s> {
    store: &'s Store,
    source: Hashing<'s>,
    bytes: Vec<u8>,
    /// Where a directory that is too large for memory goes on.
    file: Option<File>,
    in_file: u64,
    directories: bool,
    full: bool,
    failed: Option<Error>,
}

/// What a [`Recorder`] kept.
enum Kept {
    Memory(Vec<u8>),
    File(File),
}

impl<'s> Recorder<'s> {
    /// `directories`: whether archives of directories are kept in a file.
    fn new(store: &'s Store, source: Hashing<'s>, directories: bool) -> Self {
        Recorder { store, source, bytes: Vec::new(), file: None, in_file: 0, directories, full: false, failed: None }
    }

    /// How much more may be kept. Makes the file when it is needed.
    fn room(&mut self) -> Result<usize> {
        if self.file.is_none() {
            let room = IN_MEMORY.saturating_sub(self.bytes.len());
            let directory = self.bytes.get(TYPE_TOKEN) == Some(b"directory");
            if room > 0 || !self.directories || !directory {
                return Ok(room);
            }
            let mut file = self.store.unnamed_file()?;
            Writes::new(SPOOL, &mut file).write_all(&self.bytes).map_err(Error::io("writing file", self.store.store_dir().as_str()))?;
            self.in_file = self.bytes.len() as u64;
            self.bytes = Vec::new();
            self.file = Some(file);
        }
        Ok(usize::try_from(IN_FILE.saturating_sub(self.in_file)).unwrap_or(usize::MAX))
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.file {
            None => self.bytes.extend_from_slice(bytes),
            Some(file) => {
                Writes::new(SPOOL, file).write_all(bytes).map_err(Error::io("writing file", self.store.store_dir().as_str()))?;
                self.in_file = self.in_file.saturating_add(bytes.len() as u64);
            }
        }
        Ok(())
    }

    /// What was kept, to be read from its beginning, and the source.
    fn finish(self) -> Result<(Kept, Hashing<'s>)> {
        let kept = match self.file {
            None => Kept::Memory(self.bytes),
            Some(mut file) => {
                file.rewind().map_err(Error::io("reading file", self.store.store_dir().as_str()))?;
                Kept::File(file)
            }
        };
        Ok((kept, self.source))
    }
}

impl Read for Recorder<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // After a failure the rest is read for nothing, so that the stream stays in step.
        let room = if self.failed.is_some() {
            usize::MAX
        } else {
            self.room().unwrap_or_else(|error| {
                self.failed = Some(error);
                usize::MAX
            })
        };
        let room = room.min(buffer.len());
        if room == 0 && !buffer.is_empty() {
            self.full = true;
            return Err(io::Error::other("too large to be kept"));
        }
        let buffer = buffer.get_mut(..room).unwrap_or_default();
        let got = self.source.read(buffer)?;
        if self.failed.is_none()
            && let Err(error) = self.keep(buffer.get(..got).unwrap_or_default())
        {
            self.failed = Some(error);
        }
        Ok(got)
    }
}

/// Hashes what is read through it.
struct Hashing<'s> {
    source: &'s mut dyn Read,
    hashers: Hashers,
}

impl<'s> Hashing<'s> {
    fn new(source: &'s mut dyn Read, algos: &[HashAlgo]) -> Self {
        Hashing { source, hashers: Hashers::new(algos) }
    }

    /// The hashes, given that SHA-256 and `algo` were asked for.
    fn finish(self, algo: HashAlgo) -> io::Result<Hashes> {
        let nar_size = self.hashers.count();
        let hashes = self.hashers.finish()?;
        let find = |algo: HashAlgo| hashes.iter().find(|hash| hash.algo() == algo).copied().unwrap_or_else(|| Hash::of(algo, b""));
        Ok(Hashes { named: find(algo), nar: find(HashAlgo::Sha256), nar_size })
    }
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.source.read(buffer)?;
        if !self.hashers.is_idle() {
            self.hashers.update(buffer.get(..got).unwrap_or_default());
        }
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use bstr::BStr;

    use super::*;
    use crate::register::MANY;
    use crate::testing::{TestStore, config, nar_of, test_store};
    use crate::{hash_path, scan};

    fn assert_consistent(store: &Store, path: &StorePath) {
        let info = store.path_info(path).unwrap();
        let real = store.real_path(path);
        assert_eq!((info.nar_hash, info.nar_size), hash_path(&real).unwrap());
        let data = std::fs::symlink_metadata(&real).unwrap();
        assert_eq!((data.mtime(), data.mtime_nsec()), (1, 0));
        assert_eq!(data.mode() & 0o7777, if data.is_dir() { 0o555 } else { 0o444 });
        assert!(!std::fs::exists(format!("{}.lock", real.display())).unwrap());
        let staging = store.real_path(store.staging_path());
        assert_eq!(std::fs::read_dir(staging).unwrap().count(), 1, "only the lock is left");
    }

    fn add(test: &TestStore, name: &str, recursive: bool, algo: HashAlgo, archive: &[u8]) -> Result<StorePath> {
        let roots = test.store.temp_roots();
        let mut source = archive.chain(&b"next"[..]);
        let result = test.store.add_from_nar(&roots, name, recursive, algo, &mut source);
        let mut rest = Vec::new();
        source.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"next", "reads the archive and not more");
        result
    }

    #[test]
    fn texts_round_trip() {
        let test = test_store();
        let store = &test.store;
        let roots = store.temp_roots();
        let one = test.text("one", "first");
        let refs = BTreeSet::from([one.clone()]);
        let text = format!("see {}", store.print(&one));
        let two = store.add_text(&roots, "two", text.as_bytes(), &refs).unwrap();
        assert_eq!(two, text_path(store.store_dir(), "two", text.as_bytes(), &refs).unwrap());
        assert_eq!(std::fs::read_to_string(store.real_path(&two)).unwrap(), text);
        for path in [&one, &two] {
            assert_consistent(store, path);
        }
        assert_eq!(store.references(&two).unwrap(), refs);
        assert_eq!(store.referrers(&one).unwrap(), BTreeSet::from([two.clone()]));
        assert_eq!(store.deriver(&two).unwrap(), None);
        assert_eq!(store.path_from_hash_part(two.hash_part()).unwrap(), Some(two.clone()));
        assert_eq!(store.path_from_hash_part("00000000000000000000000000000000").unwrap(), None);
        assert!(matches!(store.path_from_hash_part("0"), Err(Error::HashPart)));
        assert_eq!(store.all_valid().unwrap(), BTreeSet::from([one.clone(), two.clone()]));
        assert_eq!(scan(&store.real_path(&two), &store.all_valid().unwrap()).unwrap().references, refs);
        // Again: the same, untouched.
        let before = std::fs::metadata(store.real_path(&two)).unwrap().ino();
        assert_eq!(store.add_text(&roots, "two", text.as_bytes(), &refs).unwrap(), two);
        assert_eq!(std::fs::metadata(store.real_path(&two)).unwrap().ino(), before);
        // A reference that is not valid.
        let foreign = text_path(store.store_dir(), "x", b"x", &BTreeSet::new()).unwrap();
        let result = store.add_text(&roots, "three", b"", &BTreeSet::from([foreign]));
        assert!(matches!(result, Err(Error::NotValid { .. })), "{result:?}");
    }

    #[test]
    fn archives_small_and_large() {
        let test = test_store();
        for size in [0, 1, 8, IN_MEMORY - 120, IN_MEMORY, 3 * IN_MEMORY + 5] {
            let contents: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
            let archive = nar_of(&contents, false);
            for algo in [HashAlgo::Sha256, HashAlgo::Sha1, HashAlgo::Sha512] {
                let tree = add(&test, "file", true, algo, &archive).unwrap();
                assert_eq!(tree, fixed_output_path(test.store.store_dir(), true, &Hash::of(algo, &archive), "file").unwrap());
                let flat = add(&test, "file", false, algo, &archive).unwrap();
                assert_eq!(flat, fixed_output_path(test.store.store_dir(), false, &Hash::of(algo, &contents), "file").unwrap());
                for path in [tree, flat] {
                    assert_eq!(std::fs::read(test.store.real_path(&path)).unwrap(), contents);
                    assert_consistent(&test.store, &path);
                }
            }
            // Flat drops the executable bit, and is one and the same path.
            let executable = nar_of(&contents, true);
            let flat = add(&test, "file", false, HashAlgo::Sha256, &executable).unwrap();
            assert_consistent(&test.store, &flat);
            let tree = add(&test, "prog", true, HashAlgo::Sha256, &executable).unwrap();
            assert_eq!(std::fs::metadata(test.store.real_path(&tree)).unwrap().mode() & 0o7777, 0o555);
        }
    }

    fn tree(size: usize) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.directory().unwrap();
        writer.entry(BStr::new("big")).unwrap();
        writer.file(true, size as u64).unwrap();
        writer.data(&vec![b'x'; size]).unwrap();
        writer.entry(BStr::new("dir")).unwrap();
        writer.directory().unwrap();
        writer.entry(BStr::new("link")).unwrap();
        writer.symlink(BStr::new("/etc/passwd")).unwrap();
        writer.end_directory().unwrap();
        writer.end_directory().unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn trees_and_failures_leave_the_stream_in_step() {
        let test = test_store();
        for size in [10, 2 * IN_MEMORY, usize::try_from(IN_FILE).unwrap() + 10] {
            let archive = tree(size);
            assert_eq!(archive.get(TYPE_TOKEN), Some(&b"directory"[..]));
            let path = add(&test, "tree", true, HashAlgo::Sha256, &archive).unwrap();
            assert_consistent(&test.store, &path);
            let real = test.store.real_path(&path);
            assert_eq!(std::fs::read_link(real.join("dir/link")).unwrap().to_str(), Some("/etc/passwd"));
            assert!(matches!(add(&test, "tree", false, HashAlgo::Sha256, &archive), Err(Error::RegularFileExpected)));
            assert!(matches!(add(&test, ".tree", true, HashAlgo::Sha256, &archive), Err(Error::BadName { .. })));
            // A truncated archive adds nothing.
            let valid = test.store.all_valid().unwrap();
            let cut = archive.get(..archive.len() - 8).unwrap();
            let result = test.store.add_from_nar(&test.store.temp_roots(), "cut", true, HashAlgo::Sha256, &mut &*cut);
            assert!(matches!(result, Err(Error::Nar { .. })), "{result:?}");
            assert_eq!(test.store.all_valid().unwrap(), valid);
        }
    }

    #[test]
    fn what_is_in_the_way_is_removed() {
        let test = test_store();
        let path = text_path(test.store.store_dir(), "x", b"right", &BTreeSet::new()).unwrap();
        let real = test.store.real_path(&path);
        std::fs::create_dir_all(real.join("wrong")).unwrap();
        assert_eq!(test.text("x", "right"), path);
        assert_consistent(&test.store, &path);
    }

    #[test]
    fn derivations_are_checked() {
        let test = test_store();
        let store = &test.store;
        let roots = store.temp_roots();
        let drv = |path: &str| {
            format!("Derive([(\"out\",\"{path}\",\"\",\"\")],[],[],\"x86_64-linux\",\"/bin/sh\",[],[(\"out\",\"{path}\")])").into_bytes()
        };
        let wrong = store.print(&text_path(store.store_dir(), "a", b"", &BTreeSet::new()).unwrap());
        let error = store.add_text(&roots, "a.drv", &drv(&wrong), &BTreeSet::new()).unwrap_err();
        let Error::IncorrectOutput { found, expected, .. } = error else { panic!("{error}") };
        assert_eq!(found, wrong);
        assert!(store.all_valid().unwrap().is_empty());
        let good = store.add_text(&roots, "a.drv", &drv(&expected), &BTreeSet::new()).unwrap();
        let out = store.store_dir().parse(&expected).unwrap();
        assert_eq!(store.derivation_outputs(&good).unwrap().get("out"), Some(&out));
        assert_eq!(store.valid_derivers(&out).unwrap(), BTreeSet::from([good.clone()]));
        assert_eq!(store.read_derivation(&good).unwrap().outputs.len(), 1);
        let error = store.add_text(&roots, "b.drv", b"nonsense", &BTreeSet::new()).unwrap_err();
        assert!(matches!(error, Error::BadDerivation { .. }), "{error}");
    }

    /// On a session's thread no closure is read, whoever made the daemon forget it, and nothing with many rows is registered.
    #[test]
    fn what_takes_long_is_not_done_at_once() {
        let test = test_store();
        let (store, roots) = (&test.store, test.store.temp_roots());
        let text = |inputs: &str, out: &str| {
            let all = "[(\"out\",\"OUT\",\"\",\"\")],[INPUTS],[],\"x86_64-linux\",\"/bin/sh\",[],[(\"out\",\"OUT\")]";
            format!("Derive({})", all.replace("INPUTS", inputs).replace("OUT", out)).into_bytes()
        };
        let right = |name: &str, inputs: &str, references: &BTreeSet<StorePath>| {
            let wrong = store.print(&text_path(store.store_dir(), "wrong", b"", &BTreeSet::new()).unwrap());
            match store.add_text(&roots, name, &text(inputs, &wrong), references) {
                Err(Error::IncorrectOutput { expected, .. }) => text(inputs, &expected),
                other => panic!("{other:?}"),
            }
        };
        let none = BTreeSet::new();
        let first = store.add_text_at_once(&roots, "first.drv", &right("first.drv", "", &none), &none).unwrap().unwrap();
        let inputs = format!("(\"{}\",[\"out\"])", store.print(&first));
        let references = BTreeSet::from([first]);
        let second = right("second.drv", &inputs, &references);
        store.drv_hashes().clear();
        assert_eq!(store.add_text_at_once(&roots, "second.drv", &second, &references).unwrap(), None);
        let path = store.add_text(&roots, "second.drv", &second, &references).unwrap();
        assert_eq!(store.references(&path).unwrap(), references);
        // It is known now.
        let third = right("third.drv", &inputs, &references);
        assert!(store.add_text_at_once(&roots, "third.drv", &third, &references).unwrap().is_some());

        let many: BTreeSet<StorePath> = (0..=MANY).map(|number| test.text(&format!("text-{number}"), "x")).collect();
        assert_eq!(store.add_text_at_once(&roots, "many", b"x", &many).unwrap(), None);
        let path = store.add_text(&roots, "many", b"x", &many).unwrap();
        assert_eq!(store.references(&path).unwrap(), many);
    }

    /// A derivation that claims another's output would have its builder write there, whichever way it came in.
    #[test]
    fn derivations_in_archives_are_checked_too() {
        let test = test_store();
        let store = &test.store;
        let path = text_path(store.store_dir(), "victim", b"", &BTreeSet::new()).unwrap();
        let claim = store.print(&path);
        let drv = |padding: usize| {
            let padding = "x".repeat(padding);
            format!("Derive([(\"out\",\"{claim}\",\"\",\"\")],[],[],\"x86_64-linux\",\"/bin/sh\",[\"{padding}\"],[(\"out\",\"{claim}\")])")
                .into_bytes()
        };
        let file = |contents: &[u8]| {
            let mut writer = Writer::new(Vec::new());
            writer.file(false, contents.len() as u64).unwrap();
            writer.data(contents).unwrap();
            writer.finish().unwrap()
        };
        // One that is held in memory, and one that is unpacked as it comes.
        for size in [0, 2 * IN_MEMORY] {
            for recursive in [false, true] {
                let error = add(&test, "a.drv", recursive, HashAlgo::Sha256, &file(&drv(size))).unwrap_err();
                assert!(matches!(error, Error::IncorrectOutput { .. }), "{error}");
            }
        }
        for (recursive, archive) in [(true, tree(10)), (true, file(b"nonsense")), (false, file(b"nonsense"))] {
            let error = add(&test, "a.drv", recursive, HashAlgo::Sha256, &archive).unwrap_err();
            assert!(matches!(error, Error::BadDerivation { .. }), "{error}");
        }
        assert!(store.all_valid().unwrap().is_empty());
    }

    #[test]
    fn many_threads_add_the_same() {
        let test = test_store();
        let store = &test.store;
        let paths: BTreeSet<StorePath> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(move || {
                        let roots = store.temp_roots();
                        (0..20)
                            .map(|i| store.add_text(&roots, "x", format!("{i}").as_bytes(), &BTreeSet::new()).unwrap())
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(paths.len(), 20);
        assert_eq!(store.all_valid().unwrap(), paths);
    }

    #[test]
    fn durable_stores_add_too() {
        let (_dir, root) = crate::testing::temp_dir();
        let store = Store::open(crate::Config { durable: true, ..config(&root) }).unwrap();
        let roots = store.temp_roots();
        store.add_text(&roots, "x", b"x", &BTreeSet::new()).unwrap();
        store.add_from_nar(&roots, "t", true, HashAlgo::Sha256, &mut &*tree(2 * IN_MEMORY)).unwrap();
        assert_eq!(store.all_valid().unwrap().len(), 2);
    }
}
