//! The database of a file of capabilities (getcap(3)), such as login.conf: what cap_mkdb(1) makes of it.

use super::accounts::{LONGEST, hash_file};

/// How deep records may refer to others, as in libc.
const DEPTH: usize = 32;

/// What the first byte of a value says: a whole record, one that refers to another that is not there, and another name of a record.
const WHOLE: u8 = 0;
const UNRESOLVED: u8 = 1;
const NAME: u8 = 2;

/// The records of a text: lines that end with a backslash go on in the next one.
fn records(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", "");
    joined.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// The names of a record: what is before its first colon.
fn names(record: &str) -> &str {
    record.split(':').next().unwrap_or_default()
}

/// The record with what its `tc=` names in their place, and whether all of them were found; `None` when they lead in a circle.
fn expanded(record: &str, all: &[String], depth: usize) -> Option<(String, bool)> {
    if depth > DEPTH {
        return None;
    }
    let (names, fields) = record.split_once(':')?;
    let mut text = format!("{names}:");
    let mut found = true;
    let mut fields = fields.split(':').peekable();
    while let Some(field) = fields.next() {
        let other = field.strip_prefix("tc=").map(|name| all.iter().find(|other| self::names(other).split('|').any(|other| other == name)));
        match other {
            Some(Some(other)) => {
                let (other, whole) = expanded(other, all, depth.saturating_add(1))?;
                found &= whole;
                text.push_str(other.split_once(':').map_or("", |(_, fields)| fields));
                if !text.ends_with(':') {
                    text.push(':');
                }
                continue;
            }
            Some(None) => found = false,
            None => {}
        }
        text.push_str(field);
        if fields.peek().is_some() {
            text.push(':');
        }
    }
    Some((text, found))
}

/// The database of `text`; `None` when libc had better read the text, since a record cannot be written or leads in a circle.
#[must_use]
pub fn database(text: &str) -> Option<Vec<u8>> {
    let all = records(text);
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    // What comes first counts.
    let mut put = |key: &str, value: Vec<u8>| {
        if !pairs.iter().any(|(other, _)| other == key.as_bytes()) {
            pairs.push((key.as_bytes().to_vec(), value));
        }
    };
    for record in all.iter().filter(|record| record.contains(':') && !record.starts_with([':', ' ', '\t'])) {
        let (text, whole) = expanded(record, &all, 0)?;
        let key = names(record);
        put(key, [&[if whole { WHOLE } else { UNRESOLVED }], text.as_bytes(), &[0]].concat());
        for name in key.split('|').filter(|name| *name != key) {
            put(name, [&[NAME], key.as_bytes()].concat());
        }
    }
    pairs.iter().all(|(key, value)| key.len().saturating_add(value.len()) <= LONGEST).then(|| hash_file(&pairs)).flatten()
}
