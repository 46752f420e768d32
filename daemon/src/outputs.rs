//! What a builder made: checked, made canonical, scanned, and taken into the store.
//!
//! When these functions run, nothing of the builder runs any more. Outputs are first moved from where the builder could reach them (the sandbox's
//! root, or the store directory where there is no sandbox) to a staging directory that only the daemon can enter; there everything is done to them.
//! Fixed outputs, and all that was built without a sandbox, are copied instead of moved: their builder could reach others, so a descriptor to a
//! file may have got out, and what is registered has to be what nobody else ever had open. An output is registered after it is on the disk under its own name.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use bstr::BStr;
use fruix_drv::derivation::DerivationOutput;
use fruix_drv::{Hash, HashAlgo, Hasher, StorePath};
use fruix_store::failpoints::{Moment, point, step};
use fruix_store::{Error as StoreError, InodesSeen, PathInfo, Place, StagedDir, Store, canonicalise, check_output, fsutil};

use crate::build::{FailureKind, JobFacts, Stop, Workspace, reject, words};
use crate::build_dir::BuildDir;
use crate::error::Error;
use crate::options::Level;
use crate::scheduler::{BuildMode, closure};

/// Appended to the name of an output that differs from an earlier one, when failures are kept.
const CHECK_SUFFIX: &str = "-check";

/// How the outputs of a round are taken.
pub(crate) struct Terms {
    /// Whether differing outputs are kept for a look.
    pub(crate) keep_failed: bool,
    /// Whether this is the last round.
    pub(crate) last: bool,
}

/// Where a builder put its outputs.
enum Source<'a> {
    /// A directory in the sandbox that has the store's name.
    Sandbox { dir: OwnedFd, shown: PathBuf },
    /// The store directory itself.
    Store(&'a Store),
}

impl<'a> Source<'a> {
    fn open(store: &'a Store, root: Option<&BuildDir>) -> Result<Source<'a>, Error> {
        let Some(root) = root else { return Ok(Source::Store(store)) };
        let mut shown = root.top_path();
        let mut dir = root.top().try_clone().map_err(|source| Error::io("opening", &shown, source))?;
        // No component may be a link: the builder could not change them, and need not be believed.
        for part in Path::new(store.store_dir().as_str()).components().skip(1) {
            shown.push(part);
            dir = fsutil::open_dir_at(&dir, part.as_os_str()).map_err(|source| Error::io("opening", &shown, source))?;
        }
        Ok(Source::Sandbox { dir, shown })
    }

    fn place(&self, path: &StorePath) -> Place<'_> {
        match self {
            Source::Sandbox { dir, shown } => Place::new(dir.as_fd(), path.base_name(), shown),
            Source::Store(store) => store.place(path),
        }
    }
}

/// An output in the staging directory.
struct Staged<'a> {
    output: &'a DerivationOutput,
    /// The output's own name, for messages.
    shown: PathBuf,
    name: OsString,
    /// Whether it is a copy, made canonical, of what the builder made.
    copied: bool,
}

impl Staged<'_> {
    fn place<'s>(&self, staging: &'s StagedDir) -> Place<'s> {
        Place { shown: self.shown.clone(), ..staging.place(self.name.clone()) }
    }
}

