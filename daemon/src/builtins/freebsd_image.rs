//! `builtin:freebsd-image`: the disk image of a root file system.

use std::fs;
use std::io::{BufReader, Write};
use std::path::Path;

use fruix_drv::{Hash, HashAlgo, Hasher};
use fruix_freebsd::image::disk;
use fruix_freebsd::image::qcow2::Qcow2;
use fruix_freebsd::system::disk::plan;
use fruix_freebsd::system::model::Image;
use fruix_freebsd::tree::{ManifestOptions, Owners, Time, Tree};

use super::freebsd_system::ROOT_MANIFEST;
use super::{BuiltinError, BuiltinInput, say};

/// Makes the image: a file.
pub fn image(input: &BuiltinInput, log: &mut dyn Write) -> Result<(), BuiltinError> {
    input.check_version("builtin:freebsd-image")?;
    let settings: Image = input.description("configuration")?;
    let manifest = input.store_file("rootfs")?.join(ROOT_MANIFEST);
    let out = input.out()?.target();
    let root = fs::File::open(&manifest).map_err(BuiltinError::io("opening", &manifest))?;
    let options = ManifestOptions { name: &manifest.to_string_lossy(), root: None, owners: &Owners::default(), time: Time::seconds(1) };
    let root = Tree::read_manifest(BufReader::new(root), &options).map_err(|error| input.system_error(error.to_string()))?;
    // Whoever sends a derivation may have written it.
    root.confine(Path::new(&input.store_dir)).map_err(|error| input.system_error(error.to_string()))?;
    let seed = seed(input, &manifest)?;
    let plan = plan(&settings, root, seed.as_bytes()).map_err(|reason| input.system_error(reason))?;
    let tell = |error: fruix_freebsd::image::ImageError| input.system_error(error.to_string());
    let mut file = fs::File::options().read(true).write(true).create_new(true).open(out).map_err(BuiltinError::io("creating", out))?;
    let made = match settings.format.as_str() {
        "qcow2" => {
            let mut image = Qcow2::new(file, plan.size.unwrap_or(0));
            let made = disk::write(&plan, &mut image).map_err(tell)?;
            image.finish().map_err(tell)?;
            made
        }
        _ => {
            let made = disk::write(&plan, &mut file).map_err(tell)?;
            file.set_len(made.size).map_err(BuiltinError::io("writing", out))?;
            made
        }
    };
    for line in made.to_string().lines() {
        say(log, line);
    }
    Ok(())
}

/// What identifiers follow from: the settings and the root file system's manifest, which names its contents by their hashes.
fn seed(input: &BuiltinInput, manifest: &Path) -> Result<Hash, BuiltinError> {
    let settings = input.store_file("configuration")?;
    let mut hasher = Hasher::new(HashAlgo::Sha256);
    for file in [settings.as_path(), manifest] {
        hasher.update(&fs::read(file).map_err(BuiltinError::io("reading", file))?);
    }
    Ok(hasher.finish())
}
