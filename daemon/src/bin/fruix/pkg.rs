//! `fruix pkg`: packages of FreeBSD's from a repository: which they are, pinned in the file that asks for them, and as items of the store.
//! `docs/design/pkg.md` says by which rules.

use std::fs;
use std::io::{self, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bstr::BStr;
use fruix_drv::{StoreDir, StorePath};
use fruix_freebsd::system::derivations::{LocalPackage, PLATFORM, PkgPlan, PlanError, Planned, PlannedPkg, plan_packages};
use fruix_freebsd::system::model::{Problem, REPOSITORY};
use fruix_freebsd::system::pkg::archive::REMEDY;
use fruix_freebsd::system::pkg::signature::{self, SignatureError, Trust};
use fruix_freebsd::system::pkg::sum::{Hasher, Kind, Sum};
use fruix_freebsd::system::pkg::{Catalogue, Chosen, Circles, Locked, MAX_META, Meta, PkgRepository};
use fruix_freebsd::system::toml::RepositoryFile;
use fruix_protocol::kinds::BuildMode;
use fruix_protocol::ops;
use fruixd::builtins::sexp;

use super::source::{Cache, Fetcher, Found, rewrite};
use super::system::{Connection, Plain, Report, add_archive, add_texts, keeps, materialise, options, read_text, refuse};
use super::{Failure, Site, make_root, tempfile};

const LONG: &str = "\
Take packages of FreeBSD's from a repository, pinned and checked.

A repository is a table [repository], in a file of its own or in a system file, or [base.repository] in a system file with kind = \"pkgbase\":

  [repository]
  url = \"https://pkg.FreeBSD.org/FreeBSD:15:amd64/quarterly\"
  fingerprints = [\"b0170035af3acc5f3f3ae1859dc717101b4e6c1d0a794ad554928ca0cbb2f438\"]
  packages = [\"bash\", \"editors/vim\"]

`update' checks the signature of the repository's catalogue, finds what the packages depend on, and writes all into the file: sha256, the pin, and \
locked, a line for each package. What is built follows from these lines alone. No script of a package is run; `build' tells which have some.";

const EXAMPLES: &str = "\
Examples:
  fruix pkg update pkgs.toml            # fetch the catalogue, check its signature, write sha256 and locked into the file
  fruix pkg build -r profile pkgs.toml  # an item of the store for each package, and a profile of all with a root
  fruix pkg verify pkgs.toml            # compare declaration, catalogue and store
  fruix pkg show --json pkgs.toml

Exit status: 0; 1 when something is wrong, each with one line that names it.";

/// The arguments of `fruix pkg`.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_help = EXAMPLES)]
pub(super) struct PkgArguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Say what is declared and locked; ask nobody and change nothing
    Show(FileArguments),
    /// Compare what is declared with the catalogue that is pinned, its signature, and the items in the store, which are made if they are not there
    ///
    /// Every difference is one line, and the exit status is 1. That the repository has moved on is no difference while the pinned catalogue is cached.
    Verify(FileArguments),
    /// Fetch the catalogue as it is now, check its signature, and write it and the packages that follow into the file
    ///
    /// All else in the file stays as it is, comments too.
    Update {
        #[command(flatten)]
        file: FileArguments,
        /// Say what would be written, and write nothing
        #[arg(short = 'n', long)]
        dry_run: bool,
    },
    /// Make an item of the store of each package, and a profile of all
    Build {
        #[command(flatten)]
        file: FileArguments,
        /// Make LINK a link to the profile, and a root
        #[arg(short, long, value_name = "LINK")]
        root: Option<PathBuf>,
        /// Say what would be made, and make nothing
        #[arg(short = 'n', long)]
        dry_run: bool,
        /// Build again what is there, and compare
        #[arg(long)]
        check: bool,
    },
}

#[derive(Debug, clap::Args)]
struct FileArguments {
    #[arg(value_name = "FILE", help = "A file with [repository], or a system file with [repository] or [base.repository]")]
    file: PathBuf,
    /// Print one JSON object a repository
    #[arg(long)]
    json: bool,
    /// The store directory, if it is not that of NIX_STORE_DIR
    #[arg(long, value_name = "DIR")]
    store: Option<String>,
    /// Do not show what builders say
    #[arg(short, long)]
    quiet: bool,
}

/// A repository of a file.
#[derive(Clone, Copy)]
struct Declared<'a> {
    file: &'a RepositoryFile,
    field: &'static str,
    repository: &'a PkgRepository,
    circles: Circles,
}

impl Declared<'_> {
    /// A problem of one of its fields, as a line.
    fn wrong(&self, field: &str, problem: impl Into<String>, remedy: impl Into<String>) -> Failure {
        let field = format!("{}.{field}", self.field);
        refuse(&[self.file.origin.locate(Problem { field, problem: problem.into(), remedy: remedy.into() })])
    }

    fn locked(&self) -> Result<Vec<Locked>, Failure> {
        self.repository.locked(self.field, self.circles).map_err(|problem| refuse(&[self.file.origin.locate(problem)]))
    }

    /// The derivations, for packages that become items.
    fn plan(&self, dir: &StoreDir) -> Result<Option<PkgPlan>, Failure> {
        if self.circles == Circles::Allowed {
            self.locked()?;
            return Ok(None);
        }
        match plan_packages(self.repository, dir, PLATFORM) {
            Ok(plan) => Ok(Some(plan)),
            Err(PlanError::Locked(problem)) => Err(refuse(&[self.file.origin.locate(problem)])),
            Err(error) => Err(error.into()),
        }
    }
}