/// Takes the outputs of a finished builder into the store; or, in an early round, holds them against the next one. The rest of the workspace is
/// removed on the way.
pub(crate) fn register(
    store: &Store,
    job: &JobFacts,
    workspace: &mut Workspace,
    terms: &Terms,
    previous: &mut Option<Vec<PathInfo>>,
) -> Result<(), Stop> {
    let staging = store.stage_dir("outputs")?;
    let mut staged = Vec::new();
    let source = Source::open(store, workspace.root.as_ref())?;
    let build_uid = workspace.build_uid();
    for output in job.drv.outputs.values().filter(|output| job.missing.contains(&output.path)) {
        staged.push(stage(store, job, output, &source, &staging, build_uid)?);
    }
    drop(source);
    workspace.root = None;
    if !terms.keep_failed {
        workspace.build_dir = None;
    }
    let canonicalise_all = |from| {
        let mut seen = InodesSeen::new();
        for item in staged.iter().filter(|item| !item.copied) {
            canonicalise(&item.place(&staging), from, &mut seen).map_err(rejection)?;
        }
        Ok::<_, Stop>(seen)
    };
    if canonicalise_all(build_uid)?.refuse_outside_links().is_err() {
        // The other name may be in the build directory. With that gone, a link that is left is somebody else's.
        workspace.build_dir = None;
        canonicalise_all(None)?.refuse_outside_links().map_err(rejection)?;
    }

    let mut candidates: BTreeSet<StorePath> = job.inputs.clone();
    candidates.extend(job.drv.output_paths().cloned());
    let mut infos = Vec::new();
    for item in &staged {
        let place = item.place(&staging);
        check_hash(store, job, item.output, &place)?;
        let scanned = fruix_store::scan_at(&place, &candidates)?;
        if job.mode == BuildMode::Check {
            compare(store, job, item.output, &place, &scanned.nar_hash, terms.keep_failed)?;
            continue;
        }
        check_references(store, job, &item.output.path, &scanned.references)?;
        infos.push(PathInfo {
            path: item.output.path.clone(),
            nar_hash: scanned.nar_hash,
            references: scanned.references,
            deriver: Some(job.drv_path.clone()),
            registration_time: 0,
            nar_size: scanned.nar_size,
        });
    }
    if job.mode == BuildMode::Check {
        return Ok(());
    }
    if let Some(previous) = previous {
        compare_rounds(store, job, previous, &infos)?;
    }
    if terms.keep_failed {
        for item in &staged {
            let aside = check_path(&item.output.path)?;
            if terms.last {
                remove(store, &aside)?;
            } else {
                store.install(&item.place(&staging), &aside)?;
            }
        }
    }
    if !terms.last {
        *previous = Some(infos);
        return Ok(());
    }
    for (item, info) in staged.iter().zip(&infos) {
        let place = item.place(&staging);
        store.deduplicate_hashed(&place, Some(info.nar_hash))?;
        store.sync_at(&place)?;
    }
    for (item, info) in staged.iter().zip(&infos) {
        let place = item.place(&staging);
        if store.is_valid(&item.output.path)? {
            store.replace(&place, info)?;
        } else {
            store.install(&place, &item.output.path)?;
        }
    }
    let at = |moment| point("outputs::register", moment).map_err(|source| Error::io("registering", &staging.path(), source));
    at(Moment::Before)?;
    store.register(&infos).map_err(rejection)?;
    Ok(at(Moment::After)?)
}

/// Checks one output and brings it to the staging directory.
fn stage<'j>(
    store: &Store,
    job: &'j JobFacts,
    output: &'j DerivationOutput,
    source: &Source<'_>,
    staging: &StagedDir,
    build_uid: Option<u32>,
) -> Result<Staged<'j>, Stop> {
    let shown = store.print(&output.path);
    let written = job.redirected.get(&output.path).unwrap_or(&output.path);
    // Messages name what everybody knows, not where it is for the moment.
    let place = Place { shown: store.real_path(&output.path), ..source.place(written) };
    let name = OsString::from(output.path.base_name());
    if !fsutil::exists_at(place.dir, &place.name).map_err(|source| Error::io("getting attributes of path", &place.shown, source))? {
        let drv = store.print(&job.drv_path);
        return Err(reject(FailureKind::OutputRejected, format!("builder for `{drv}' failed to produce output path `{shown}'")));
    }
    check_output(&place, build_uid).map_err(|error| match error {
        StoreError::Suspicious { .. } => {
            reject(FailureKind::OutputRejected, format!("suspicious ownership or permission on `{shown}'; rejecting this build output"))
        }
        error => error.into(),
    })?;
    if let Some((recursive, _)) = expected(output)?
        && !recursive
        && !is_plain_file(&place)?
    {
        return Err(reject(FailureKind::OutputRejected, format!("output path `{shown}' should be a non-executable regular file")));
    }
    // Where a builder could reach somebody, a descriptor to a file may be in other hands.
    let copied = !job.redirected.is_empty() || !output.hash.is_empty() || matches!(source, Source::Store(_));
    let staged = Staged { output, shown: place.shown.clone(), name, copied };
    let target = staged.place(staging);
    if !staged.copied {
        let from = place.name.as_os_str();
        step("outputs::stage", || nix::fcntl::renameat(place.dir, from, target.dir, target.name.as_os_str()))
            .map_err(|errno| Error::io("moving from the sandbox", &place.shown, errno.into()))?;
    } else {
        canonicalise(&place, build_uid, &mut InodesSeen::new()).map_err(rejection)?;
        if !job.redirected.is_empty() {
            job.audience.message(Level::Error, &format!("warning: rewriting hashes in `{shown}'; cross fingers"));
        }
        fruix_store::copy_at(&place, &target, &job.rewrites_back()).map_err(rejection)?;
        remove_at(&place)?;
    }
    Ok(staged)
}

