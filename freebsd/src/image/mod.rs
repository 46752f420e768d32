//! Disk images, written and read without privileges: UFS2, FAT32, GPT, raw and qcow2.
//!
//! Everything is written through a [`Sink`], in any order and only where there is something, and every byte of the result follows from the tree,
//! the options and a [`Seed`]: no clock, no random number, no order of a directory and no name of a file of this machine.

pub mod disk;
mod error;
pub mod fat;
pub mod gpt;
pub mod qcow2;
pub mod ufs2;

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

pub(crate) use crate::tree::is_zero;
pub use error::{ImageError, Result};

/// Where an image goes: bytes at places. What is never written reads as zeros, so zeros need not be written.
pub trait Sink {
    /// Puts the bytes at the offset.
    ///
    /// # Errors
    /// What the system says.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

/// A new, empty file; holes stay holes.
impl Sink for fs::File {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }
}

/// For small images in memory.
impl Sink for Vec<u8> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        if self.len() < end {
            self.resize(end, 0);
        }
        if let Some(place) = self.get_mut(start..end) {
            place.copy_from_slice(bytes);
        }
        Ok(())
    }
}

impl<S: Sink + ?Sized> Sink for &mut S {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, bytes)
    }
}

/// Where an image comes from.
pub trait Source {
    /// Fills the buffer from the offset.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::UnexpectedEof`] beyond the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Source for fs::File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl Source for [u8] {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = start.checked_add(buffer.len()).and_then(|end| self.get(start..end)).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl<S: Source + ?Sized> Source for &S {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }
}

/// A part of a disk, as a sink or source of its own.
#[derive(Debug)]
pub struct Window<T> {
    inner: T,
    start: u64,
    size: u64,
}

impl<T> Window<T> {
    /// The `size` bytes from `start`.
    pub fn new(inner: T, start: u64, size: u64) -> Window<T> {
        Window { inner, start, size }
    }

    fn place(&self, offset: u64, length: usize) -> io::Result<u64> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.size);
        end.and_then(|_| self.start.checked_add(offset)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl<S: Sink> Sink for Window<S> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let place = self.place(offset, bytes.len())?;
        self.inner.write_at(place, bytes)
    }
}

impl<S: Source> Source for Window<S> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(self.place(offset, buffer.len())?, buffer)
    }
}

/// What takes the place of chance: identifiers and generations follow from it and from what they are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed([u8; 32]);

impl Seed {
    /// A seed from any bytes, such as a store path or a hash of the input.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Seed {
        Seed(Sha256::digest(bytes).into())
    }

    /// The seed of a part.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> Seed {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(purpose.as_bytes());
        Seed(hash.finalize().into())
    }

    /// Sixteen bytes in the form of a GUID of version 8 (RFC 9562: bytes of one's own making), as they lie on a disk.
    #[must_use]
    pub fn guid(&self) -> [u8; 16] {
        let mut guid: [u8; 16] = self.part();
        // The third group is little-endian on a disk: its high byte is the eighth.
        guid[7] = guid[7] & 0x0f | 0x80;
        guid[8] = guid[8] & 0x3f | 0x80;
        guid
    }

    /// Four bytes as a number.
    #[must_use]
    pub fn number(&self) -> u32 {
        u32::from_le_bytes(self.part())
    }

    /// Eight bytes as a number.
    #[must_use]
    pub fn long(&self) -> u64 {
        u64::from_le_bytes(self.part())
    }

    fn part<const N: usize>(&self) -> [u8; N] {
        std::array::from_fn(|at| self.0.get(at).copied().unwrap_or(0))
    }
}
