//! Trees to archives, archives to trees, trees to trees.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bstr::{BStr, ByteSlice};
use fruix_protocol::limits::NAR_DEPTH;
use fruix_protocol::nar::{Event, Reader, Writer};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};
use nix::unistd::{Whence, lseek, symlinkat};

use crate::failpoints::{Writes, step};
use crate::fsutil::{
    Place, kind, lstat_at, names, open_dir_at, open_file_at, permissions, same_file, set_store_mtime, set_store_mtime_at, with_place,
};
use crate::{Error, Result};

/// Bytes that are read or written at once.
const CHUNK: usize = 128 * 1024;

const FILE_MODE: u32 = 0o444;
const EXECUTABLE_MODE: u32 = 0o555;

/// Writes the archive of `path`. Its last component is not followed if it is a symbolic link.
///
/// # Errors
/// [`Error::UnsupportedType`], [`Error::Changed`] when someone changes the tree meanwhile, [`Error::Nar`] when `sink` fails or the tree is
/// beyond the format's limits, [`Error::Io`].
pub fn dump_nar(path: &Path, sink: &mut dyn Write) -> Result<()> {
    with_place(path, |place| dump_at(place, sink))
}

/// Like [`dump_nar`], for something in an open directory.
///
/// # Errors
/// Those of [`dump_nar`].
pub fn dump_at(place: &Place<'_>, sink: &mut dyn Write) -> Result<()> {
    let mut writer = Writer::new(BufWriter::with_capacity(CHUNK, sink));
    let mut buffer = vec![0; CHUNK];
    dump_node(place, &mut writer, &mut buffer)?;
    writer.finish()?;
    Ok(())
}

fn dump_node<W: Write>(place: &Place<'_>, writer: &mut Writer<W>, buffer: &mut [u8]) -> Result<()> {
    match look(place)? {
        Node::File(file, stat) => {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            writer.file(permissions(&stat).contains(Mode::S_IXUSR), size)?;
            copy_data(file, size, &place.shown, buffer, &mut |bytes| Ok(writer.data(bytes)?))
        }
        Node::Symlink(target) => Ok(writer.symlink(BStr::new(&target))?),
        Node::Directory(dir) => {
            writer.directory()?;
            for child in sorted(&dir, place)? {
                writer.entry(BStr::new(child.name.as_bytes()))?;
                dump_node(&child, writer, buffer)?;
            }
            Ok(writer.end_directory()?)
        }
    }
}

#[allow(clippy::large_enum_variant)] // On FreeBSD. One at a time is on the stack.
enum Node {
    File(OwnedFd, FileStat),
    Directory(OwnedFd),
    Symlink(Vec<u8>),
}

/// Opens or reads what is at `place`.
fn look(place: &Place<'_>) -> Result<Node> {
    let shown = &place.shown;
    let stat = lstat_at(place.dir, &place.name).map_err(Error::io("getting attributes of path", shown))?;
    let fd = match kind(&stat) {
        SFlag::S_IFLNK => {
            let target = readlinkat(place.dir, place.name.as_os_str()).map_err(Error::io("reading symbolic link", shown))?;
            return Ok(Node::Symlink(target.into_vec()));
        }
        SFlag::S_IFREG => open_file_at(place.dir, &place.name),
        SFlag::S_IFDIR => open_dir_at(place.dir, &place.name),
        _ => return Err(Error::UnsupportedType { path: shown.clone() }),
    };
    let fd = fd.map_err(Error::io("opening file", shown))?;
    let opened = fstat(&fd).map_err(Error::io("getting attributes of path", shown))?;
    if !same_file(&stat, &opened) || kind(&stat) != kind(&opened) {
        return Err(Error::Changed { path: shown.clone() });
    }
    Ok(if kind(&opened) == SFlag::S_IFDIR { Node::Directory(fd) } else { Node::File(fd, opened) })
}

/// The entries of a directory in the order of archives.
fn sorted<'d>(dir: &'d OwnedFd, place: &Place<'_>) -> Result<impl Iterator<Item = Place<'d>>> {
    let mut names = names(dir).map_err(Error::io("reading directory", &place.shown))?;
    names.sort_unstable();
    let shown = place.shown.clone();
    Ok(names.into_iter().map(move |name| Place { dir: dir.as_fd(), shown: shown.join(&name), name }))
}

