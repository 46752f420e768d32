//! UFS2 from end to end: trees become images, the reader gives the same trees back, the checker finds nothing, and it finds damage.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io;

use fruix_freebsd::image::disk::{self, Content, Partition, Plan};
use fruix_freebsd::image::gpt::Kind;
use fruix_freebsd::image::qcow2::Qcow2;
use fruix_freebsd::image::ufs2::{self, Fault, Options, Ufs};
use fruix_freebsd::image::{ImageError, Seed, Sink, Source, Window};
use fruix_freebsd::tree::{Entry, Node, Time, Tree};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

/// An image of which only what was written takes memory, and of which the written places are known.
#[derive(Default, Clone)]
struct Sparse {
    size: u64,
    chunks: BTreeMap<u64, Vec<u8>>,
}

const CHUNK: u64 = 4096;

impl Sink for Sparse {
    fn write_at(&mut self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        assert!(offset + bytes.len() as u64 <= self.size, "written beyond the end");
        while !bytes.is_empty() {
            let at = (offset % CHUNK) as usize;
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK as usize - at));
            self.chunks.entry(offset / CHUNK).or_insert_with(|| vec![0; CHUNK as usize])[at..at + now.len()].copy_from_slice(now);
            offset += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }
}

impl Source for Sparse {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut offset, mut buffer) = (offset, buffer);
        while !buffer.is_empty() {
            let at = (offset % CHUNK) as usize;
            let (now, rest) = buffer.split_at_mut(buffer.len().min(CHUNK as usize - at));
            match self.chunks.get(&(offset / CHUNK)) {
                Some(chunk) => now.copy_from_slice(&chunk[at..at + now.len()]),
                None => now.fill(0),
            }
            offset += now.len() as u64;
            buffer = rest;
        }
        Ok(())
    }
}

