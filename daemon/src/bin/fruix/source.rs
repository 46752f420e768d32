//! `fruix source`: what a source of FreeBSD is declared to be, whether store and cache have that and nothing else, and how its pin is moved.
//! `docs/design/sources.md` says by which rules.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bstr::BStr;
use fruix_drv::{Hash, HashAlgo, StoreDir, StorePath, path};
use fruix_freebsd::system::derivations::{PLATFORM, SourcePlan, names, plan_source};
use fruix_freebsd::system::model::Problem;
use fruix_freebsd::system::source::{self, GIT, LOCAL_TREE, METADATA, SRC_TXZ, TREE};
use fruix_freebsd::system::toml::SourceFile;
use fruix_freebsd::tree::Tree;
use fruix_protocol::kinds::BuildMode;
use fruix_protocol::ops;
use fruixd::builtins::freebsd_source::{dump, identity};
use fruixd::builtins::{self, BuiltinInput, BuiltinOutput, ca, git_download, sexp};

use super::system::{Connection, Plain, Report, add_archive, add_texts, declared, keeps, materialise, options, read_text, refuse};
use super::{Failure, Site, tempfile};

const LONG: &str = "\
Declare, pin and check a source of FreeBSD.

A source is a table [source] in a file of its own, or [base.source] in a system file:

  [source]
  kind = \"git\"                               # or \"local-tree\" or \"src-txz\"
  url = \"https://git.FreeBSD.org/src.git\"
  ref = \"releng/15.1\"                        # where `update' looks for a commit
  commit = \"...\"                             # the pin: written by `update'
  sha256 = \"...\"

  [source]                                   [source]
  kind = \"local-tree\"                        kind = \"src-txz\"
  path = \"/usr/src\"                          url = \"https://.../src.txz\"   # or path
                                             sha256 = \"...\"              # the archive's

A ref may move, a pin does not: only `update' looks where the ref is now, and what is made is what the pin names. Whichever kind it is, the same \
tree has the same freebsd_source_effective_sha256.";

const EXAMPLES: &str = "\
Examples:
  fruix source update src.toml     # resolve the ref, fetch, write commit and sha256 into the file
  fruix source verify src.toml     # bring it into the store, compare declaration, store and cache
  fruix source show --json src.toml

Exit status: 0; 1 when something is wrong, each with one line that names it.";

/// The arguments of `fruix source`.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_help = EXAMPLES)]
pub(super) struct SourceArguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Say what is declared, and what it is where that is known; ask nobody and change nothing
    Show(FileArguments),
    /// Bring the source into the store if it is not there, and compare what is declared, what is in the store and what is in the cache
    ///
    /// Every difference is one line, and the exit status is 1. What differs in the cache is deleted and fetched anew; what differs in the store is
    /// repaired with `fruix build --repair'. A ref that has moved is no difference: the pin counts.
    Verify(FileArguments),
    /// Look where the ref is now, fetch that, and write its pin into the file
    ///
    /// Of git the commit and the sha256 of its tree, of src-txz the sha256 of the archive, of a local-tree that of the tree. All else in the file
    /// stays as it is, comments too. What was fetched is in the cache then.
    Update {
        #[command(flatten)]
        file: FileArguments,
        /// Say what would be written, and write nothing
        #[arg(short = 'n', long)]
        dry_run: bool,
    },
}

#[derive(Debug, clap::Args)]
struct FileArguments {
    /// A file with [source], or a system file with [base.source]
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// The store directory, if it is not that of NIX_STORE_DIR
    #[arg(long, value_name = "DIR")]
    store: Option<String>,
    /// Do not show what builders say
    #[arg(short, long)]
    quiet: bool,
}

/// Runs `fruix source`.
pub(super) async fn run(mut site: Site, arguments: SourceArguments) -> Result<(), Failure> {
    let (Action::Show(given) | Action::Verify(given) | Action::Update { file: given, .. }) = &arguments.action;
    if let Some(store) = &given.store {
        site.store_dir = StoreDir::checked(store)?;
    }
    let file = SourceFile::parse(&given.file, &read_text(&given.file)?).map_err(|problems| refuse(&problems))?;
    let cache = Cache::of(&site, "freebsd-source");
    match &arguments.action {
        Action::Show(given) => show(&site, &file, &cache, given),
        Action::Verify(given) => verify(&site, &file, &cache, given).await,
        Action::Update { file: given, dry_run } => update(&file, &cache, given, *dry_run),
    }
}

