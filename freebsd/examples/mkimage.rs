//! Makes an image of a directory or of a manifest, for tests by hand and by script; the product's command is `fruix system image`.
//!
//! ```text
//! mkimage [options] OUTPUT
//!   --directory DIR          the tree: a directory
//!   --manifest FILE          the tree: a manifest, whose files are in the directory
//!   --owners DIR             who names of owners are: a directory with master.passwd and group
//!   --overlay DIR            another directory, of root and wheel, over it
//!   --under-root             everything belongs to root and wheel
//!   --size BYTES             of the file system or the disk; without it, as small as can be
//!   --block BYTES --fragment BYTES --no-soft-updates --label NAME --seed TEXT --time SECONDS
//!   --esp FILE               a disk: GPT, an ESP with this file as its loader, UFS2
//!   --bios PMBR GPTBOOT      the disk boots from a BIOS, too
//!   --swap BYTES             the disk has a partition to swap to
//!   --qcow2                  the disk is a qcow2 file
//!   --check                  look the file system over afterwards
//!   --compare                and compare it with the tree
//! mkimage --check-only FILE  look a file system over
//! ```
#![allow(clippy::unwrap_used, clippy::panic)]

use std::error::Error;
use std::fs;
use std::io::BufReader;
use std::path::PathBuf;
use std::time::Instant;

use fruix_freebsd::image::disk::{self, Content, Partition, Plan};
use fruix_freebsd::image::gpt::Kind;
use fruix_freebsd::image::qcow2::Qcow2;
use fruix_freebsd::image::ufs2::{self, Options, Report};
use fruix_freebsd::image::{Seed, Window};
use fruix_freebsd::tree::{DirectoryOptions, Entry, ManifestOptions, Owners, Time, Tree};

