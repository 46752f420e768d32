//! `fruix`: the few commands that a machine without Guile needs to use its build daemon. Everything else is handed to `guix`, where that is
//! installed.

use std::ffi::OsString;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bstr::{BStr, BString};
use clap::{Parser, Subcommand};
use fruix_drv::{StoreDir, StorePath, aterm};
use fruix_protocol::client::Client;
use fruix_protocol::kinds::{BuildMode, GcAction};
use fruix_protocol::ops;
use fruix_protocol::wire::Version;
use fruixd::build_log::BuildLog;
use fruixd::config::Places;
use tokio::io::BufStream;
use tokio::net::UnixStream;

#[path = "fruix/pkg.rs"]
mod pkg;
#[path = "fruix/source.rs"]
mod source;
#[path = "fruix/system.rs"]
mod system;

/// Use the build daemon. Commands and options that are not listed here are handed to `guix', where that is installed.
#[derive(Debug, Parser)]
#[command(name = "fruix", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build derivations, and print the outputs
    Build {
        /// Derivations: in the store, or files that are added to it
        #[arg(required = true, value_name = "FILE.drv")]
        files: Vec<PathBuf>,
        /// Keep the build directory of what fails
        #[arg(short = 'K', long)]
        keep_failed: bool,
        /// Go on when some builds fail
        #[arg(short, long)]
        keep_going: bool,
        /// Do not use substitutes
        #[arg(long)]
        no_substitutes: bool,
        /// Use N cores for each build; 0 means as many as available
        #[arg(short, long, value_name = "N", default_value_t = 0)]
        cores: u64,
        /// Build at most N derivations at a time
        #[arg(short = 'M', long, value_name = "N", default_value_t = 1)]
        max_jobs: u64,
        /// Give up a build that says nothing for so long; 0: never. Default: the daemon's
        #[arg(long, value_name = "SECONDS")]
        max_silent_time: Option<u64>,
        /// Give up a build that takes so long; 0: never. Default: the daemon's
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// Build again what is there, and compare
        #[arg(long, conflicts_with = "repair")]
        check: bool,
        /// Build again what is damaged
        #[arg(long)]
        repair: bool,
        /// Make FILE a link to the output, and a root
        #[arg(short, long, value_name = "FILE")]
        root: Option<PathBuf>,
        /// Do not show what builders say
        #[arg(short, long)]
        quiet: bool,
    },
    /// Collect garbage
    Gc {
        /// Collect at least MIN bytes (with K, M, G, T), not all
        #[arg(short = 'C', long, value_name = "MIN")]
        collect_garbage: Option<Size>,
        /// Collect until FREE bytes are available
        #[arg(short = 'F', long, value_name = "FREE")]
        free_space: Option<Size>,
        /// Delete these paths
        #[arg(short = 'D', long, num_args = 1.., value_name = "PATH")]
        delete: Vec<PathBuf>,
        /// List what is alive
        #[arg(long)]
        list_live: bool,
        /// List what is dead
        #[arg(long)]
        list_dead: bool,
        /// Look for damage; with contents, hash everything
        #[arg(long, value_name = "contents", num_args = 0..=1, default_missing_value = "", value_parser = ["", "contents"])]
        verify: Option<String>,
    },
    /// Say what is registered of paths
    PathInfo {
        /// Paths in the store, or below them
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Print the log of a build
    Log {
        /// A derivation, or an output of one
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
    /// Add files or directories to the store
    Add {
        /// What to add
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// List the roots, and what they keep
    Roots,
    /// Make a FreeBSD system of a file that describes it
    System(system::SystemArguments),
    /// Declare, pin and check a source of FreeBSD
    Source(source::SourceArguments),
    /// Take packages of FreeBSD's from a repository, pinned and checked
    Pkg(pkg::PkgArguments),
    /// Anything else is guix's
    #[command(external_subcommand)]
    Other(#[allow(dead_code)] Vec<OsString>), // They are taken as they were given.
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size(u64);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let end = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        let unit = match unit.to_ascii_uppercase().as_str() {
            "" | "B" => 1_u64,
            "K" | "KIB" => 1 << 10,
            "M" | "MIB" => 1 << 20,
            "G" | "GIB" => 1 << 30,
            "T" | "TIB" => 1 << 40,
            _ => return Err("a number of bytes is expected, with K, M, G or T if need be".to_owned()),
        };
        let number = digits.parse::<u64>().map_err(|error| error.to_string())?;
        number.checked_mul(unit).map(Size).ok_or_else(|| "that is too much".to_owned())
    }
}

/// A message for the user.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let first = std::env::args_os().nth(1);
    let ours = ["build", "gc", "path-info", "log", "add", "roots", "system", "source", "pkg", "help", "--help", "-h", "--version", "-V"];
    let result = match Arguments::try_parse() {
        Ok(Arguments { command: Command::Other(_) }) => hand_over(),
        Ok(Arguments { command }) => run(command),
        // More is asked of a command than ours can do: `fruix build hello'.
        Err(error) if error.use_stderr() && first.as_ref().is_some_and(|name| !ours[2..].iter().any(|own| name == *own)) => {
            hand_over().map_err(|reason| format!("{error}\n{reason}").into())
        }
        Err(error) => error.exit(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let prefix = if error.is::<system::Plain>() { "" } else { "fruix: error: " };
            eprintln!("{prefix}{error}");
            ExitCode::FAILURE
        }
    }
}

/// Becomes `guix` with the same arguments.
fn hand_over() -> Result<(), Failure> {
    let error = std::process::Command::new("guix").args(std::env::args_os().skip(1)).exec();
    Err(if error.kind() == io::ErrorKind::NotFound {
        "that needs guix, which is not installed here; see `fruix --help' for what works without it".into()
    } else {
        format!("guix: {error}").into()
    })
}

/// What the environment says, as fruixd understands it.
struct Site {
    store_dir: StoreDir,
    socket: PathBuf,
    log_dir: PathBuf,
    state_dir: PathBuf,
}

impl Site {
    fn from_env() -> Result<Site, Failure> {
        let Places { store_dir, state_dir, log_dir, .. } = Places::new(|name| std::env::var(name).ok())?;
        let socket = match std::env::var("GUIX_DAEMON_SOCKET") {
            Ok(uri) if !uri.is_empty() => {
                PathBuf::from(uri.strip_prefix("file://").or_else(|| uri.strip_prefix("unix://")).unwrap_or(&uri))
            }
            _ => state_dir.join("daemon-socket/socket"),
        };
        Ok(Site { store_dir, socket, log_dir, state_dir })
    }

    async fn connect(&self) -> Result<Client<BufStream<UnixStream>>, Failure> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| format!("cannot connect to the daemon at `{}': {error} (is it started?)", self.socket.display()))?;
        Ok(Client::connect(BufStream::new(stream), self.store_dir.clone(), Version::GUIX_1_100).await?)
    }

    /// The store path that a file is, or is in.
    fn store_path(&self, path: &Path) -> Result<StorePath, Failure> {
        let inside = |path: &Path| self.store_dir.to_store_path(path.as_os_str().as_bytes()).ok();
        // A link, such as a profile, leads there; a store item may be a link itself.
        let found = inside(path).or_else(|| path.canonicalize().ok().as_deref().and_then(inside));
        found.ok_or_else(|| format!("`{}' is not in the store {}", path.display(), self.store_dir.as_str()).into())
    }
}

