//! The bytes of a derivation. The grammar is in the [crate's documentation](crate).

use std::{borrow::Cow, collections::BTreeSet, fmt};

use bstr::{BString, ByteSlice};
use nom::{
    IResult,
    bytes::complete::tag,
    error::{ErrorKind, ParseError as NomError},
};

use crate::{Derivation, DerivationOutput, StoreDir, StorePath, StorePathError};

/// Longest derivation that is parsed, in bytes: 64 MiB. The largest in use have a few MiB.
pub const MAX_SIZE: usize = 64 << 20;

/// Most strings in one derivation: 2^21. Each costs some 24 bytes of memory beyond its length.
pub const MAX_STRINGS: usize = 1 << 21;

/// Where and why some bytes are no derivation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at byte {offset}")]
pub struct ParseError {
    /// Number of bytes before the place.
    pub offset: usize,
    /// What is wrong there.
    pub reason: Reason,
}

/// What is wrong with the bytes. The first two texts are guix-daemon's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// These bytes should stand there.
    #[error("expected string `{0}'")]
    Expected(&'static str),
    /// A path is empty or relative.
    #[error("bad path `{0}' in derivation")]
    BadPath(BString),
    /// A path is absolute, but not that of a store item. (guix-daemon takes it, and then cannot build the derivation.)
    #[error("bad path in derivation: {0}")]
    NotStorePath(#[source] StorePathError),
    /// A string does not end. (guix-daemon eats memory until it dies.)
    #[error("string without end in derivation")]
    Unterminated,
    /// A string has a NUL, which neither a program's arguments nor guix-daemon's printer can carry.
    #[error("string with a NUL in derivation")]
    Nul,
    /// An output's name, hash algorithm or hash is not UTF-8, so not valid either.
    #[error("output `{0}' in derivation is not text")]
    NotText(BString),
    /// More bytes than [`MAX_SIZE`].
    #[error("derivation is longer than {MAX_SIZE} bytes")]
    TooLong,
    /// More strings than [`MAX_STRINGS`].
    #[error("derivation has more than {MAX_STRINGS} strings")]
    TooManyStrings,
}

/// A nom error: what was left, and what was wrong with it.
struct Fault {
    left: usize,
    reason: Reason,
}

impl NomError<&[u8]> for Fault {
    fn from_error_kind(input: &[u8], _: ErrorKind) -> Self {
        Self { left: input.len(), reason: Reason::Unterminated }
    }

    fn append(_: &[u8], _: ErrorKind, other: Self) -> Self {
        other
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} bytes left", self.reason, self.left)
    }
}

type Parsed<'i, T> = IResult<&'i [u8], T, Fault>;

fn fail<T>(at: &[u8], reason: Reason) -> Parsed<'_, T> {
    Err(nom::Err::Failure(Fault { left: at.len(), reason }))
}

/// The fixed text `text`.
fn expect<'i>(input: &'i [u8], text: &'static str) -> Parsed<'i, ()> {
    match tag::<_, _, Fault>(text)(input) {
        Ok((rest, _)) => Ok((rest, ())),
        Err(_) => fail(input, Reason::Expected(text)),
    }
}

/// What is left to be read of a derivation, apart from the bytes.
struct Reader<'d> {
    dir: &'d StoreDir,
    strings: usize,
}

