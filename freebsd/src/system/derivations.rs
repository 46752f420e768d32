//! The derivations of a system: pure, from a description and the store paths of what it names.
//!
//! ```text
//! set archives --(builtin:download)--+
//! tree of files ---------------------+--> freebsd-VERSION  (builtin:freebsd-base; an output for each package)
//!                                               |
//! description as canonical text ----------------+--> fruix-system-HOST (builtin:freebsd-system)
//!                                               |        |
//!                                               +--------+--> fruix-rootfs-HOST (builtin:freebsd-rootfs)
//! image's settings as canonical text --------------------------------|--> fruix-image-HOST (builtin:freebsd-image)
//!
//! directory, normalised -------------------------------+
//! commit --(builtin:git-download)----------------------+--> freebsd-source-NAME (builtin:freebsd-source)
//! archive, or URL of one --(builtin:download)----------+
//! declaration as canonical text -----------------------+
//!
//! package --(builtin:download)-------------------------+--> freebsd-pkg-NAME-VERSION (builtin:freebsd-pkg)
//! what it must be as canonical text -------------------|              |
//! packages that it depends on -------------------------+              +--> freebsd-profile-NAME (builtin:freebsd-profile)
//!
//! part of a source, by content (builtin:freebsd-source-part) --> freebsd-native-tools
//! part of a source, by content --+--> freebsd-native-kernel, -loader, -runtime (the toolchain's sh) --> freebsd-VERSION, one each
//! freebsd-native-tools ----------+
//! ```
//!
//! Neither the place of the system file nor that of what it names is in any of them, so equal inputs give equal derivations.

use std::collections::{BTreeMap, BTreeSet};

use fruix_drv::{
    Derivation, DerivationOutput, Hash, HashAlgo, StoreDir, StorePath, StorePathError, aterm, hash_derivation_modulo, modulo, path,
};

use super::canon;
use super::model::{BASE_REPOSITORY, FreebsdBase, Fruixd, Image, OperatingSystem, PKGBASE, Problem, REPOSITORY, Shepherd};
use super::native::{self, BUILDS, Build, TOOLS};
use super::packages::{Cut, NAMES, lists};
use super::pkg::{Circles, Locked, PkgItems, PkgRepository};
use super::source::{FreebsdSource, GIT, SRC_TXZ};

/// The platform for which systems are built when nothing is said. The builders are the daemon's own and run anywhere.
pub const PLATFORM: &str = "x86_64-freebsd";

/// The builders, each with the version of what it makes: a variable [`VERSION`] of its derivations.
///
/// A version is raised, and [`super::table`]'s module for Scheme written anew, when the builder makes anything else of the same input: one byte of an
/// output, a file, a mode. Then all derivations that it builds are others, and nothing made by the older one is taken for what the newer one makes.
pub const BUILDERS: [(&str, u32); 8] = [
    ("builtin:freebsd-base", 2),
    ("builtin:freebsd-system", 6),
    ("builtin:freebsd-rootfs", 4),
    ("builtin:freebsd-image", 2),
    ("builtin:freebsd-source", 1),
    ("builtin:freebsd-pkg", 1),
    ("builtin:freebsd-profile", 1),
    ("builtin:freebsd-source-part", 1),
];

/// The variable of a derivation with the version of its builder. A builder of another version refuses it.
pub const VERSION: &str = "builder-version";

/// The version of `builder`, a name of [`BUILDERS`] or of another builder, which has none.
#[must_use]
pub fn version(builder: &str) -> Option<u32> {
    BUILDERS.iter().find(|(name, _)| *name == builder).map(|(_, version)| *version)
}

/// The store paths of the local files that a description names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// A local-tree's directory.
    pub tree: Option<StorePath>,
    /// For each of the sets its file; `None` for one to be downloaded.
    pub sets: Vec<Option<StorePath>>,
    /// `services.shepherd.path`.
    pub shepherd: Option<StorePath>,
    /// `services.fruixd.program`.
    pub fruixd: Option<StorePath>,
    /// `services.fruixd.client`.
    pub client: Option<StorePath>,
    /// What a base is built from.
    pub native: Option<NativeSources>,
}