/// A problem of a field of the source, as a line.
fn wrong(file: &SourceFile, field: &str, problem: impl Into<String>, remedy: impl Into<String>) -> Failure {
    let field = format!("{}.{field}", file.field);
    refuse(&[file.origin.locate(Problem { field, problem: problem.into(), remedy: remedy.into() })])
}

/// What a file names on this machine.
enum Local {
    /// Nothing.
    None,
    /// A directory, its tree and the SHA-256 of that.
    Tree(PathBuf, Tree, Hash),
    /// An archive and its SHA-256.
    Archive(PathBuf, Hash),
}

impl Local {
    /// Looks at it. `pinned` is whether it must be what the file says.
    fn find(file: &SourceFile, pinned: bool) -> Result<Local, Failure> {
        let Some(name) = &file.source.path else { return Ok(Local::None) };
        let path = file.origin.resolve(name);
        let path = path.canonicalize().unwrap_or(path);
        let (what, is_tree) = if file.source.kind == LOCAL_TREE { ("directory", true) } else { ("file", false) };
        let shown = path.display();
        match fs::metadata(&path) {
            Err(error) => {
                let remedy = format!("name a {what} that is there; it is relative to the file");
                return Err(wrong(file, "path", format!("`{shown}': {error}"), remedy));
            }
            Ok(metadata) if metadata.is_dir() != is_tree => {
                return Err(wrong(file, "path", format!("`{shown}' is no {what}"), format!("name a {what}")));
            }
            Ok(_) => {}
        }
        let unreadable =
            |error: &dyn std::fmt::Display| wrong(file, "path", format!("`{shown}': {error}"), format!("mend it, or name another {what}"));
        let local = if is_tree {
            let tree = source::from_directory(&path).map_err(|error| unreadable(&error))?;
            let hash = identity(&tree).map_err(|error| unreadable(&error))?;
            Local::Tree(path.clone(), tree, hash)
        } else {
            Local::Archive(path.clone(), materialise::hash(&path).map_err(|error| unreadable(&error))?)
        };
        match (local.hash(), &file.source.sha256) {
            (Some(hash), Some(pin)) if pinned && hash.base16() != *pin => {
                let problem = format!("`{shown}' has the sha256 {}", hash.base16());
                Err(wrong(
                    file,
                    "sha256",
                    problem,
                    "run `fruix source update' on the file if it may have changed, or bring back what it was",
                ))
            }
            _ => Ok(local),
        }
    }

    fn hash(&self) -> Option<&Hash> {
        match self {
            Local::None => None,
            Local::Tree(.., hash) | Local::Archive(_, hash) => Some(hash),
        }
    }

    /// Its path in the store.
    fn store_path(&self, dir: &StoreDir) -> Result<Option<StorePath>, Failure> {
        Ok(match self {
            Local::None => None,
            Local::Tree(.., hash) => Some(path::fixed_output_path(dir, true, hash, names::SOURCE_TREE)?),
            Local::Archive(_, hash) => Some(path::fixed_output_path(dir, false, hash, names::SOURCE_ARCHIVE)?),
        })
    }
}

/// Files whose names are the SHA-256 of their bytes, in base 16.
pub(super) struct Cache {
    pub(super) directory: PathBuf,
}

/// What a cache has under a name.
pub(super) enum Found {
    Nothing,
    /// The right bytes.
    Good(PathBuf),
    /// Other bytes, which are deleted: a line about them.
    Other(String),
}

impl Cache {
    pub(super) fn of(site: &Site, what: &str) -> Cache {
        let below = Path::new("fruix").join(what);
        let named = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let directory = if nix::unistd::geteuid().is_root() {
            site.state_dir.join("cache").join(&below)
        } else {
            let home = || named("HOME").map_or_else(std::env::temp_dir, |home| home.join(".cache"));
            named("XDG_CACHE_HOME").unwrap_or_else(home).join(&below)
        };
        Cache { directory }
    }

