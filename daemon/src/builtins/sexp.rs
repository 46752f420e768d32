//! Reader of Scheme data as the Guix client writes it (`object->string`), for data only.
//!
//! A derivation carries its URL, its mirror lists and some flags in this form. The reader builds a tree and never evaluates
//! anything: read-time evaluation (`#.`), vectors, bytevectors and other reader extensions are refused.
//!
//! Limits: [`MAX_LEN`] bytes of text, [`MAX_DEPTH`] levels of nesting, [`MAX_NODES`] data in one tree.

use std::fmt;

/// Longest accepted text, in bytes. The largest real one, Guix's mirror list, has about 20 KiB.
pub const MAX_LEN: usize = 4 << 20;
/// Deepest accepted nesting of lists and quotes.
pub const MAX_DEPTH: usize = 64;
/// Most data (atoms, strings and lists) accepted in one text.
pub const MAX_NODES: usize = 1 << 18;

/// One Scheme datum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datum {
    /// A symbol, number, keyword or character, as spelled. Nothing here depends on which of them it is.
    Atom(String),
    /// A string, with its escapes resolved.
    Str(String),
    /// `#t` or `#f`.
    Bool(bool),
    /// A proper list. `'x` is `(quote x)`.
    List(Vec<Datum>),
    /// A list whose last pair ends in something that is no list: `(a b . c)`.
    Dotted(Vec<Datum>, Box<Datum>),
}

impl Datum {
    /// The items of a proper list, or `None`.
    pub fn as_list(&self) -> Option<&[Datum]> {
        match self {
            Datum::List(items) => Some(items),
            _ => None,
        }
    }

    /// The text of a string, or `None`.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Datum::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The spelling of an atom, or `None`.
    pub fn as_atom(&self) -> Option<&str> {
        match self {
            Datum::Atom(text) => Some(text),
            _ => None,
        }
    }

    /// Calls `f` for each string anywhere in the datum.
    pub fn for_each_str<'a>(&'a self, f: &mut dyn FnMut(&'a str)) {
        match self {
            Datum::Str(text) => f(text),
            Datum::List(items) => items.iter().for_each(|d| d.for_each_str(f)),
            Datum::Dotted(items, last) => {
                items.iter().for_each(|d| d.for_each_str(f));
                last.for_each_str(f);
            }
            Datum::Atom(_) | Datum::Bool(_) => {}
        }
    }
}

/// The datum as Guile's `write` prints it (atoms that need `#{…}#` get it).
impl fmt::Display for Datum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Datum::Atom(text) if is_plain_atom(text) => f.write_str(text),
            Datum::Atom(text) => {
                f.write_str("#{")?;
                for c in text.chars() {
                    match c {
                        '\\' | '}' => write!(f, "\\x{:x};", c as u32)?,
                        c => fmt::Write::write_char(f, c)?,
                    }
                }
                f.write_str("}#")
            }
            Datum::Str(text) => f.write_str(&quoted(text)),
            Datum::Bool(b) => f.write_str(if *b { "#t" } else { "#f" }),
            Datum::List(items) => {
                f.write_str("(")?;
                write_items(f, items)?;
                f.write_str(")")
            }
            Datum::Dotted(items, last) => {
                f.write_str("(")?;
                write_items(f, items)?;
                write!(f, " . {last})")
            }
        }
    }
}

fn write_items(f: &mut fmt::Formatter<'_>, items: &[Datum]) -> fmt::Result {
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            f.write_str(" ")?;
        }
        write!(f, "{item}")?;
    }
    Ok(())
}

/// `text` as a Scheme string literal. Every control character is escaped, so the result is one line whatever a client sent.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len().saturating_add(2));
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_control() => out.push_str(&match c as u32 {
                n @ 0..=0xff => format!("\\x{n:02x}"),
                n @ 0x100..=0xffff => format!("\\u{n:04x}"),
                n => format!("\\U{n:06x}"),
            }),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Why a text is no datum, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {reason}")]