/// What a base is built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeSources {
    /// The derivation of the source.
    pub source: Planned,
    /// The SHA-256 of each of its parts, patched, as an archive of the store, in base 16: what [`native::part`] comes to.
    pub parts: BTreeMap<&'static str, String>,
    /// `base.build.toolchain`.
    pub toolchain: StorePath,
    /// `base.build.patches`, in their order.
    pub patches: Vec<StorePath>,
    /// The file of `base.build.kernel-config`.
    pub kernel_config: Option<StorePath>,
}

/// The derivations of a base that is built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NativePlan {
    /// The parts of the source, by the build that reads them.
    pub parts: BTreeMap<&'static str, Planned>,
    /// What is built.
    pub builds: BTreeMap<&'static str, Planned>,
}

/// The names under which local files are in the store.
pub mod names {
    /// A local-tree.
    pub const TREE: &str = "freebsd-tree";
    /// `services.shepherd.path`.
    pub const SHEPHERD: &str = "shepherd";
    /// `services.fruixd.program`.
    pub const FRUIXD: &str = "fruixd";
    /// `services.fruixd.client`.
    pub const CLIENT: &str = "fruix";
    /// The tree of a source, a directory's or a commit's.
    pub const SOURCE_TREE: &str = "freebsd-source-tree";
    /// The archive of a source.
    pub const SOURCE_ARCHIVE: &str = "src.txz";
    /// `base.build.toolchain`, where it is a directory.
    pub const TOOLCHAIN: &str = "freebsd-toolchain";
    /// One of `base.build.patches`.
    pub const PATCH: &str = "freebsd-source.patch";
    /// The file of `base.build.kernel-config`.
    pub const KERNEL_CONFIG: &str = "freebsd-kernel-config";
}

/// A text to be added to the store, derivations among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Its name.
    pub name: String,
    /// What it says.
    pub text: Vec<u8>,
    /// What it refers to.
    pub references: BTreeSet<StorePath>,
    /// Its store path.
    pub path: StorePath,
}

/// A derivation with its outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its own store path.
    pub path: StorePath,
    /// Its outputs.
    pub outputs: BTreeMap<String, StorePath>,
    modulo: Hash,
}

impl Planned {
    fn out(&self) -> Option<&StorePath> {
        self.outputs.get("out")
    }
}

/// The derivations of a system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// All texts, in an order in which they may be added.
    pub texts: Vec<Text>,
    /// The packages, an output each; several derivations where a base is built.
    pub bases: Vec<Planned>,
    /// What is built of the base.
    pub native: NativePlan,
    /// The packages that are in the system, with their store paths.
    pub packages: BTreeMap<String, StorePath>,
    /// The profile of the packages of its repository.
    pub profile: Option<Planned>,
    /// Archives of packages to be added from files.
    pub files: Vec<LocalPackage>,
    /// The closure.
    pub system: Planned,
    /// The root file system.
    pub rootfs: Planned,
    /// The disk image.
    pub image: Planned,
}

/// The derivations of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePlan {
    /// All texts, in an order in which they may be added.
    pub texts: Vec<Text>,
    /// What it is made of: the tree, or for src-txz the archive.
    pub input: StorePath,
    /// The derivation that fetches that, unless it was given.
    pub fetch: Option<Planned>,
    /// The source: its output `out` has the tree and what is known of it.
    pub source: Planned,
}

/// The derivations of the packages of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PkgPlan {
    /// All texts, in an order in which they may be added.
    pub texts: Vec<Text>,
    /// What was locked, in its order.
    pub packages: Vec<PlannedPkg>,
    /// Archives to be added from files.
    pub files: Vec<LocalPackage>,
    /// All together.
    pub profile: Planned,
}

/// A package with its derivations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPkg {
    /// What was locked.
    pub locked: Locked,
    /// Its archive in the store.
    pub archive: StorePath,
    /// What downloads it, unless it is a file of the user's.
    pub download: Option<Planned>,
    /// Its store item.
    pub item: Planned,
}

