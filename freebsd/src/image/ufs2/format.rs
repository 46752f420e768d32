//! What lies on the disk: the structures of UFS2 (`sys/ufs/ffs/fs.h`, `sys/ufs/ufs/dinode.h`, `sys/ufs/ufs/dir.h` of FreeBSD 15.1), little-endian.

/// A number, or an array of numbers, as it lies on the disk.
pub(crate) trait Field: Copy {
    fn load(bytes: &[u8]) -> Self;
    fn store(self, bytes: &mut [u8]);
}

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn load(bytes: &[u8]) -> Self {
                bytes.first_chunk().map_or(0, |bytes| <$type>::from_le_bytes(*bytes))
            }

            fn store(self, bytes: &mut [u8]) {
                if let Some(place) = bytes.first_chunk_mut() {
                    *place = self.to_le_bytes();
                }
            }
        }
    )*};
}
numbers!(i8, u8, i16, u16, i32, u32, i64, u64);

impl<T: Field, const N: usize> Field for [T; N] {
    fn load(bytes: &[u8]) -> Self {
        let size = size_of::<T>();
        std::array::from_fn(|at| T::load(bytes.get(at * size..).unwrap_or_default()))
    }

    fn store(self, bytes: &mut [u8]) {
        for (value, place) in self.into_iter().zip(bytes.chunks_mut(size_of::<T>())) {
            value.store(place);
        }
    }
}