/// Makes `link` a link to `output`, and a root.
async fn make_root(site: &Site, client: &mut Client<BufStream<UnixStream>>, output: &StorePath, link: &Path) -> Result<(), Failure> {
    let link = std::path::absolute(link)?;
    match std::fs::read_link(&link) {
        Ok(_) => std::fs::remove_file(&link)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => return Err(format!("`{}' is there and no link", link.display()).into()),
    }
    std::os::unix::fs::symlink(site.store_dir.display(output), &link)?;
    client.add_indirect_root(ops::AddIndirectRoot { path: link.into_os_string().into_vec().into() }).await?;
    Ok(())
}

fn run(command: Command) -> Result<(), Failure> {
    let site = Site::from_env()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Build {
                files,
                keep_failed,
                keep_going,
                no_substitutes,
                cores,
                max_jobs,
                max_silent_time,
                timeout,
                check,
                repair,
                root,
                quiet,
            } => {
                let mut client = site.connect().await?;
                client.set_log(move |text: &BStr| drop(io::stderr().write_all(text)));
                let times = [("build-max-silent-time", max_silent_time), ("build-timeout", timeout)];
                let times = times.into_iter().filter_map(|(name, value)| Some((name, value?)));
                let settings = [("build-max-jobs", max_jobs), ("build-cores", cores)].into_iter().chain(times);
                let options = ops::SetOptions {
                    keep_failed,
                    keep_going,
                    build_verbosity: if quiet { 7 } else { 0 },
                    use_substitutes: !no_substitutes,
                    settings: settings.map(|(name, value)| (name.into(), value.to_string().into())).collect(),
                    ..ops::SetOptions::default()
                };
                client.set_options(options).await?;
                let mut drvs = Vec::new();
                for file in &files {
                    drvs.push(derivation(&site, &mut client, file).await?);
                }
                let mode = match (check, repair) {
                    (true, _) => BuildMode::Check,
                    (_, true) => BuildMode::Repair,
                    _ => BuildMode::Normal,
                };
                let paths = drvs.iter().map(|drv| site.store_dir.display(drv).into()).collect();
                client.build_paths(ops::BuildPaths { paths, mode }).await?;
                let mut outputs = Vec::new();
                for drv in drvs {
                    outputs.extend(client.query_derivation_outputs(ops::QueryDerivationOutputs { path: drv }).await?);
                }
                if let Some(link) = root {
                    let [output, ..] = outputs.as_slice() else { return Err("there is no output to make a root of".into()) };
                    make_root(&site, &mut client, output, &link).await?;
                }
                print_all(outputs.iter().map(|path| site.store_dir.display(path)))
            }
            Command::Gc { collect_garbage, free_space, delete, list_live, list_dead, verify } => {
                let mut client = site.connect().await?;
                client.set_log(|text: &BStr| drop(io::stderr().write_all(text)));
                if let Some(how) = verify {
                    let damaged = client.verify_store(ops::VerifyStore { check_contents: how == "contents", repair: false }).await?;
                    return if damaged { Err("the store is damaged".into()) } else { Ok(()) };
                }
                let mut max_freed = collect_garbage.map_or(u64::MAX, |size| size.0);
                if let Some(Size(wanted)) = free_space {
                    let there = free_bytes(Path::new(site.store_dir.as_str()))?;
                    max_freed = wanted.saturating_sub(there);
                    if max_freed == 0 {
                        println!("{there} bytes are available already");
                        return Ok(());
                    }
                }
                let action = match (list_live, list_dead, delete.is_empty()) {
                    (true, _, _) => GcAction::ReturnLive,
                    (_, true, _) => GcAction::ReturnDead,
                    (_, _, false) => GcAction::DeleteSpecific,
                    _ => GcAction::DeleteDead,
                };
                let delete: Result<Vec<BString>, Failure> =
                    delete.iter().map(|path| Ok(site.store_dir.display(&site.store_path(path)?).into())).collect();
                let request = ops::CollectGarbage {
                    action,
                    paths_to_delete: delete?,
                    ignore_liveness: false,
                    max_freed,
                    obsolete1: 0,
                    obsolete2: 0,
                    obsolete3: 0,
                };
                let results = client.collect_garbage(request).await?;
                print_all(results.paths.iter())?;
                if !list_live && !list_dead {
                    eprintln!("{} paths deleted, {} bytes freed", results.paths.len(), results.bytes_freed);
                }
                Ok(())
            }
            Command::PathInfo { paths } => {
                let mut client = site.connect().await?;
                for path in &paths {
                    let path = site.store_path(path)?;
                    let info = client.query_path_info(ops::QueryPathInfo { path: path.clone() }).await?;
                    let show = |path: &StorePath| site.store_dir.display(path);
                    let mut lines = vec![
                        format!("path: {}", show(&path)),
                        format!("hash: sha256:{}", info.hash.base16()),
                        format!("size: {}", info.nar_size),
                        format!("registered: {}", info.registration_time),
                    ];
                    lines.extend(info.deriver.iter().map(|deriver| format!("deriver: {}", show(deriver))));
                    lines.extend(info.references.iter().map(|reference| format!("reference: {}", show(reference))));
                    lines.push(String::new());
                    print_all(lines.into_iter())?;
                }
                Ok(())
            }
            Command::Log { path } => {
                let path = site.store_path(&path)?;
                let drv = if path.is_derivation() {
                    path
                } else {
                    let mut client = site.connect().await?;
                    let info = client.query_path_info(ops::QueryPathInfo { path }).await?;
                    info.deriver.ok_or("it is not known which derivation made it")?
                };
                print_log(&BuildLog::base_path(&site.log_dir, &drv))
            }
            Command::Add { files } => {
                let mut client = site.connect().await?;
                for file in &files {
                    let name = file.file_name().ok_or_else(|| format!("`{}' has no name", file.display()))?;
                    let mut archive = tempfile()?;
                    fruix_store::dump_nar(file, &mut archive)?;
                    archive.rewind()?;
                    let request =
                        ops::AddToStore { base_name: name.as_bytes().into(), fixed: true, recursive: true, hash_algo: "sha256".into() };
                    let path = client.add_to_store(request, &mut tokio::fs::File::from_std(archive)).await?;
                    print_all([site.store_dir.display(&path)].iter())?;
                }
                Ok(())
            }
            Command::Roots => {
                let mut client = site.connect().await?;
                let roots = client.find_roots(ops::FindRoots {}).await?;
                print_all(roots.iter().map(|(link, path)| format!("{link} -> {}", site.store_dir.display(path))))
            }
            Command::System(arguments) => system::run(site, arguments).await,
            Command::Source(arguments) => source::run(site, arguments).await,
            Command::Pkg(arguments) => pkg::run(site, arguments).await,
            Command::Other(_) => hand_over(),
        }
    })
}