/// An archive of a repository with a `file:` URL: the user's file, which the daemon does not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPackage {
    /// The package.
    pub locked: Locked,
    /// The URL.
    pub url: String,
    /// The name for the store.
    pub name: String,
    /// Its path there.
    pub path: StorePath,
}

/// The key of a system's profile among the names of its packages.
pub const PROFILE: &str = "repository";

/// Why there are no derivations.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A name in the description cannot be a store path's: another one must be chosen.
    #[error(transparent)]
    Name(#[from] StorePathError),
    /// The caller has not given a source that the description names. That is an error of the caller.
    #[error("no store path is known for {what}")]
    Source {
        /// The field.
        what: &'static str,
    },
    /// Nothing says which packages of a repository are meant.
    #[error("{}: {}; {}", .0.field, .0.problem, .0.remedy)]
    Locked(Problem),
    /// The output paths could not be computed.
    #[error("computing the outputs of `{name}': {reason}")]
    Outputs {
        /// The derivation.
        name: String,
        /// Why.
        reason: String,
    },
}

/// The description as builders get it: without what makes no difference to a closure, and with store paths for local files.
fn essential(system: &OperatingSystem, sources: &Sources, dir: &StoreDir) -> Result<OperatingSystem, PlanError> {
    let show = |path: &Option<StorePath>, what| path.as_ref().map(|path| dir.display(path)).ok_or(PlanError::Source { what });
    let mut system = system.clone();
    system.base.path = None;
    // What they come to is named besides.
    system.base.repository = None;
    system.repository = None;
    if let Some(build) = &mut system.base.build {
        // These would keep what is only needed to build.
        build.toolchain = names::TOOLCHAIN.to_owned();
        build.kernel_config = build.kernel_name().to_owned();
        build.patches = build.patches.iter().map(|patch| patch.rsplit('/').next().unwrap_or_default().to_owned()).collect();
    }
    for set in &mut system.base.sets {
        (set.url, set.path) = (None, None);
    }
    if let Some(Shepherd { path, .. }) = &mut system.services.shepherd {
        *path = show(&sources.shepherd, "services.shepherd.path")?;
    }
    if let Some(Fruixd { program, client, .. }) = &mut system.services.fruixd {
        *program = show(&sources.fruixd, "services.fruixd.program")?;
        if let Some(client) = client {
            *client = show(&sources.client, "services.fruixd.client")?;
        }
    }
    system.image = Image { grow: system.image.grow, ..default_image() };
    Ok(system)
}

fn default_image() -> Image {
    let text = str::to_owned;
    Image { capacity: text("auto"), swap: text("0"), esp: text("64M"), firmware: text("uefi"), format: text("raw"), grow: true }
}

struct Planner<'a> {
    dir: &'a StoreDir,
    platform: &'a str,
    texts: Vec<Text>,
}

#[derive(Default)]
struct Recipe<'a> {
    name: String,
    builder: &'a str,
    outputs: Vec<&'a str>,
    drvs: Vec<(&'a Planned, Vec<&'a str>)>,
    sources: BTreeSet<StorePath>,
    env: Vec<(&'a str, String)>,
    args: Vec<String>,
    /// Another platform than that of the system.
    platform: Option<&'a str>,
    /// The hash of its output, with `r:sha256` for that of a tree or `sha256` for that of a file.
    fixed: Option<(&'static str, &'a str)>,
}