pub struct SexpError {
    /// Offset in bytes into the text.
    pub at: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

/// Reads the one datum in `text`; only white space and comments may surround it.
///
/// # Errors
/// The text is over a limit, incomplete, uses a refused reader extension, or has something behind its datum.
pub fn read(text: &str) -> Result<Datum, SexpError> {
    let mut reader = Reader { text, at: 0, nodes: 0 };
    if text.len() > MAX_LEN {
        return Err(reader.error("text too long"));
    }
    let datum = reader.datum(0)?;
    reader.skip_blanks(0)?;
    if reader.at < text.len() {
        return Err(reader.error("something follows the datum"));
    }
    Ok(datum)
}

fn is_delimiter(c: char) -> bool {
    c.is_whitespace() || matches!(c, '(' | ')' | '[' | ']' | '"' | ';')
}

/// Whether the reader takes `text`, written bare, for the same atom again.
fn is_plain_atom(text: &str) -> bool {
    !text.is_empty() && text != "." && !text.starts_with(['#', '\'', '`', ',']) && !text.contains(is_delimiter)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    nodes: usize,
}

impl Reader<'_> {
    fn error(&self, reason: &'static str) -> SexpError {
        SexpError { at: self.at, reason }
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at = self.at.saturating_add(c.len_utf8());
        Some(c)
    }

    fn eat(&mut self, prefix: &str) -> bool {
        let found = self.rest().starts_with(prefix);
        if found {
            self.at = self.at.saturating_add(prefix.len());
        }
        found
    }

    /// Skips white space, `; …` to the end of the line, `#| … |#` (nested) and `#;DATUM`.
    fn skip_blanks(&mut self, depth: usize) -> Result<(), SexpError> {
        loop {
            match self.peek() {
                Some(c) if c.is_whitespace() => {
                    self.next();
                }
                Some(';') => while self.next().is_some_and(|c| c != '\n') {},
                Some('#') if self.eat("#|") => {
                    let mut open = 1usize;
                    while open > 0 {
                        if self.eat("|#") {
                            open = open.saturating_sub(1);
                        } else if self.eat("#|") {
                            open = open.saturating_add(1);
                        } else if self.next().is_none() {
                            return Err(self.error("unexpected end of input in a comment"));
                        }
                    }
                }
                Some('#') if self.eat("#;") => {
                    self.datum(depth.saturating_add(1))?;
                }
                _ => return Ok(()),
            }
        }
    }

    fn datum(&mut self, depth: usize) -> Result<Datum, SexpError> {
        if depth > MAX_DEPTH {
            return Err(self.error("nested too deeply"));
        }
        self.skip_blanks(depth)?;
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > MAX_NODES {
            return Err(self.error("too many data"));
        }
        let Some(c) = self.peek() else {
            return Err(self.error("unexpected end of input"));
        };
        match c {
            '(' => self.list(')', depth),
            '[' => self.list(']', depth),
            ')' | ']' => Err(self.error("unexpected closing parenthesis")),
            '"' => self.string(),
            '\'' => self.prefixed("'", "quote", depth),
            '`' => self.prefixed("`", "quasiquote", depth),
            ',' if self.rest().starts_with(",@") => self.prefixed(",@", "unquote-splicing", depth),
            ',' => self.prefixed(",", "unquote", depth),
            '#' => self.hash(),
            _ => {
                let at = self.at;
                let word = self.word();
                if word == "." {
                    let reason = "unexpected dot";
                    return Err(SexpError { at, reason });
                }
                Ok(Datum::Atom(word))
            }
        }
    }

    fn prefixed(&mut self, mark: &str, name: &str, depth: usize) -> Result<Datum, SexpError> {
        self.eat(mark);
        let inner = self.datum(depth.saturating_add(1))?;
        Ok(Datum::List(vec![Datum::Atom(name.to_owned()), inner]))
    }

    fn list(&mut self, close: char, depth: usize) -> Result<Datum, SexpError> {
        self.next();
        let mut items = Vec::new();
        loop {
            self.skip_blanks(depth)?;
            match self.peek() {
                None => return Err(self.error("unexpected end of input in a list")),
                Some(c) if c == close => {
                    self.next();
                    return Ok(Datum::List(items));
                }
                Some('.') if !items.is_empty() && self.dot() => {
                    let last = self.datum(depth.saturating_add(1))?;
                    self.skip_blanks(depth)?;
                    if self.next() != Some(close) {
                        return Err(self.error("one datum, then a closing parenthesis, must follow a dot"));
                    }
                    return Ok(match last {
                        // (a . (b c)) is (a b c).
                        Datum::List(tail) => {
                            items.extend(tail);
                            Datum::List(items)
                        }
                        Datum::Dotted(tail, last) => {
                            items.extend(tail);
                            Datum::Dotted(items, last)
                        }
                        last => Datum::Dotted(items, Box::new(last)),
                    });
                }
                Some(_) => items.push(self.datum(depth.saturating_add(1))?),
            }
        }
    }