/// The derivation of a file, which is added to the store if it is not there.
async fn derivation(site: &Site, client: &mut Client<BufStream<UnixStream>>, file: &Path) -> Result<StorePath, Failure> {
    if let Ok(path) = site.store_path(file) {
        return if path.is_derivation() { Ok(path) } else { Err(format!("`{}' is no derivation", file.display()).into()) };
    }
    let text = std::fs::read(file).map_err(|error| format!("reading `{}': {error}", file.display()))?;
    let drv = aterm::parse(&site.store_dir, &text).map_err(|error| format!("`{}' is no derivation: {error}", file.display()))?;
    let name = match drv.env_var("name") {
        Some(name) => format!("{name}.drv"),
        None => file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    };
    let references = drv.references().into_iter().collect();
    Ok(client.add_text_to_store(ops::AddTextToStore { name: name.into(), text: text.into(), references }).await?)
}

fn print_log(base: &Path) -> Result<(), Failure> {
    let with = |suffix: &str| {
        let mut name = base.as_os_str().to_owned();
        name.push(suffix);
        std::fs::File::open(PathBuf::from(name))
    };
    let mut reader: Box<dyn io::Read> = if let Ok(file) = with(".gz") {
        Box::new(flate2::read::MultiGzDecoder::new(file))
    } else if let Ok(file) = with(".bz2") {
        Box::new(bzip2::read::MultiBzDecoder::new(file))
    } else {
        Box::new(with("").map_err(|error| format!("there is no log at `{}': {error}", base.display()))?)
    };
    let (mut out, mut buffer) = (io::stdout().lock(), vec![0; 65536]);
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        if !told(out.write_all(buffer.get(..count).unwrap_or_default()))? {
            return Ok(());
        }
    }
}

/// Prints lines; a reader that has had enough is no error.
fn print_all(lines: impl Iterator<Item = impl std::fmt::Display>) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for line in lines {
        if !told(writeln!(out, "{line}"))? {
            return Ok(());
        }
    }
    told(out.flush()).map(drop)
}

fn told(result: io::Result<()>) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A file without a name.
fn tempfile() -> io::Result<std::fs::File> {
    let dir = std::env::temp_dir();
    for number in 0_u32..1000 {
        let path = dir.join(format!("fruix-{}-{number}", std::process::id()));
        match std::fs::File::options().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn free_bytes(dir: &Path) -> Result<u64, Failure> {
    let file = std::fs::File::open(dir).map_err(|error| format!("opening `{}': {error}", dir.display()))?;
    Ok(fruixd::build_dir::free_bytes(file))
}
