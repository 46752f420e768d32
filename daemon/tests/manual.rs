//! The manual page and the command line say the same.

use clap::CommandFactory;
use fruixd::config::Flags;

const MANUAL: &str = include_str!("../../docs/man/fruixd.8");

#[test]
fn the_manual_has_every_flag_and_no_other() {
    let command = Flags::command();
    let mut known = Vec::new();
    for flag in command.get_arguments().filter(|flag| !flag.is_hide_set()) {
        let name = flag.get_long().unwrap();
        known.push(name.to_owned());
        assert!(MANUAL.contains(&format!("Fl -{name}")), "`--{name}' is not in fruixd.8");
    }
    for word in MANUAL.lines().filter(|line| line.starts_with(".It Fl")).flat_map(|line| line.split("Fl -").skip(1)) {
        let name = word.split([' ', ',']).next().unwrap();
        assert!(known.iter().any(|flag| flag == name), "fruixd.8 describes `--{name}', which fruixd does not take");
    }
}