/// Runs `fruix pkg`.
pub(super) async fn run(mut site: Site, arguments: PkgArguments) -> Result<(), Failure> {
    let (Action::Show(given) | Action::Verify(given) | Action::Update { file: given, .. } | Action::Build { file: given, .. }) =
        &arguments.action;
    if let Some(store) = &given.store {
        site.store_dir = StoreDir::checked(store)?;
    }
    let mut file = RepositoryFile::parse(&given.file, &read_text(&given.file)?).map_err(|problems| refuse(&problems))?;
    let cache = Cache::of(&site, "freebsd-repository");
    if let Action::Update { dry_run, .. } = &arguments.action {
        for (field, repository, circles) in file.repositories.clone() {
            let declared = Declared { file: &file, field, repository: &repository, circles };
            if let Some(new) = update(&declared, &cache, given, *dry_run)? {
                file = new;
            }
        }
        return Ok(());
    }
    let mut built = false;
    let mut differences = Vec::new();
    for (field, repository, circles) in &file.repositories {
        let declared = Declared { file: &file, field, repository, circles: *circles };
        match &arguments.action {
            Action::Verify(given) => differences.extend(verify(&site, &declared, &cache, given).await?),
            Action::Build { root, dry_run, check, .. } if *field == REPOSITORY => {
                build(&site, &declared, given, root.as_deref(), *dry_run, *check).await?;
                built = true;
            }
            Action::Show(given) => {
                let plan = if repository.sha256.is_some() { declared.plan(&site.store_dir)? } else { None };
                let mut report = Report::default();
                describe(&mut report, "show", &declared, plan.as_ref(), &site.store_dir, &cache);
                report.print(given.json)?;
            }
            _ => {}
        }
    }
    if matches!(arguments.action, Action::Build { .. }) && !built {
        let problem = Problem {
            field: REPOSITORY.into(),
            problem: "is missing: there are packages of a base only".into(),
            remedy: "make the system that they are for (`fruix system build')".into(),
        };
        return Err(refuse(&[file.origin.locate(problem)]));
    }
    if differences.is_empty() { Ok(()) } else { Err(Plain(differences.join("\n")).into()) }
}

fn out(planned: &Planned) -> Option<&StorePath> {
    planned.outputs.get("out")
}

/// What is known without asking anybody.
fn describe(report: &mut Report, action: &'static str, declared: &Declared<'_>, plan: Option<&PkgPlan>, dir: &StoreDir, cache: &Cache) {
    let repository = declared.repository;
    let shown = |planned: Option<&StorePath>| planned.map(|path| dir.display(path)).unwrap_or_default();
    report.say("action", action);
    report.say("repository_file", declared.file.origin.path.display().to_string());
    report.say("pkg_repository_field", declared.field);
    report.say("pkg_repository_name", &repository.name);
    report.say("pkg_repository_url", &repository.url);
    report.say("pkg_packages", repository.packages.join(","));
    report.say("pkg_catalogue_sha256", repository.sha256.clone().unwrap_or_default());
    let cached = repository.sha256.as_ref().map(|sum| cache.path(sum)).filter(|path| path.exists());
    report.say("pkg_catalogue_cache", cached.map(|path| path.display().to_string()).unwrap_or_default());
    report.say("pkg_locked_count", repository.locked.len().to_string());
    if let Some(plan) = plan {
        let stores: Vec<String> =
            plan.packages.iter().map(|package| format!("{}={}", package.locked.name, shown(out(&package.item)))).collect();
        report.say("pkg_stores", stores.join(","));
        report.say("pkg_profile_derivation", dir.display(&plan.profile.path));
        report.say("pkg_profile_store", shown(out(&plan.profile)));
    }
}

