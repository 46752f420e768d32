//! What a jail is allowed, as the parameters of `jail_set`.

use std::path::Path;

use crate::Features;

/// What a parameter is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Int(i32),
    /// A text.
    Text(String),
    /// The bytes of a path.
    Path(std::path::PathBuf),
    /// Nothing: the name says it all (`persist`, `allow.nomount`).
    Set,
}

/// A parameter of a jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Value,
}

/// What a jail reaches over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// A stack of its own where the kernel has such, no addresses otherwise.
    None,
    /// The host's addresses.
    Host,
}

/// What a jail is allowed. Its superuser stays one, so that the first process can become another user after it has entered; nothing that is mounted for
/// the jail makes anybody superuser again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Its host name.
    pub host_name: String,
    /// What it reaches.
    pub network: Network,
    /// Which devices it would see in a devfs of its own.
    pub ruleset: u16,
}

/// `security.jail.param` values: the subsystem is off, its own, the host's.
const DISABLE: i32 = crate::sys::names::JAIL_SYS_DISABLE;
const NEW: i32 = crate::sys::names::JAIL_SYS_NEW;
const INHERIT: i32 = crate::sys::names::JAIL_SYS_INHERIT;

/// The parameters of a jail with nothing but these rights, as far as the kernel knows them.
#[must_use]
pub fn parameters(name: &str, root: &Path, rights: &Rights, features: &Features) -> Vec<Parameter> {
    let int = |name: &str, value| Parameter { name: name.to_owned(), value: Value::Int(value) };
    let text = |name: &str, value: &str| Parameter { name: name.to_owned(), value: Value::Text(value.to_owned()) };
    let mut parameters = vec![
        text("name", name),
        Parameter { name: "path".to_owned(), value: Value::Path(root.to_owned()) },
        text("host.hostname", &rights.host_name),
        Parameter { name: "persist".to_owned(), value: Value::Set },
        int("children.max", 0),
        int("enforce_statfs", 2),
        int("securelevel", 3),
        int("devfs_ruleset", i32::from(rights.ruleset)),
    ];
    let known = |name: &str| features.parameters.iter().any(|known| known == name);
    match (rights.network, features.vnet) {
        (Network::None, true) => parameters.push(int("vnet", NEW)),
        (network, _) => {
            for family in ["ip4", "ip6"].into_iter().filter(|family| known(family)) {
                parameters.push(int(family, if network == Network::Host { INHERIT } else { DISABLE }));
            }
        }
    }
    for ipc in ["sysvmsg", "sysvsem", "sysvshm"].into_iter().filter(|ipc| known(ipc)) {
        parameters.push(int(ipc, NEW));
    }
    // All that this kernel could allow is refused, whatever the default and whatever modules add. Without `suser`, the first process could not become
    // its user any more; see `Rights`.
    for allowed in &features.parameters {
        if let Some(what) = allowed.strip_prefix("allow.").filter(|what| *what != "suser") {
            let (above, last) = what.rsplit_once('.').map_or((String::new(), what), |(above, last)| (format!("{above}."), last));
            parameters.push(Parameter { name: format!("allow.{above}no{last}"), value: Value::Set });
        }
    }
    parameters
}
