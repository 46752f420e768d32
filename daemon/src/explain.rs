//! `fruixd --explain DRV`: what a build may see and do, before it runs.

use crate::config::Settings;
use crate::error::Error;

/// Prints the plan of the build of `drv` to standard output. Nothing is started, and nothing is changed.
pub fn print(settings: &Settings, drv: &str) -> Result<(), Error> {
    let store = crate::server::open_store(settings, None)?;
    let path = store.store_dir().parse(drv).map_err(|error| Error::Usage(format!("`{drv}': {error}")))?;
    let plan = crate::build::plan_for(settings, &store, &path)?;
    print!("{plan}");
    Ok(())
}