/// A catalogue that was fetched or cached: its SHA-256, and what it says when its signature counts.
struct Signed {
    sha256: String,
    packages: usize,
    chosen: Vec<Chosen>,
}

/// Fetches a file of a repository as it is now, and not as an archive of the web had it.
fn get(fetcher: &Fetcher, url: &str) -> Result<PathBuf, Failure> {
    fetcher.perform("download", &[("url", sexp::quoted(url)), ("download-methods", "(upstream)".to_owned())], false)
}

/// Fetches the catalogue; where it is, and what it was called.
fn fetch(declared: &Declared<'_>, fetcher: &Fetcher) -> Result<(PathBuf, String), Failure> {
    let repository = declared.repository;
    let get = |name: &str| get(fetcher, &repository.url_of(name));
    // It is not signed, and says only what the others are called. Old repositories have none.
    let meta = match get("meta.conf") {
        Ok(file) => {
            let mut bytes = Vec::new();
            fs::File::open(file)?.take(MAX_META).read_to_end(&mut bytes)?;
            let wrong =
                |why: String| declared.wrong("url", format!("{} {why}", repository.url_of("meta.conf")), "name a repository of pkg(8)");
            Meta::parse(&String::from_utf8(bytes).map_err(|_| wrong("is no text".into()))?).map_err(wrong)?
        }
        Err(_) => Meta::default(),
    };
    let names = meta.names();
    for name in &names {
        if let Ok(file) = get(name) {
            return Ok((file, repository.url_of(name)));
        }
    }
    let problem = format!("{} has none of {}", repository.url, names.join(", "));
    Err(declared.wrong("url", problem, "look at what was said above, or name another; it is the directory that has meta.conf"))
}

/// Checks a catalogue's signature, and finds the packages that are wanted.
fn check(declared: &Declared<'_>, archive: &Path, shown: &str, work: &Path) -> Result<Signed, Failure> {
    let repository = declared.repository;
    let sha256 = materialise::hash(archive)?.base16();
    let text = work.join("catalogue");
    let _ = fs::remove_file(&text);
    let in_archive = |why: String| match why.split_once("; ") {
        Some((problem, remedy)) => declared.wrong("url", format!("{shown} {problem}"), remedy),
        None => declared.wrong("url", format!("{shown} {why}"), REMEDY),
    };
    let extracted = signature::extract(archive, &text).map_err(in_archive)?;
    let key = match &repository.pubkey {
        Some(name) => {
            let path = declared.file.origin.resolve(name);
            let told = |error: io::Error| {
                declared.wrong("pubkey", format!("`{}': {error}", path.display()), "name a file that is there; it is relative to the file")
            };
            let mut key = Vec::new();
            fs::File::open(&path).map_err(told)?.take(1 << 20).read_to_end(&mut key).map_err(told)?;
            Some(key)
        }
        None => None,
    };
    let trust = key.as_deref().map_or(Trust::Fingerprints(&repository.fingerprints), Trust::Key);
    let (field, whose) = if key.is_some() { ("pubkey", "pubkey") } else { ("fingerprints", "fingerprints") };
    signature::verify(&extracted, trust).map_err(|error| match error {
        SignatureError::Untrusted { found } if found.is_empty() => {
            declared.wrong(field, format!("{shown} has a signature without its key"), REMEDY)
        }
        SignatureError::Untrusted { found } => declared.wrong(
            field,
            format!("{shown} is signed with the key {}, which is not among them", found.join(" and ")),
            "write that only if whoever makes the repository says that it is his",
        ),
        SignatureError::Key(why) => declared.wrong(field, format!("the key of {shown} {why}"), format!("look at {whose}")),
        SignatureError::Wrong(why) => declared.wrong("url", format!("{shown}: {why}"), REMEDY),
    })?;
    let catalogue = Catalogue::read(BufReader::new(fs::File::open(&text)?))
        .map_err(|why| declared.wrong("url", format!("the catalogue in {shown}: {why}"), REMEDY))?;
    let chosen = catalogue
        .resolve(repository, declared.field, declared.circles)
        .map_err(|problem| refuse(&[declared.file.origin.locate(problem)]))?;
    fs::remove_file(&text)?;
    Ok(Signed { sha256, packages: catalogue.len(), chosen })
}