impl Planner<'_> {
    fn text(&mut self, name: String, text: Vec<u8>, references: BTreeSet<StorePath>) -> Result<StorePath, PlanError> {
        let path = path::text_path(self.dir, &name, &text, &references)?;
        self.texts.push(Text { name, text, references, path: path.clone() });
        Ok(path)
    }

    /// The derivation that downloads `url`, a file with this SHA-256.
    fn download(&mut self, name: &str, url: &str, sha256: &str) -> Result<Planned, PlanError> {
        self.derivation(Recipe {
            name: name.to_owned(),
            builder: "builtin:download",
            outputs: vec!["out"],
            drvs: Vec::new(),
            sources: BTreeSet::new(),
            env: vec![("url", canon::string(url))],
            fixed: Some(("sha256", sha256)),
            ..Recipe::default()
        })
    }

    /// Where the archives of a repository are in the store, each with the derivation that downloads it.
    fn archives(
        &mut self,
        repository: &PkgRepository,
        prefix: &str,
        circles: Circles,
        files: &mut Vec<LocalPackage>,
    ) -> Result<Vec<(Locked, Option<Planned>, StorePath)>, PlanError> {
        let mut archives = Vec::new();
        for locked in repository.locked(prefix, circles).map_err(PlanError::Locked)? {
            let (name, url) = (format!("{}.pkg", locked.store_name()), repository.url_of(&locked.path));
            if url.starts_with("file:") {
                let hash =
                    Hash::parse_base16(HashAlgo::Sha256, &locked.sha256).map_err(|_| PlanError::Source { what: "repository.locked" })?;
                let path = path::fixed_output_path(self.dir, false, &hash, &name)?;
                files.push(LocalPackage { locked: locked.clone(), url, name, path: path.clone() });
                archives.push((locked, None, path));
            } else {
                let drv = self.download(&name, &url, &locked.sha256)?;
                let path = drv.out().cloned().ok_or(PlanError::Source { what: "repository.locked" })?;
                archives.push((locked, Some(drv), path));
            }
        }
        Ok(archives)
    }

    /// The store items of a repository's packages, and the profile of all.
    fn packages(&mut self, repository: &PkgRepository, files: &mut Vec<LocalPackage>) -> Result<(Vec<PlannedPkg>, Planned), PlanError> {
        let mut made: Vec<PlannedPkg> = Vec::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        let show = |path: &StorePath| self.dir.display(path);
        let listed = |packages: &[(&str, &Planned)]| {
            packages.iter().filter_map(|(name, drv)| Some(format!("{name}={}", show(drv.out()?)))).collect::<Vec<_>>().join(" ")
        };
        for (locked, download, archive) in self.archives(repository, REPOSITORY, Circles::Refused, files)? {
            let about = self.text("freebsd-pkg-item.scm".into(), canon::print(&locked.item()).into_bytes(), BTreeSet::new())?;
            let depends: Vec<(&str, &Planned)> =
                locked.depends.iter().filter_map(|name| Some((name.as_str(), &made.get(*places.get(name)?)?.item))).collect();
            let env = vec![("archive", show(&archive)), ("item", show(&about)), ("depends", listed(&depends))];
            let local = download.is_none().then(|| archive.clone());
            let inputs: Vec<(&Planned, Vec<&str>)> =
                download.iter().chain(depends.iter().map(|(_, drv)| *drv)).map(|drv| (drv, vec!["out"])).collect();
            let item = self.derivation(Recipe {
                name: format!("freebsd-pkg-{}", locked.store_name()),
                builder: "builtin:freebsd-pkg",
                outputs: vec!["out"],
                drvs: inputs,
                sources: local.into_iter().chain([about]).collect(),
                env,
                ..Recipe::default()
            })?;
            places.insert(locked.name.clone(), made.len());
            made.push(PlannedPkg { locked, archive, download, item });
        }
        let mut sorted: Vec<(&str, &Planned)> = made.iter().map(|package| (package.locked.name.as_str(), &package.item)).collect();
        sorted.sort_unstable_by_key(|(name, _)| *name);
        let profile = self.derivation(Recipe {
            name: format!("freebsd-profile-{}", repository.name),
            builder: "builtin:freebsd-profile",
            outputs: vec!["out"],
            drvs: sorted.iter().map(|(_, drv)| (*drv, vec!["out"])).collect(),
            sources: BTreeSet::new(),
            env: vec![("packages", listed(&sorted))],
            ..Recipe::default()
        })?;
        Ok((made, profile))
    }

    fn derivation(&mut self, recipe: Recipe<'_>) -> Result<Planned, PlanError> {
        let Recipe { name, builder, outputs, drvs, sources, env, args, platform, fixed } = recipe;
        // Any path will do until the right ones are computed.
        let blank = path::text_path(self.dir, "blank", b"", &BTreeSet::new())?;
        let (algorithm, hash) = fixed.unwrap_or_default();
        let output = |path| DerivationOutput { path, hash_algo: algorithm.into(), hash: hash.into() };
        let mut drv = Derivation {
            outputs: outputs.iter().map(|name| ((*name).to_owned(), output(blank.clone()))).collect(),
            input_drvs: drvs
                .iter()
                .map(|(drv, outputs)| (drv.path.clone(), outputs.iter().map(|name| (*name).to_owned()).collect()))
                .collect(),
            input_srcs: sources,
            platform: platform.unwrap_or(self.platform).into(),
            builder: builder.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: env
                .into_iter()
                .chain(version(builder).map(|version| (VERSION, version.to_string())))
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        };
        let hashes: BTreeMap<&StorePath, &Hash> = drvs.iter().map(|(drv, _)| (&drv.path, &drv.modulo)).collect();
        let mut input = |path: &StorePath| -> Result<Hash, String> {
            hashes.get(path).map(|hash| **hash).ok_or_else(|| format!("{path:?} is no input"))
        };
        let failed = |reason: String| PlanError::Outputs { name: name.clone(), reason };
        let paths = modulo::compute_output_paths(self.dir, &name, &drv, &mut input).map_err(|error| failed(error.to_string()))?;
        for (output, path) in &paths {
            drv.env.insert(output.as_str().into(), self.dir.display(path).into());
            if let Some(output) = drv.outputs.get_mut(output) {
                output.path = path.clone();
            }
        }
        let modulo = hash_derivation_modulo(self.dir, &drv, &mut input).map_err(|error| failed(error.to_string()))?;
        let text = aterm::print(self.dir, &drv);
        let path = self.text(format!("{name}.drv"), text, drv.references())?;
        Ok(Planned { path, outputs: paths, modulo })
    }

    /// A base that is there, as a tree or as archives.
    fn ready_base(
        &mut self,
        base: &FreebsdBase,
        sources: &Sources,
        cut: StorePath,
        files: &mut Vec<LocalPackage>,
    ) -> Result<Planned, PlanError> {
        let dir = self.dir;
        let show = |path: &StorePath| dir.display(path);
        let mut archives = Vec::new();
        for (index, set) in base.sets.iter().enumerate() {
            let given = sources.sets.get(index).cloned().flatten();
            archives.push(match (&set.url, given) {
                (_, Some(path)) => (None, path),
                (Some(url), None) => {
                    let file = url.rsplit('/').next().unwrap_or_default();
                    let drv = self.download(file, url, &set.sha256)?;
                    let path = drv.out().cloned().ok_or(PlanError::Source { what: "base.sets" })?;
                    (Some(drv), path)
                }
                (None, None) => return Err(PlanError::Source { what: "base.sets" }),
            });
        }
        let mut env = vec![("cut", show(&cut))];
        let mut inputs = BTreeSet::from([cut]);
        if base.kind == PKGBASE {
            let repository = base.repository.as_ref().ok_or(PlanError::Source { what: BASE_REPOSITORY })?;
            let mut items = PkgItems { packages: Vec::new() };
            for (locked, drv, path) in self.archives(repository, BASE_REPOSITORY, Circles::Allowed, files)? {
                items.packages.push(locked.item());
                archives.push((drv, path));
            }
            let items = self.text("freebsd-pkg-items.scm".into(), canon::print(&items).into_bytes(), BTreeSet::new())?;
            env.push(("items", show(&items)));
            env.push(("pkgs", archives.iter().map(|(_, path)| show(path)).collect::<Vec<_>>().join(" ")));
            inputs.insert(items);
            inputs.extend(archives.iter().filter(|(drv, _)| drv.is_none()).map(|(_, path)| path.clone()));
        } else if base.kind == "local-tree" {
            let tree = sources.tree.clone().ok_or(PlanError::Source { what: "base.path" })?;
            env.push(("tree", show(&tree)));
            inputs.insert(tree);
        } else {
            env.push(("sets", archives.iter().map(|(_, path)| show(path)).collect::<Vec<_>>().join(" ")));
            inputs.extend(archives.iter().filter(|(drv, _)| drv.is_none()).map(|(_, path)| path.clone()));
        }
        self.derivation(Recipe {
            name: format!("{}-{}", base.name, base.version),
            builder: "builtin:freebsd-base",
            outputs: NAMES.to_vec(),
            drvs: archives.iter().filter_map(|(drv, _)| Some((drv.as_ref()?, vec!["out"]))).collect(),
            sources: inputs,
            env,
            ..Recipe::default()
        })
    }

    /// The builds of a base.
    fn native(&mut self, base: &FreebsdBase, given: &NativeSources) -> Result<NativePlan, PlanError> {
        let mut plan = NativePlan::default();
        for build in BUILDS {
            let part = self.part(&build, given)?;
            let made = self.build(base, &build, given, &part, plan.builds.get(TOOLS.name))?;
            plan.parts.insert(build.name, part);
            plan.builds.insert(build.name, made);
        }
        Ok(plan)
    }

    /// The part of a source that a build reads. What depends on it depends on its content alone.
    fn part(&mut self, build: &Build, given: &NativeSources) -> Result<Planned, PlanError> {
        let dir = self.dir;
        let show = |path: &StorePath| dir.display(path);
        let sha256 = given.parts.get(build.name).ok_or(PlanError::Source { what: "base.source" })?;
        let part = self.text(format!("freebsd-source-{}.scm", build.name), canon::print(&build.part()).into_bytes(), BTreeSet::new())?;
        self.derivation(Recipe {
            name: format!("freebsd-source-{}", build.name),
            builder: "builtin:freebsd-source-part",
            outputs: vec!["out"],
            drvs: vec![(&given.source, vec!["out"])],
            sources: given.patches.iter().cloned().chain([part.clone()]).collect(),
            env: vec![
                ("part", show(&part)),
                ("patches", given.patches.iter().map(show).collect::<Vec<_>>().join(" ")),
                ("source", given.source.out().map(show).unwrap_or_default()),
            ],
            fixed: Some(("r:sha256", sha256)),
            ..Recipe::default()
        })
    }

    fn build(
        &mut self,
        base: &FreebsdBase,
        build: &Build,
        given: &NativeSources,
        part: &Planned,
        tools: Option<&Planned>,
    ) -> Result<Planned, PlanError> {
        let dir = self.dir;
        let show = |path: &StorePath| dir.display(path);
        let settings = base.build.as_ref().ok_or(PlanError::Source { what: "base.build" })?;
        let sha256 = given.parts.get(build.name).map(String::as_str).unwrap_or_default();
        let script = self.text(format!("freebsd-native-{}.sh", build.name), build.script().into_bytes(), BTreeSet::new())?;
        let options = self.text("src.conf".into(), settings.src_conf().into_bytes(), BTreeSet::new())?;
        let info = settings.info(base, build.name, sha256);
        let info = self.text(format!("freebsd-native-{}.scm", build.name), info.into_bytes(), BTreeSet::new())?;
        let mut sources = BTreeSet::from([given.toolchain.clone(), script.clone(), options.clone(), info.clone()]);
        let mut drvs = vec![(part, vec!["out"])];
        let mut env = vec![
            ("builderRoot", show(&given.toolchain)),
            ("info", show(&info)),
            ("options", show(&options)),
            ("source", part.out().map(show).unwrap_or_default()),
        ];
        if let Some(tools) = tools {
            drvs.push((tools, vec!["out"]));
            env.push(("tools", tools.out().map(show).unwrap_or_default()));
        }
        if build.name == native::KERNEL.name {
            env.push(("config", settings.kernel_name().to_owned()));
            env.push(("modules", settings.kernel_modules.join(" ")));
            if let Some(file) = &given.kernel_config {
                env.push(("file", show(file)));
                sources.insert(file.clone());
            }
        }
        let builder = format!("{}/bin/sh", show(&given.toolchain));
        self.derivation(Recipe {
            name: format!("freebsd-native-{}-{}", build.name, base.version),
            builder: &builder,
            outputs: vec!["out"],
            drvs,
            sources,
            env,
            args: vec![show(&script)],
            platform: Some(&settings.toolchain_system),
            fixed: None,
        })
    }
}

