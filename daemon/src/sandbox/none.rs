//! No sandbox: `--disable-chroot`. The builder sees the host as its user does.

use std::os::fd::OwnedFd;

use super::{BuildSpec, Error, Plan, Sandbox, SpawnerHandle, Starting};

/// Runs builders on the host.
#[derive(Clone, Debug)]
pub struct Unconfined {
    spawner: SpawnerHandle,
}

impl Unconfined {
    /// A backend that starts builders through `spawner`.
    #[must_use]
    pub fn new(spawner: SpawnerHandle) -> Unconfined {
        Unconfined { spawner }
    }
}

impl Sandbox for Unconfined {
    fn name(&self) -> &'static str {
        "none"
    }

    fn plan(&self, spec: &BuildSpec) -> Result<Plan, Error> {
        Plan::unconfined(spec)
    }

    fn start<'a>(&'a self, plan: &'a Plan, output: OwnedFd) -> Starting<'a> {
        Box::pin(self.spawner.start_builder(plan, output))
    }
}