impl Reader<'_> {
    /// One quoted string; borrowed unless it has an escape.
    fn string<'i>(&mut self, input: &'i [u8]) -> Parsed<'i, Cow<'i, [u8]>> {
        let (mut rest, ()) = expect(input, "\"")?;
        self.strings += 1;
        if self.strings > MAX_STRINGS {
            return fail(input, Reason::TooManyStrings);
        }
        let mut value = Cow::Borrowed(&[][..]);
        loop {
            let Some(at) = rest.find_byteset(b"\"\\\0") else {
                return fail(input, Reason::Unterminated);
            };
            let (plain, after) = rest.split_at(at);
            if value.is_empty() {
                value = Cow::Borrowed(plain);
            } else {
                value.to_mut().extend_from_slice(plain);
            }
            match after {
                [b'"', after @ ..] => return Ok((after, value)),
                [0, ..] | [b'\\', 0, ..] => return fail(after, Reason::Nul),
                [b'\\', escaped, after @ ..] => {
                    value.to_mut().push(match escaped {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        other => *other,
                    });
                    rest = after;
                }
                _ => return fail(input, Reason::Unterminated),
            }
        }
    }

    fn bytes<'i>(&mut self, input: &'i [u8]) -> Parsed<'i, BString> {
        let (rest, value) = self.string(input)?;
        Ok((rest, value.into_owned().into()))
    }

    fn text<'i>(&mut self, input: &'i [u8]) -> Parsed<'i, String> {
        let (rest, value) = self.string(input)?;
        match String::from_utf8(value.into_owned()) {
            Ok(text) => Ok((rest, text)),
            Err(error) => fail(input, Reason::NotText(error.into_bytes().into())),
        }
    }

    fn path<'i>(&mut self, input: &'i [u8]) -> Parsed<'i, StorePath> {
        let (rest, value) = self.string(input)?;
        if !value.starts_with(b"/") {
            return fail(input, Reason::BadPath(value.into_owned().into()));
        }
        match self.dir.parse(&value) {
            Ok(path) => Ok((rest, path)),
            Err(error) => fail(input, Reason::NotStorePath(error)),
        }
    }

    /// The rest of a list after its `[`: each item may have a comma before it, or none, as guix-daemon has it.
    fn items<'i>(&mut self, mut input: &'i [u8], mut item: impl FnMut(&mut Self, &'i [u8]) -> Parsed<'i, ()>) -> Parsed<'i, ()> {
        loop {
            input = match input {
                [b']', rest @ ..] => return Ok((rest, ())),
                [b',', rest @ ..] => rest,
                other => other,
            };
            (input, ()) = item(self, input)?;
        }
    }

    fn derivation<'i>(&mut self, input: &'i [u8]) -> Parsed<'i, Derivation> {
        let mut drv = Derivation {
            outputs: Default::default(),
            input_drvs: Default::default(),
            input_srcs: Default::default(),
            platform: Default::default(),
            builder: Default::default(),
            args: Default::default(),
            env: Default::default(),
        };
        let (input, ()) = expect(input, "Derive([")?;
        let (input, ()) = self.items(input, |this, input| {
            let (input, ()) = expect(input, "(")?;
            let (input, name) = this.text(input)?;
            let (input, ()) = expect(input, ",")?;
            let (input, path) = this.path(input)?;
            let (input, ()) = expect(input, ",")?;
            let (input, hash_algo) = this.text(input)?;
            let (input, ()) = expect(input, ",")?;
            let (input, hash) = this.text(input)?;
            drv.outputs.insert(name, DerivationOutput { path, hash_algo, hash });
            expect(input, ")")
        })?;
        let (input, ()) = expect(input, ",[")?;
        let (input, ()) = self.items(input, |this, input| {
            let (input, ()) = expect(input, "(")?;
            let (input, path) = this.path(input)?;
            let (input, ()) = expect(input, ",[")?;
            let mut outputs = BTreeSet::new();
            let (input, ()) = this.items(input, |this, input| {
                let (input, output) = this.text(input)?;
                outputs.insert(output);
                Ok((input, ()))
            })?;
            drv.input_drvs.insert(path, outputs);
            expect(input, ")")
        })?;
        let (input, ()) = expect(input, ",[")?;
        let (input, ()) = self.items(input, |this, input| {
            let (input, path) = this.path(input)?;
            drv.input_srcs.insert(path);
            Ok((input, ()))
        })?;
        let (input, ()) = expect(input, ",")?;
        let (input, platform) = self.bytes(input)?;
        drv.platform = platform;
        let (input, ()) = expect(input, ",")?;
        let (input, builder) = self.bytes(input)?;
        drv.builder = builder;
        let (input, ()) = expect(input, ",[")?;
        let (input, ()) = self.items(input, |this, input| {
            let (input, arg) = this.bytes(input)?;
            drv.args.push(arg);
            Ok((input, ()))
        })?;
        let (input, ()) = expect(input, ",[")?;
        let (input, ()) = self.items(input, |this, input| {
            let (input, ()) = expect(input, "(")?;
            let (input, name) = this.bytes(input)?;
            let (input, ()) = expect(input, ",")?;
            let (input, value) = this.bytes(input)?;
            drv.env.insert(name, value);
            expect(input, ")")
        })?;
        let (input, ()) = expect(input, ")")?;
        Ok((input, drv))
    }
}