fn show(what: &str, report: &Report) -> Result<(), Box<dyn Error>> {
    for finding in &report.findings {
        println!("{finding}");
    }
    println!("{what}: {} findings, {} inodes, {} fragments", report.findings.len(), report.inodes, report.fragments);
    if report.is_clean() { Ok(()) } else { Err("not clean".into()) }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut directory, mut manifest, mut owners, mut overlays, mut output) = (None, None, None, Vec::new(), None);
    let (mut check, mut compare, mut under_root) = (false, false, false);
    let (mut size, mut block, mut fragment, mut time) = (0u64, 32768u64, 4096u64, 1_700_000_000i64);
    let (mut esp, mut bios, mut swap, mut qcow2) = (None, None, 0u64, false);
    let (mut soft_updates, mut label, mut seed) = (true, String::new(), String::from("mkimage"));
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let mut path = || PathBuf::from(arguments.next().unwrap());
        match argument.to_str().unwrap() {
            "--directory" => directory = Some(path()),
            "--manifest" => manifest = Some(path()),
            "--owners" => owners = Some(path()),
            "--overlay" => overlays.push(path()),
            "--under-root" => under_root = true,
            "--size" => size = path().to_str().unwrap().parse()?,
            "--block" => block = path().to_str().unwrap().parse()?,
            "--fragment" => fragment = path().to_str().unwrap().parse()?,
            "--time" => time = path().to_str().unwrap().parse()?,
            "--label" => label = path().to_str().unwrap().to_owned(),
            "--seed" => seed = path().to_str().unwrap().to_owned(),
            "--no-soft-updates" => soft_updates = false,
            "--esp" => esp = Some(path()),
            "--bios" => bios = Some((path(), path())),
            "--swap" => swap = path().to_str().unwrap().parse()?,
            "--qcow2" => qcow2 = true,
            "--check" => check = true,
            "--compare" => compare = true,
            "--check-only" => return show("check", &ufs2::check(fs::File::open(path())?)?),
            other if other.starts_with("--") => return Err(format!("{other}?").into()),
            _ => output = Some(PathBuf::from(argument)),
        }
    }
    let start = Instant::now();
    let (directory, output) = (directory.ok_or("--directory?")?, output.ok_or("OUTPUT?")?);
    let time = Time::seconds(time);
    let root = DirectoryOptions { owner: Some((0, 0)), time: Some(time), without: None };
    let mut tree = if let Some(manifest) = manifest {
        let owners = owners.map_or_else(|| Ok(Owners::default()), |directory| Owners::from_directory(&directory))?;
        let options = ManifestOptions { name: "manifest", root: Some(&directory), owners: &owners, time };
        Tree::read_manifest(BufReader::new(fs::File::open(manifest)?), &options)?
    } else {
        Tree::from_directory(&directory, if under_root { root } else { DirectoryOptions::default() })?
    };
    for overlay in overlays {
        let mut overlay = Tree::from_directory(&overlay, root)?;
        // Of directories, those below count.
        let known: Vec<_> = overlay
            .iter()
            .filter(|(path, entry)| entry == &&Entry::dir(entry.mode).time(time) && tree.get(path).is_some())
            .map(|(path, _)| path.to_vec())
            .collect();
        for path in known {
            let there = tree.get(&path).cloned().unwrap();
            *overlay.get_mut(&path).unwrap() = there;
        }
        tree.overlay(overlay)?;
    }
    tree.complete(&Entry::dir(0o755).time(time));
    println!("tree: {} entries, {:.2} s", tree.len(), start.elapsed().as_secs_f64());
    let seed = Seed::new(seed.as_bytes());
    let mut options = Options { block, fragment, soft_updates, label, time, ..Options::new(size, seed) };
    let start = Instant::now();
    let mut file = fs::File::options().read(true).write(true).create(true).truncate(true).open(&output)?;
    let (mut start_byte, mut length) = (0, 0);
    if let Some(loader) = esp {
        let mut firmware = Tree::new();
        let bytes = fs::read(loader)?;
        firmware.insert("EFI/BOOT/BOOTX64.EFI", Entry::file(0o644, bytes).time(time))?;
        firmware.complete(&Entry::dir(0o755).time(time));
        let part = |kind, label: &str, size, content| Partition { kind, label: label.into(), size, free: 64 << 20, content };
        let mut partitions = vec![part(Kind::Efi, "efiboot", Some(33 << 20 | 1 << 20), Content::Fat(firmware, "EFISYS".into()))];
        let mut boot_code = None;
        if let Some((pmbr, gptboot)) = bios {
            boot_code = Some(fs::read(pmbr)?);
            partitions.push(part(Kind::FreebsdBoot, "gptboot", None, Content::Bytes(fs::read(gptboot)?)));
        }
        if swap > 0 {
            partitions.push(part(Kind::FreebsdSwap, "swap", Some(swap), Content::Empty));
        }
        partitions.push(part(Kind::FreebsdUfs, "rootfs", None, Content::Ufs(tree.clone(), options.clone())));
        let plan = Plan { size: (size > 0).then_some(size), seed: options.seed.clone(), boot_code, partitions };
        let manifest = if qcow2 {
            // The size is only known once the plan has been looked at.
            let size = plan.size.ok_or("--size?")?;
            let mut disk = Qcow2::new(&mut file, size);
            let manifest = disk::write(&plan, &mut disk)?;
            disk.finish()?;
            manifest
        } else {
            disk::write(&plan, &mut file)?
        };
        print!("{manifest}");
        let root = &manifest.partitions.last().unwrap().partition;
        (start_byte, length) = (root.start, root.size);
        println!("image: {:.2} s", start.elapsed().as_secs_f64());
    } else {
        if options.size == 0 {
            options.size = ufs2::needed(&tree, &options, 0)?;
        }
        let summary = ufs2::write(&tree, &options, &mut file)?;
        file.set_len(options.size)?;
        println!("image: {summary:?}, {:.2} s", start.elapsed().as_secs_f64());
    }
    let root = Window::new(&file, start_byte, if length > 0 { length } else { options.size });
    if check {
        let start = Instant::now();
        show("check", &ufs2::check(&root)?)?;
        println!("{:.2} s", start.elapsed().as_secs_f64());
    }
    if compare {
        show("compare", &ufs2::compare(&root, &tree)?)?;
    }
    Ok(())
}
