//! What a built-in builder is told of its derivation, and what of the host it may see.

use std::path::PathBuf;

use bstr::ByteSlice;
use fruix_drv::derivation::Derivation;
use fruix_store::Store;

use crate::build::JobFacts;
use crate::builtins::{BuiltinInput, BuiltinOutput, git_download, sexp};

/// The built-in builder that starts a program of the host, and so cannot run where none of the host shows.
const GIT_DOWNLOAD: &str = "git-download";
/// The file of certificate authorities in the build directory.
pub(crate) const CA_FILE: &str = ".certificate-authorities.pem";

/// Whether the builder of `drv` runs in the sandbox.
pub(crate) fn confinable(drv: &Derivation) -> bool {
    drv.builtin().is_none_or(|name| name != GIT_DOWNLOAD)
}

/// What the builder reads on its start: JSON of a [`BuiltinInput`].
///
/// `own_user` is whether it runs as a build user: only then it may read files of the host, since the daemon's own user may read too much.
pub(crate) fn input(
    store: &Store,
    job: &JobFacts,
    env: &[(String, String)],
    ca_bundle: Option<PathBuf>,
    own_user: bool,
) -> Result<Vec<u8>, String> {
    let outputs = job.drv.outputs.iter().map(|(name, output)| BuiltinOutput {
        name: name.clone(),
        path: store.print(&output.path),
        write_to: None,
        hash_algo: output.hash_algo.to_string(),
        hash: output.hash.to_string(),
    });
    let input = BuiltinInput {
        drv_path: store.print(&job.drv_path),
        store_dir: store.store_dir().as_str().to_owned(),
        env: env.to_vec(),
        outputs: outputs.collect(),
        ca_bundle,
        git: git_download::find_git(std::env::var_os("PATH").as_deref()),
        extended_trace: job.extended_trace,
        allow_file: own_user,
        ..BuiltinInput::default()
    };
    serde_json::to_vec(&input).map_err(|error| format!("cannot pass the derivation to its builder: {error}"))
}

/// The files that the `file:` URLs of a download name: the builder may read them if its user may.
pub(crate) fn local_files(drv: &Derivation) -> Vec<PathBuf> {
    let mut files = Vec::new();
    if drv.is_builtin()
        && crate::builtins::reads_files(&drv.builder.to_str_lossy())
        && let Some(url) = drv.env_var("url")
        && let Ok(datum) = sexp::read(&url.to_str_lossy())
    {
        datum.for_each_str(&mut |text| {
            if let Some(url) = crate::builtins::url::Url::parse(text)
                && let Some(file) = url.local_path()
            {
                files.push(file);
            }
        });
    }
    files
}
