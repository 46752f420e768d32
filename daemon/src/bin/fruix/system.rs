//! `fruix system`: from a file that describes a FreeBSD system to its closure, its root file system, its disk image, and a machine that boots it.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use bstr::BStr;
use fruix_drv::{Hash, HashAlgo, StoreDir, StorePath, path};
use fruix_freebsd::system::derivations::{PLATFORM, Plan, Planned, Sources, Text, names, plan};
use fruix_freebsd::system::model::{OperatingSystem, Problem, REPOSITORY};
use fruix_freebsd::system::native::SOURCE;
use fruix_freebsd::system::pkg::Locked;
use fruix_freebsd::system::source::FreebsdSource;
use fruix_freebsd::system::toml::{Located, MAX_FILE, SourceFile, SystemFile};
use fruix_freebsd::system::{base, disk, needs, packages};
use fruix_freebsd::tree::Tree;
use fruix_protocol::client::Client;
use fruix_protocol::kinds::BuildMode;
use fruix_protocol::ops;
use fruixd::builtins::freebsd_system::ROOT_MANIFEST;
use tokio::io::BufStream;
use tokio::net::UnixStream;

use super::pkg::add_files;
use super::source::Cache;
use super::{Failure, Site, print_all, tempfile};

mod boot;
mod closures;
mod generations;
pub(super) mod materialise;
mod native;

/// Lines for the user that are complete as they are.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Plain(pub(super) String);

/// What `fruix system` does.
#[derive(Debug, clap::Args)]
pub(super) struct SystemArguments {
    #[command(subcommand)]
    command: SystemCommand,
}

#[derive(Debug, clap::Subcommand)]
enum SystemCommand {
    /// Make the closure: the directory in the store that is the system
    Build(MakeArguments),
    /// Build the base from its source: the tools of the build, kernel, boot programs and runtime, or only those named
    Base {
        #[command(flatten)]
        make: MakeArguments,
        /// What to build; what it needs is built too
        #[arg(long, value_name = "BUILD", value_delimiter = ',', value_parser = ["tools", "kernel", "loader", "runtime"])]
        only: Vec<String>,
    },
    /// Make the root file system, at DIR when --rootfs is given
    Rootfs(MakeArguments),
    /// Make the disk image
    Image(MakeArguments),
    /// Make the disk image, and start it
    Boot {
        #[command(flatten)]
        make: MakeArguments,
        #[command(flatten)]
        boot: boot::BootArguments,
    },
    /// Make the closure, and let the running machine go to it: files, users, services; what was current stays a generation
    Deploy {
        #[command(flatten)]
        make: MakeArguments,
        /// Not the running machine, but one whose root directory is DIR, and whose store has the closure, too
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
    },
    /// Make the closure, and let this machine go to it, if it can leave it by itself; with --reboot start it
    Reconfigure {
        #[command(flatten)]
        make: MakeArguments,
        /// Start the machine again, with the new system on trial
        #[arg(long)]
        reboot: bool,
    },
    /// Bring together the system that the machine was started with and its files, as rc(8) does at each start
    Settle {
        /// The machine is up: its system is the one that is started from now on
        #[arg(long)]
        ready: bool,
        #[command(flatten)]
        place: generations::Place,
    },
    /// Go back to the generation before the current one
    Rollback(generations::Place),
    /// Go to a generation: a number, +N or -N from the current one, or a closure in the store
    SwitchGeneration {
        /// Which one
        #[arg(value_name = "GENERATION", allow_hyphen_values = true)]
        generation: String,
        /// Bring the closure GENERATION into this store first: from a directory or an archive that `export' wrote, - for standard input, or from
        /// another machine, ssh://USER@HOST. Nothing of it is signed: say only what you trust
        #[arg(long, value_name = "FROM")]
        from: Option<closures::From>,
        #[command(flatten)]
        place: generations::Place,
    },
    /// Write closures with all they need, for `switch-generation --from' of another machine: an archive to standard output, or to DIR
    Export {
        /// A system, such as /run/current-system, or any path in the store
        #[arg(value_name = "CLOSURE", required = true)]
        paths: Vec<PathBuf>,
        /// Write files to DIR, as binary caches have them; what is there already stays
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
    /// List the generations
    ListGenerations(generations::Place),
    /// Delete generations, so that `fruix gc' can free what only they need: all but the current one, or those named
    DeleteGenerations {
        /// Which: 3, 2..5, ..4, 3.., or several with commas between
        #[arg(value_name = "GENERATIONS")]
        generations: Vec<String>,
        #[command(flatten)]
        place: generations::Place,
    },
    /// Say how two systems differ: declarations, packages, source, files
    Diff {
        /// The one: a generation or a closure; the one before the current generation if not given
        #[arg(value_name = "OLD", allow_hyphen_values = true)]
        old: Option<String>,
        /// The other; the current one if not given
        #[arg(value_name = "NEW", allow_hyphen_values = true)]
        new: Option<String>,
        #[command(flatten)]
        place: generations::Place,
    },
}

/// What to make.
#[derive(Clone, Debug)]
enum Action {
    Build,
    /// These of the base's builds; none for all.
    Base(Vec<String>),
    Rootfs,
    Image,
    Boot(boot::BootArguments),
    /// Of the machine whose root directory this is.
    Deploy(PathBuf),
    /// Of this machine, which is started again then, or not.
    Reconfigure(bool),
}

impl Action {
    /// As it is called in reports.
    fn name(&self) -> &'static str {
        match self {
            Action::Build => "build",
            Action::Base(_) => "base",
            Action::Rootfs => "rootfs",
            Action::Image => "image",
            Action::Boot(_) => "boot",
            Action::Deploy(_) => "deploy",
            Action::Reconfigure(_) => "reconfigure",
        }
    }