fn keep(cache: &Cache, archive: &Path, sha256: &str) {
    if !cache.path(sha256).exists() {
        cache.keep(sha256, |to| Ok(io::copy(&mut fs::File::open(archive)?, to).map(drop)?));
    }
}

/// The sum of a file.
fn sum_of(file: &Path, kind: Kind) -> Result<Sum, Failure> {
    let mut hash = Hasher::new(kind);
    let mut file = fs::File::open(file)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finish()),
            count => hash.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

/// The lines of packages. One whose catalogue has another sum than a SHA-256 is fetched, to have one for the store.
fn lock(declared: &Declared<'_>, cache: &Cache, fetcher: &Fetcher, chosen: Vec<Chosen>) -> Result<Vec<Locked>, Failure> {
    let known: Vec<Locked> = declared.repository.locked.iter().filter_map(|line| Locked::parse(line).ok()).collect();
    let mut lines = Vec::new();
    for Chosen { mut locked, sum } in chosen {
        if locked.sha256.is_empty() {
            // What was locked and is cached need not be fetched again.
            let old = known.iter().find(|old| old.name == locked.name && old.path == locked.path).map(|old| cache.path(&old.sha256));
            let same = |path: &PathBuf| sum_of(path, sum.kind).is_ok_and(|found| found == sum);
            let archive = match old.filter(same) {
                Some(path) => path,
                None => {
                    let url = declared.repository.url_of(&locked.path);
                    let about = format!("package {}-{}", locked.name, locked.version);
                    let archive = get(fetcher, &url).map_err(|_| {
                        let remedy = "look at what was said above, and try again: the repository may be changing";
                        declared.wrong("packages", format!("{about} could not be had from {url}"), remedy)
                    })?;
                    let found = sum_of(&archive, sum.kind)?;
                    if found != sum {
                        let problem = format!("{about}: {url} has the sum {found}, and the catalogue says {sum}");
                        return Err(declared.wrong("packages", problem, REMEDY));
                    }
                    archive
                }
            };
            locked.sha256 = materialise::hash(&archive)?.base16();
            keep(cache, &archive, &locked.sha256);
        }
        lines.push(locked);
    }
    Ok(lines)
}

fn update(declared: &Declared<'_>, cache: &Cache, given: &FileArguments, dry_run: bool) -> Result<Option<RepositoryFile>, Failure> {
    let repository = declared.repository;
    let fetcher = Fetcher::new(cache, "fruix pkg")?;
    let (archive, shown) = fetch(declared, &fetcher)?;
    let found = check(declared, &archive, &shown, &fetcher.work.0)?;
    keep(cache, &archive, &found.sha256);
    let locked = lock(declared, cache, &fetcher, found.chosen)?;
    let lines: Vec<String> = locked.iter().map(ToString::to_string).collect();
    let changed = repository.sha256.as_ref() != Some(&found.sha256) || repository.locked != lines;
    let mut new = None;
    if changed {
        let text = declared.file.with_pin(declared.field, &found.sha256, &locked).ok_or_else(|| {
            let remedy = format!("write sha256 = \"{}\" and locked = [], and run it again", found.sha256);
            declared.wrong("sha256", "cannot be written where it belongs", remedy)
        })?;
        if !dry_run {
            rewrite(&declared.file.origin.path, text.text())?;
        }
        new = Some(text);
    }
    let answer = |yes: bool| if yes { "yes" } else { "no" };
    let mut report = Report::default();
    report.say("action", "update");
    report.say("repository_file", declared.file.origin.path.display().to_string());
    report.say("pkg_repository_field", declared.field);
    report.say("pkg_old_catalogue_sha256", repository.sha256.clone().unwrap_or_default());
    report.say("pkg_catalogue_sha256", &found.sha256);
    report.say("pkg_catalogue_count", found.packages.to_string());
    report.say("pkg_locked_count", locked.len().to_string());
    let plain = |lines: &[String]| -> Vec<Locked> { lines.iter().filter_map(|line| Locked::parse(line).ok()).collect() };
    let (old, now) = (plain(&repository.locked), &locked);
    let there = |list: &[Locked], name: &str| list.iter().find(|locked| locked.name == name).map(|locked| locked.version.clone());
    let mut moved = Vec::new();
    for locked in now {
        match there(&old, &locked.name) {
            None => moved.push(format!("+{}-{}", locked.name, locked.version)),
            Some(version) if version != locked.version => moved.push(format!("{}-{version}->{}", locked.name, locked.version)),
            Some(_) => {}
        }
    }
    moved.extend(
        old.iter().filter(|locked| there(now, &locked.name).is_none()).map(|locked| format!("-{}-{}", locked.name, locked.version)),
    );
    report.say("pkg_moved", moved.join(","));
    report.say("pkg_changed", answer(changed));
    report.say("written", answer(changed && !dry_run));
    report.print(given.json)?;
    Ok(new)
}

