//! The table of fields for others: as Scheme data for the module `(fruix system freebsd)`, and as text for readers.

use std::fmt::Write as _;

use super::canon::{push_data, push_string};
use super::derivations::{BUILDERS, VERSION};
use super::fields::{Check, Field, Missing, Part, Shape, default_of};
use super::packages::{self, Cut};
use super::{fields::PartType, model::OperatingSystem};

/// All parts that `part` leads to, itself first, each once.
fn parts(part: &'static Part, found: &mut Vec<&'static Part>) {
    if found.iter().any(|known| known.name == part.name) {
        return;
    }
    found.push(part);
    for field in part.fields {
        if let Shape::Part(inner) | Shape::Parts(inner) = field.shape {
            parts(inner, found);
        }
    }
}

fn all() -> Vec<&'static Part> {
    let mut found = Vec::new();
    parts(OperatingSystem::PART, &mut found);
    found
}

/// The module `(fruix system freebsd table)`: `%parts`, one `(NAME (FIELD SHAPE DEFAULT CHECK) ...)` each, `%packages`, and the builders' versions.
///
/// A shape is `text`, `flag`, `number`, `texts`, `pairs`, `(part NAME)` or `(parts NAME)`; a default is `required`, `part` (all of whose fields are
/// missing), or `(is VALUE)`; a check is `#f`, `(one-of WORD ...)` or `(range LOW HIGH)`.
#[must_use]
pub fn scheme() -> String {
    let mut out = String::from(
        ";; Written by `cargo test -p fruix-freebsd' from the table of fields (freebsd/src/system): change it there.\n\
         (define-module (fruix system freebsd table)\n  #:export (%parts %packages %builders %builder-version))\n\n(define %parts\n  '(",
    );
    let mut inner = all();
    parts(Cut::PART, &mut inner);
    for part in inner {
        let _ = write!(out, "({}", part.name);
        for field in part.fields {
            let shape = match field.shape {
                Shape::Text => "text".to_owned(),
                Shape::Flag => "flag".to_owned(),
                Shape::Number => "number".to_owned(),
                Shape::Texts => "texts".to_owned(),
                Shape::Pairs => "pairs".to_owned(),
                Shape::Part(part) => format!("(part {})", part.name),
                Shape::Parts(part) => format!("(parts {})", part.name),
            };
            let default = match (&field.missing, default_of(field)) {
                (Missing::Part, _) => "part".to_owned(),
                (_, None) => "required".to_owned(),
                (_, Some(data)) => {
                    let mut text = "(is ".to_owned();
                    push_data(&mut text, &data);
                    text + ")"
                }
            };
            let check = match field.check {
                Check::OneOf(words) => {
                    let mut text = "(one-of".to_owned();
                    for word in words {
                        text.push(' ');
                        push_string(&mut text, word);
                    }
                    text + ")"
                }
                Check::Range(low, high) => format!("(range {low} {high})"),
                _ => "#f".to_owned(),
            };
            let _ = write!(out, "\n     ({} {shape} {default} {check})", field.name);
        }
        out.push_str(")\n    ");
    }
    out.truncate(out.trim_end().len());
    out.push_str("))\n\n;; Each package with the patterns of its paths.\n(define %packages\n  '(");
    for list in packages::lists() {
        out.push('(');
        push_string(&mut out, &list.name);
        for pattern in &list.patterns {
            out.push_str("\n     ");
            push_string(&mut out, pattern);
        }
        out.push_str(")\n    ");
    }
    out.truncate(out.trim_end().len());
    out.push_str("))\n\n;; Each builder with the version of what it makes, and the variable that has it.\n(define %builders\n  '(");
    for (name, version) in BUILDERS {
        let _ = write!(out, "(\"{name}\" . \"{version}\")\n    ");
    }
    out.truncate(out.trim_end().len());
    let _ = writeln!(out, "))\n\n(define %builder-version {VERSION:?})");
    out
}

fn default_text(field: &Field) -> String {
    match (&field.missing, default_of(field)) {
        (Missing::Required, _) => "required".to_owned(),
        (Missing::Part, _) => "its defaults".to_owned(),
        (Missing::Absent, _) => "not there".to_owned(),
        (Missing::Texts(texts), _) => texts.iter().map(|text| format!("`{text}`")).collect::<Vec<_>>().join(" "),
        (Missing::Empty, _) => "none".to_owned(),
        (Missing::Text(""), _) => "empty".to_owned(),
        (Missing::Text(text), _) => format!("`{text}`"),
        (Missing::Flag(flag), _) => flag.to_string(),
        (Missing::Number(number), _) => number.to_string(),
    }
}

/// The fields of a system file as tables of Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::new();
    for part in all() {
        let _ = writeln!(out, "### {}\n\n{}\n\n| field | what | default | meaning |\n|---|---|---|---|", part.name, part.doc.trim());
        for field in part.fields {
            let what = match (field.shape, field.check) {
                (Shape::Part(part), _) => format!("table, see {}", part.name),
                (Shape::Parts(part), _) => format!("tables, see {}", part.name),
                (shape, Check::OneOf(words)) => {
                    format!("{}: {}", shape.name(), words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(" "))
                }
                (shape, Check::Range(low, high)) => format!("{} from {low} to {high}", shape.name()),
                (shape, _) => shape.name().to_owned(),
            };
            let _ = writeln!(out, "| `{}` | {what} | {} | {} |", field.name, default_text(field), field.doc.trim());
        }
        out.push('\n');
    }
    out
}