/// A structure from one table of fields: name, type, place. What is not named is zero.
macro_rules! record {
    ($(#[$meta:meta])* $name:ident $size:literal { $($(#[$about:meta])* $field:ident: $type:ty = $at:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$about])* pub $field: $type,)* }

        impl $name {
            /// How many bytes it has.
            pub const SIZE: usize = $size;

            /// From the disk's bytes, the first [`SIZE`](Self::SIZE) of these.
            pub(crate) fn load(bytes: &[u8; $size]) -> Self {
                $name { $($field: <$type as Field>::load(&bytes[$at..]),)* }
            }

            /// Into the disk's bytes.
            pub(crate) fn store(&self, bytes: &mut [u8]) {
                $(if let Some(place) = bytes.get_mut($at..$at + size_of::<$type>()) {
                    self.$field.store(place);
                })*
            }

            /// With every field zero.
            #[allow(dead_code)] // Not of every structure.
            pub(crate) fn zero() -> Self {
                Self::load(&[0; $size])
            }
        }
    };
}

record! {
    /// The superblock (`struct fs`). Lengths are in fragments unless they end in `size`.
    #[allow(missing_docs)] // The names are those of fs.h without `fs_'.
    Superblock 1376 {
        sblkno: i32 = 8, cblkno: i32 = 12, iblkno: i32 = 16, dblkno: i32 = 20, old_cgoffset: i32 = 24, old_cgmask: i32 = 28, ncg: u32 = 44,
        bsize: i32 = 48, fsize: i32 = 52, frag: i32 = 56, minfree: i32 = 60, bmask: i32 = 72, fmask: i32 = 76, bshift: i32 = 80, fshift: i32 = 84,
        maxcontig: i32 = 88, maxbpg: i32 = 92, fragshift: i32 = 96, fsbtodb: i32 = 100, sbsize: i32 = 104, nindir: i32 = 116, inopb: u32 = 120,
        optim: i32 = 128, id: [u32; 2] = 144, cssize: i32 = 156, cgsize: i32 = 160, ipg: u32 = 184, fpg: i32 = 188, fmod: i8 = 208, clean: i8 = 209,
        ronly: i8 = 210, old_flags: u8 = 211, volname: [u8; 32] = 680, swuid: u64 = 712, cgrotor: i32 = 724, maxbsize: i32 = 860, unrefs: i64 = 864,
        providersize: i64 = 872, metaspace: i64 = 880, sblockactualloc: i64 = 992, sblockloc: i64 = 1000, total: [i64; 5] = 1008, time: i64 = 1072,
        size: i64 = 1080, dsize: i64 = 1088, csaddr: i64 = 1096, pendingblocks: i64 = 1104, pendinginodes: u32 = 1112, avgfilesize: u32 = 1196,
        avgfpdir: u32 = 1200, mtime: i64 = 1208, ckhash: u32 = 1304, metackhash: u32 = 1308, flags: u32 = 1312, contigsumsize: i32 = 1316,
        maxsymlinklen: i32 = 1320, maxfilesize: u64 = 1328, qbmask: i64 = 1336, qfmask: i64 = 1344, magic: u32 = 1372,
    }
}

record! {
    /// The head of a cylinder group (`struct cg`); its maps follow.
    #[allow(missing_docs)] // The names are those of fs.h without `cg_'.
    CylinderGroup 168 {
        magic: u32 = 4, cgx: u32 = 12, ndblk: u32 = 20, cs: [i32; 4] = 24, rotor: u32 = 40, frotor: u32 = 44, irotor: u32 = 48, frsum: [u32; 8] = 52,
        iusedoff: u32 = 92, freeoff: u32 = 96, nextfreeoff: u32 = 100, clustersumoff: u32 = 104, clusteroff: u32 = 108, nclusterblks: u32 = 112,
        niblk: u32 = 116, initediblk: u32 = 120, unrefs: u32 = 124, ckhash: u32 = 132, time: i64 = 136,
    }
}

record! {
    /// An inode (`struct ufs2_dinode`).
    #[allow(missing_docs)] // The names are those of dinode.h without `di_'.
    Inode 256 {
        mode: u16 = 0, nlink: u16 = 2, uid: u32 = 4, gid: u32 = 8, blksize: u32 = 12, size: u64 = 16, blocks: u64 = 24, atime: i64 = 32,
        mtime: i64 = 40, ctime: i64 = 48, birthtime: i64 = 56, mtimensec: u32 = 64, atimensec: u32 = 68, ctimensec: u32 = 72, birthnsec: u32 = 76,
        generation: u32 = 80, kernflags: u32 = 84, flags: u32 = 88, extsize: u32 = 92, extb: [i64; 2] = 96, direct: [i64; 12] = 112,
        indirect: [i64; 3] = 208, modrev: u64 = 232, dirdepth: u32 = 240, ckhash: u32 = 244,
    }
}

record! {
    /// Where the copies of the superblock are, at the end of the boot area (`struct fsrecovery`).
    #[allow(missing_docs)]
    Recovery 20 { magic: u32 = 0, fsbtodb: i32 = 4, sblkno: i32 = 8, fpg: i32 = 12, ncg: u32 = 16, }
}

/// Where the superblock lies (`SBLOCK_UFS2`).
pub const SUPERBLOCK_OFFSET: u64 = 65536;
/// How much room it has (`SBLOCKSIZE`).
pub const SUPERBLOCK_ROOM: usize = 8192;
pub(crate) const MAGIC: u32 = 0x1954_0119;
pub(crate) const CG_MAGIC: u32 = 0x0009_0255;
/// The root's inode.
pub const ROOT: u32 = 2;
/// Of a device, in bytes; what [`Inode::blocks`] counts in.
pub const SECTOR: u64 = 512;
/// Directories are made of blocks of this size, which no entry crosses.
pub(crate) const DIRECTORY_BLOCK: usize = 512;
/// Of a directory entry, without the name.
pub(crate) const ENTRY_HEAD: usize = 8;
/// Addresses in an inode itself.
pub(crate) const DIRECT: u64 = 12;
/// Symbolic links shorter than this are in their inode.
pub(crate) const INLINE_LINK: usize = 120;
/// The most names that an inode may have (`UFS_LINK_MAX`).
pub const MAX_LINKS: u32 = 65500;
pub(crate) const MAX_CONTIG: i32 = 16;

pub(crate) const FLAG_SOFT_UPDATES: u32 = 0x2;
pub(crate) const FLAG_CHECK_HASHES: u32 = 0x200;
pub(crate) const OLD_FLAGS_MOVED: u8 = 0x80;
/// Superblock, cylinder groups, inodes.
pub(crate) const ALL_HASHES: u32 = 0x7;

pub(crate) const FORMAT: u16 = 0o170_000;
pub(crate) const DIRECTORY: u16 = 0o040_000;
pub(crate) const REGULAR: u16 = 0o100_000;
pub(crate) const SYMLINK: u16 = 0o120_000;

/// The order of the four counts in summaries (`struct csum`).
pub(crate) mod count {
    pub(crate) const DIRECTORIES: usize = 0;
    pub(crate) const BLOCKS: usize = 1;
    pub(crate) const INODES: usize = 2;
    pub(crate) const FRAGMENTS: usize = 3;
}

/// The check hash: CRC32C without the last inversion, which the system's function leaves out.
pub(crate) fn check_hash(bytes: &[u8]) -> u32 {
    !crc32c::crc32c(bytes)
}

/// The check hash of bytes of which four, its own place, count as zero.
pub(crate) fn check_hash_without(bytes: &[u8], place: usize) -> u32 {
    let (before, rest) = bytes.split_at(place.min(bytes.len()));
    let after = rest.get(4..).unwrap_or_default();
    !crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]), after)
}

/// Where the check hashes lie.
pub(crate) const SUPERBLOCK_HASH: usize = 1304;
pub(crate) const CG_HASH: usize = 132;
pub(crate) const INODE_HASH: usize = 244;

/// The type of a directory entry (`DT_*`).
pub(crate) fn entry_type(mode: u16) -> u8 {
    ((mode & FORMAT) >> 12) as u8
}

/// How long a directory entry is at least.
pub(crate) fn entry_length(name: usize) -> usize {
    (ENTRY_HEAD + name + 1).next_multiple_of(4)
}