/// Adds the archives of a repository of files, which must be what was locked.
pub(super) async fn add_files(
    client: &mut Connection,
    cache: &Cache,
    files: &[LocalPackage],
    wrong: impl Fn(&Locked, String, &str) -> Failure,
) -> Result<(), Failure> {
    let mut fetcher = None;
    for LocalPackage { locked, url, name, path } in files {
        if keeps(client, path).await? {
            continue;
        }
        let fetcher = match &fetcher {
            Some(fetcher) => fetcher,
            None => fetcher.insert(Fetcher::new(cache, "fruix pkg")?),
        };
        let file = get(fetcher, url).map_err(|_| {
            wrong(locked, format!("could not be had from {url}"), "look at what was said above; `fruix pkg update' takes what is there now")
        })?;
        let found = materialise::hash(&file)?.base16();
        if found != locked.sha256 {
            return Err(wrong(locked, format!("{url} has the sha256 {found}, and {} is locked", locked.sha256), REMEDY));
        }
        let mut archive = tempfile()?;
        fruix_store::dump_nar(&file, &mut archive)?;
        add_archive(client, archive, false, name, path, url).await?;
    }
    Ok(())
}

/// What builders say, shown and kept: the last bytes of it.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    const KEPT: usize = 64 << 10;

    fn hear(&self, text: &BStr, quiet: bool) {
        if !quiet {
            let _ = io::stderr().write_all(text);
        }
        if let Ok(mut kept) = self.0.lock() {
            kept.extend_from_slice(text);
            let more = kept.len().saturating_sub(Self::KEPT);
            kept.drain(..more);
        }
    }

    /// Why a builder gave up, in its own words.
    fn reason(&self, builder: &str) -> Option<String> {
        let kept = self.0.lock().ok()?;
        let text = String::from_utf8_lossy(&kept);
        let line = text.lines().rev().find(|line| line.starts_with(&format!("{builder}: error: ")))?;
        Some(line.split_once(".drv: ")?.1.to_owned())
    }
}