/// Gives the `size` bytes of `file` to `take`. Zeros that the file system does not keep are not read.
fn copy_data(file: OwnedFd, size: u64, shown: &Path, buffer: &mut [u8], take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut file = File::from(file).take(size);
    let mut left = size;
    // A hole is looked for where there may be one: at the beginning of a large file, and behind zeros.
    let mut hole = size > CHUNK as u64;
    while left > 0 {
        if hole && left > CHUNK as u64 {
            let mut zeros = hole_at(file.get_ref(), size - left, size).min(left);
            if zeros > 0 {
                buffer.fill(0);
            }
            left -= zeros;
            while zeros > 0 {
                let now = zeros.min(buffer.len() as u64);
                take(buffer.get(..usize::try_from(now).unwrap_or(0)).unwrap_or_default())?;
                zeros -= now;
            }
            file.get_ref().seek(SeekFrom::Start(size - left)).map_err(Error::io("reading file", shown))?;
            file.set_limit(left);
            hole = false;
            continue;
        }
        match file.read(buffer) {
            // It was longer a moment ago.
            Ok(0) => return Err(Error::Changed { path: shown.to_owned() }),
            Ok(got) => {
                let bytes = buffer.get(..got).unwrap_or_default();
                hole = bytes.ends_with(&[0; 4096]);
                take(bytes)?;
                left = left.saturating_sub(got as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("reading file", shown)(error)),
        }
    }
    Ok(())
}

/// How many bytes from `at` on are a hole of a file that has `size` bytes. The last ones are left to be read, which shows whether they are still there.
fn hole_at(file: &File, at: u64, size: u64) -> u64 {
    let end = match lseek(file, i64::try_from(at).unwrap_or(i64::MAX), Whence::SeekData) {
        Ok(end) => u64::try_from(end).unwrap_or(at),
        Err(Errno::ENXIO) => size,
        // A file system that does not know its holes has none.
        Err(_) => at,
    };
    end.min(size.saturating_sub(1)).saturating_sub(at)
}

/// How much [`restore_at`] and [`copy_at`] have made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Files, directories and symbolic links.
    pub entries: u64,
}