    pub(super) fn path(&self, sum: &str) -> PathBuf {
        self.directory.join(sum)
    }

    /// Hashes what is there.
    pub(super) fn find(&self, sum: &str) -> Result<Found, Failure> {
        let path = self.path(sum);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(format!("`{}': {error}", path.display()).into()),
            Ok(metadata) if !metadata.is_file() => {
                return Err(format!("`{}' in the cache is no file: take it away", path.display()).into());
            }
            Ok(_) => {}
        }
        let hash = materialise::hash(&path).map_err(|error| format!("`{}': {error}", path.display()))?.base16();
        if hash == sum {
            return Ok(Found::Good(path));
        }
        fs::remove_file(&path).map_err(|error| format!("`{}': {error}", path.display()))?;
        Ok(Found::Other(format!(
            "{}: has the sha256 {hash}, not that of its name: it was changed; deleted, not used, fetched anew",
            path.display()
        )))
    }

    /// Puts there what `write` writes, if that has this SHA-256. A cache that cannot be written to is only told: nothing depends on it.
    pub(super) fn keep(&self, sum: &str, write: impl FnOnce(&mut BufWriter<fs::File>) -> Result<(), Failure>) {
        let kept = || -> Result<(), Failure> {
            let work = Work::new(self)?;
            let new = work.0.join(sum);
            let mut file = BufWriter::new(fs::File::options().write(true).create_new(true).mode(0o644).open(&new)?);
            write(&mut file)?;
            file.into_inner().map_err(|error| error.to_string())?.sync_all()?;
            let hash = materialise::hash(&new)?.base16();
            if hash != sum {
                return Err(format!("what was to be kept has the sha256 {hash}, not {sum}").into());
            }
            Ok(fs::rename(&new, self.path(sum))?)
        };
        if let Err(error) = kept() {
            eprintln!("fruix: warning: not kept in the cache {}: {error}", self.directory.display());
        }
    }
}

/// A directory for what is being fetched, gone when it is no longer needed.
pub(super) struct Work(pub(super) PathBuf);

