//! One generation among others of a machine: what the loader and process 1 do with it.
//!
//! The loader starts the system that [`super::closure::BOOT_SYSTEM`] leads to. One that was deployed and has not been up yet is started by a file of
//! nextboot(8), which the loader takes once: when the trial ends in any way but the ready marker, the machine starts the former one again.

use std::collections::BTreeSet;
use std::path::Path;

use super::closure::{BOOTED_SYSTEM, CURRENT_SYSTEM, UP, has_client, loader_variables};
use super::installed::Installed;
use crate::tree::Tree;

/// The file from which the loader takes what counts for one start only, below the root.
pub const NEXT_BOOT: &str = "boot/nextboot.conf";
/// The directory with the variables of each generation, `N.conf`, for those who choose one at the loader.
pub const CHOICES: &str = "boot/generations";
/// The first line of [`NEXT_BOOT`]. The loader writes `NO` in its place, in the file's own blocks, so there must be no less room.
const ENABLED: &str = "nextboot_enable=\"YES\"\n";
/// How long a system on trial may take to be up, in seconds, if `fruix.trial_seconds` does not say otherwise.
const TRIAL_SECONDS: u32 = 900;

/// The module `local` of FreeBSD's loader in Lua: it leaves a system on trial whose kernel cannot be loaded, and lets a user choose a generation.
pub(super) const LOADER: &str = r#"-- What FreeBSD's loader does for generations: a kernel on trial that cannot be loaded is left, and `generation N' starts another system.
local cli = require("cli")
local color = require("color")
local config = require("config")
local core = require("core")

local directory = "/boot/generations"

local loadelf = config.loadelf
function config.loadelf()
	local status = loadelf()
	if loader.getenv("kernelname") == nil and loader.getenv("fruix.trial") ~= nil then
		print("fruix: the kernel on trial cannot be loaded: the former system is started")
		loader.perform("reboot")
	end
	return status
end

local function start(number)
	local file = directory .. "/" .. number .. ".conf"
	if lfs.attributes(file, "mode") ~= "file" then
		print("There is no generation " .. number)
		return
	end
	loader.perform("unload")
	config.readConf(file)
	core.boot()
end