impl Sparse {
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (at, chunk) in &self.chunks {
            if chunk.iter().any(|byte| *byte != 0) {
                hash.update(at.to_le_bytes());
                hash.update(chunk);
            }
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn options(size: u64) -> Options {
    Options { time: Time::seconds(1_700_000_000), label: "test".into(), ..Options::new(size, Seed::new(b"test")) }
}

fn made(tree: &Tree, options: &Options) -> Sparse {
    let mut image = Sparse { size: options.size, ..Sparse::default() };
    ufs2::write(tree, options, &mut image).unwrap();
    image
}

/// Bytes that are no zeros and do not repeat soon.
fn noise(length: usize, salt: u64) -> Vec<u8> {
    let mut state = salt | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8 | 1
    };
    (0..length).map(|_| next()).collect()
}

/// A tree with something of everything.
fn varied() -> Tree {
    let mut tree = Tree::new();
    let mut add = |path: &str, entry: Entry| tree.insert(path, entry.time(Time { seconds: 1_600_000_000, nanoseconds: 5 })).unwrap();
    add("", Entry::dir(0o755));
    add("empty", Entry::file(0o4755, []));
    add("small", Entry::file(0o644, noise(100, 1)).owner(1001, 20));
    for (name, size) in
        [("a-fragment", 4096), ("a-block", 32768), ("block-and-some", 32769), ("twelve", 12 * 32768), ("indirect", 12 * 32768 + 1)]
    {
        add(name, Entry::file(0o600, noise(size, 2)));
    }
    let mut holes = vec![0; 20 * 32768];
    holes[5 * 32768] = 1;
    add("holes", Entry::file(0o644, holes.clone()));
    add("zeros", Entry::file(0o644, vec![0; 100_000]));
    let mut dense = Entry::file(0o600, holes);
    if let Node::File(file) = &mut dense.node {
        file.sparse = false;
    }
    add("dense", dense);
    add("short-link", Entry::symlink("small"));
    add("link-119", Entry::symlink("x".repeat(119)));
    add("link-120", Entry::symlink("y".repeat(120)));
    add("link-1023", Entry::symlink("z".repeat(1023)));
    add("many", Entry::dir(0o1777));
    for number in 0..2500 {
        add(&format!("many/{number:04}-{}", "n".repeat(number % 240)), Entry::file(0o644, noise(number % 5000, number as u64)));
    }
    let mut deep = String::from("deep");
    for level in 0..60 {
        add(&deep, Entry::dir(0o755));
        deep += &format!("/{level}");
    }
    add(&"l".repeat(255), Entry::hard_link("small"));
    add("many/aa", Entry::hard_link("small"));
    add("a-dir-link", Entry::symlink("many"));
    tree.get_mut("small").unwrap().flags = 0x2_0001;
    tree
}

fn clean(image: &Sparse, tree: &Tree) {
    let report = ufs2::check(image).unwrap();
    assert_eq!(report.findings, []);
    let report = ufs2::compare(image, tree).unwrap();
    assert_eq!(report.findings, []);
}

#[test]
fn a_tree_comes_back() {
    let tree = varied();
    for options in [
        options(256 << 20),
        Options { block: 4096, fragment: 512, soft_updates: false, ..options(64 << 20) },
        Options { block: 65536, fragment: 8192, density: 2048, ..options(512 << 20) },
        Options { block: 16384, fragment: 16384, min_free: 0, ..options((300 << 20) + 12345) },
    ] {
        let image = made(&tree, &options);
        clean(&image, &tree);
        let mut back = Ufs::open(&image).unwrap().tree(64 << 20).unwrap();
        if let Node::File(file) = &mut back.get_mut("dense").unwrap().node {
            file.sparse = false;
        }
        let mut ordered = tree.clone();
        ordered.order_links();
        assert!(back == ordered, "the reader gives another tree");
    }
}

/// The bytes are a promise: when they change on purpose, say so in CHANGELOG.md.
#[test]
fn the_bytes_are_the_same_as_ever() {
    let tree = varied();
    let first = made(&tree, &options(256 << 20));
    assert_eq!(first.digest(), "7abd1bacd35f107fc9be0bf4a82b612d9e753b255185d62883316509d5a33468");
    assert_ne!(made(&tree, &Options { seed: Seed::new(b"other"), ..options(256 << 20) }).digest(), first.digest());
}

fn some_tree(seed: u64) -> Tree {
    let mut tree = Tree::new();
    tree.insert("", Entry::dir(0o755)).unwrap();
    let mut state = seed | 1;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut directories = vec![String::new()];
    let mut files: Vec<String> = Vec::new();
    for number in 0..next(120) {
        let parent = directories[next(directories.len() as u64) as usize].clone();
        let name = match next(4) {
            0 => format!("{number}{}", "long".repeat(next(60) as usize)),
            1 => format!("{number} \u{e9}\n\\#="),
            _ => format!("{number}"),
        };
        let path = if parent.is_empty() { name } else { format!("{parent}/{name}") };
        let time = Time { seconds: next(1 << 31) as i64 - (1 << 30), nanoseconds: next(1_000_000_000) as u32 };
        let entry = match next(10) {
            0..3 => {
                directories.push(path.clone());
                Entry::dir(next(0o10000) as u16)
            }
            3 => Entry::symlink(noise(1 + next(200) as usize, number)),
            4 if !files.is_empty() => Entry::hard_link(files[next(files.len() as u64) as usize].clone()),
            _ => {
                files.push(path.clone());
                let most = if next(5) == 0 { 700_000 } else { 9000 };
                let mut bytes = noise(next(most) as usize, number);
                // Holes, also at the ends.
                if next(2) == 0 && !bytes.is_empty() {
                    let (from, to) = (next(bytes.len() as u64) as usize, next(bytes.len() as u64 + 1) as usize);
                    bytes[from.min(to)..to.max(from)].fill(0);
                }
                Entry::file(next(0o10000) as u16, bytes)
            }
        };
        let owner = (next(70000) as u32, next(1 << 32) as u32);
        tree.insert(path, entry.owner(owner.0, owner.1).time(time)).unwrap();
    }
    tree
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back(seed: u64, sizes in 0usize..4) {
        let (block, fragment) = [(4096, 512), (32768, 4096), (8192, 8192), (65536, 16384)][sizes];
        let tree = some_tree(seed);
        let mut options = Options { block, fragment, ..options(0) };
        options.size = ufs2::needed(&tree, &options, 0).unwrap();
        let image = made(&tree, &options);
        clean(&image, &tree);
        let mut ordered = tree.clone();
        ordered.order_links();
        prop_assert!(Ufs::open(&image).unwrap().tree(64 << 20).unwrap() == ordered);
        let mut text = Vec::new();
        tree.write_manifest(&mut text).unwrap();
        let none = fruix_freebsd::tree::Owners::default();
        let options = fruix_freebsd::tree::ManifestOptions { name: "x", root: None, owners: &none, time: Time::default() };
        if tree.iter().all(|(_, entry)| !matches!(&entry.node, Node::HardLink(_))) {
            prop_assert!(Tree::read_manifest(&text[..], &options).unwrap() == tree);
        }
    }

    /// Whatever is read, the reader and the checker come to an end, and say so.
    #[test]
    fn rubbish_is_refused(places in prop::collection::vec((0u64..3_000_000, any::<u8>()), 1..200), hashed: bool) {
        let mut tree = Tree::new();
        tree.insert("", Entry::dir(0o755)).unwrap();
        tree.insert("a", Entry::dir(0o755)).unwrap();
        tree.insert("a/b", Entry::file(0o644, noise(600_000, 1))).unwrap();
        let mut image = made(&tree, &Options { block: 4096, fragment: 512, ..options(4 << 20) });
        if !hashed {
            // Without check hashes nothing stops what is wrong from being followed.
            without_hashes(&mut image);
        }
        for (place, byte) in places {
            image.write_at(place, &[byte]).unwrap();
        }
        let _ = ufs2::check(&image).unwrap();
        let _ = ufs2::compare(&image, &tree);
        if let Ok(ufs) = Ufs::open(&image) {
            let _ = ufs.tree(1 << 20);
        }
    }
}

/// Takes the check hashes out of use, in the superblock that counts.
fn without_hashes(image: &mut Sparse) {
    image.write_at(65536 + 1308, &[0; 4]).unwrap();
}

/// Damages one byte or bit at a place where something was written, `count` times, and sees that each is found, in the file system by itself or
/// compared with the tree, or does no harm: everything reads as before.
fn damage(count: u64, hashed: bool) -> BTreeMap<&'static str, u32> {
    let tree = varied();
    let mut image = made(&tree, &options(256 << 20));
    if !hashed {
        without_hashes(&mut image);
        assert_eq!(ufs2::check(&image).unwrap().findings, []);
    }
    // Not the bytes of files alone: half of the damage goes to the file system's own structures.
    let ufs = Ufs::open(&image).unwrap();
    let geometry = ufs.geometry().clone();
    let own: Vec<u64> = image
        .chunks
        .keys()
        .copied()
        .filter(|chunk| {
            let fragment = chunk * CHUNK / geometry.fragment % geometry.fpg;
            fragment < geometry.dblkno + geometry.summary_fragments()
        })
        .collect();
    let all: Vec<u64> = image.chunks.keys().copied().collect();
    let mut results = BTreeMap::new();
    let mut state = 0x1234_5678_9abc_def1u64 ^ u64::from(hashed);
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for number in 0..count {
        let chunks = if number % 2 == 0 { &own } else { &all };
        let offset = chunks[next(chunks.len() as u64) as usize] * CHUNK + next(CHUNK);
        let mut before = [0];
        image.read_at(offset, &mut before).unwrap();
        let after = if next(2) == 0 { before[0] ^ 1 << next(8) } else { before[0].wrapping_add(1 + next(255) as u8) };
        image.write_at(offset, &[after]).unwrap();
        let result = if !ufs2::check(&image).unwrap().is_clean() {
            "found by itself"
        } else if ufs2::compare(&image, &tree).map_or(true, |report| !report.is_clean()) {
            "found by comparison"
        } else {
            "harmless"
        };
        *results.entry(result).or_default() += 1;
        image.write_at(offset, &before).unwrap();
    }
    assert_eq!(ufs2::check(&image).unwrap().findings, []);
    results
}