    fn has_rootfs(&self) -> bool {
        !matches!(self, Action::Build | Action::Base(_)) && self.machine().is_none()
    }

    /// The root directory of the machine that is changed.
    fn machine(&self) -> Option<PathBuf> {
        match self {
            Action::Deploy(root) => Some(root.clone()),
            Action::Reconfigure(_) => Some("/".into()),
            _ => None,
        }
    }

    fn has_image(&self) -> bool {
        matches!(self, Action::Image | Action::Boot(_))
    }
}

/// The flags of what makes a system of a file.
#[derive(Debug, clap::Args)]
struct MakeArguments {
    /// The file that describes the system, in TOML
    #[arg(value_name = "OS-FILE")]
    file: PathBuf,
    /// Make it for SYSTEM
    #[arg(long, value_name = "SYSTEM", default_value = PLATFORM, value_parser = [PLATFORM])]
    system: String,
    /// The store directory, if it is not that of NIX_STORE_DIR
    #[arg(long, value_name = "DIR")]
    store: Option<String>,
    /// How much the disk holds (with K, M, G, T), whatever the file says
    #[arg(long, value_name = "SIZE")]
    disk_capacity: Option<String>,
    /// Write the root file system to DIR too; owners and flags only as far as the user may give them
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// Copy the image to FILE too, sparse
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Say what would be made, and make nothing; deploy makes the closure, to say what would change
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Build again what is there, and compare
    #[arg(long)]
    check: bool,
    /// Do not show what builders say
    #[arg(short, long)]
    quiet: bool,
}

