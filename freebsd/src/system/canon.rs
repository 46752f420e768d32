//! The canonical text of a description: one Scheme datum, the same whether TOML or Scheme described it.
//!
//! ```text
//! file   = "(" NAME field* ")" LF          ; each field on a line of its own, all fields, in the order of the table
//! field  = LF " (" FIELD " " value ")"
//! value  = "#f" | "#t" | digits | string | "(" string* ")" | "(" pair* ")" | "(" part* ")" | part
//! pair   = "(" string " . " string ")"     ; sorted by the bytes of the first
//! part   = "(" ( "(" FIELD " " value ")" )* ")"
//! string = DQUOTE ( byte | "\\" | "\"" | "\n" | "\t" )* DQUOTE
//! ```
//! What is absent is `#f`. Items are separated by one space.

use super::fields::{Check, Data, Field, Part, PartType, Shape};

/// The longest text that is read, in bytes.
pub const MAX_TEXT: usize = 16 << 20;
/// How deep data may be nested.
const MAX_DEPTH: usize = 16;

/// Writes a Scheme string.
pub fn push_string(out: &mut String, text: &str) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            char => out.push(char),
        }
    }
    out.push('"');
}

/// A Scheme string.
#[must_use]
pub fn string(text: &str) -> String {
    let mut out = String::new();
    push_string(&mut out, text);
    out
}

fn push_list<T>(out: &mut String, items: impl IntoIterator<Item = T>, mut push: impl FnMut(&mut String, T)) {
    out.push('(');
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(' ');
        }
        push(out, item);
    }
    out.push(')');
}

fn push_part(out: &mut String, fields: &[(&str, Data)]) {
    push_list(out, fields, |out, (name, data)| {
        out.push('(');
        out.push_str(name);
        out.push(' ');
        push_data(out, data);
        out.push(')');
    });
}

/// Writes a value.
pub fn push_data(out: &mut String, data: &Data) {
    match data {
        Data::Nothing | Data::Flag(false) => out.push_str("#f"),
        Data::Flag(true) => out.push_str("#t"),
        Data::Number(number) => out.push_str(&number.to_string()),
        Data::Text(text) => push_string(out, text),
        Data::Texts(texts) => push_list(out, texts, |out, text| push_string(out, text)),
        Data::Pairs(pairs) => push_list(out, pairs, |out, (name, value)| {
            out.push('(');
            push_string(out, name);
            out.push_str(" . ");
            push_string(out, value);
            out.push(')');
        }),
        Data::Part(fields) => push_part(out, fields),
        Data::Parts(parts) => push_list(out, parts, |out, fields| push_part(out, fields)),
    }
}

/// The canonical text of a part.
#[must_use]
pub fn print<P: PartType>(part: &P) -> String {
    let mut out = format!("({}", P::PART.name);
    for (name, data) in part.fields() {
        out.push_str("\n (");
        out.push_str(name);
        out.push(' ');
        push_data(&mut out, &data);
        out.push(')');
    }
    out.push_str(")\n");
    out
}

/// Reads a canonical text.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse<P: PartType>(text: &str) -> Result<P, String> {
    let datum = read(text)?;
    let Datum::List(items) = &datum else { return Err("is no list".to_owned()) };
    match items.split_first() {
        Some((Datum::Symbol(name), fields)) if name == P::PART.name => {
            P::from_fields(part_fields(P::PART, fields)?).ok_or_else(|| format!("({name} …) does not hold together"))
        }
        _ => Err(format!("is no ({} …)", P::PART.name)),
    }
}

fn part_fields(part: &'static Part, items: &[Datum]) -> Result<Vec<(&'static str, Data)>, String> {
    if items.len() != part.fields.len() {
        return Err(format!("a {} has {} fields, not {}", part.name, part.fields.len(), items.len()));
    }
    part.fields
        .iter()
        .zip(items)
        .map(|(field, item)| match item {
            Datum::List(pair) => match pair.as_slice() {
                [Datum::Symbol(name), value] if name == field.name => {
                    let data =
                        value_data(field.shape, value).ok_or_else(|| format!("{}: {name} is no {}", part.name, field.shape.name()))??;
                    match checked(field, &data) {
                        Some((problem, remedy)) => Err(format!("{}: {name}: {problem}; {remedy}", part.name)),
                        None => Ok((field.name, data)),
                    }
                }
                _ => Err(format!("{}: where is {}?", part.name, field.name)),
            },
            _ => Err(format!("{}: where is {}?", part.name, field.name)),
        })
        .collect()
}