/// Reads a derivation whose paths are in `dir`, in time linear in its length.
///
/// It takes what guix-daemon takes. That includes texts which [`print()`] does not give back:
/// - lists out of order, and repetitions, of which the last counts (arguments are not concerned);
/// - a comma after `[`, and items without a comma between them (but no comma before `]`);
/// - a backslash before any other byte, which stands for that byte; control characters as they are;
/// - whatever follows the last parenthesis.
///
/// Store the bytes that came, not what [`print()`] makes of them, where the difference matters.
///
/// It refuses some that guix-daemon's parser takes, but which can never be built there: paths that are absolute but
/// not those of store items, strings with a NUL (guix-daemon hashes them as if they ended there), output names, hash
/// algorithms and hashes that are not UTF-8, and more than [`MAX_SIZE`] bytes or [`MAX_STRINGS`] strings.
///
/// # Errors
/// [`ParseError`] with the place: of a string (its opening quote) when it is wrong as a whole, else of the byte.
pub fn parse(dir: &StoreDir, bytes: &[u8]) -> Result<Derivation, ParseError> {
    if bytes.len() > MAX_SIZE {
        return Err(ParseError { offset: MAX_SIZE, reason: Reason::TooLong });
    }
    match (Reader { dir, strings: 0 }).derivation(bytes) {
        Ok((_, drv)) => Ok(drv),
        Err(nom::Err::Error(fault) | nom::Err::Failure(fault)) => {
            Err(ParseError { offset: bytes.len().saturating_sub(fault.left), reason: fault.reason })
        }
        // The parsers are nom's "complete" ones, which never ask for more.
        Err(nom::Err::Incomplete(_)) => Err(ParseError { offset: bytes.len(), reason: Reason::Unterminated }),
    }
}

/// Writes a derivation as guix-daemon does, byte for byte; [`parse`] reads it back, unless a string has a NUL.
pub fn print(dir: &StoreDir, drv: &Derivation) -> Vec<u8> {
    let inputs = drv.input_drvs.iter().map(|(path, outputs)| (dir.display(path), outputs));
    print_with(dir, drv, inputs, false)
}