    /// Eats a dot that stands alone.
    fn dot(&mut self) -> bool {
        let alone = match self.rest().chars().nth(1) {
            None => true,
            Some(c) => is_delimiter(c),
        };
        alone && self.eat(".")
    }

    fn word(&mut self) -> String {
        let rest = self.rest();
        let len = rest.find(is_delimiter).unwrap_or(rest.len());
        let word = rest.get(..len).unwrap_or("").to_owned();
        self.at = self.at.saturating_add(len);
        word
    }

    fn hash(&mut self) -> Result<Datum, SexpError> {
        if self.eat("#{") {
            return self.extended_symbol();
        }
        if self.rest().starts_with("#\\") {
            // A character: its first letter may be a delimiter, as in `#\(`.
            let mut text = String::new();
            for _ in 0..3 {
                match self.next() {
                    Some(c) => text.push(c),
                    None => return Err(self.error("unexpected end of input in a character")),
                }
            }
            text.push_str(&self.word());
            return Ok(Datum::Atom(text));
        }
        let start = self.at;
        let word = self.word();
        match word.as_str() {
            "#t" | "#true" => Ok(Datum::Bool(true)),
            "#f" | "#false" => Ok(Datum::Bool(false)),
            w if w.len() > 2 && w.starts_with("#:") => Ok(Datum::Atom(word)),
            _ => Err(SexpError { at: start, reason: "reader extension refused" }),
        }
    }

    /// The rest of `#{…}#`, where `\xHH;` stands for a character.
    fn extended_symbol(&mut self) -> Result<Datum, SexpError> {
        let mut text = String::new();
        loop {
            if self.eat("}#") {
                return Ok(Datum::Atom(text));
            }
            match self.next() {
                None => return Err(self.error("unexpected end of input in a symbol")),
                Some('\\') => {
                    if self.next() != Some('x') {
                        return Err(self.error("bad escape in a symbol"));
                    }
                    let mut digits = String::new();
                    loop {
                        match self.next() {
                            Some(';') => break,
                            Some(c) if c.is_ascii_hexdigit() && digits.len() < 6 => digits.push(c),
                            _ => return Err(self.error("bad escape in a symbol")),
                        }
                    }
                    text.push(self.char_from(&digits)?);
                }
                Some(c) => text.push(c),
            }
        }
    }