/// Reads one archive and makes what is in it, under a name that is not taken yet, with canonical metadata.
///
/// # Errors
/// [`Error::Nar`] when the archive is bad or its source fails, [`Error::Io`]. Part of the tree may be there then.
pub fn restore_nar(source: impl Read, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Made> {
    restore_at(&mut Reader::new(source), &Place { dir, name: name.to_owned(), shown: PathBuf::from(name) })
}

/// Like [`restore_nar`], from a reader that stands at the beginning. After an error that is not [`Error::Nar`] it can be read on.
pub(crate) fn restore_at<R: Read>(reader: &mut Reader<R>, place: &Place<'_>) -> Result<Made> {
    let mut restore = Restore { buffer: vec![0; CHUNK], made: Made::default() };
    let root = reader.next()?;
    if let Some(event) = root {
        restore.node(reader, event, place)?;
    }
    // Nothing but the end can follow; reading it leaves the source right behind the archive.
    reader.skip_to_end()?;
    Ok(restore.made)
}

struct Restore {
    buffer: Vec<u8>,
    made: Made,
}

impl Restore {
    /// Makes the node that begins with `event`. The reader's limit on depth bounds the recursion.
    fn node<R: Read>(&mut self, reader: &mut Reader<R>, event: Event, place: &Place<'_>) -> Result<()> {
        self.made.entries += 1;
        match event {
            Event::File { executable, .. } => {
                let mut file = create_file(place, executable)?;
                loop {
                    let got = reader.read_data(&mut self.buffer)?;
                    if got == 0 {
                        break;
                    }
                    file.write_all(self.buffer.get(..got).unwrap_or_default()).map_err(Error::io("writing file", &place.shown))?;
                }
                finish_file(&file, &place.shown)
            }
            Event::Symlink { target } => create_symlink(place, &target),
            Event::Directory => {
                let dir = create_dir(place)?;
                while let Some(Event::Entry(name)) = reader.next()? {
                    let name = OsStr::from_bytes(&name).to_owned();
                    let child = Place { dir: dir.as_fd(), shown: place.shown.join(&name), name };
                    if let Some(event) = reader.next()? {
                        self.node(reader, event, &child)?;
                    }
                }
                finish_dir(&dir, &place.shown)
            }
            // The reader gives these to directories only.
            Event::Entry(_) | Event::EndDirectory => Ok(()),
        }
    }
}

/// A file that is being made.
pub(crate) type NewFile = Writes<File>;

/// Makes a file of its final mode, to be written through the descriptor.
pub(crate) fn create_file(place: &Place<'_>, executable: bool) -> Result<NewFile> {
    let mode = Mode::from_bits_truncate(if executable { EXECUTABLE_MODE } else { FILE_MODE } as nix::libc::mode_t);
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = || openat(place.dir, place.name.as_os_str(), flags, mode);
    let fd = step("file::create", open).map_err(Error::io("creating file", &place.shown))?;
    // The umask may have taken something away.
    fchmod(&fd, mode).map_err(Error::io("changing mode of", &place.shown))?;
    Ok(Writes::new("file::write", File::from(fd)))
}

pub(crate) fn finish_file(file: &NewFile, shown: &Path) -> Result<()> {
    step("file::finish", || set_store_mtime(file)).map_err(Error::io("changing modification time of", shown))
}

fn create_symlink(place: &Place<'_>, target: &[u8]) -> Result<()> {
    let link = || symlinkat(OsStr::from_bytes(target), place.dir, place.name.as_os_str());
    step("file::symlink", link).map_err(Error::io("creating symlink", &place.shown))?;
    set_store_mtime_at(place.dir, &place.name).map_err(Error::io("changing modification time of", &place.shown))
}

fn create_dir(place: &Place<'_>) -> Result<OwnedFd> {
    let make = || mkdirat(place.dir, place.name.as_os_str(), Mode::S_IRWXU);
    step("file::mkdir", make).map_err(Error::io("creating directory", &place.shown))?;
    open_dir_at(place.dir, &place.name).map_err(Error::io("opening", &place.shown))
}

fn finish_dir(dir: &OwnedFd, shown: &Path) -> Result<()> {
    let seal = || fchmod(dir, Mode::from_bits_truncate(EXECUTABLE_MODE as nix::libc::mode_t));
    step("file::seal", seal).map_err(Error::io("changing mode of", shown))?;
    set_store_mtime(dir).map_err(Error::io("changing modification time of", shown))
}

/// Hash parts that are replaced by others wherever they occur.
pub type Rewrites = std::collections::BTreeMap<[u8; 32], [u8; 32]>;

/// Copies the tree at `from` to fresh files at `to`, with canonical metadata, so that whoever still has a file of the original open cannot
/// change the copy. `rewrites` applies to contents, and to targets of symbolic links.
///
/// # Errors
/// [`Error::UnsupportedType`], [`Error::Changed`], [`Error::TooDeep`], [`Error::Io`]. Part of the copy may be there then.
pub fn copy_at(from: &Place<'_>, to: &Place<'_>, rewrites: &Rewrites) -> Result<Made> {
    let mut copy = Copy { buffer: vec![0; CHUNK], rewrites, made: Made::default() };
    copy.node(from, to, 0)?;
    Ok(copy.made)
}

struct Copy<'r> {
    buffer: Vec<u8>,
    rewrites: &'r Rewrites,
    made: Made,
}

impl Copy<'_> {
    fn node(&mut self, from: &Place<'_>, to: &Place<'_>, depth: usize) -> Result<()> {
        if depth >= NAR_DEPTH {
            return Err(Error::TooDeep { path: from.shown.clone() });
        }
        self.made.entries += 1;
        match look(from)? {
            Node::File(source, stat) => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let mut file = create_file(to, permissions(&stat).contains(Mode::S_IXUSR))?;
                let mut rewriter = Rewriter::new(self.rewrites);
                copy_data(source, size, &from.shown, &mut self.buffer, &mut |bytes| {
                    file.write_all(rewriter.update(bytes)).map_err(Error::io("writing file", &to.shown))
                })?;
                file.write_all(rewriter.finish()).map_err(Error::io("writing file", &to.shown))?;
                finish_file(&file, &to.shown)
            }
            Node::Symlink(target) => {
                let mut rewriter = Rewriter::new(self.rewrites);
                let mut rewritten = rewriter.update(&target).to_vec();
                rewritten.extend_from_slice(rewriter.finish());
                create_symlink(to, &rewritten)
            }
            Node::Directory(source) => {
                let dir = create_dir(to)?;
                for child in sorted(&source, from)? {
                    let shown = to.shown.join(&child.name);
                    self.node(&child, &Place { dir: dir.as_fd(), name: child.name.clone(), shown }, depth + 1)?;
                }
                finish_dir(&dir, &to.shown)
            }
        }
    }
}