/// What is printed, in its order.
#[derive(Default)]
pub(super) struct Report(Vec<(&'static str, String)>);

impl Report {
    pub(super) fn say(&mut self, key: &'static str, value: impl Into<String>) {
        self.0.push((key, value.into()));
    }

    pub(super) fn print(&self, json: bool) -> Result<(), Failure> {
        if json {
            let map: serde_json::Map<String, serde_json::Value> =
                self.0.iter().map(|(key, value)| ((*key).to_owned(), value.clone().into())).collect();
            return print_all([serde_json::Value::Object(map)].iter());
        }
        print_all(self.0.iter().map(|(key, value)| format!("{key}={value}")))
    }
}

pub(super) fn refuse(problems: &[Located]) -> Failure {
    Plain(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")).into()
}

/// The text of a file that describes something.
pub(super) fn read_text(file: &Path) -> Result<String, Failure> {
    let mut text = Vec::new();
    // One byte more than is accepted: it may be a device, of which there is no end.
    let read = std::fs::File::open(file).and_then(|opened| opened.take(MAX_FILE as u64 + 1).read_to_end(&mut text));
    read.map_err(|error| format!("reading `{}': {error}", file.display()))?;
    if text.len() > MAX_FILE {
        // Refused by whoever parses it, in words of his own.
        return Ok(String::from_utf8_lossy(&text).into_owned());
    }
    String::from_utf8(text).map_err(|error| {
        let line = error.as_bytes().iter().take(error.utf8_error().valid_up_to()).filter(|byte| **byte == b'\n').count() + 1;
        Plain(format!("{}:{line}: file: is no UTF-8; save it as UTF-8", file.display())).into()
    })
}

fn read(file: &Path, arguments: &MakeArguments) -> Result<SystemFile, Failure> {
    let text = read_text(file)?;
    let mut read = SystemFile::parse(file, &text).map_err(|problems| refuse(&problems))?;
    if let Some(capacity) = &arguments.disk_capacity {
        read.system.image.capacity.clone_from(capacity);
        if let Some(problem) = read.system.problems().into_iter().next() {
            return Err(format!("--disk-capacity: {}; {}", problem.problem, problem.remedy).into());
        }
    }
    Ok(read)
}

/// A local file that a system file names, and what it is to the system.
struct Local {
    field: String,
    path: PathBuf,
    name: String,
    /// For a set: added as it is, with this SHA-256.
    flat: Option<String>,
    directory: bool,
}

fn locals(file: &SystemFile) -> Vec<Local> {
    let system = &file.system;
    let mut found = Vec::new();
    let mut add = |field: String, path: &str, name: &str, flat: Option<String>, directory| {
        let path = file.origin.resolve(path);
        // A link's own archive is that of a link.
        let path = path.canonicalize().unwrap_or(path);
        found.push(Local { field, path, name: name.to_owned(), flat, directory });
    };
    if let Some(path) = &system.base.path {
        add("base.path".into(), path, names::TREE, None, true);
    }
    for (index, set) in system.base.sets.iter().enumerate() {
        if let Some(path) = &set.path {
            let name = Path::new(path).file_name().map_or_else(|| path.clone(), |name| name.to_string_lossy().into_owned());
            add(format!("base.sets[{}].path", index + 1), path, &name, Some(set.sha256.clone()), false);
        }
    }
    if let Some(shepherd) = &system.services.shepherd {
        add("services.shepherd.path".into(), &shepherd.path, names::SHEPHERD, None, true);
    }
    if let Some(fruixd) = &system.services.fruixd {
        add("services.fruixd.program".into(), &fruixd.program, names::FRUIXD, None, false);
        if let Some(client) = &fruixd.client {
            add("services.fruixd.client".into(), client, names::CLIENT, None, false);
        }
    }
    found
}

/// Whether `path` is a program, and not one that FreeBSD runs: what its ELF header says, or the run-time linker that it names near its beginning.
fn is_of_another_system(path: &Path) -> bool {
    const FREEBSD: u8 = 9;
    const LINKER: &[u8] = b"/libexec/ld-elf.so.1\0";
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(4096).read_to_end(&mut start));
    read.is_ok()
        && start.starts_with(b"\x7fELF")
        && start.get(7) != Some(&FREEBSD)
        && !start.windows(LINKER.len()).any(|window| window == LINKER)
}

/// Problems with local files that show before anything is written.
fn local_problems(file: &SystemFile, locals: &[Local]) -> Vec<Located> {
    let mut problems = Vec::new();
    for local in locals {
        let path = local.path.display();
        let what = if local.directory { "directory" } else { "file" };
        let (problem, remedy) = match std::fs::metadata(&local.path) {
            Err(error) => (format!("`{path}': {error}"), format!("name a {what} that is there; it is relative to the system file")),
            Ok(metadata) if metadata.is_dir() != local.directory => (format!("`{path}' is no {what}"), format!("name a {what}")),
            Ok(_) if local.name == names::TREE && !local.path.join("boot/kernel/kernel").exists() => {
                (format!("`{path}' has no boot/kernel/kernel"), "name a directory with an installed FreeBSD, kernel included".to_owned())
            }
            Ok(_) if local.name == names::SHEPHERD && !local.path.join("bin/shepherd").exists() => {
                (format!("`{path}' has no bin/shepherd"), "name a directory with GNU Shepherd, made for FreeBSD".to_owned())
            }
            Ok(_) if matches!(local.name.as_str(), names::FRUIXD | names::CLIENT) && is_of_another_system(&local.path) => {
                (format!("`{path}' is no program for FreeBSD"), "name one that was made for FreeBSD".to_owned())
            }
            Ok(_) => match &local.flat {
                Some(sum) => match materialise::hash(&local.path) {
                    Ok(hash) if hash.base16() == *sum => continue,
                    Ok(hash) => (format!("`{path}' has the sha256 {}", hash.base16()), "write that, or name another file".to_owned()),
                    Err(error) => (format!("`{path}': {error}"), "name a file that can be read".to_owned()),
                },
                None => continue,
            },
        };
        problems.push(file.origin.locate(Problem { field: local.field.clone(), problem, remedy }));
    }
    problems
}

/// Refuses a system whose base lacks what it needs.
fn refuse_lacking(file: &SystemFile, base: &Tree) -> Result<(), Failure> {
    let mut problems: Vec<Located> = needs::lacking(&file.system, base).into_iter().map(|problem| file.origin.locate(problem)).collect();
    problems.sort_by_key(|problem| problem.line);
    if problems.is_empty() { Ok(()) } else { Err(refuse(&problems)) }
}

/// The files of a system's packages, when they are in the store.
fn unpacked(plan: &Plan, dir: &StoreDir) -> Option<Tree> {
    let mut base = Tree::new();
    for path in plan.packages.values().chain(plan.profile.as_ref().and_then(|profile| profile.outputs.get("out"))) {
        base.merge(base::read_package(Path::new(&dir.display(path))).ok()?.0).ok()?;
    }
    Some(base)
}

/// The files of the root file system, when it is in the store.
fn made_root(plan: &Plan, dir: &StoreDir) -> Option<Tree> {
    let manifest = PathBuf::from(dir.display(plan.rootfs.outputs.get("out")?)).join(ROOT_MANIFEST);
    materialise::read(&manifest).ok()
}

/// The store path that a local file has or will have.
fn local_path(dir: &StoreDir, local: &Local) -> Result<StorePath, Failure> {
    let (recursive, hash) = match &local.flat {
        Some(sum) => (false, Hash::parse_base16(HashAlgo::Sha256, sum)?),
        None => (true, fruix_store::hash_path(&local.path)?.0),
    };
    Ok(path::fixed_output_path(dir, recursive, &hash, &local.name)?)
}

pub(super) type Connection = Client<BufStream<UnixStream>>;

async fn add_local(client: &mut Connection, local: &Local, expected: &StorePath) -> Result<(), Failure> {
    if keeps(client, expected).await? {
        return Ok(());
    }
    eprintln!("adding {} to the store", local.path.display());
    let mut archive = tempfile()?;
    fruix_store::dump_nar(&local.path, &mut archive)?;
    add_archive(client, archive, local.flat.is_none(), &local.name, expected, &format!("`{}'", local.path.display())).await
}

/// Adds an archive, or as such the bytes of a file, which must get the path `expected`. `what` is what it was made of, for users.
pub(super) async fn add_archive(
    client: &mut Connection,
    mut archive: std::fs::File,
    recursive: bool,
    name: &str,
    expected: &StorePath,
    what: &str,
) -> Result<(), Failure> {
    archive.rewind()?;
    let request = ops::AddToStore { base_name: name.into(), fixed: true, recursive, hash_algo: "sha256".into() };
    let path = client.add_to_store(request, &mut tokio::fs::File::from_std(archive)).await?;
    if path == *expected { Ok(()) } else { Err(format!("{what} changed while it was read").into()) }
}

/// Whether `path` is in the store; it stays there as long as the connection, whatever is collected meanwhile.
pub(super) async fn keeps(client: &mut Connection, path: &StorePath) -> Result<bool, Failure> {
    client.add_temp_root(ops::AddTempRoot { path: path.clone() }).await?;
    Ok(client.is_valid_path(ops::IsValidPath { path: client.store_dir().display(path).into() }).await?)
}

async fn connect(site: &Site, quiet: bool) -> Result<Connection, Failure> {
    let mut client = site.connect().await?;
    client.set_log(move |text: &BStr| drop(std::io::stderr().write_all(text)));
    client.set_options(options(quiet)).await?;
    Ok(client)
}

pub(super) async fn add_texts(client: &mut Connection, texts: impl IntoIterator<Item = &Text>) -> Result<(), Failure> {
    for text in texts {
        let request = ops::AddTextToStore {
            name: text.name.as_str().into(),
            text: text.text.clone().into(),
            references: text.references.iter().cloned().collect(),
        };
        client.add_text_to_store(request).await?;
    }
    Ok(())
}

pub(super) fn options(quiet: bool) -> ops::SetOptions {
    ops::SetOptions { build_verbosity: if quiet { 7 } else { 0 }, use_substitutes: true, ..ops::SetOptions::default() }
}

/// Runs `fruix system`.
pub(super) async fn run(site: Site, arguments: SystemArguments) -> Result<(), Failure> {
    match arguments.command {
        SystemCommand::Build(arguments) => make(site, Action::Build, arguments).await,
        SystemCommand::Base { make: arguments, only } => make(site, Action::Base(only), arguments).await,
        SystemCommand::Rootfs(arguments) => make(site, Action::Rootfs, arguments).await,
        SystemCommand::Image(arguments) => make(site, Action::Image, arguments).await,
        SystemCommand::Boot { make: arguments, boot } => make(site, Action::Boot(boot), arguments).await,
        SystemCommand::Deploy { make: arguments, root } => make(site, Action::Deploy(root), arguments).await,
        SystemCommand::Reconfigure { make: arguments, reboot } => make(site, Action::Reconfigure(reboot), arguments).await,
        SystemCommand::Settle { ready, place } => generations::settle(&site, &place, ready),
        SystemCommand::Rollback(place) => generations::rollback(&site, &place),
        SystemCommand::SwitchGeneration { generation, from, place } => {
            // Nobody collects what has come before it is a generation.
            let _arrived = match &from {
                Some(from) => Some(closures::bring(&site, from, &site.store_path(Path::new(&generation))?)?),
                None => None,
            };
            generations::switch(&site, &place, &generation)
        }
        SystemCommand::Export { paths, to } => closures::export(&site, &paths, to.as_deref()).await,
        SystemCommand::ListGenerations(place) => generations::list(&site, &place),
        SystemCommand::DeleteGenerations { generations, place } => generations::delete(&site, &place, &generations),
        SystemCommand::Diff { old, new, place } => generations::diff(&site, &place, old.as_deref(), new.as_deref()),
    }
}

async fn make(mut site: Site, action: Action, arguments: MakeArguments) -> Result<(), Failure> {
    if let Some(store) = &arguments.store {
        site.store_dir = StoreDir::checked(store)?;
    }
    let file = read(&arguments.file, &arguments)?;
    if let Action::Boot(boot) = &action
        && let Some(image) = &boot.image
    {
        return boot::boot(image, &file.system.image.format, &file.system.ready_marker, boot);
    }
    for (field, repository, circles) in file.system.repositories() {
        repository.locked(field, circles).map_err(|problem| refuse(&[file.origin.locate(problem)]))?;
    }
    let locals = locals(&file);
    let problems = local_problems(&file, &locals);
    if !problems.is_empty() {
        return Err(refuse(&problems));
    }
    if let Some(tree) = locals.iter().find(|local| local.name == names::TREE) {
        let base = base::read(&tree.path, &file.system.base.manifest).map_err(|error| {
            let remedy = "name a directory with an installed FreeBSD".to_owned();
            refuse(&[file.origin.locate(Problem { field: tree.field.clone(), problem: error.to_string(), remedy })])
        })?;
        refuse_lacking(&file, &base)?;
        let system = &file.system;
        let selected =
            |name: &str| name == system.kernel || name == system.bootloader || system.base_packages.iter().any(|other| other == name);
        let mut part = Tree::new();
        for (_, files) in base::cut(&base, &packages::lists())?.into_iter().filter(|(name, _)| selected(name)) {
            part.merge(files)?;
        }
        if let Some(problem) = disk::too_small_for(&system.image, &part) {
            return Err(refuse(&[file.origin.locate(problem)]));
        }
    }
    let dir = site.store_dir.clone();
    let mut sources = Sources { sets: vec![None; file.system.base.sets.len()], ..Sources::default() };
    let mut paths = Vec::new();
    for local in &locals {
        let path = local_path(&dir, local)?;
        match (local.name.as_str(), local.field.strip_prefix("base.sets[")) {
            (_, Some(rest)) => {
                let index: usize = rest.trim_end_matches("].path").parse()?;
                if let Some(set) = sources.sets.get_mut(index.saturating_sub(1)) {
                    *set = Some(path.clone());
                }
            }
            (names::TREE, _) => sources.tree = Some(path.clone()),
            (names::SHEPHERD, _) => sources.shepherd = Some(path.clone()),
            (names::FRUIXD, _) => sources.fruixd = Some(path.clone()),
            _ => sources.client = Some(path.clone()),
        }
        paths.push(path);
    }
    let source_file = match file.system.base.kind.as_str() {
        SOURCE => Some(SourceFile::parse(&file.origin.path, &read_text(&file.origin.path)?).map_err(|problems| refuse(&problems))?),
        kind if matches!(action, Action::Base(_)) => {
            let problem = format!("is {kind}: such a base is not built");
            let remedy = "write kind = \"source\", with [base.source] and [base.build]".to_owned();
            return Err(refuse(&[file.origin.locate(Problem { field: "base.kind".into(), problem, remedy })]));
        }
        _ => None,
    };
    let quiet = arguments.quiet;
    let mut client = None;
    // What archives of sources hold is only known in the store.
    if source_file.is_some() && !arguments.dry_run {
        client = Some(connect(&site, quiet).await?);
    }
    let native = native::prepare(&site, &file, source_file, client.as_mut()).await?;
    sources.native = native.as_ref().map(|native| native.sources.clone());
    let plan = plan(&file.system, &sources, &dir, &arguments.system)?;
    let goals: Vec<&Planned> = match &action {
        Action::Base(only) => plan
            .native
            .builds
            .iter()
            .filter(|(name, _)| only.is_empty() || only.iter().any(|other| other == *name))
            .map(|(_, build)| build)
            .collect(),
        Action::Build | Action::Deploy(_) | Action::Reconfigure(_) => vec![&plan.system],
        Action::Rootfs => vec![&plan.rootfs],
        Action::Image | Action::Boot(_) => vec![&plan.image],
    };
    let mut report = describe(&file, &plan, &dir, &action);
    if let Some(native) = &native {
        native::describe(&mut report, &site, &plan, native);
    }
    // What deploying changes is only known with the closure.
    if arguments.dry_run && action.machine().is_none() {
        report.say("dry_run", "yes");
        return report.print(arguments.json);
    }
    if let Some(root) = action.machine() {
        generations::check(&site, &generations::Place::new(root, true, false))?;
    }
    let mut client = match client {
        Some(client) => client,
        None => connect(&site, quiet).await?,
    };
    for (local, path) in locals.iter().zip(&paths) {
        add_local(&mut client, local, path).await?;
    }
    let wrong = |locked: &Locked, problem: String, remedy: &str| {
        let field = file.system.repositories().find_map(|(field, repository, _)| {
            let line = locked.to_string();
            Some(format!("{field}.locked[{}]", repository.locked.iter().position(|other| *other == line)? + 1))
        });
        let problem = format!("package {}-{}: {problem}", locked.name, locked.version);
        refuse(&[file.origin.locate(Problem { field: field.unwrap_or_else(|| REPOSITORY.into()), problem, remedy: remedy.to_owned() })])
    };
    add_files(&mut client, &Cache::of(&site, "freebsd-repository"), &plan.files, wrong).await?;
    add_texts(&mut client, native.iter().flat_map(|native| &native.texts)).await?;
    add_texts(&mut client, &plan.texts).await?;
    let mode = if arguments.check { BuildMode::Check } else { BuildMode::Normal };
    if let Err(error) =
        client.build_paths(ops::BuildPaths { paths: goals.iter().map(|goal| dir.display(&goal.path).into()).collect(), mode }).await
    {
        // What archives hold is only known when they are unpacked, and how much is in the root when that is made: then the line can be named of
        // what a builder refused.
        if let Some(base) = unpacked(&plan, &dir) {
            refuse_lacking(&file, &base)?;
        }
        if let Some(problem) = made_root(&plan, &dir).and_then(|root| disk::too_small(&file.system.image, &root)) {
            return Err(refuse(&[file.origin.locate(problem)]));
        }
        return Err(error.into());
    }

    let output = |planned: &Planned| planned.outputs.get("out").map(|path| PathBuf::from(dir.display(path))).unwrap_or_default();
    let count = |path: &Path| -> Result<usize, Failure> {
        let manifest = std::fs::read(path.join(ROOT_MANIFEST))?;
        let prefix = [b".".as_slice(), dir.as_str().as_bytes(), b"/"].concat();
        let items = manifest.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(prefix.as_slice()));
        Ok(items.filter(|rest| !rest.split(|byte| *byte == b' ').next().unwrap_or_default().contains(&b'/')).count())
    };
    if let Some(root) = action.machine() {
        let place = generations::Place::new(root, arguments.dry_run, arguments.json);
        generations::deploy(&site, &place, &output(&plan.system), matches!(action, Action::Reconfigure(_)), report)?;
        if matches!(action, Action::Reconfigure(true)) && !arguments.dry_run {
            const SHUTDOWN: &str = "/sbin/shutdown";
            let ended = std::process::Command::new(SHUTDOWN)
                .args(["-r", "now"])
                .status()
                .map_err(|error| format!("running `{SHUTDOWN}': {error}"))?;
            if !ended.success() {
                return Err(format!("`{SHUTDOWN} -r now' failed: {ended}; restart the machine by hand").into());
            }
        }
        return Ok(());
    }
    if action.has_rootfs() {
        let rootfs = output(&plan.rootfs);
        if rootfs.exists() {
            report.say("store_item_count", count(&rootfs)?.to_string());
        }
        if let Some(target) = &arguments.rootfs {
            materialise::write(&rootfs.join(ROOT_MANIFEST), target)?;
            report.say("rootfs", target.display().to_string());
        }
    }
    if action.has_image() {
        let image = output(&plan.image);
        report.say("raw_sha256", materialise::hash(&image)?.base16());
        report.say("image_size_bytes", std::fs::metadata(&image)?.len().to_string());
        if let Some(target) = &arguments.output {
            materialise::copy_sparse(&image, target)?;
            report.say("image_copy", target.display().to_string());
        }
        if let Action::Boot(boot) = &action {
            report.print(arguments.json)?;
            return boot::boot(&image, &file.system.image.format, &file.system.ready_marker, boot);
        }
    }
    report.print(arguments.json)
}

/// What is known before anything is built.
fn describe(file: &SystemFile, plan: &Plan, dir: &StoreDir, action: &Action) -> Report {
    let system = &file.system;
    let show = |path: &StorePath| dir.display(path);
    let out = |planned: &Planned| planned.outputs.get("out").map(show).unwrap_or_default();
    let mut report = Report::default();
    let stores: BTreeMap<&str, String> = plan.packages.iter().map(|(name, path)| (name.as_str(), show(path))).collect();
    let store = |name: &str| stores.get(name).cloned().unwrap_or_default();
    report.say("action", action.name());
    report.say("system_file", file.origin.path.display().to_string());
    report.say("host_name", &system.host_name);
    report.say("closure_path", out(&plan.system));
    report.say("closure_derivation", show(&plan.system.path));
    report.say("kernel_store", store(&system.kernel));
    report.say("bootloader_store", store(&system.bootloader));
    report.say("runtime_store", store("runtime"));
    report.say("base_package_stores", system.base_packages.iter().map(|name| store(name)).collect::<Vec<_>>().join(","));
    report.say("pkg_profile_store", plan.profile.as_ref().map(out).unwrap_or_default());
    report.say("native_base_store_count", stores.len().to_string());
    report.say("host_base_store_count", "0");
    report.say("freebsd_base_name", &system.base.name);
    report.say("freebsd_base_version_label", &system.base.version);
    match &system.base.source {
        Some(source) => declared(&mut report, source),
        None => of_base(&mut report, system),
    }
    report.say("freebsd_source_file", format!("{}/metadata/freebsd-source.scm", out(&plan.system)));
    report.say("freebsd_base_file", format!("{}/metadata/freebsd-base.scm", out(&plan.system)));
    report.say("init_mode", &system.init_mode);
    report.say("ready_marker", &system.ready_marker);
    if action.has_rootfs() {
        report.say("rootfs_store", out(&plan.rootfs));
        report.say("rootfs_derivation", show(&plan.rootfs.path));
    }
    if action.has_image() {
        report.say("disk_image", out(&plan.image));
        report.say("image_derivation", show(&plan.image.path));
        report.say("image_format", &system.image.format);
        report.say("esp_fstype", "msdosfs");
        report.say("root_fstype", "ufs");
    }
    report
}

/// The declaration of a source.
pub(super) fn declared(report: &mut Report, source: &FreebsdSource) {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    report.say("freebsd_source_name", &source.name);
    report.say("freebsd_source_kind", &source.kind);
    report.say("freebsd_source_url", text(&source.url));
    report.say("freebsd_source_path", text(&source.path));
    report.say("freebsd_source_ref", text(&source.reference));
    report.say("freebsd_source_commit", text(&source.commit));
    report.say("freebsd_source_sha256", text(&source.sha256));
}

/// What is known of the source where none is declared: where the base came from.
fn of_base(report: &mut Report, system: &OperatingSystem) {
    report.say("freebsd_source_name", &system.base.name);
    report.say("freebsd_source_kind", &system.base.kind);
    let set = |field: fn(&fruix_freebsd::system::model::FreebsdSet) -> Option<&String>| {
        system.base.sets.iter().filter_map(field).map(String::as_str).collect::<Vec<_>>().join(",")
    };
    report.say("freebsd_source_url", set(|set| set.url.as_ref()));
    report.say("freebsd_source_path", system.base.path.clone().unwrap_or_else(|| set(|set| set.path.as_ref())));
    report.say("freebsd_source_ref", "");
    report.say("freebsd_source_commit", "");
    report.say("freebsd_source_sha256", set(|set| Some(&set.sha256)));
}