/// Makes the items and the profile of a plan; what is wrong is a line of the package that it is about.
async fn make(site: &Site, declared: &Declared<'_>, plan: &PkgPlan, given: &FileArguments, mode: BuildMode) -> Result<Connection, Failure> {
    let dir = &site.store_dir;
    let mut client = site.connect().await?;
    let said = Said::default();
    let (heard, quiet) = (said.clone(), given.quiet);
    client.set_log(move |text: &BStr| heard.hear(text, quiet));
    client.set_options(options(false)).await?;
    let at = |locked: &Locked| {
        let index = plan.packages.iter().position(|package| package.locked == *locked).unwrap_or(0);
        format!("locked[{}]", index + 1)
    };
    let line = |locked: &Locked, problem: String, remedy: &str| {
        declared.wrong(&at(locked), format!("package {}-{}: {problem}", locked.name, locked.version), remedy)
    };
    let cache = Cache::of(site, "freebsd-repository");
    add_files(&mut client, &cache, &plan.files, line).await?;
    for PlannedPkg { locked, archive, download, .. } in &plan.packages {
        if download.is_some()
            && !keeps(&mut client, archive).await?
            && let Found::Good(path) = cache.find(&locked.sha256)?
        {
            let mut bytes = tempfile()?;
            fruix_store::dump_nar(&path, &mut bytes)?;
            add_archive(&mut client, bytes, false, &format!("{}.pkg", locked.store_name()), archive, &path.to_string_lossy()).await?;
        }
    }
    add_texts(&mut client, &plan.texts).await?;
    let mut goals: Vec<&StorePath> = vec![&plan.profile.path];
    if mode != BuildMode::Normal {
        goals.extend(plan.packages.iter().map(|package| &package.item.path));
    }
    let paths = goals.into_iter().map(|path| dir.display(path).into()).collect();
    let Err(error) = client.build_paths(ops::BuildPaths { paths, mode }).await else { return Ok(client) };
    for PlannedPkg { locked, archive, item, .. } in &plan.packages {
        if !keeps(&mut client, archive).await? {
            let problem = format!("could not be had from {}: {error}", declared.repository.url_of(&locked.path));
            return Err(line(locked, problem, "look at what was said above; `fruix pkg update' takes what is there now"));
        }
        if let Some(path) = out(item)
            && !keeps(&mut client, path).await?
        {
            let Some(reason) = said.reason("freebsd-pkg") else { break };
            let (problem, remedy) = reason.rsplit_once("; ").unwrap_or((&reason, REMEDY));
            // Another one may be what failed: the reason names it.
            let whose = plan.packages.iter().map(|package| &package.locked);
            let whose = whose.into_iter().find(|locked| problem.starts_with(&format!("package {}-{}: ", locked.name, locked.version)));
            let problem = problem.to_owned();
            return Err(declared.wrong(&at(whose.unwrap_or(locked)), problem, remedy));
        }
    }
    if let Some(reason) = said.reason("freebsd-profile") {
        let (problem, remedy) = reason.rsplit_once("; ").unwrap_or((&reason, REMEDY));
        return Err(declared.wrong("packages", problem, remedy));
    }
    Err(error.into())
}

async fn build(
    site: &Site,
    declared: &Declared<'_>,
    given: &FileArguments,
    root: Option<&Path>,
    dry_run: bool,
    check: bool,
) -> Result<(), Failure> {
    let dir = &site.store_dir;
    let cache = Cache::of(site, "freebsd-repository");
    let Some(plan) = declared.plan(dir)? else { return Ok(()) };
    let mut report = Report::default();
    describe(&mut report, "build", declared, Some(&plan), dir, &cache);
    if dry_run {
        report.say("dry_run", "yes");
        return report.print(given.json);
    }
    // A first time, so that there is something to compare with.
    let mut client = make(site, declared, &plan, given, BuildMode::Normal).await?;
    if check {
        client = make(site, declared, &plan, given, BuildMode::Check).await?;
    }
    let mut scripts = Vec::new();
    for PlannedPkg { locked, item, .. } in &plan.packages {
        let Some(path) = out(item) else { continue };
        let metadata = fs::read_to_string(Path::new(&dir.display(path)).join(fruix_freebsd::system::pkg::archive::METADATA))?;
        let field = |name: &str| {
            let (_, rest) = metadata.split_once(&format!("({name} "))?;
            Some(rest.split_once(")\n")?.0.replace('"', ""))
        };
        if let Some(names) = field("scripts-not-run") {
            scripts.push(format!("{}: {names}", locked.name));
        }
        if let Some(owners) = field("owners-not-known") {
            eprintln!("fruix: warning: {}: files of {owners} are root's: no number of theirs is known", locked.name);
        }
    }
    if !scripts.is_empty() {
        eprintln!("fruix: warning: scripts of packages are not run; see +MANIFEST in their items for what they would do:");
        for line in &scripts {
            eprintln!("  {line}");
        }
    }
    report.say("pkg_scripts_not_run", scripts.join(", "));
    if let (Some(link), Some(path)) = (root, out(&plan.profile)) {
        make_root(site, &mut client, path, link).await?;
        report.say("root", link.display().to_string());
    }
    report.print(given.json)
}

