//! The manual page and the command line say the same.

use clap::CommandFactory;
use fruixd::config::Flags;

const MANUAL: &str = include_str!("../../docs/man/fruixd.8");

#[test]
fn the_manual_has_every_flag_and_no_other() {
    let command = Flags::command();
    // What is there on one platform only has a section of its own.
    let begin = MANUAL.find(".Sh ON FREEBSD").unwrap();
    let end = begin + MANUAL[begin..].find(".Sh EXIT STATUS").unwrap();
    let manual = if cfg!(target_os = "freebsd") { MANUAL.to_owned() } else { format!("{}{}", &MANUAL[..begin], &MANUAL[end..]) };
    let mut known = Vec::new();
    for flag in command.get_arguments().filter(|flag| !flag.is_hide_set()) {
        let name = flag.get_long().unwrap();
        known.push(name.to_owned());
        assert!(manual.contains(&format!("Fl -{name}")), "`--{name}' is not in fruixd.8");
    }
    for word in manual.lines().filter(|line| line.starts_with(".It Fl")).flat_map(|line| line.split("Fl -").skip(1)) {
        let name = word.split([' ', ',']).next().unwrap();
        assert!(known.iter().any(|flag| flag == name), "fruixd.8 describes `--{name}', which fruixd does not take");
    }
}