/// Replaces hash parts in a stream, which keeps its length.
struct Rewriter<'r> {
    rewrites: &'r Rewrites,
    /// Bytes that came but may yet be the beginning of a hash part, after those that were given out.
    held: Vec<u8>,
    given: usize,
}

impl<'r> Rewriter<'r> {
    fn new(rewrites: &'r Rewrites) -> Self {
        Rewriter { rewrites, held: Vec::new(), given: 0 }
    }

    /// Takes bytes, and gives those that are certain.
    fn update(&mut self, bytes: &[u8]) -> &[u8] {
        self.held.drain(..self.given);
        self.held.extend_from_slice(bytes);
        for (old, new) in self.rewrites {
            let mut at = 0;
            while let Some(found) = self.held.get(at..).and_then(|rest| rest.find(old)) {
                let start = at + found;
                if let Some(place) = self.held.get_mut(start..start + old.len()) {
                    place.copy_from_slice(new);
                }
                at = start + old.len();
            }
        }
        let keep = if self.rewrites.is_empty() { 0 } else { 31 };
        self.given = self.held.len().saturating_sub(keep);
        self.held.get(..self.given).unwrap_or_default()
    }

    /// Gives the rest.
    fn finish(&mut self) -> &[u8] {
        self.held.drain(..self.given);
        self.given = 0;
        &self.held
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;
    use crate::fsutil::remove_tree;
    use crate::testing::temp_dir;

    #[derive(Debug, Clone)]
    enum Tree {
        File(bool, Vec<u8>),
        Symlink(String),
        Directory(BTreeMap<Vec<u8>, Tree>),
    }

    fn tree() -> impl Strategy<Value = Tree> {
        let leaf = prop_oneof![
            (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300)).prop_map(|(x, bytes)| Tree::File(x, bytes)),
            "[a-z./]{1,20}".prop_map(Tree::Symlink),
        ];
        // Names that the file system takes: any byte but these.
        let name = proptest::collection::vec(any::<u8>().prop_filter("byte", |byte| !matches!(byte, 0 | b'/' | b'.')), 1..12);
        leaf.prop_recursive(4, 24, 6, move |inner| proptest::collection::btree_map(name.clone(), inner, 0..6).prop_map(Tree::Directory))
    }

    fn write(tree: &Tree, writer: &mut Writer<Vec<u8>>) {
        match tree {
            Tree::File(executable, bytes) => {
                writer.file(*executable, bytes.len() as u64).unwrap();
                writer.data(bytes).unwrap();
            }
            Tree::Symlink(target) => writer.symlink(BStr::new(target)).unwrap(),
            Tree::Directory(entries) => {
                writer.directory().unwrap();
                for (name, tree) in entries {
                    writer.entry(BStr::new(name)).unwrap();
                    write(tree, writer);
                }
                writer.end_directory().unwrap();
            }
        }
    }