/// What is wrong with a value, and what would be right: a text may come from Scheme, which checks less than the reader of TOML.
fn checked(field: &Field, data: &Data) -> Option<(String, String)> {
    let check = field.check;
    match data {
        Data::Text(text) => check.problem(text),
        Data::Number(number) => check.number_problem(*number),
        Data::Texts(texts) => texts.iter().find_map(|text| check.problem(text)),
        Data::Pairs(pairs) => pairs.iter().find_map(|(name, value)| check.problem(name).or_else(|| Check::Line.problem(value))),
        _ => None,
    }
}

fn value_data(shape: Shape, value: &Datum) -> Option<Result<Data, String>> {
    Some(Ok(match (shape, value) {
        (Shape::Flag, Datum::Bool(flag)) => Data::Flag(*flag),
        (_, Datum::Bool(false)) => Data::Nothing,
        (Shape::Text, Datum::Text(text)) => Data::Text(text.clone()),
        (Shape::Number, Datum::Symbol(digits)) => Data::Number(digits.parse().ok()?),
        (Shape::Texts, Datum::List(items)) => {
            let texts: Option<_> = items.iter().map(|item| if let Datum::Text(text) = item { Some(text.clone()) } else { None }).collect();
            Data::Texts(texts?)
        }
        (Shape::Pairs, Datum::List(items)) => {
            let pairs: Option<_> = items
                .iter()
                .map(|item| match item {
                    Datum::Pair(name, value) => Some((name.clone(), value.clone())),
                    _ => None,
                })
                .collect();
            Data::Pairs(pairs?)
        }
        (Shape::Part(part), Datum::List(items)) => return Some(part_fields(part, items).map(Data::Part)),
        (Shape::Parts(part), Datum::List(items)) => {
            let parts: Result<_, String> = items
                .iter()
                .map(|item| match item {
                    Datum::List(items) => part_fields(part, items),
                    _ => Err(format!("a {} is a list", part.name)),
                })
                .collect();
            return Some(parts.map(Data::Parts));
        }
        _ => return None,
    }))
}

/// What canonical texts are made of.
#[derive(Debug)]
pub(super) enum Datum {
    Bool(bool),
    Symbol(String),
    Text(String),
    Pair(String, String),
    List(Vec<Datum>),
}

pub(super) fn read(text: &str) -> Result<Datum, String> {
    if text.len() > MAX_TEXT {
        return Err(format!("is longer than {MAX_TEXT} bytes"));
    }
    let mut chars = text.char_indices().peekable();
    let datum = datum(&mut chars, 0)?;
    match chars.find(|(_, char)| !char.is_ascii_whitespace()) {
        Some((at, _)) => Err(format!("something follows at byte {at}")),
        None => Ok(datum),
    }
}

type Chars<'t> = std::iter::Peekable<std::str::CharIndices<'t>>;

fn datum(chars: &mut Chars<'_>, depth: usize) -> Result<Datum, String> {
    while chars.next_if(|(_, char)| char.is_ascii_whitespace()).is_some() {}
    let Some((at, first)) = chars.next() else { return Err("ends too early".to_owned()) };
    match first {
        '(' if depth < MAX_DEPTH => {
            let mut items = Vec::new();
            loop {
                while chars.next_if(|(_, char)| char.is_ascii_whitespace()).is_some() {}
                if chars.next_if(|(_, char)| *char == ')').is_some() {
                    break;
                }
                items.push(datum(chars, depth + 1)?);
            }
            // A pair of strings.
            Ok(match items.as_slice() {
                [Datum::Text(name), Datum::Symbol(dot), Datum::Text(value)] if dot == "." => Datum::Pair(name.clone(), value.clone()),
                _ => Datum::List(items),
            })
        }
        '"' => {
            let mut text = String::new();
            loop {
                match chars.next() {
                    Some((_, '"')) => return Ok(Datum::Text(text)),
                    Some((at, '\\')) => match chars.next() {
                        Some((_, char @ ('"' | '\\'))) => text.push(char),
                        Some((_, 'n')) => text.push('\n'),
                        Some((_, 't')) => text.push('\t'),
                        _ => return Err(format!("unknown escape at byte {at}")),
                    },
                    Some((_, char)) => text.push(char),
                    None => return Err("a string does not end".to_owned()),
                }
            }
        }
        first if first.is_ascii_graphic() && !"()'`,;".contains(first) => {
            let mut word = String::from(first);
            while let Some((_, char)) = chars.next_if(|(_, char)| char.is_ascii_graphic() && !"()\"".contains(*char)) {
                word.push(char);
            }
            Ok(match word.as_str() {
                "#t" => Datum::Bool(true),
                "#f" => Datum::Bool(false),
                _ => Datum::Symbol(word),
            })
        }
        _ => Err(format!("nothing that is understood at byte {at}")),
    }
}
