//! Sequences of operations as text.
//!
//! ```text
//! # Comments.
//! daemon --cache-failures
//! t1 a add-text "hello" "some text" [t0 "/frx/store/odd"]
//! ```
//!
//! A line is an operation: its name, the client (`a` and `b` are root's, `u` an untrusted user's), a verb, arguments. The store path that an
//! operation makes is called by the operation's name: `t1`, or `d3.lib` for the output `lib` of the derivation `d3`. A name that nothing has
//! (because what had it was left out) stands for a path that is not in the store, so that every part of a case is a case.

use std::fmt;

use super::Result;

/// An argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A word, number or name.
    Word(String),
    /// Any bytes, in quotes.
    Text(Vec<u8>),
    /// Several, in brackets.
    List(Vec<Value>),
}

impl Value {
    /// A word.
    pub fn word(word: impl Into<String>) -> Value {
        Value::Word(word.into())
    }

    /// A text.
    pub fn text(text: impl Into<Vec<u8>>) -> Value {
        Value::Text(text.into())
    }

    /// The word, or "" for anything else.
    pub fn as_word(&self) -> &str {
        match self {
            Value::Word(word) => word,
            _ => "",
        }
    }

    /// The members, none for anything else.
    pub fn items(&self) -> &[Value] {
        match self {
            Value::List(items) => items,
            _ => &[],
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Word(word) => f.write_str(word),
            Value::Text(text) => write!(f, "\"{}\"", text.escape_ascii().to_string().replace("\\'", "'")),
            Value::List(items) => {
                f.write_str("[")?;
                for (n, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if n == 0 { "" } else { " " })?;
                }
                f.write_str("]")
            }
        }
    }
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// What its result is called.
    pub id: String,
    /// Whose connection.
    pub client: String,
    /// What is done.
    pub verb: String,
    /// To what.
    pub args: Vec<Value>,
}

impl Op {
    /// An argument; an empty list where there is none.
    pub fn arg(&self, n: usize) -> &Value {
        const NONE: &Value = &Value::List(Vec::new());
        self.args.get(n).unwrap_or(NONE)
    }

    /// The rest of the argument that is a list beginning with the word `key`.
    pub fn option(&self, key: &str) -> Option<&[Value]> {
        self.args.iter().find_map(|arg| match arg.items() {
            [first, rest @ ..] if first.as_word() == key => Some(rest),
            _ => None,
        })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.id, self.client, self.verb)?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

/// A sequence.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Case {
    /// Further flags of the daemons.
    pub flags: Vec<String>,
    /// The operations.
    pub ops: Vec<Op>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.flags.is_empty() {
            writeln!(f, "daemon {}", self.flags.join(" "))?;
        }
        self.ops.iter().try_for_each(|op| writeln!(f, "{op}"))
    }
}

impl Case {
    /// Reads what `Display` writes.
    ///
    /// # Errors
    /// With the line that is wrong.
    pub fn parse(text: &str) -> Result<Case> {
        let mut case = Case::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(flags) = line.strip_prefix("daemon ") {
                case.flags.extend(flags.split_whitespace().map(str::to_owned));
                continue;
            }
            let mut parser = Parser { bytes: line.as_bytes(), at: 0 };
            let mut values = Vec::new();
            while parser.skip_space() {
                values.push(parser.value().ok_or_else(|| format!("cannot read `{line}' from byte {}", parser.at))?);
            }
            let mut values = values.into_iter();
            let (Some(Value::Word(id)), Some(Value::Word(client)), Some(Value::Word(verb))) = (values.next(), values.next(), values.next())
            else {
                return Err(format!("`{line}' is not NAME CLIENT VERB ARGUMENT...").into());
            };
            case.ops.push(Op { id, client, verb, args: values.collect() });
        }
        Ok(case)
    }
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_space(&mut self) -> bool {
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
        self.peek().is_some()
    }

    fn value(&mut self) -> Option<Value> {
        match self.peek()? {
            b'[' => {
                self.at += 1;
                let mut items = Vec::new();
                loop {
                    self.skip_space();
                    if self.peek()? == b']' {
                        self.at += 1;
                        return Some(Value::List(items));
                    }
                    items.push(self.value()?);
                }
            }
            b'"' => {
                self.at += 1;
                let mut text = Vec::new();
                loop {
                    let byte = self.peek()?;
                    self.at += 1;
                    match byte {
                        b'"' => return Some(Value::Text(text)),
                        b'\\' => text.push(self.escaped()?),
                        byte => text.push(byte),
                    }
                }
            }
            b']' => None,
            _ => {
                let start = self.at;
                while self.peek().is_some_and(|byte| !b" []\"".contains(&byte)) {
                    self.at += 1;
                }
                Some(Value::Word(String::from_utf8_lossy(self.bytes.get(start..self.at)?).into_owned()))
            }
        }
    }

    fn escaped(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(match byte {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'x' => {
                let digits = std::str::from_utf8(self.bytes.get(self.at..self.at + 2)?).ok()?;
                self.at += 2;
                u8::from_str_radix(digits, 16).ok()?
            }
            byte => byte,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let text = "daemon --cache-failures --cores=2\nt1 a add-text \"a\\\"\\n\\x00\\xff'b\" [t0 [x 1 \"\"] []]\nc2 b close\n";
        let case = Case::parse(text).unwrap();
        assert_eq!(case.ops.len(), 2);
        assert_eq!(case.ops[0].args[0], Value::text(b"a\"\n\0\xff'b".to_vec()));
        assert_eq!(case.to_string(), text);
        assert!(Case::parse("t1 a add-text [\"").is_err());
        assert!(Case::parse("t1 a").is_err());
    }
}
