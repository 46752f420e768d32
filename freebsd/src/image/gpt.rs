//! The partition table of a disk: a protective MBR, the GUID partition table and its copy at the end, with every GUID from a seed.

use std::io::{self, Read, Seek, SeekFrom, Write};

use gptman::{GPT, GPTPartitionEntry};

use super::{ImageError, Result, Seed, Sink, is_zero};

/// Of every disk here, in bytes.
pub const SECTOR: u64 = 512;
/// How many bytes of the first sector are code (before the disk's number and the MBR's table).
const BOOT_CODE: usize = 440;
/// Sectors that the table takes at the beginning: the MBR, the header, 128 entries.
pub(crate) const HEAD: u64 = 34;
/// And at the end: the entries' copy and the header's.
pub(crate) const TAIL: u64 = 33;

/// What a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The firmware's: FAT with loaders.
    Efi,
    /// For a BIOS: gptboot(8).
    FreebsdBoot,
    /// To swap to.
    FreebsdSwap,
    /// UFS.
    FreebsdUfs,
}

/// Name (as gpart(8) has it) and type of each kind.
const KINDS: [(Kind, &str, u128); 4] = [
    (Kind::Efi, "efi", 0xc12a_7328_f81f_11d2_ba4b_00a0_c93e_c93b),
    (Kind::FreebsdBoot, "freebsd-boot", 0x83bd_6b9d_7f41_11dc_be0b_0015_60b8_4f0f),
    (Kind::FreebsdSwap, "freebsd-swap", 0x516e_7cb5_6ecf_11d6_8ff8_0002_2d09_712b),
    (Kind::FreebsdUfs, "freebsd-ufs", 0x516e_7cb6_6ecf_11d6_8ff8_0002_2d09_712b),
];

impl Kind {
    fn row(self) -> (Kind, &'static str, u128) {
        KINDS.into_iter().find(|(kind, ..)| *kind == self).unwrap_or(KINDS[0])
    }

    /// The name that gpart(8) has for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().1
    }

    fn guid(self) -> [u8; 16] {
        on_disk(self.row().2.to_be_bytes())
    }
}

/// The first three groups of a GUID lie with their low byte first.
fn on_disk(guid: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = guid;
    let mut result = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
    if let Some(place) = result.last_chunk_mut::<8>() {
        *place = rest;
    }
    result
}

/// A GUID as people write it.
#[must_use]
pub fn show_guid(guid: [u8; 16]) -> String {
    let digits: Vec<String> = on_disk(guid).iter().map(|byte| format!("{byte:02x}")).collect();
    let group = |range: std::ops::Range<usize>| digits.get(range).unwrap_or_default().concat();
    [group(0..4), group(4..6), group(6..8), group(8..10), group(10..16)].join("-")
}

/// A partition in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// What it is for.
    pub kind: Kind,
    /// Its name (`/dev/gpt/NAME`), at most 36 characters.
    pub label: String,
    /// Its first byte, a multiple of 512.
    pub start: u64,
    /// How many bytes it has, a multiple of 512.
    pub size: u64,
    /// Its own GUID, as it lies on the disk.
    pub guid: [u8; 16],
}

/// A disk as `gptman` wants to see it: zeros to read, a place to write.
struct Disk<'a> {
    sink: &'a mut dyn Sink,
    size: u64,
    position: u64,
}

impl Read for Disk<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.size.saturating_sub(self.position)).unwrap_or(usize::MAX).min(buffer.len());
        buffer.get_mut(..length).unwrap_or_default().fill(0);
        self.position += length as u64;
        Ok(length)
    }
}

impl Write for Disk<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The last byte makes a file as long as the disk.
        if !is_zero(bytes) || self.position + bytes.len() as u64 == self.size {
            self.sink.write_at(self.position, bytes)?;
        }
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Disk<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// Writes the tables of a disk of `size` bytes; `boot_code` is what a BIOS runs first (`pmbr`, of which 440 bytes are taken).
/// Returns the disk's GUID.
///
/// # Errors
/// [`ImageError::Option`] for partitions that cannot be, [`ImageError::Io`].
pub fn write(partitions: &[Partition], size: u64, boot_code: Option<&[u8]>, seed: &Seed, sink: &mut dyn Sink) -> Result<[u8; 16]> {
    let guid = seed.derive("disk").guid();
    if partitions.len() > 128 || !size.is_multiple_of(SECTOR) {
        return Err(ImageError::Option("a disk has whole sectors, and at most 128 partitions".into()));
    }
    let mut disk = Disk { sink, size, position: 0 };
    let failed = |error: gptman::Error| match error {
        gptman::Error::Io(source) => ImageError::Io { doing: "writing the partition table", offset: 0, source },
        other => ImageError::Option(format!("the partition table: {other}")),
    };
    let mut table = GPT::new_from(&mut disk, SECTOR, guid).map_err(failed)?;
    for (number, partition) in (1u32..).zip(partitions) {
        let (first, sectors) = (partition.start / SECTOR, partition.size / SECTOR);
        let inside = first >= HEAD && sectors > 0 && first.checked_add(sectors).is_some_and(|end| end + TAIL <= size / SECTOR);
        if !inside
            || !partition.start.is_multiple_of(SECTOR)
            || !partition.size.is_multiple_of(SECTOR)
            || partition.label.encode_utf16().count() > 36
        {
            return Err(ImageError::Option(format!("partition `{}' has no place on a disk of {size} bytes", partition.label)));
        }
        table[number] = GPTPartitionEntry {
            partition_type_guid: partition.kind.guid(),
            unique_partition_guid: partition.guid,
            starting_lba: first,
            ending_lba: first + sectors - 1,
            attribute_bits: 0,
            partition_name: partition.label.as_str().into(),
        };
    }
    disk.position = 0;
    GPT::write_protective_mbr_into(&mut disk, SECTOR).map_err(failed)?;
    table.write_into(&mut disk).map_err(failed)?;
    // The copy of the header does not reach the end of its sector, but a file must.
    disk.sink.write_at(size - 1, &[0]).map_err(ImageError::io("writing", size - 1))?;
    if let Some(code) = boot_code {
        let code = code.get(..code.len().min(BOOT_CODE)).unwrap_or_default();
        disk.sink.write_at(0, code).map_err(ImageError::io("writing boot code", 0))?;
    }
    Ok(guid)
}