    fn archive(tree: &Tree) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        write(tree, &mut writer);
        writer.finish().unwrap()
    }

    /// Holes are zeros, wherever they are, and are not read; the last byte is.
    #[test]
    fn holes_are_zeros() {
        let (_guard, dir) = temp_dir();
        let chunk = CHUNK as u64;
        for (name, size, places) in [
            ("empty", 9 * chunk + 17, &[][..]),
            ("middle", 9 * chunk, &[4 * chunk + 5]),
            ("ends", 40 * chunk + 1, &[0, 20 * chunk, 40 * chunk]),
            ("one", 1, &[]),
        ] {
            let (sparse, full) = (dir.join(name), dir.join(format!("{name}-full")));
            let file = File::create(&sparse).unwrap();
            file.set_len(size).unwrap();
            let mut bytes = vec![0; usize::try_from(size).unwrap()];
            for place in places {
                std::os::unix::fs::FileExt::write_all_at(&file, b"x", *place).unwrap();
                bytes[usize::try_from(*place).unwrap()] = b'x';
            }
            std::fs::write(&full, &bytes).unwrap();
            let dumped = |path: &Path| {
                let mut archive = Vec::new();
                dump_nar(path, &mut archive).unwrap();
                archive
            };
            assert!(dumped(&sparse) == dumped(&full), "{name}");
            if name == "empty" && file.metadata().unwrap().blocks() == 0 {
                assert_eq!(hole_at(&file, 0, size), size - 1);
                assert_eq!(hole_at(&file, chunk, size), size - 1 - chunk);
                // Somebody has shortened it.
                file.set_len(chunk).unwrap();
                let copied = copy_data(File::open(&sparse).unwrap().into(), size, &sparse, &mut [0; CHUNK], &mut |_| Ok(()));
                assert!(matches!(copied, Err(Error::Changed { .. })));
            }
        }
    }

    fn assert_canonical(path: &Path) {
        let data = std::fs::symlink_metadata(path).unwrap();
        assert_eq!((data.mtime(), data.mtime_nsec()), (1, 0), "{}", path.display());
        if !data.is_symlink() {
            assert!(matches!(data.mode() & 0o7777, 0o444 | 0o555));
        }
        if data.is_dir() {
            for entry in std::fs::read_dir(path).unwrap() {
                assert_canonical(&entry.unwrap().path());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn trees_round_trip(tree in tree()) {
            let (_dir, root) = temp_dir();
            let archive = archive(&tree);
            let dir = crate::fsutil::open_dir(&root).unwrap();
            let mut source = archive.chain(&b"rest"[..]);
            restore_nar(&mut source, dir.as_fd(), OsStr::new("a")).unwrap();
            let mut rest = Vec::new();
            source.read_to_end(&mut rest).unwrap();
            prop_assert_eq!(&*rest, b"rest");
            assert_canonical(&root.join("a"));
            let mut again = Vec::new();
            dump_nar(&root.join("a"), &mut again).unwrap();
            prop_assert_eq!(&again, &archive);
            // A copy is the same, in other files.
            let (a, b) = (Place::new(dir.as_fd(), "a", &root), Place::new(dir.as_fd(), "b", &root));
            copy_at(&a, &b, &Rewrites::new()).unwrap();
            assert_canonical(&b.shown);
            let mut copied = Vec::new();
            dump_at(&b, &mut copied).unwrap();
            prop_assert_eq!(&copied, &archive);
            prop_assert_ne!(std::fs::symlink_metadata(&a.shown).unwrap().ino(), std::fs::symlink_metadata(&b.shown).unwrap().ino());
            for place in [a, b] {
                remove_tree(dir.as_fd(), &place.name, &place.shown, 1).unwrap();
            }
            prop_assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
        }
    }

    #[test]
    fn nothing_is_overwritten_or_followed() {
        let (_dir, root) = temp_dir();
        let dir = crate::fsutil::open_dir(&root).unwrap();
        std::fs::write(root.join("canary"), "alive").unwrap();
        std::os::unix::fs::symlink("canary", root.join("a")).unwrap();
        let file = archive(&Tree::File(false, b"dead".to_vec()));
        let result = restore_nar(&*file, dir.as_fd(), OsStr::new("a"));
        assert!(matches!(result, Err(Error::Io { .. })), "{result:?}");
        assert_eq!(std::fs::read_to_string(root.join("canary")).unwrap(), "alive");
    }

    #[test]
    fn rewriting_keeps_the_length_whatever_the_pieces() {
        let (old, new) = ([b'1'; 32], [b'2'; 32]);
        let rewrites = Rewrites::from([(old, new)]);
        let mut bytes = vec![b'x'; 100];
        bytes.extend_from_slice(&old);
        bytes.extend_from_slice(b"yy");
        bytes.extend_from_slice(&old);
        let expected = bytes.replace(old, new);
        for size in [1, 7, 31, 32, 33, 500] {
            let mut rewriter = Rewriter::new(&rewrites);
            let mut out = Vec::new();
            for piece in bytes.chunks(size) {
                out.extend_from_slice(rewriter.update(piece));
            }
            out.extend_from_slice(rewriter.finish());
            assert_eq!(out, expected, "{size}");
        }
    }

    #[test]
    fn sockets_are_refused() {
        let (_dir, root) = temp_dir();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("s")).unwrap();
        let error = dump_nar(&root, &mut io::sink()).unwrap_err();
        assert_eq!(error.to_string(), format!("file `{}' has an unsupported type", root.join("s").display()));
    }
}