#[test]
fn damage_is_found() {
    // `harmless` is what compared equal to the tree, in every name, attribute and byte, and is consistent: room that nothing uses.
    let results = damage(120, true);
    assert!(results["found by itself"] >= 50 && results["found by comparison"] >= 20, "{results:?}");
    let results = damage(60, false);
    assert!(results["found by itself"] >= 12, "{results:?}");
}

/// The full number; the short form is above. `cargo nextest run -p fruix-freebsd --run-ignored all damage`
#[test]
#[ignore = "minutes"]
fn much_damage_is_found() {
    println!("{:?}\n{:?}", damage(500, true), damage(500, false));
}

/// Each kind of fault, by a damage that is made for it.
#[test]
fn faults_have_names() {
    let mut tree = Tree::new();
    tree.insert("", Entry::dir(0o755)).unwrap();
    tree.insert("a", Entry::dir(0o755)).unwrap();
    tree.insert("a/f", Entry::file(0o644, noise(40000, 1))).unwrap();
    tree.insert("a/g", Entry::file(0o644, noise(9000, 2))).unwrap();
    let options = options(64 << 20);
    let mut image = made(&tree, &options);
    without_hashes(&mut image);
    let geometry = Ufs::open(&image).unwrap().geometry().clone();
    let inode = |number| geometry.inode_offset(number);
    let group = geometry.cblkno * geometry.fragment;
    let root = Ufs::open(&image).unwrap().inode(2).unwrap().direct[0] as u64 * geometry.fragment;
    let below = Ufs::open(&image).unwrap().inode(3).unwrap().direct[0] as u64 * geometry.fragment;
    let head = geometry_head(&image, group);
    let cases: Vec<(Fault, u64, Vec<u8>)> = vec![
        (Fault::Superblock, 65536 + 1372, vec![0]),
        (Fault::Superblock, 65536 + 56, vec![3]),
        (Fault::Unclean, 65536 + 209, vec![0]),
        (Fault::SuperblockCopy, (geometry.group_start(1) + geometry.sblkno) * geometry.fragment + 48, vec![1]),
        (Fault::Recovery, 65536 - 20 + 12, vec![1]),
        (Fault::Group, group + 4, vec![0]),
        (Fault::InodeMap, group + u64::from(head[0]), vec![0xff]),
        (Fault::BlockMap, group + u64::from(head[1]), vec![0xff]),
        (Fault::Clusters, group + u64::from(head[2]), vec![0xff]),
        (Fault::Counts, group + 28, vec![1, 0, 0, 0]),
        (Fault::Summary, geometry.dblkno * geometry.fragment, vec![9]),
        (Fault::Totals, 65536 + 1008, vec![9]),
        (Fault::Inode, inode(4), vec![0, 0x10]),
        (Fault::FreeInode, inode(9) + 16, vec![1]),
        (Fault::BlockOutside, inode(4) + 112, vec![0xff; 7]),
        (Fault::BlockTwice, inode(4) + 112, vec![8, 0, 0, 0, 0, 0, 0, 0]),
        (Fault::BlockBeyond, inode(4) + 112 + 5 * 8, vec![8]),
        (Fault::BlockCount, inode(4) + 24, vec![1]),
        (Fault::HoleAtEnd, inode(4) + 112 + 8, vec![0; 8]),
        (Fault::Directory, root + 4, vec![13]),
        (Fault::Dots, root, vec![3]),
        (Fault::NameTwice, below + 24 + 8 + 12, vec![4, 0, 0, 0]),
        (Fault::EntryUnused, below + 24, vec![9]),
        (Fault::EntryType, below + 24 + 6, vec![4]),
        (Fault::DirectoryTwice, below + 24, vec![3]),
        (Fault::Depth, inode(3) + 240, vec![7]),
        (Fault::Orphan, below + 24, vec![5]),
        (Fault::LinkCount, inode(4) + 2, vec![2]),
    ];
    for (fault, offset, bytes) in cases {
        let mut damaged = image.clone();
        damaged.write_at(offset, &bytes).unwrap();
        if fault == Fault::NameTwice {
            damaged.write_at(below + 24 + 12 + 8, b"f").unwrap();
        }
        let findings = ufs2::check(&damaged).unwrap().findings;
        assert!(findings.iter().any(|finding| finding.fault == fault), "{fault:?}: {findings:?}");
    }
    // Sizes that would cost memory or lead below zero.
    for (size, groups, per_group) in
        [(1i64 << 40, 1u32 << 20, 1i32 << 20), (8 << 20, 1 << 3, 1 << 20), (2049, 2, 2048), (i64::MAX, 1, 1 << 20)]
    {
        let mut damaged = image.clone();
        damaged.write_at(65536 + 1080, &size.to_le_bytes()).unwrap();
        damaged.write_at(65536 + 44, &groups.to_le_bytes()).unwrap();
        damaged.write_at(65536 + 188, &per_group.to_le_bytes()).unwrap();
        damaged.write_at(65536 + 156, &i32::try_from((groups * 16).next_multiple_of(4096)).unwrap().to_le_bytes()).unwrap();
        assert!(!ufs2::check(&damaged).unwrap().is_clean(), "{size}");
    }
    let hashed = made(&tree, &options);
    for (fault, offset) in [(Fault::SuperblockHash, 65536 + 1204), (Fault::GroupHash, group + 160), (Fault::InodeHash, inode(4) + 250)] {
        let mut damaged = hashed.clone();
        damaged.write_at(offset, &[1]).unwrap();
        assert_eq!(ufs2::check(&damaged).unwrap().findings.iter().map(|finding| finding.fault).collect::<Vec<_>>(), [fault]);
    }
    let mut other = tree.clone();
    other.get_mut("a/f").unwrap().uid = 5;
    assert_eq!(ufs2::compare(&hashed, &other).unwrap().findings[0].to_string(), "Different: `a/f': attributes");
}