/// [`print()`], with something else in place of the paths of input derivations, in the order given; with `masked`, the
/// paths of outputs are empty, and so are the variables named after them, which are added when missing.
pub(crate) fn print_with<'d>(
    dir: &StoreDir,
    drv: &'d Derivation,
    inputs: impl Iterator<Item = (String, &'d BTreeSet<String>)>,
    masked: bool,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(4096);
    out.extend_from_slice(b"Derive(");
    list(&mut out, &drv.outputs, |out, (name, output)| {
        out.push(b'(');
        string(out, name);
        out.push(b',');
        string(out, if masked { String::new() } else { dir.display(&output.path) });
        out.push(b',');
        string(out, &output.hash_algo);
        out.push(b',');
        string(out, &output.hash);
        out.push(b')');
    });
    out.push(b',');
    list(&mut out, inputs, |out, (path, outputs)| {
        out.push(b'(');
        string(out, path);
        out.push(b',');
        list(out, outputs, string);
        out.push(b')');
    });
    out.push(b',');
    list(&mut out, &drv.input_srcs, |out, path| string(out, dir.display(path)));
    out.push(b',');
    string(&mut out, &drv.platform);
    out.push(b',');
    string(&mut out, &drv.builder);
    out.push(b',');
    list(&mut out, &drv.args, string);
    out.push(b',');
    let variable = |out: &mut Vec<u8>, (name, value): (&[u8], &[u8])| {
        out.push(b'(');
        string(out, name);
        out.push(b',');
        string(out, value);
        out.push(b')');
    };
    let env = drv.env.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
    if masked {
        let mut env: std::collections::BTreeMap<&[u8], &[u8]> = env.collect();
        for name in drv.outputs.keys() {
            env.insert(name.as_bytes(), &[]);
        }
        list(&mut out, env, variable);
    } else {
        list(&mut out, env, variable);
    }
    out.push(b')');
    out
}

fn list<T>(out: &mut Vec<u8>, items: impl IntoIterator<Item = T>, mut item: impl FnMut(&mut Vec<u8>, T)) {
    out.push(b'[');
    for (i, value) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        item(out, value);
    }
    out.push(b']');
}