impl Work {
    fn new(cache: &Cache) -> Result<Work, Failure> {
        let told = |error: io::Error| format!("the cache `{}': {error}", cache.directory.display());
        fs::create_dir_all(&cache.directory).map_err(told)?;
        for number in 0_u32..1000 {
            let path = cache.directory.join(format!(".new-{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Work(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(told(error).into()),
            }
        }
        Err(format!("the cache `{}' is full of what was begun: delete `.new-*' there", cache.directory.display()).into())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The builders' functions, in this process.
pub(super) struct Fetcher {
    pub(super) work: Work,
    input: BuiltinInput,
}

impl Fetcher {
    pub(super) fn new(cache: &Cache, who: &str) -> Result<Fetcher, Failure> {
        let work = Work::new(cache)?;
        let authorities = match ca::collect(|name| std::env::var_os(name))? {
            Some(pem) => {
                let file = work.0.join("authorities.pem");
                fs::write(&file, pem)?;
                Some(file)
            }
            None => None,
        };
        let proxies = ["http_proxy", "https_proxy"].into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
        let input = BuiltinInput {
            drv_path: who.into(),
            env: proxies.collect(),
            ca_bundle: authorities,
            git: git_download::find_git(std::env::var_os("PATH").as_deref()),
            // They are the user's.
            allow_file: true,
            ..BuiltinInput::default()
        };
        Ok(Fetcher { work, input })
    }

    /// Runs a builder; what it makes.
    pub(super) fn perform(&self, builder: &str, env: &[(&str, String)], recursive: bool) -> Result<PathBuf, Failure> {
        let out = self.work.0.join("out");
        let output = BuiltinOutput {
            name: "out".into(),
            path: format!("what {} needs", self.input.drv_path),
            write_to: Some(out.clone()),
            hash_algo: if recursive { "r:sha256" } else { "sha256" }.into(),
            // What it is, is to be found out.
            hash: "0".repeat(64),
        };
        let mut input = BuiltinInput { outputs: vec![output], ..self.input.clone() };
        input.env.extend(env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let status = builtins::perform(builder, &input, &mut io::stderr());
        if status != builtins::EXIT_DONE || !out.exists() {
            return Err("it could not be fetched".into());
        }
        Ok(out)
    }

    /// Downloads an archive to the cache; its SHA-256.
    fn archive(&self, cache: &Cache, url: &str) -> Result<Hash, Failure> {
        let archive = self.perform("download", &[("url", sexp::quoted(url))], false)?;
        let hash = materialise::hash(&archive)?;
        cache.keep(&hash.base16(), |to| Ok(io::copy(&mut fs::File::open(&archive)?, to).map(|_| ())?));
        Ok(hash)
    }

    /// Fetches the tree of a commit to the cache; its SHA-256.
    fn tree(&self, cache: &Cache, url: &str, commit: &str) -> Result<Hash, Failure> {
        let directory = self.perform("git-download", &[("url", sexp::quoted(url)), ("commit", commit.to_owned())], true)?;
        let tree = source::from_directory(&directory)?;
        let hash = identity(&tree)?;
        // Of a submodule, a checkout has an empty directory, and the pin must be what the daemon finds when it fetches.
        if fruix_store::hash_path(&directory)?.0.base16() != hash.base16() {
            return Err(format!("the commit {commit} has submodules, which no source of FreeBSD has").into());
        }
        cache.keep(&hash.base16(), |to| Ok(dump(&tree, to).map(|_| ())?));
        Ok(hash)
    }

    /// The commit that a branch or tag is at.
    fn resolve(&self, file: &SourceFile, url: &str, name: &str) -> Result<String, Failure> {
        let directory = self.work.0.join("empty");
        fs::create_dir(&directory)?;
        let full = name == "HEAD" || name.starts_with("refs/");
        let names = if full { vec![name.to_owned()] } else { vec![format!("refs/heads/{name}"), format!("refs/tags/{name}")] };
        let patterns: Vec<String> = names.iter().flat_map(|name| [name.clone(), format!("{name}^{{}}")]).collect();
        let found = git_download::references(&self.input, &directory, url, &patterns)?;
        let at = |wanted: &str| found.iter().find(|(name, _)| name == wanted).map(|(_, object)| object.clone());
        // A tag may be an object of its own, which leads to the commit.
        let commits: Vec<String> = names.iter().filter_map(|name| at(&format!("{name}^{{}}")).or_else(|| at(name))).collect();
        match commits.as_slice() {
            [commit] => Ok(commit.clone()),
            [] => Err(wrong(
                file,
                "ref",
                format!("{url} has no branch or tag `{name}'"),
                "name one that is there (`git ls-remote' lists them)",
            )),
            _ => Err(wrong(file, "ref", format!("`{name}' is a branch and a tag"), format!("write refs/heads/{name} or refs/tags/{name}"))),
        }
    }
}

/// What is known of a source without asking anybody.
fn describe(report: &mut Report, action: &'static str, file: &SourceFile, plan: Option<&SourcePlan>, dir: &StoreDir, cache: &Cache) {
    report.say("action", action);
    report.say("source_file", file.origin.path.display().to_string());
    declared(report, &file.source);
    report.say("freebsd_source_pinned", if file.source.unpinned(file.field).is_none() { "yes" } else { "no" });
    let cached = file.source.sha256.as_ref().filter(|_| file.source.path.is_none()).map(|sum| cache.path(sum)).filter(|path| path.exists());
    report.say("freebsd_source_cache", cached.map(|path| path.display().to_string()).unwrap_or_default());
    let out = plan.and_then(|plan| plan.source.outputs.get("out")).map(|out| dir.display(out));
    report.say("freebsd_source_derivation", plan.map(|plan| dir.display(&plan.source.path)).unwrap_or_default());
    report.say("freebsd_source_store", out.clone().unwrap_or_default());
    let metadata = out.map(|out| Path::new(&out).join(METADATA)).and_then(|file| Some((fs::read_to_string(&file).ok()?, file)));
    let effective = metadata.as_ref().and_then(|(text, _)| source::effective(text)).unwrap_or_default();
    report.say("freebsd_source_materialised", if metadata.is_some() { "yes" } else { "no" });
    report.say("freebsd_source_effective_sha256", effective.sha256);
    report.say("freebsd_source_effective_commit", effective.commit.unwrap_or_default());
    report.say("freebsd_source_file", metadata.map(|(_, file)| file.display().to_string()).unwrap_or_default());
}

fn show(site: &Site, file: &SourceFile, cache: &Cache, given: &FileArguments) -> Result<(), Failure> {
    let dir = &site.store_dir;
    let plan = match file.source.unpinned(file.field) {
        Some(_) => None,
        None => Some(plan_source(&file.source, Local::find(file, false)?.store_path(dir)?, dir, PLATFORM)?),
    };
    let mut report = Report::default();
    describe(&mut report, "show", file, plan.as_ref(), dir, cache);
    report.print(given.json)
}

/// Brings into the store what a source is made of, unless the daemon can.
async fn provide(
    client: &mut Connection,
    file: &SourceFile,
    local: &Local,
    cache: &Cache,
    plan: &SourcePlan,
    mut cached: Option<PathBuf>,
) -> Result<(), Failure> {
    if keeps(client, &plan.input).await? {
        return Ok(());
    }
    let added = |name| format!("what was added as {name}");
    let mut archive = tempfile()?;
    match local {
        Local::Tree(path, tree, _) => {
            eprintln!("adding {} to the store", path.display());
            dump(tree, BufWriter::new(&archive))?;
            return add_archive(client, archive, true, names::SOURCE_TREE, &plan.input, &added(names::SOURCE_TREE)).await;
        }
        Local::Archive(path, _) => {
            eprintln!("adding {} to the store", path.display());
            fruix_store::dump_nar(path, &mut archive)?;
            return add_archive(client, archive, false, names::SOURCE_ARCHIVE, &plan.input, &added(names::SOURCE_ARCHIVE)).await;
        }
        Local::None => {}
    }
    let source = &file.source;
    let (Some(url), Some(pin)) = (&source.url, &source.sha256) else { return Err("the source is not pinned".into()) };
    if cached.is_none() && url.starts_with("file:") {
        // The daemon does not read what is the user's.
        let fetcher = Fetcher::new(cache, "fruix source")?;
        let found = match &source.commit {
            Some(commit) => fetcher.tree(cache, url, commit)?,
            None => fetcher.archive(cache, url)?,
        };
        if found.base16() != *pin {
            let problem = format!("{url} has the sha256 {}", found.base16());
            return Err(wrong(file, "sha256", problem, "run `fruix source update' on the file if it may have changed"));
        }
        cached = Some(cache.path(pin));
    }
    match cached {
        Some(path) if source.kind == GIT => {
            add_archive(client, fs::File::open(path)?, true, names::SOURCE_TREE, &plan.input, &added(names::SOURCE_TREE)).await
        }
        Some(path) => {
            fruix_store::dump_nar(&path, &mut archive)?;
            add_archive(client, archive, false, names::SOURCE_ARCHIVE, &plan.input, &added(names::SOURCE_ARCHIVE)).await
        }
        // The daemon fetches it.
        None => Ok(()),
    }
}

/// Fetches what the file declares, keeps it in the cache, and says what its pin is.
fn fetch(file: &SourceFile, cache: &Cache, url: &str) -> Result<(Option<String>, Hash), Failure> {
    let source = &file.source;
    let fetcher = Fetcher::new(cache, "fruix source")?;
    if source.kind == SRC_TXZ {
        return Ok((None, fetcher.archive(cache, url)?));
    }
    let commit = match (&source.commit, &source.reference) {
        (_, Some(name)) => fetcher.resolve(file, url, name)?,
        (Some(commit), None) => commit.clone(),
        (None, None) => return Err("neither ref nor commit is given".into()),
    };
    // Nothing is fetched that is known.
    if let (Some(known), Some(pin)) = (&source.commit, &source.sha256)
        && *known == commit
    {
        return Ok((Some(commit), Hash::parse_base16(HashAlgo::Sha256, pin)?));
    }
    let hash = fetcher.tree(cache, url, &commit)?;
    Ok((Some(commit), hash))
}

/// A source that is in the store.
pub(super) struct Obtained {
    plan: SourcePlan,
    /// What was wrong with the cache, a line each.
    differences: Vec<String>,
    was_cached: bool,
}

/// Brings a source into the store.
async fn obtain(client: &mut Connection, file: &SourceFile, cache: &Cache, dir: &StoreDir) -> Result<Obtained, Failure> {
    let local = Local::find(file, true)?;
    let plan = plan_source(&file.source, local.store_path(dir)?, dir, PLATFORM)?;
    let mut differences = Vec::new();
    let mut cached = None;
    if let Some(pin) = file.source.sha256.as_ref().filter(|_| plan.fetch.is_some()) {
        match cache.find(pin)? {
            Found::Nothing => {}
            Found::Good(path) => cached = Some(path),
            Found::Other(line) => differences.push(line),
        }
    }
    let was_cached = cached.is_some();
    provide(client, file, &local, cache, &plan, cached).await?;
    add_texts(client, &plan.texts).await?;
    for drv in plan.fetch.iter().chain([&plan.source]) {
        let paths = vec![dir.display(&drv.path).into()];
        let built = client.build_paths(ops::BuildPaths { paths, mode: BuildMode::Normal }).await;
        if let (Err(error), Some(url), true) = (&built, &file.source.url, *drv != plan.source) {
            let problem = format!("what is pinned could not be had from {url}: {error}");
            let remedy = "look at what was said above; `fruix source update' takes what is there now";
            return Err(wrong(file, "url", problem, remedy));
        }
        built?;
    }
    Ok(Obtained { plan, differences, was_cached })
}

/// The derivation of a source and its tree, from the store, where it is brought when there is a client; without one also from the directory of a
/// local-tree.
pub(super) async fn tree(site: &Site, file: &SourceFile, client: Option<&mut Connection>) -> Result<(SourcePlan, Tree), Failure> {
    if let Some(problem) = file.source.unpinned(file.field) {
        return Err(refuse(&[file.origin.locate(problem)]));
    }
    let dir = &site.store_dir;
    let cache = Cache::of(site, "freebsd-source");
    let in_store = |plan: &SourcePlan| plan.source.outputs.get("out").map(|out| Path::new(&dir.display(out)).join(TREE));
    let Some(client) = client else {
        let local = Local::find(file, true)?;
        let plan = plan_source(&file.source, local.store_path(dir)?, dir, PLATFORM)?;
        return match (local, in_store(&plan)) {
            (Local::Tree(_, tree, _), _) => Ok((plan, tree)),
            (_, Some(item)) if item.is_dir() => Ok((plan, source::from_directory(&item)?)),
            _ => {
                let problem = "is not in the store yet, and what is made of it depends on what is in it";
                let remedy = format!("run `fruix source verify {}' first", file.origin.path.display());
                Err(refuse(&[file.origin.locate(Problem { field: file.field.into(), problem: problem.into(), remedy })]))
            }
        };
    };
    let Obtained { plan, differences, .. } = obtain(client, file, &cache, dir).await?;
    for line in differences {
        eprintln!("fruix: warning: {line}");
    }
    let item = in_store(&plan).ok_or("the source has no output")?;
    let tree = source::from_directory(&item)?;
    Ok((plan, tree))
}

async fn verify(site: &Site, file: &SourceFile, cache: &Cache, given: &FileArguments) -> Result<(), Failure> {
    let dir = &site.store_dir;
    if let Some(problem) = file.source.unpinned(file.field) {
        return Err(refuse(&[file.origin.locate(problem)]));
    }
    let mut client = site.connect().await?;
    client.set_log(|text: &BStr| drop(io::stderr().write_all(text)));
    client.set_options(options(given.quiet)).await?;
    let Obtained { plan, mut differences, was_cached } = obtain(&mut client, file, cache, dir).await?;
    let pin = file.source.sha256.as_ref().filter(|_| plan.fetch.is_some());

    // What the store has is what it had.
    let out = plan.source.outputs.get("out").ok_or("the source has no output")?;
    let mut sound = true;
    for (path, maker) in [(&plan.input, plan.fetch.as_ref()), (out, Some(&plan.source))] {
        let shown = dir.display(path);
        let registered = client.query_path_info(ops::QueryPathInfo { path: path.clone() }).await?.hash;
        let found = fruix_store::hash_path(Path::new(&shown))?.0;
        if found.base16() != registered.base16() {
            let remedy = maker.map_or_else(
                || format!("delete it (`fruix gc -D {shown}') and verify again"),
                |maker| format!("run `fruix build --repair {}'", dir.display(&maker.path)),
            );
            differences.push(format!(
                "{shown}: has the sha256 {}, not {} as when it was made: it was changed; {remedy}",
                found.base16(),
                registered.base16()
            ));
            sound = false;
        }
    }
    let shown = PathBuf::from(dir.display(out));
    let metadata = fs::read_to_string(shown.join(METADATA)).unwrap_or_default();
    if sound {
        let found = fruix_store::hash_path(&shown.join(TREE))?.0.base16();
        let told = source::effective(&metadata).unwrap_or_default();
        if found != told.sha256 || told.commit != file.source.commit {
            differences.push(format!(
                "{}: does not tell what is in it; run `fruix build --repair {}'",
                shown.display(),
                dir.display(&plan.source.path)
            ));
        }
        // Where nothing is cached, it is from now on.
        if let Some(pin) = pin.filter(|_| !was_cached) {
            let input = PathBuf::from(dir.display(&plan.input));
            cache.keep(pin, |to| match file.source.kind.as_str() {
                GIT => Ok(fruix_store::dump_nar(&input, to)?),
                _ => Ok(io::copy(&mut fs::File::open(&input)?, to).map(|_| ())?),
            });
        }
    }
    let mut report = Report::default();
    describe(&mut report, "verify", file, Some(&plan), dir, cache);
    report.say("freebsd_source_verified", if differences.is_empty() { "yes" } else { "no" });
    report.print(given.json)?;
    if differences.is_empty() { Ok(()) } else { Err(Plain(differences.join("\n")).into()) }
}

fn update(file: &SourceFile, cache: &Cache, given: &FileArguments, dry_run: bool) -> Result<(), Failure> {
    let source = &file.source;
    let (commit, hash) = match (Local::find(file, false)?, &source.url) {
        (Local::Tree(.., hash) | Local::Archive(_, hash), _) => (None, hash),
        (Local::None, Some(url)) => fetch(file, cache, url).map_err(|error| match error.downcast::<Plain>() {
            Ok(line) => line as Failure,
            Err(error) => wrong(file, "url", format!("{url}: {error}"), "look at what was said above, or name another"),
        })?,
        (Local::None, None) => return Err("neither path nor url is given".into()),
    };
    let (commit, sha256) = (commit.or_else(|| source.commit.clone()), hash.base16());
    let changed = commit != source.commit || source.sha256.as_ref() != Some(&sha256);
    if changed {
        let hint = || {
            let commit = commit.as_deref().map_or(String::new(), |commit| format!("commit = \"{commit}\" and "));
            wrong(file, "sha256", "cannot be written where it belongs", format!("write {commit}sha256 = \"{sha256}\""))
        };
        let text = file.with_pin(commit.as_deref(), &sha256).ok_or_else(hint)?;
        if !dry_run {
            rewrite(&file.origin.path, &text)?;
        }
    }
    let answer = |yes: bool| if yes { "yes" } else { "no" };
    let mut report = Report::default();
    report.say("action", "update");
    report.say("source_file", file.origin.path.display().to_string());
    report.say("freebsd_source_old_commit", source.commit.clone().unwrap_or_default());
    report.say("freebsd_source_old_sha256", source.sha256.clone().unwrap_or_default());
    report.say("freebsd_source_commit", commit.unwrap_or_default());
    report.say("freebsd_source_sha256", sha256);
    report.say("freebsd_source_changed", answer(changed));
    report.say("written", answer(changed && !dry_run));
    report.print(given.json)
}

/// Puts `text` into a file: all of it, or nothing.
pub(super) fn rewrite(file: &Path, text: &str) -> Result<(), Failure> {
    // A link stays one.
    let file = file.canonicalize()?;
    let told = |error: io::Error| format!("writing `{}': {error}", file.display());
    let mut name = OsString::from(format!(".new-{}-", std::process::id()));
    name.push(file.file_name().unwrap_or_default());
    let new = file.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut out = fs::File::options().write(true).create_new(true).open(&new)?;
        out.set_permissions(fs::metadata(&file)?.permissions())?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        fs::rename(&new, &file)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&new);
        told(error).into()
    })
}
