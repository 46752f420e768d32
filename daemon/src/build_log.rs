//! The log file of a build: `LOGDIR/drvs/HH/REST[.gz|.bz2]`, as upstream names it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bzip2::write::BzEncoder;
use flate2::write::GzEncoder;
use fruix_drv::StorePath;
use fruix_store::failpoints::{Moment, Writes, point, step};

use crate::config::LogCompression;
use crate::error::Error;

enum Writer {
    Plain(Writes<File>),
    Gzip(GzEncoder<Writes<File>>),
    Bzip2(BzEncoder<Writes<File>>),
}

/// A log being written. Dropping it without [`BuildLog::finish`] leaves what was written so far.
pub struct BuildLog {
    path: PathBuf,
    writer: Writer,
    written: u64,
}

impl BuildLog {
    /// Where the log of `drv` goes, without the suffix of the compression.
    #[must_use]
    pub fn base_path(log_dir: &Path, drv: &StorePath) -> PathBuf {
        let (start, rest) = drv.base_name().split_at_checked(2).unwrap_or((drv.base_name(), ""));
        log_dir.join("drvs").join(start).join(rest)
    }

    /// Creates the log of `drv`, or empties an earlier one.
    pub fn create(log_dir: &Path, drv: &StorePath, compression: LogCompression) -> Result<BuildLog, Error> {
        let base = BuildLog::base_path(log_dir, drv);
        let dir = base.parent().unwrap_or(log_dir);
        let suffix = match compression {
            LogCompression::None => "",
            LogCompression::Gzip => ".gz",
            LogCompression::Bzip2 => ".bz2",
        };
        // Two slashes: clients compare the name with that of guix-daemon's traces as it stands.
        let mut path = dir.as_os_str().to_owned();
        path.push("//");
        path.push(base.file_name().unwrap_or_default());
        path.push(suffix);
        let path = PathBuf::from(path);
        let failed = |source| Error::io("creating log file", &path, source);
        fs::create_dir_all(dir).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o644).custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits());
        let file = step("log::create", || options.open(&path)).map_err(failed)?;
        let file = Writes::new("log::write", file);
        let writer = match compression {
            LogCompression::None => Writer::Plain(file),
            LogCompression::Gzip => Writer::Gzip(GzEncoder::new(file, flate2::Compression::best())),
            LogCompression::Bzip2 => Writer::Bzip2(BzEncoder::new(file, bzip2::Compression::best())),
        };
        Ok(BuildLog { path, writer, written: 0 })
    }

    /// The file's name, as `@ build-started` tells it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of log so far, before compression.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Appends `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.written = self.written.saturating_add(bytes.len() as u64);
        let result = match &mut self.writer {
            Writer::Plain(writer) => writer.write_all(bytes),
            Writer::Gzip(writer) => writer.write_all(bytes),
            Writer::Bzip2(writer) => writer.write_all(bytes),
        };
        result.map_err(|source| Error::io("writing to log file", &self.path, source))
    }

    /// Completes the compressed stream.
    pub fn finish(self) -> Result<(), Error> {
        let finish = || match self.writer {
            Writer::Plain(mut writer) => writer.flush(),
            Writer::Gzip(writer) => writer.finish().map(drop),
            Writer::Bzip2(writer) => writer.finish().map(drop),
        };
        let result: io::Result<()> =
            point("log::finish", Moment::Before).and_then(|()| finish()).and_then(|()| point("log::finish", Moment::After));
        result.map_err(|source| Error::io("completing log file", &self.path, source))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn logs_have_upstreams_names_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let drv = StorePath::from_base_name("0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c-hello.drv").unwrap();
        for (compression, suffix) in [(LogCompression::None, ""), (LogCompression::Gzip, ".gz"), (LogCompression::Bzip2, ".bz2")] {
            let mut log = BuildLog::create(dir.path(), &drv, compression).unwrap();
            let path = log.path().to_owned();
            assert_eq!(path, dir.path().join(format!("drvs/0c/0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c-hello.drv{suffix}")));
            log.write(b"one\n").unwrap();
            log.write(b"two\n").unwrap();
            assert_eq!(log.written(), 8);
            log.finish().unwrap();
            let file = File::open(&path).unwrap();
            let mut text = String::new();
            match compression {
                LogCompression::None => (&file).read_to_string(&mut text),
                LogCompression::Gzip => flate2::read::GzDecoder::new(file).read_to_string(&mut text),
                LogCompression::Bzip2 => bzip2::read::BzDecoder::new(file).read_to_string(&mut text),
            }
            .unwrap();
            assert_eq!(text, "one\ntwo\n");
        }
    }
}