local function generations()
	local found = {}
	if lfs.attributes(directory, "mode") == "directory" then
		for name in lfs.dir(directory) do
			local number = name:match("^(%d+)%.conf$")
			if number ~= nil then
				found[#found + 1] = tonumber(number)
			end
		end
	end
	table.sort(found, function(one, other) return one > other end)
	return found
end

cli["generation"] = function(...)
	local _, argv = cli.arguments(...)
	if #argv == 1 and argv[1]:match("^%d+$") then
		start(argv[1])
	else
		print("Generations, for `generation N': " .. table.concat(generations(), " "))
	end
end

if not core.isMenuSkipped() then
	local menu = require("menu")
	local welcome = menu.welcome.entries
	menu.generations = {
		entries = function()
			local entries = {
				{
					entry_type = core.MENU_RETURN,
					name = "Back to main menu" .. color.highlight(" [Backspace]"),
					alias = {core.KEYSTR_BACKSPACE, core.KEYSTR_DELETE},
				},
			}
			for position, number in ipairs(generations()) do
				if position > 8 then
					break
				end
				entries[#entries + 1] = {
					entry_type = core.MENU_ENTRY,
					name = "Generation " .. number,
					func = function() start(tostring(number)) end,
				}
			end
			return entries
		end,
	}
	menu.welcome.entries = function()
		local entries = welcome()
		entries[#entries + 1] = {
			entry_type = core.MENU_SUBMENU,
			name = color.highlight("G") .. "enerations",
			submenu = menu.generations,
			alias = {"g", "G"},
		}
		return entries
	end
end
"#;

/// What process 1 runs before rc(8), with the programs of the system that was up last: the one whose closure is at `path` becomes the current one, for as
/// long as the machine runs. On trial, the machine is started again when that system is not up in time: nobody may be at its console.
pub(super) fn early(path: &str) -> String {
    format!(
        "#!/bin/sh\n\
         # The system that the loader chose becomes the current one. Process 1 runs this before rc(8).\n\
         PATH=/sbin:/bin\n\
         export PATH\n\
         trial=$(kenv -q fruix.trial) || trial=\n\
         if [ -n \"$trial\" ]; then\n\
         \tseconds=$(kenv -q fruix.trial_seconds) || seconds={TRIAL_SECONDS}\n\
         \t(\n\
         \t\ttrap '' HUP INT TERM\n\
         \t\t# Nothing can be run for the moment in which /run is empty.\n\
         \t\tuntil sleep \"$seconds\"; do :; done\n\
         \t\t[ ! -e {UP} ] || exit 0\n\
         \t\techo \"fruix: not ready after $seconds seconds: the former system is started\" >/dev/console\n\
         \t\tkill -INT 1\n\
         \t\tsleep 60\n\
         \t\treboot -qn\n\
         \t) </dev/null >/dev/null 2>&1 &\n\
         \tsleep 1\n\
         fi\n\
         # When /run is empty no program is found by its usual name, nor what it is linked with.\n\
         made() {{ LD_LIBRARY_PATH='{path}/profile/lib' '{path}/profile/libexec/ld-elf.so.1' '{path}/profile/bin/ln' -s '{path}' \"$1\"; }}\n\
         mount -t tmpfs -o mode=755,size=4m tmpfs /run && made {BOOTED_SYSTEM} && made {CURRENT_SYSTEM} && exit 0\n\
         [ -z \"$trial\" ] || kill -INT 1\n\
         exit 0\n"
    )
}

/// The lines of loader.conf(5) that start `system`, whatever else the loader has read.
#[must_use]
pub fn choice(system: &Installed) -> String {
    print(&variables(system))
}

fn print(variables: &[(String, String)]) -> String {
    variables.iter().map(|(name, value)| format!("{name}=\"{value}\"\n")).collect()
}

fn variables(system: &Installed) -> Vec<(String, String)> {
    let path = system.path.to_string_lossy();
    let mut variables = loader_variables(&system.system, &path);
    let kernel = variables.iter().find(|(name, _)| name == "kernel").map_or("kernel", |(_, value)| value).to_owned();
    variables.retain(|(name, _)| name != "kernel");
    variables.push(("kernel".into(), if kernel.starts_with('/') { kernel } else { format!("{path}/boot/{kernel}") }));
    if !variables.iter().any(|(name, _)| name == "init_path") {
        variables.push(("init_path".into(), format!("{path}/profile/sbin/init")));
    }
    variables
}

/// What [`NEXT_BOOT`] says for `system`, which is going to be the generation `number`, to be tried once on a machine that else starts `good`.
#[must_use]
pub fn trial(system: &Installed, good: &Installed, number: u64) -> String {
    let mut chosen = variables(system);
    // A panic must not end at a prompt, nor a root file system that is not there.
    for (name, value) in [("debug.debugger_on_panic", "0"), ("kern.panic_reboot_wait_time", "5")] {
        if !chosen.iter().any(|(other, _)| other == name) {
            chosen.push((name.to_owned(), value.to_owned()));
        }
    }
    let former = loader_variables(&good.system, &good.path.to_string_lossy());
    const ROOT: &str = "vfs.root.mountfrom";
    let root = former.iter().find(|(name, _)| name == ROOT);
    if let (Some((_, value)), Some((_, other))) = (chosen.iter_mut().find(|(name, _)| name == ROOT), root)
        && value != other
    {
        *value = format!("{value} {other}");
    }
    let mut text = format!("{ENABLED}{}fruix.trial=\"{number}\"\n", print(&chosen));
    for (name, _) in former.iter().filter(|(name, _)| !chosen.iter().any(|(other, _)| other == name)) {
        if name.ends_with("_load") {
            text.push_str(&format!("{name}=\"NO\"\n"));
        }
        text.push_str(&format!("exec=\"unset {name}\"\n"));
    }
    text
}

/// Whether a machine that goes from `good` to `system` can leave that again by itself: both have the program that does it, and the loader reads
/// [`NEXT_BOOT`]. `tree` is what the former has outside the store.
#[must_use]
pub fn can_be_tried(good: &Installed, tree: &Tree, system: &Installed) -> bool {
    has_client(&good.system) && has_client(&system.system) && tree.get("boot/lua/local.lua").is_some()
}

/// The name of the generation's file in [`CHOICES`].
#[must_use]
pub fn choice_file(number: u64) -> String {
    Path::new(CHOICES).join(format!("{number}.conf")).to_string_lossy().into_owned()
}

/// Variables that a description must not set, since generations need them.
#[must_use]
pub fn taken(system_loader: &std::collections::BTreeMap<String, String>) -> BTreeSet<&str> {
    const TAKEN: [&str; 5] = ["init_script", "init_exec", "init_chroot", "nextboot_conf", "nextboot_enable"];
    TAKEN.into_iter().filter(|name| system_loader.contains_key(*name)).collect()
}