/// The derivations of a source in the store `dir`, for `platform`. `given` is its directory, normalised, or its local archive.
///
/// # Errors
/// [`PlanError`]; [`PlanError::Source`] when nothing is given, or the source is not pinned.
pub fn plan_source(source: &FreebsdSource, given: Option<StorePath>, dir: &StoreDir, platform: &str) -> Result<SourcePlan, PlanError> {
    let mut planner = Planner { dir, platform, texts: Vec::new() };
    let needed = |value: &'_ Option<String>, what| value.clone().ok_or(PlanError::Source { what });
    let fetch = match source.kind.as_str() {
        GIT => {
            let (url, commit) = (needed(&source.url, "source.url")?, needed(&source.commit, "source.commit")?);
            let sha256 = needed(&source.sha256, "source.sha256")?;
            Some(planner.derivation(Recipe {
                name: names::SOURCE_TREE.to_owned(),
                builder: "builtin:git-download",
                outputs: vec!["out"],
                drvs: Vec::new(),
                sources: BTreeSet::new(),
                env: vec![("url", canon::string(&url)), ("commit", commit), ("recursive?", "#f".to_owned())],
                fixed: Some(("r:sha256", &sha256)),
                ..Recipe::default()
            })?)
        }
        SRC_TXZ if source.url.is_some() => {
            let (url, sha256) = (needed(&source.url, "source.url")?, needed(&source.sha256, "source.sha256")?);
            Some(planner.download(names::SOURCE_ARCHIVE, &url, &sha256)?)
        }
        _ => None,
    };
    let input = fetch.as_ref().and_then(Planned::out).cloned().or(given).ok_or(PlanError::Source { what: "source.path" })?;
    let declared = planner.text("freebsd-source-declared.scm".into(), canon::print(source).into_bytes(), BTreeSet::new())?;
    let show = |path: &StorePath| dir.display(path);
    let what = if source.kind == SRC_TXZ { "archive" } else { "tree" };
    let local = fetch.is_none().then(|| input.clone());
    let made = planner.derivation(Recipe {
        name: format!("freebsd-source-{}", source.name),
        builder: "builtin:freebsd-source",
        outputs: vec!["out"],
        drvs: fetch.iter().map(|drv| (drv, vec!["out"])).collect(),
        sources: local.into_iter().chain([declared.clone()]).collect(),
        env: vec![("declared", show(&declared)), (what, show(&input))],
        ..Recipe::default()
    })?;
    Ok(SourcePlan { texts: planner.texts, input, fetch, source: made })
}