fn rejection(error: StoreError) -> Stop {
    match error {
        StoreError::UnsupportedType { .. }
        | StoreError::InvalidOwnership { .. }
        | StoreError::Suspicious { .. }
        | StoreError::TooDeep { .. }
        | StoreError::Cycle { .. }
        | StoreError::Changed { .. } => reject(FailureKind::OutputRejected, error.to_string()),
        error => error.into(),
    }
}

fn is_plain_file(place: &Place<'_>) -> Result<bool, Error> {
    use nix::sys::stat::{Mode, SFlag};
    let stat = fsutil::lstat_at(place.dir, &place.name).map_err(|source| Error::io("getting attributes of path", &place.shown, source))?;
    let regular = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    Ok(regular && !Mode::from_bits_truncate(stat.st_mode).contains(Mode::S_IXUSR))
}

fn expected(output: &DerivationOutput) -> Result<Option<(bool, Hash)>, Stop> {
    if output.hash.is_empty() {
        return Ok(None);
    }
    output.parse_hash().map(Some).map_err(|error| reject(FailureKind::OutputRejected, error.to_string()))
}

/// Holds a fixed output against the hash that the derivation promises.
fn check_hash(store: &Store, job: &JobFacts, output: &DerivationOutput, place: &Place<'_>) -> Result<(), Stop> {
    let Some((recursive, wanted)) = expected(output)? else { return Ok(()) };
    let got = if recursive {
        fruix_store::hash_at(place, wanted.algo())?.0
    } else {
        let failed = |source| Error::io("reading", &place.shown, source);
        let mut file = std::fs::File::from(fsutil::open_file_at(place.dir, &place.name).map_err(failed)?);
        let mut hasher = Hasher::new(wanted.algo());
        std::io::copy(&mut file, &mut hasher).map_err(failed)?;
        hasher.finish()
    };
    if got == wanted {
        return Ok(());
    }
    let path = store.print(&output.path);
    // Upstream's digits: clients compare them with those of the derivation.
    let digits = |hash: &Hash| if hash.algo() == HashAlgo::Md5 { hash.base16() } else { hash.base32() };
    job.audience.trace(&format!("@ hash-mismatch {path} {} {} {}", output.hash_algo, digits(&wanted), digits(&got)));
    Err(reject(FailureKind::OutputRejected, format!("hash mismatch for store item '{path}'")))
}

/// Check mode: the output must be what is in the store already.
fn compare(store: &Store, job: &JobFacts, output: &DerivationOutput, place: &Place<'_>, hash: &Hash, keep: bool) -> Result<(), Stop> {
    let Some(info) = store.query_path_info(&output.path)? else { return Ok(()) };
    let drv = store.print(&job.drv_path);
    let path = store.print(&output.path);
    if info.nar_hash == *hash {
        job.audience.trace(&format!("@ build-succeeded {drv} -"));
        return Ok(());
    }
    if !keep {
        return Err(Error::request(format!("derivation `{drv}' may not be deterministic: output `{path}' differs")).into());
    }
    let aside = check_path(&output.path)?;
    store.install(place, &aside)?;
    let aside = store.print(&aside);
    Err(Error::request(format!("derivation `{drv}' may not be deterministic: output `{path}' differs from `{aside}'")).into())
}

