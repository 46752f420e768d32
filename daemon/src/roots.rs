//! Temporary roots, for callers that must not block.

use std::sync::Arc;

use fruix_drv::StorePath;
use fruix_store::TempRoots;
use tokio::runtime::Handle;

use crate::error::Error;
use crate::scheduler::blocking_on;

/// Makes `paths` roots of `roots`. Whoever needs a path does this first, and then asks whether it is valid: the answer lasts as long as the roots.
///
/// Most often this takes microseconds. While a path is being deleted, or another daemon on the store collects garbage, it waits on a thread of
/// `runtime`.
pub async fn keep(runtime: &Handle, roots: &Arc<TempRoots>, paths: impl IntoIterator<Item = &StorePath>) -> Result<(), Error> {
    let paths: Vec<StorePath> = paths.into_iter().cloned().collect();
    if roots.try_add_all(&paths)? {
        return Ok(());
    }
    let roots = Arc::clone(roots);
    blocking_on(runtime, move || Ok(roots.add_all(&paths)?)).await
}