/// The derivations of the packages of a repository in the store `dir`, for `platform`.
///
/// # Errors
/// [`PlanError`]; [`PlanError::Locked`] when nothing is locked.
pub fn plan_packages(repository: &PkgRepository, dir: &StoreDir, platform: &str) -> Result<PkgPlan, PlanError> {
    let mut planner = Planner { dir, platform, texts: Vec::new() };
    let mut files = Vec::new();
    let (packages, profile) = planner.packages(repository, &mut files)?;
    Ok(PkgPlan { texts: planner.texts, packages, files, profile })
}

/// The derivations of a system in the store `dir`, for `platform`.
///
/// # Errors
/// [`PlanError`].
pub fn plan(system: &OperatingSystem, sources: &Sources, dir: &StoreDir, platform: &str) -> Result<Plan, PlanError> {
    let mut planner = Planner { dir, platform, texts: Vec::new() };
    let base = &system.base;
    let show = |path: &StorePath| dir.display(path);

    // The base.
    let cut = Cut { version: base.version.clone(), manifest: base.manifest.clone(), packages: lists() };
    let cut = planner.text("freebsd-cut.scm".into(), canon::print(&cut).into_bytes(), BTreeSet::new())?;
    let mut native = NativePlan::default();
    let mut files = Vec::new();
    let bases = if base.kind == native::SOURCE {
        let given = sources.native.as_ref().ok_or(PlanError::Source { what: "base.source" })?;
        native = planner.native(base, given)?;
        let mut bases = Vec::new();
        for (build, made) in BUILDS.iter().filter_map(|build| Some((build, native.builds.get(build.name)?))) {
            let outputs = build.packages();
            if !outputs.is_empty() {
                let tree = made.out().map(show).unwrap_or_default();
                bases.push(planner.derivation(Recipe {
                    name: format!("{}-{}", base.name, base.version),
                    builder: "builtin:freebsd-base",
                    outputs,
                    drvs: vec![(made, vec!["out"])],
                    sources: BTreeSet::from([cut.clone()]),
                    env: vec![("cut", show(&cut)), ("tree", tree)],
                    ..Recipe::default()
                })?);
            }
        }
        bases
    } else {
        vec![planner.ready_base(base, sources, cut, &mut files)?]
    };

    // The system.
    let wanted: BTreeSet<&str> =
        [&system.kernel, &system.bootloader].into_iter().chain(&system.base_packages).map(String::as_str).collect();
    let packages: BTreeMap<String, StorePath> = bases
        .iter()
        .flat_map(|base| &base.outputs)
        .filter(|(name, _)| wanted.contains(name.as_str()))
        .map(|(name, path)| (name.clone(), path.clone()))
        .collect();
    let local: BTreeSet<StorePath> = [&sources.shepherd, &sources.fruixd, &sources.client].into_iter().flatten().cloned().collect();
    let description = canon::print(&essential(system, sources, dir)?);
    let description = planner.text("freebsd-system.scm".into(), description.into_bytes(), local.clone())?;
    let profile = match &system.repository {
        Some(repository) => Some(planner.packages(repository, &mut files)?.1),
        None => None,
    };
    let named = packages.iter().map(|(name, path)| format!("{name}={}", show(path)));
    let own = profile.as_ref().and_then(Planned::out).map(|path| format!("{PROFILE}={}", show(path)));
    let list = named.chain(own).collect::<Vec<_>>().join(" ");
    let common = |more: &[(&'static str, String)]| {
        let mut env = vec![("configuration", show(&description)), ("packages", list.clone())];
        env.extend_from_slice(more);
        env
    };
    let inputs: BTreeSet<StorePath> = local.into_iter().chain([description.clone()]).collect();
    let taken: Vec<(&Planned, Vec<&str>)> = bases
        .iter()
        .map(|base| (base, base.outputs.keys().filter(|name| packages.contains_key(*name)).map(String::as_str).collect::<Vec<_>>()))
        .filter(|(_, names)| !names.is_empty())
        .collect();
    let host = &system.host_name;
    let closure = planner.derivation(Recipe {
        name: format!("fruix-system-{host}"),
        builder: "builtin:freebsd-system",
        outputs: vec!["out"],
        drvs: taken.iter().cloned().chain(profile.as_ref().map(|drv| (drv, vec!["out"]))).collect(),
        sources: inputs.clone(),
        env: common(&[]),
        ..Recipe::default()
    })?;
    let closure_path = closure.out().map(show).unwrap_or_default();
    let rootfs = planner.derivation(Recipe {
        name: format!("fruix-rootfs-{host}"),
        builder: "builtin:freebsd-rootfs",
        outputs: vec!["out"],
        drvs: taken.into_iter().chain([(&closure, vec!["out"])]).chain(profile.as_ref().map(|drv| (drv, vec!["out"]))).collect(),
        sources: inputs,
        env: common(&[("exportReferencesGraph", format!("graph {closure_path}")), ("closure", closure_path)]),
        ..Recipe::default()
    })?;
    let settings = planner.text("freebsd-image.scm".into(), canon::print(&system.image).into_bytes(), BTreeSet::new())?;
    let extension = &system.image.format;
    let image = planner.derivation(Recipe {
        name: format!("fruix-image-{host}.{extension}"),
        builder: "builtin:freebsd-image",
        outputs: vec!["out"],
        drvs: vec![(&rootfs, vec!["out"])],
        sources: BTreeSet::from([settings.clone()]),
        env: vec![("configuration", show(&settings)), ("rootfs", rootfs.out().map(show).unwrap_or_default())],
        ..Recipe::default()
    })?;
    Ok(Plan { texts: planner.texts, bases, native, packages, profile, files, system: closure, rootfs, image })
}
