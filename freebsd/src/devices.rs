//! Which devices a jail sees.

use crate::{Error, Kernel, Result};

/// The first number that is tried for a ruleset of ours. Those of the base system and of administrators are small.
pub const FIRST_RULESET: u16 = 17_990;
/// How many numbers are tried.
const RULESETS: u16 = 1000;
/// What builders may see.
const SHOWN: [&str; 11] = ["null", "zero", "full", "random", "urandom", "fd", "fd/*", "stdin", "stdout", "stderr", "pts"];

/// A rule of a device file system; the last one that matches a device decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceRule {
    /// Hides all.
    HideAll,
    /// Shows the devices whose names match this pattern, at most 199 bytes.
    Show(String),
    /// Something else, as others may have made.
    Other,
}

/// The rules for builders.
#[must_use]
pub fn builder_devices() -> Vec<DeviceRule> {
    let shown = SHOWN.iter().chain(&["pts/*"]).map(|name| DeviceRule::Show((*name).to_owned()));
    std::iter::once(DeviceRule::HideAll).chain(shown).collect()
}

/// The number of a ruleset with exactly these rules, made if need be. It stays: it costs nothing, and another daemon may use it.
///
/// # Errors
/// The kernel refuses, or all numbers are taken.
pub fn provide_ruleset(kernel: &mut impl Kernel, rules: &[DeviceRule]) -> Result<u16> {
    let failed = |doing, ruleset| move |source| Error::Devices { doing, ruleset, source };
    for ruleset in FIRST_RULESET..FIRST_RULESET.saturating_add(RULESETS) {
        let there = kernel.device_rules(ruleset).map_err(failed("reading", ruleset))?;
        if there == rules {
            return Ok(ruleset);
        }
        if !there.is_empty() {
            continue;
        }
        for (number, rule) in (1_u16..).map(|number| number.saturating_mul(10)).zip(rules) {
            kernel.add_device_rule(ruleset, number, rule).map_err(failed("adding a rule to", ruleset))?;
        }
        return Ok(ruleset);
    }
    Err(failed("finding a free number for a", FIRST_RULESET)(std::io::ErrorKind::StorageFull.into()))
}
