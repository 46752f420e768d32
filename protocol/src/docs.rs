//! `docs/protocol.md`, generated from the table of operations.

use std::fmt::Write;

use crate::ops::{Denial, OperationInfo, Stage, Stream, TABLE, Who};

/// The page.
pub fn markdown() -> String {
    let mut page = String::from(HEAD);
    for info in TABLE {
        operation(&mut page, info);
    }
    page
}

const HEAD: &str = "\
# The protocol
Generated from the table in `protocol/src/ops.rs`; `UPDATE_DOCS=1 cargo test -p fruix-protocol docs` rewrites it.

## What messages are made of
Words are 64 bits, little endian. A string is its length (a word), its bytes, and zeros up to a multiple of eight. A list or
set is a count and its items; a set is written in ascending order without duplicates and read in any. An int is a word below
2^32, a bool a word that is not 0. Bounds are in `protocol/src/limits.rs`; what exceeds one ends the connection.

## Connection
| who | says |
|---|---|
| client | `0x6e697863` |
| daemon | `0x6478696f`, its version (`0x164`) |
| client | its version; from minor 14 on a bool, and if it is set the CPU to use; from minor 11 on a bool: reserve disk space |
| daemon | `LAST`, or `ERROR` and the end |
| client | number of an operation, its fields, its archive if it has one |
| daemon | any number of `NEXT`, `READ` and `WRITE`, then `LAST` and the reply, or `ERROR` |

| frame | number | followed by |
|---|---|---|
| NEXT | `0x6f6c6d67` | a piece of log, a string |
| READ | `0x64617461` | a word; the client answers with a string of at most so many bytes, an empty one at the end of its data |
| WRITE | `0x64617416` | bytes for the client, a string |
| LAST | `0x616c7473` | the reply |
| ERROR | `0x63787470` | message, a string; status, a word |

An error while fields or an archive are being read ends the connection; an error of the work itself does not. A store path
that is not directly beneath the store directory is of the first sort.

## Operations of Guix's dialect
";

fn operation(page: &mut String, info: &OperationInfo) {
    // Writing to a string does not fail.
    let _ = write!(page, "\n### {} {}\n{}\n", info.code, info.name, text(info.doc));
    if !info.fields.is_empty() {
        page.push_str("\n| field | kind | |\n|---|---|---|\n");
        for field in info.fields {
            let _ = writeln!(page, "| `{}` | {} | {} |", field.name, (field.kind)(), text(field.doc));
        }
    }
    let _ = write!(page, "\nReply: {}.", (info.reply)());
    page.push_str(match info.stream {
        Stream::Plain => "",
        Stream::Archive => " An archive follows the fields.",
        Stream::TunnelIn => " The daemon asks for data by `READ` frames.",
        Stream::TunnelOut => " Data comes in `WRITE` frames.",
    });
    if info.since > crate::wire::Version::GUIX_MIN {
        let _ = write!(page, " Since version {}.", info.since);
    }
    for denial in info.denials {
        refusal(page, denial);
    }
    page.push('\n');
}

fn refusal(page: &mut String, denial: &Denial) {
    let who = match denial.who {
        Who::Anyone => "everybody",
        Who::Remote => "clients of other machines",
        Who::Untrusted => "untrusted clients",
    };
    let end = match denial.stage {
        Stage::Unread => ", before the fields are read, and the connection ends",
        Stage::Closing => ", and the connection ends",
        Stage::Keeping => "",
    };
    let when = if denial.when == "always" { String::new() } else { format!(" when {}", denial.when) };
    let _ = write!(page, " Refused to {who}{when}: \"{}\"{end}.", denial.message.trim_end_matches('.'));
}

fn text(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}