    fn string(&mut self) -> Result<Datum, SexpError> {
        self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                None => return Err(self.error("unexpected end of input in a string")),
                Some('"') => return Ok(Datum::Str(text)),
                Some('\\') => match self.next() {
                    Some(c @ ('"' | '\\' | '|' | '(')) => text.push(c),
                    Some('\n') => {}
                    Some('0') => text.push('\0'),
                    Some('a') => text.push('\u{7}'),
                    Some('b') => text.push('\u{8}'),
                    Some('f') => text.push('\u{c}'),
                    Some('n') => text.push('\n'),
                    Some('r') => text.push('\r'),
                    Some('t') => text.push('\t'),
                    Some('v') => text.push('\u{b}'),
                    Some('x') => text.push(self.hex(2)?),
                    Some('u') => text.push(self.hex(4)?),
                    Some('U') => text.push(self.hex(6)?),
                    _ => return Err(self.error("bad escape in a string")),
                },
                Some(c) => text.push(c),
            }
        }
    }

    fn hex(&mut self, digits: usize) -> Result<char, SexpError> {
        let Some(text) = self.rest().get(..digits).map(str::to_owned) else {
            return Err(self.error("bad escape in a string"));
        };
        self.at = self.at.saturating_add(digits);
        self.char_from(&text)
    }

    fn char_from(&self, digits: &str) -> Result<char, SexpError> {
        // from_str_radix would take a sign.
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(self.error("bad hexadecimal digits"));
        }
        u32::from_str_radix(digits, 16).ok().and_then(char::from_u32).ok_or_else(|| self.error("no such character"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn atom(s: &str) -> Datum {
        Datum::Atom(s.into())
    }
    fn text(s: &str) -> Datum {
        Datum::Str(s.into())
    }

    #[test]
    fn reads_what_guile_writes() {
        // Left: printed by Guile 3.0.
        for (written, datum) in [
            (r#""http://a/b""#, text("http://a/b")),
            (r#""q\"b\\n\n t\t\a\x7f\x00 é""#, text("q\"b\\n\n t\t\u{7}\u{7f}\0 é")),
            (r#"("a" "b")"#, Datum::List(vec![text("a"), text("b")])),
            ("()", Datum::List(vec![])),
            ("#t", Datum::Bool(true)),
            ("#f", Datum::Bool(false)),
            ("(upstream content-addressed-mirrors)", Datum::List(vec![atom("upstream"), atom("content-addressed-mirrors")])),
            (
                r##"((netfilter.org "u") (#{a b}# "v"))"##,
                Datum::List(vec![Datum::List(vec![atom("netfilter.org"), text("u")]), Datum::List(vec![atom("a b"), text("v")])]),
            ),
            ("(quote x)", Datum::List(vec![atom("quote"), atom("x")])),
            ("(a . b)", Datum::Dotted(vec![atom("a")], Box::new(atom("b")))),
        ] {
            assert_eq!(read(written).as_ref(), Ok(&datum), "{written}");
            assert_eq!(read(&datum.to_string()).as_ref(), Ok(&datum), "{datum}");
        }
        assert_eq!(read("'x").unwrap().to_string(), "(quote x)");
        assert_eq!(read("(a . (b . (c)))").unwrap().to_string(), "(a b c)");
        assert_eq!(read(" #| #| |# |# (a ; c\n #;(no way) [b])  ").unwrap().to_string(), "(a (b))");
        assert_eq!(read(r#"(#\( #:kw 12.5 ...)"#).unwrap().as_list().unwrap().len(), 4);
    }

    #[test]
    fn refuses_the_rest_and_says_where() {
        for (bad, at) in [
            ("", 0),
            ("(", 1),
            (")", 0),
            ("(a", 2),
            ("\"a", 2),
            ("(a . )", 5),
            ("(a . b c)", 8),
            ("( . a)", 2),
            ("a b", 2),
            ("#.(system \"id\")", 0),
            ("#(1 2)", 0),
            ("#vu8(1)", 0),
            ("\"\\q\"", 3),
            ("\"\\xg0\"", 5),
            ("\"\\ud800\"", 7),
            ("#|", 2),
            ("#{a", 3),
            ("#", 0),
            ("#!eof", 0),
            ("(a]", 2),
            ("\"\\x+1\"", 5),
        ] {
            assert_eq!(read(bad).map_err(|e| e.at), Err(at), "{bad}");
        }
        let deep = |n: usize| format!("{}a{}", "(".repeat(n), ")".repeat(n));
        assert!(read(&deep(MAX_DEPTH)).is_ok());
        assert_eq!(read(&deep(MAX_DEPTH + 1)).unwrap_err().reason, "nested too deeply");
        assert_eq!(read(&"'".repeat(1 << 20)).unwrap_err().reason, "nested too deeply");
        assert_eq!(read(&"#;".repeat(1 << 20)).unwrap_err().reason, "nested too deeply");
        assert_eq!(read(&"a ".repeat(MAX_LEN)).unwrap_err().reason, "text too long");
        assert_eq!(read(&format!("({})", "a ".repeat(MAX_NODES))).unwrap_err().reason, "too many data");
    }

    fn datum() -> impl Strategy<Value = Datum> {
        let leaf = prop_oneof![
            any::<String>().prop_map(Datum::Str),
            "[a-z][a-z0-9.?!/+-]{0,8}".prop_map(Datum::Atom),
            any::<String>().prop_map(Datum::Atom),
            any::<bool>().prop_map(Datum::Bool),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Datum::List),
                (prop::collection::vec(inner, 1..4), "[a-z]{1,4}")
                    .prop_map(|(items, last)| Datum::Dotted(items, Box::new(Datum::Atom(last)))),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(d in datum()) {
            let written = d.to_string();
            prop_assert_eq!(read(&written), Ok(d));
        }

        #[test]
        fn any_text_is_read_or_refused(s in any::<String>(), t in r#"[()\[\]"'`,.;#|{}\\a-dxuU0-9 \n]{0,60}"#) {
            for text in [s, t] {
                if let Ok(d) = read(&text) {
                    // A tree that was accepted is written so that it is read again as itself.
                    prop_assert_eq!(read(&d.to_string()), Ok(d));
                }
            }
        }

        #[test]
        fn quoting_leaves_no_control_character(s in any::<String>()) {
            prop_assert!(!quoted(&s).contains(|c: char| c.is_control()));
        }
    }
}