fn string(out: &mut Vec<u8>, text: impl AsRef<[u8]>) {
    out.push(b'"');
    let mut rest = text.as_ref();
    while let Some(at) = rest.find_byteset(b"\"\\\n\r\t") {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain);
        out.push(b'\\');
        let Some((special, after)) = special.split_first() else {
            break;
        };
        out.push(match special {
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            other => *other,
        });
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::{collection, prelude::*};

    use super::*;

    fn dir() -> StoreDir {
        StoreDir::new("/some/store")
    }

    fn bytes() -> impl Strategy<Value = BString> {
        let special = prop::sample::select(b"\"\\\n\r\t,[]()nrt".to_vec());
        collection::vec(prop_oneof![1..=255u8, special], 0..20).prop_map(BString::from)
    }

    fn store_path() -> impl Strategy<Value = StorePath> {
        "[0-9a-df-np-sv-z]{32}-[A-Za-z0-9+_?=-][A-Za-z0-9+._?=-]{0,9}".prop_map(|name| StorePath::from_base_name(name).unwrap())
    }

    fn derivation() -> impl Strategy<Value = Derivation> {
        let output = (store_path(), ".{0,9}", ".{0,9}").prop_map(|(path, hash_algo, hash)| DerivationOutput {
            path,
            hash_algo: hash_algo.replace('\0', ""),
            hash: hash.replace('\0', ""),
        });
        let name = || "[^\0]{0,5}";
        (
            collection::btree_map(name(), output, 0..4),
            collection::btree_map(store_path(), collection::btree_set(name(), 0..3), 0..4),
            collection::btree_set(store_path(), 0..4),
            bytes(),
            bytes(),
            collection::vec(bytes(), 0..4),
            collection::btree_map(bytes(), bytes(), 0..6),
        )
            .prop_map(|(outputs, input_drvs, input_srcs, platform, builder, args, env)| Derivation {
                outputs,
                input_drvs,
                input_srcs,
                platform,
                builder,
                args,
                env,
            })
    }

    proptest! {
        #[test]
        fn print_then_parse(drv in derivation()) {
            let printed = print(&dir(), &drv);
            prop_assert_eq!(parse(&dir(), &printed).unwrap(), drv);
            // Nothing that is needed is at the end, and nothing less is a derivation.
            let end = parse(&dir(), &printed[..printed.len() - 1]).unwrap_err();
            prop_assert_eq!(end, ParseError { offset: printed.len() - 1, reason: Reason::Expected(")") });
        }

        #[test]
        fn damage_is_noticed_or_prints_stably(
            drv in derivation(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<bool>(),
        ) {
            let mut bytes = print(&dir(), &drv);
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            match parse(&dir(), &bytes) {
                Err(error) => prop_assert!(error.offset <= bytes.len()),
                Ok(drv) => prop_assert_eq!(parse(&dir(), &print(&dir(), &drv)).unwrap(), drv),
            }
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&dir(), &bytes);
            let _ = parse(&dir(), &[b"Derive([", &bytes[..]].concat());
            let _ = parse(&dir(), &[b"Derive([],[],[],\"", &bytes[..]].concat());
        }
    }

    #[test]
    fn says_where_and_why() {
        let path = "/some/store/00000000000000000000000000000000-x";
        let cases: &[(&[u8], usize, &str)] = &[
            (b"", 0, "expected string `Derive(['"),
            (b"Derive([]", 9, "expected string `,['"),
            (b"Derive([(\"out\"", 14, "expected string `,'"),
            (b"Derive([(\"out\",\"x\"", 15, "bad path `x' in derivation"),
            (b"Derive([],[],[\"/x\"]", 14, "bad path in derivation: path `/x' is not in the store"),
            (b"Derive([],[],[],\"abc", 16, "string without end in derivation"),
            (b"Derive([],[],[],\"abc\\", 16, "string without end in derivation"),
            (b"Derive([],[],[],\"ab\0\"", 19, "string with a NUL in derivation"),
            (b"Derive([(\"\xff\",\"", 9, "output `\\xFF' in derivation is not text"),
        ];
        for (bytes, offset, reason) in cases {
            let error = parse(&dir(), bytes).unwrap_err();
            let text = error.reason.to_string().replace('\u{fffd}', "\\xFF");
            assert_eq!((error.offset, text.as_str()), (*offset, *reason), "{}", bytes.as_bstr());
        }
        let deeper = format!("Derive([],[],[\"{path}/y\"]");
        assert!(matches!(parse(&dir(), deeper.as_bytes()).unwrap_err().reason, Reason::NotStorePath(_)));
        let elsewhere = format!("Derive([],[],[\"{path}\"],\"\",\"\",[],[])");
        assert!(parse(&dir(), elsewhere.as_bytes()).is_ok());
        assert!(parse(&StoreDir::new("/some/other"), elsewhere.as_bytes()).is_err());
    }

    #[test]
    fn limits() {
        let args = |count| format!("Derive([],[],[],\"\",\"\",[{}],[])", "\"\"".repeat(count)).into_bytes();
        // Platform and builder are strings as well.
        assert_eq!(parse(&dir(), &args(MAX_STRINGS - 2)).unwrap().args.len(), MAX_STRINGS - 2);
        assert_eq!(parse(&dir(), &args(MAX_STRINGS - 1)).unwrap_err().reason, Reason::TooManyStrings);
        let mut long = args(0);
        long.resize(MAX_SIZE, b' ');
        assert!(parse(&dir(), &long).is_ok());
        long.push(b' ');
        assert_eq!(parse(&dir(), &long).unwrap_err().reason, Reason::TooLong);
    }

    /// Best of three, so that a busy machine does not matter.
    fn seconds(bytes: &[u8]) -> f64 {
        let time = |_| {
            let start = Instant::now();
            parse(&dir(), bytes).unwrap();
            start.elapsed().as_secs_f64()
        };
        (0..3).map(time).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn time_is_linear() {
        // Where a quadratic parser would hide: many escapes in one string, many strings.
        for unit in ["\\n", "\",\"", "abcdef\"\""] {
            let drv = |size: usize| {
                let args = unit.repeat(size / unit.len());
                format!("Derive([],[],[],\"\",\"\",[\"{args}\"],[])").into_bytes()
            };
            let (small, large) = (seconds(&drv(500_000)), seconds(&drv(5_000_000)));
            // Ten times the bytes; a hundred times the time would be quadratic.
            assert!(large < 40.0 * small.max(0.002), "{unit:?}: {small} s, {large} s");
        }
    }
}