async fn verify(site: &Site, declared: &Declared<'_>, cache: &Cache, given: &FileArguments) -> Result<Vec<String>, Failure> {
    let dir = &site.store_dir;
    let repository = declared.repository;
    let locked = declared.locked()?;
    let pin = repository.sha256.clone().unwrap_or_default();
    let mut differences = Vec::new();
    let fetcher = Fetcher::new(cache, "fruix pkg")?;
    let cached = match cache.find(&pin)? {
        Found::Nothing => None,
        Found::Good(path) => Some(path),
        Found::Other(line) => {
            differences.push(line);
            None
        }
    };
    let (archive, shown) = match cached {
        Some(path) => (path.clone(), path.display().to_string()),
        None => {
            let (archive, shown) = fetch(declared, &fetcher)?;
            let found = materialise::hash(&archive)?.base16();
            if found != pin {
                let problem = format!("{shown} has the sha256 {found}");
                return Err(declared.wrong(
                    "sha256",
                    problem,
                    "the repository has moved, or was changed: run `fruix pkg update' on the file",
                ));
            }
            (archive, shown)
        }
    };
    let found = check(declared, &archive, &shown, &fetcher.work.0)?;
    keep(cache, &archive, &pin);
    let told = |field: String, problem: String| {
        let remedy = "run `fruix pkg update' on the file, which writes it".to_owned();
        declared.file.origin.locate(Problem { field: format!("{}.{field}", declared.field), problem, remedy }).to_string()
    };
    // A SHA-256 that the catalogue has not is that of an archive with the sum that it has: looked at below.
    let like = |line: &Locked, other: &Chosen| {
        let sha256 = other.sum.sha256().map_or_else(|| line.sha256.clone(), str::to_owned);
        Locked { sha256, ..other.locked.clone() }
    };
    for (index, line) in locked.iter().enumerate() {
        let field = format!("locked[{}]", index + 1);
        match found.chosen.iter().find(|other| other.locked.name == line.name) {
            None => differences.push(told(field, format!("nothing that is wanted needs `{}'", line.name))),
            Some(other) if like(line, other) != *line => {
                differences.push(told(field, format!("the catalogue says `{}'", like(line, other))));
            }
            Some(_) => {}
        }
    }
    for Chosen { locked: other, .. } in found.chosen.iter().filter(|other| !locked.iter().any(|line| line.name == other.locked.name)) {
        differences.push(told("locked".into(), format!("`{}' is missing", other.name)));
    }
    let plan = declared.plan(dir)?.filter(|_| differences.is_empty());
    if let Some(plan) = &plan {
        let mut client = make(site, declared, plan, given, BuildMode::Normal).await?;
        for (index, package) in plan.packages.iter().enumerate() {
            let chosen = found.chosen.iter().find(|chosen| chosen.locked.name == package.locked.name);
            if let Some(chosen) = chosen.filter(|chosen| chosen.sum.sha256().is_none()) {
                if let (false, Some(download)) = (keeps(&mut client, &package.archive).await?, &package.download) {
                    let paths = vec![dir.display(&download.path).into()];
                    client.build_paths(ops::BuildPaths { paths, mode: BuildMode::Normal }).await?;
                }
                let archive = dir.display(&package.archive);
                let sum = sum_of(Path::new(&archive), chosen.sum.kind)?;
                if sum != chosen.sum {
                    let problem = format!("`{archive}' has the sum {sum}, and the catalogue says {}", chosen.sum);
                    differences.push(told(format!("locked[{}]", index + 1), problem));
                }
            }
        }
        // What the store has is what it had.
        for planned in plan.packages.iter().map(|package| &package.item).chain([&plan.profile]) {
            let Some(path) = out(planned) else { continue };
            let shown = dir.display(path);
            let registered = client.query_path_info(ops::QueryPathInfo { path: path.clone() }).await?.hash;
            let found = fruix_store::hash_path(Path::new(&shown))?.0;
            if found.base16() != registered.base16() {
                differences.push(format!(
                    "{shown}: has the sha256 {}, not {} as when it was made: it was changed; run `fruix build --repair {}'",
                    found.base16(),
                    registered.base16(),
                    dir.display(&planned.path)
                ));
            }
        }
    }
    let mut report = Report::default();
    describe(&mut report, "verify", declared, plan.as_ref(), dir, cache);
    report.say("pkg_verified", if differences.is_empty() { "yes" } else { "no" });
    report.print(given.json)?;
    Ok(differences)
}