/// Several rounds: each must give what the one before gave.
fn compare_rounds(store: &Store, job: &JobFacts, before: &[PathInfo], now: &[PathInfo]) -> Result<(), Stop> {
    let drv = store.print(&job.drv_path);
    for (before, now) in before.iter().zip(now) {
        if before.nar_hash != now.nar_hash || before.references != now.references {
            let path = store.print(&now.path);
            let aside = check_path(&now.path)?;
            let kept = fsutil::exists_at(store.dir(), OsStr::new(aside.base_name())).unwrap_or(false);
            let from = if kept { format!(" `{}' from", store.print(&aside)) } else { String::new() };
            return Err(reject(FailureKind::OutputRejected, format!("output `{path}' of `{drv}' differs from{from} previous round")));
        }
    }
    Ok(())
}

/// Enforces `allowedReferences` and its kin.
fn check_references(store: &Store, job: &JobFacts, own: &StorePath, references: &BTreeSet<StorePath>) -> Result<(), Stop> {
    const RULES: [(&str, bool, bool); 4] = [
        ("allowedReferences", true, false),
        ("allowedRequisites", true, true),
        ("disallowedReferences", false, false),
        ("disallowedRequisites", false, true),
    ];
    for (name, allowed, recursive) in RULES {
        let Some(text) = job.drv.env_var(name) else { continue };
        let spec = specifiers(store, job, text)?;
        let used = if recursive {
            let others: BTreeSet<_> = references.iter().filter(|path| *path != own).cloned().collect();
            // Other outputs of this build are not registered yet, and have no closure.
            let mut used = closure(store, store.filter_valid(&others)?)?;
            used.extend(others);
            used
        } else {
            references.clone()
        };
        if let Some(bad) = used.iter().find(|path| spec.contains(*path) != allowed) {
            return Err(reject(
                FailureKind::OutputRejected,
                format!("output (`{}') is not allowed to refer to path `{}'", store.print(own), store.print(bad)),
            ));
        }
    }
    Ok(())
}

fn specifiers(store: &Store, job: &JobFacts, text: &BStr) -> Result<BTreeSet<StorePath>, Stop> {
    let mut paths = BTreeSet::new();
    for word in words(text) {
        let output = std::str::from_utf8(word).ok().and_then(|name| job.drv.outputs.get(name));
        match (store.store_dir().parse(word), output) {
            (Ok(path), _) => paths.insert(path),
            (Err(_), Some(output)) => paths.insert(output.path.clone()),
            (Err(_), None) => {
                let word = String::from_utf8_lossy(word);
                let message = format!("derivation contains an invalid reference specifier `{word}'");
                return Err(reject(FailureKind::OutputRejected, message));
            }
        };
    }
    Ok(paths)
}

/// Moves what a failed builder made to where its outputs would be, so that it can be looked at: it is not valid, and the next build or collection
/// removes it. It is made canonical first, so that nothing in it is of use to anybody.
pub(crate) fn leave_for_debugging(store: &Store, job: &JobFacts, root: Option<&BuildDir>, build_uid: Option<u32>) {
    let Some(root) = root.filter(|_| job.mode == BuildMode::Normal) else { return };
    let Ok(source) = Source::open(store, Some(root)) else { return };
    for path in &job.missing {
        let place = source.place(path);
        if !fsutil::exists_at(place.dir, &place.name).unwrap_or(false) {
            continue;
        }
        let moved = canonicalise(&place, build_uid, &mut InodesSeen::new()).and_then(|()| store.install(&place, path));
        if let Err(error) = moved {
            job.audience.message(Level::Error, &error.to_string());
        }
    }
}

/// Removes outputs that a builder without a sandbox wrote beside the store's own.
pub(crate) fn remove_redirected(store: &Store, job: &JobFacts) {
    for path in job.redirected.values() {
        if let Err(error) = remove(store, path) {
            tracing::warn!(%error, "a redirected output is left behind");
        }
    }
}

fn check_path(path: &StorePath) -> Result<StorePath, Stop> {
    StorePath::from_base_name(format!("{}{CHECK_SUFFIX}", path.base_name())).map_err(|error| Error::request(error.to_string()).into())
}

/// Removes what is at `path`, which is not valid.
pub(crate) fn remove(store: &Store, path: &StorePath) -> Result<(), Error> {
    remove_at(&store.place(path))
}

fn remove_at(place: &Place<'_>) -> Result<(), Error> {
    fsutil::remove_tree(place.dir, &place.name, &place.shown, 0)?;
    Ok(())
}