/// Where in a group its three maps begin.
fn geometry_head(image: &Sparse, group: u64) -> [u32; 3] {
    [92, 96, 108].map(|at| {
        let mut bytes = [0; 4];
        image.read_at(group + at, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    })
}

#[test]
fn what_does_not_fit_says_what_it_needs() {
    let mut tree = varied();
    tree.insert("big", Entry::file(0o644, noise(30 << 20, 3))).unwrap();
    let small = options(16 << 20);
    let mut image = Sparse { size: 16 << 20, ..Sparse::default() };
    let Err(ImageError::Capacity { needed, available, .. }) = ufs2::write(&tree, &small, &mut image) else { panic!("it fits") };
    assert_eq!(available, 16 << 20);
    clean(&made(&tree, &Options { size: needed, ..small.clone() }), &tree);
    let words = |options: Options| ufs2::write(&tree, &options, &mut Vec::new()).unwrap_err().to_string();
    assert_eq!(words(Options { block: 5000, ..small.clone() }), "a block of 5000 bytes: give a power of two from 4096 to 65536");
    assert!(words(Options { label: "a b".into(), ..small.clone() }).contains("no label"));
    assert!(words(Options { fragment: 256, ..small }).contains("a fragment of 256 bytes"));
}

fn plan(size: Option<u64>) -> Plan {
    let mut firmware = Tree::new();
    firmware.insert("EFI/BOOT/BOOTX64.EFI", Entry::file(0o644, noise(100_000, 9))).unwrap();
    firmware.insert("EFI/a long name of a file.txt", Entry::file(0o644, noise(10, 9))).unwrap();
    firmware.complete(&Entry::dir(0o755));
    let part = |kind, label: &str, size, content| Partition { kind, label: label.into(), size, free: 1 << 20, content };
    Plan {
        size,
        seed: Seed::new(b"disk"),
        boot_code: Some(vec![0xfa; 512]),
        partitions: vec![
            part(Kind::FreebsdBoot, "boot", None, Content::Bytes(noise(50_000, 4))),
            part(Kind::Efi, "efi", Some(40 << 20), Content::Fat(firmware, "EFISYS".into())),
            part(Kind::FreebsdSwap, "swap", Some(8 << 20), Content::Empty),
            part(Kind::FreebsdUfs, "root", None, Content::Ufs(varied(), options(0))),
        ],
    }
}

#[test]
fn a_disk_has_its_parts() {
    for size in [None, Some(300 << 20)] {
        let plan = plan(size);
        let mut image = Sparse { size: 1 << 40, ..Sparse::default() };
        let manifest = disk::write(&plan, &mut image).unwrap();
        assert!(size.is_none_or(|size| size == manifest.size));
        image.size = manifest.size;
        let root = &manifest.partitions[3].partition;
        let window = Window::new(&image, root.start, root.size);
        assert_eq!(ufs2::check(&window).unwrap().findings, []);
        assert_eq!(ufs2::compare(&window, &varied()).unwrap().findings, []);
        let mut code = [0; 442];
        image.read_at(0, &mut code).unwrap();
        assert_eq!((code[439], code[440]), (0xfa, 0));
        // As qcow2, the same bytes: found through its two levels of tables.
        let mut file = Sparse { size: 1 << 40, ..Sparse::default() };
        let mut qcow = Qcow2::new(&mut file, manifest.size);
        assert_eq!(disk::write(&plan, &mut qcow).unwrap(), manifest);
        qcow.finish().unwrap();
        let number = |offset: u64| {
            let mut bytes = [0; 8];
            file.read_at(offset, &mut bytes).unwrap();
            u64::from_be_bytes(bytes)
        };
        assert_eq!(number(24), manifest.size);
        let place = |entry: u64| entry & 0x00ff_ffff_ffff_fe00;
        for (chunk, bytes) in &image.chunks {
            let cluster = chunk * CHUNK / 65536;
            let table = place(number(place(number(40)) + cluster / 8192 * 8));
            let at = place(number(table + cluster % 8192 * 8));
            let mut found = vec![0; bytes.len()];
            if at != 0 {
                file.read_at(at + chunk * CHUNK % 65536, &mut found).unwrap();
            }
            assert!(found == *bytes, "byte {}", chunk * CHUNK);
        }
    }
    assert_eq!(
        disk::write(&plan(Some(300 << 20)), &mut Sparse { size: 1 << 40, ..Sparse::default() }).unwrap().to_string().lines().nth(2),
        Some("partition 2 type=efi label=efi start=2097152 size=41943040 guid=96fc4a24-199a-8ac4-98ef-31e2cf3621e6")
    );
}

#[test]
fn wrong_plans_say_what_is_wrong() {
    let words = |change: &dyn Fn(&mut Plan)| {
        let mut plan = plan(Some(300 << 20));
        change(&mut plan);
        disk::write(&plan, &mut Sparse { size: 1 << 40, ..Sparse::default() }).unwrap_err().to_string()
    };
    assert!(words(&|plan| plan.size = Some(50 << 20)).starts_with("the disk needs "));
    assert!(words(&|plan| plan.size = Some(62 << 20)).starts_with("partition `root' (a UFS2 file system) needs "));
    assert_eq!(words(&|plan| plan.partitions[2].size = None), "partition `swap' needs a size");
    assert_eq!(words(&|plan| plan.partitions[2].label = "efi".into()), "two partitions are called `efi'");
    assert!(words(&|plan| plan.partitions[0].size = Some(1 << 20)).contains("a BIOS loads at most"));
    assert!(words(&|plan| plan.partitions[1].size = Some(2 << 20)).starts_with("partition `efi' (a FAT32 file system) needs "));
    assert!(words(&|plan| plan.partitions[0].size = Some(512)).starts_with("partition `boot' needs 50000 bytes"));
    assert!(words(&|plan| plan.partitions[3].label = "x".repeat(37)).contains("has no place"));
}

/// What a file needs is decided by its bytes: whether this machine keeps its zeros as a hole or as zeros makes no difference.
#[test]
fn holes_of_the_host_do_not_count() {
    let directory = tempfile::tempdir().unwrap();
    let size = 80 << 20;
    let needed = |name: &str, chunk: &[u8]| {
        let path = directory.path().join(name);
        let mut file = std::fs::File::create(&path).unwrap();
        for _ in 0..size / (1 << 20) {
            io::Write::write_all(&mut file, chunk).unwrap();
        }
        std::os::unix::fs::FileExt::write_all_at(&file, b"in the middle", size / 2).unwrap();
        file.set_len(size).unwrap();
        let mut tree = Tree::new();
        tree.insert("", Entry::dir(0o755)).unwrap();
        tree.insert("file", Entry::host_file(0o644, &path, size)).unwrap();
        ufs2::needed(&tree, &options(0), 0).unwrap()
    };
    let zeros = needed("zeros", &vec![0; 1 << 20]);
    assert!(zeros < 16 << 20, "{zeros}");
    assert_eq!(needed("hole", &[]), zeros);
    assert!(needed("full", &vec![1; 1 << 20]) > size);
}
