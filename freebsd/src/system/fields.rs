//! The one table of what a system file may say: for each field its name, type, default, check and documentation.
//!
//! [`parts!`](crate::system::fields::parts) declares a struct and its rows at once. The reader of TOML, the canonical text, the Scheme module's
//! checks and the user's guide all follow from the rows.

use std::collections::BTreeMap;

/// A value as it stands between a file and the typed model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing was given, and there is no default.
    Nothing,
    /// A text.
    Text(String),
    /// Yes or no.
    Flag(bool),
    /// A number that is not negative.
    Number(u64),
    /// Texts in their order.
    Texts(Vec<String>),
    /// Names with their values, sorted.
    Pairs(BTreeMap<String, String>),
    /// The fields of a part, in the order of its table.
    Part(Vec<(&'static str, Data)>),
    /// Several parts of a kind, in their order.
    Parts(Vec<Vec<(&'static str, Data)>>),
}

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// A text.
    Text,
    /// Yes or no.
    Flag,
    /// A number.
    Number,
    /// A list of texts.
    Texts,
    /// Names with values.
    Pairs,
    /// Another part.
    Part(&'static Part),
    /// A list of parts.
    Parts(&'static Part),
}

impl Shape {
    /// Its name for readers.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Shape::Text => "text",
            Shape::Flag => "true or false",
            Shape::Number => "number",
            Shape::Texts => "list of texts",
            Shape::Pairs => "table of names and values",
            Shape::Part(_) => "table",
            Shape::Parts(_) => "list of tables",
        }
    }
}

/// What a field holds that was not given.
#[derive(Clone, Copy, Debug)]
pub enum Missing {
    /// It must be given.
    Required,
    /// Nothing: what it describes is not there.
    Absent,
    /// This text.
    Text(&'static str),
    /// This answer.
    Flag(bool),
    /// This number.
    Number(u64),
    /// These texts.
    Texts(&'static [&'static str]),
    /// An empty table or list.
    Empty,
    /// A part whose fields are all missing.
    Part,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name, as in files.
    pub name: &'static str,
    /// What it holds.
    pub shape: Shape,
    /// What it holds when it is not given.
    pub missing: Missing,
    /// What its text, each of its texts, or its number must be.
    pub check: Check,
    /// What it means: a sentence or two.
    pub doc: &'static str,
}

/// A kind of table in a file.
#[derive(Debug)]
pub struct Part {
    /// Its name in Scheme and in the documentation.
    pub name: &'static str,
    /// What it describes.
    pub doc: &'static str,
    /// Its rows.
    pub fields: &'static [Field],
}

impl Part {
    /// The row of `name`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// What a text or number must be. Each variant has one row in [`Check::problem`], and its words are the user's.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// Text of any lines.
    Any,
    /// One line without control characters.
    Line,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A number from the first to the second.
    Range(u64, u64),
    /// A host name.
    HostName,
    /// The name of a user or group.
    Login,
    /// An absolute file name.
    Path,
    /// A file name on the machine that reads the file.
    LocalPath,
    /// A SHA-256 in base 16.
    Sha256,
    /// A number of bytes, with K, M, G or T.
    Size,
    /// A word: letters, digits, `.`, `_`, `-`.
    Word,
    /// What may stand between colons in `passwd`.
    Passwd,
    /// A word as `fstab` has it: no white space.
    Token,
    /// For pairs: the name of a variable of the shell; the value is one line.
    ShellName,
    /// For pairs: a dotted name of the loader or of `sysctl`; the value is one line.
    DottedName,
    /// An `http`, `https` or `file` URL.
    Url,
    /// A branch or tag of git.
    GitRef,
    /// A commit of git in full.
    Commit,
    /// The name of a package of pkg(8), or its origin.
    PkgName,
    /// The version of one.
    PkgVersion,
    /// The place of one in its repository.
    PkgPath,
    /// An option of src.conf(5).
    BuildOption,
}

impl Check {
    /// What is wrong with `text`, and what would be right.
    #[must_use]
    pub fn problem(&self, text: &str) -> Option<(String, String)> {
        let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        let no_control = |text: &str| !text.chars().any(char::is_control);
        let name_first = |text: &str| text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let path = |text: &str| {
            text == "/"
                || text.len() < 1024
                    && no_control(text)
                    && text
                        .strip_prefix('/')
                        .is_some_and(|rest| rest.split('/').all(|name| !matches!(name, "" | "." | "..") && name.len() < 256))
        };
        let (good, expected): (bool, String) = match self {
            Check::Any => (!text.chars().any(|c| c.is_control() && !"\n\t".contains(c)), "write text without control characters".into()),
            Check::Line => (no_control(text), "write one line without control characters".into()),
            Check::OneOf(words) => (words.contains(&text), format!("write one of {}", words.join(", "))),
            Check::Range(..) => (true, String::new()),
            Check::HostName => (
                text.len() <= 253
                    && text.split('.').all(|label| {
                        !label.is_empty()
                            && label.len() < 64
                            && !label.starts_with('-')
                            && !label.ends_with('-')
                            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
                    }),
                "write labels of letters, digits and hyphens, separated by dots".into(),
            ),
            Check::Login => (
                plain(text) && text.len() <= 32 && name_first(text),
                "write at most 32 letters, digits, `.', `_', `-', the first a letter or `_'".into(),
            ),
            Check::Path => (path(text), "write an absolute file name without `.', `..' or a `/' at its end".into()),
            Check::LocalPath => (!text.is_empty() && no_control(text), "write a file name".into()),
            Check::Sha256 => {
                (text.len() == 64 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')), "write 64 digits 0-9, a-f".into())
            }
            Check::Size => (size(text).is_some(), "write a number of bytes, with K, M, G or T, such as 2G".into()),
            Check::Word => (plain(text) && !text.starts_with('.'), "write letters, digits, `.', `_', `-'".into()),
            Check::Passwd => (no_control(text) && !text.contains(':'), "write one line without colons".into()),
            Check::Token => {
                (!text.is_empty() && no_control(text) && !text.contains(char::is_whitespace), "write it without white space".into())
            }
            Check::ShellName => (
                name_first(text) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'),
                "write letters, digits and `_', the first no digit".into(),
            ),
            Check::DottedName => (
                name_first(text) && text.chars().all(|c| c.is_ascii_alphanumeric() || "._%-".contains(c)),
                "write letters, digits, `.', `_', `-'".into(),
            ),
            Check::Url => (
                ["https://", "http://", "file:///"].iter().any(|scheme| text.len() > scheme.len() && text.starts_with(scheme))
                    && no_control(text)
                    && !text.contains(char::is_whitespace),
                "write a URL that begins with https://, http:// or file:///".into(),
            ),
            Check::GitRef => (git_name(text), "write a branch or a tag, such as releng/15.1 or refs/tags/release/15.1.0".into()),
            Check::Commit => (
                matches!(text.len(), 40 | 64) && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')),
                "write all 40 (or 64) digits 0-9, a-f".into(),
            ),
            Check::PkgName => (
                pkg_word(text, "._+-@/") && !text.starts_with(['/', '-', '.']) && !text.ends_with('/') && text.split('/').count() <= 2,
                "write the name of a package, such as bash, or its origin, such as shells/bash".into(),
            ),
            Check::PkgVersion => (pkg_word(text, "._+-,~@"), "write a version, such as 5.3.3_1,1".into()),
            Check::PkgPath => (
                text.len() < 1024 && text.split('/').all(|part| pkg_word(part, "._+-,~@=:") && part != "." && part != ".."),
                "write a place below the repository's URL, such as All/bash-5.3.3.pkg".into(),
            ),
            Check::BuildOption => (
                ["WITH_", "WITHOUT_"]
                    .iter()
                    .filter_map(|start| text.strip_prefix(start))
                    .any(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')),
                "write WITH_ or WITHOUT_ and a name of src.conf(5), such as WITHOUT_GAMES".into(),
            ),
        };
        let shown: String = text.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect();
        (!good).then(|| if text.is_empty() { ("is empty".to_owned(), expected) } else { (format!("`{shown}' is not allowed"), expected) })
    }

    /// What is wrong with `number`, and what would be right.
    #[must_use]
    pub fn number_problem(&self, number: u64) -> Option<(String, String)> {
        match self {
            Check::Range(low, high) if !(*low..=*high).contains(&number) => {
                Some((format!("{number} is out of range"), format!("write a number from {low} to {high}")))
            }
            _ => None,
        }
    }
}

/// Whether `text` is letters, digits and `more`, at most 160 of them: what a name in a store can be made of.
fn pkg_word(text: &str, more: &str) -> bool {
    !text.is_empty() && text.len() <= 160 && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

/// Whether git takes `text` for a name and nothing else: git-check-ref-format(1) with a first character that begins no option.
fn git_name(text: &str) -> bool {
    let odd = |c: char| c.is_control() || c.is_whitespace() || ":^~?*[\\".contains(c);
    text.len() <= 255
        && !text.starts_with('-')
        && !text.ends_with('.')
        && !text.contains(odd)
        && ["..", "@{"].iter().all(|part| !text.contains(part))
        && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"))
}

/// The bytes that a text such as `2G` means.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let end = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let shift = match unit {
        "" => 0_u32,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1_u64.checked_shl(shift)?)
}

/// A type that a field may have.
pub trait FieldType: Sized {
    /// How it shows in files.
    const SHAPE: Shape;
    /// From a value of that shape; `None` when it is of another.
    fn from_data(data: Data) -> Option<Self>;
    /// The value again.
    fn to_data(&self) -> Data;
}

macro_rules! simple {
    ($type:ty, $shape:ident) => {
        impl FieldType for $type {
            const SHAPE: Shape = Shape::$shape;
            fn from_data(data: Data) -> Option<Self> {
                if let Data::$shape(value) = data { Some(value) } else { None }
            }
            fn to_data(&self) -> Data {
                Data::$shape(self.clone())
            }
        }
    };
}
simple!(String, Text);
simple!(bool, Flag);
simple!(u64, Number);
simple!(Vec<String>, Texts);
simple!(BTreeMap<String, String>, Pairs);

impl<T: FieldType> FieldType for Option<T> {
    const SHAPE: Shape = T::SHAPE;
    fn from_data(data: Data) -> Option<Self> {
        match data {
            Data::Nothing => Some(None),
            data => T::from_data(data).map(Some),
        }
    }
    fn to_data(&self) -> Data {
        self.as_ref().map_or(Data::Nothing, T::to_data)
    }
}

/// A struct that is a part.
pub trait PartType: Sized {
    /// Its table.
    const PART: &'static Part;
    /// From all its fields.
    fn from_fields(fields: Vec<(&'static str, Data)>) -> Option<Self>;
    /// All its fields, in the order of the table.
    fn fields(&self) -> Vec<(&'static str, Data)>;
}

/// Declares parts: `pub struct NAME = "name" { /// doc  pub field = "field": TYPE, MISSING, CHECK; … }`.
macro_rules! parts {
    ($( $(#[doc = $doc:literal])+ pub struct $type:ident = $part:literal {
        $( $(#[doc = $field_doc:literal])+ pub $field:ident = $name:literal : $kind:ty, $missing:expr, $check:expr; )+
    } )+) => { $(
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $type { $( $(#[doc = $field_doc])+ pub $field: $kind, )+ }

        impl $crate::system::fields::PartType for $type {
            const PART: &'static $crate::system::fields::Part = &$crate::system::fields::Part {
                name: $part,
                doc: concat!($($doc),+),
                fields: &[ $( $crate::system::fields::Field {
                    name: $name,
                    shape: <$kind as $crate::system::fields::FieldType>::SHAPE,
                    missing: $missing,
                    check: $check,
                    doc: concat!($($field_doc),+),
                }, )+ ],
            };
            fn from_fields(fields: Vec<(&'static str, $crate::system::fields::Data)>) -> Option<Self> {
                let mut fields = fields.into_iter();
                Some($type { $( $field: {
                    let (name, data) = fields.next()?;
                    if name != $name { return None; }
                    $crate::system::fields::FieldType::from_data(data)?
                }, )+ })
            }
            fn fields(&self) -> Vec<(&'static str, $crate::system::fields::Data)> {
                vec![ $( ($name, $crate::system::fields::FieldType::to_data(&self.$field)), )+ ]
            }
        }
        impl $crate::system::fields::FieldType for $type {
            const SHAPE: $crate::system::fields::Shape =
                $crate::system::fields::Shape::Part(<$type as $crate::system::fields::PartType>::PART);
            fn from_data(data: $crate::system::fields::Data) -> Option<Self> {
                if let $crate::system::fields::Data::Part(fields) = data {
                    $crate::system::fields::PartType::from_fields(fields)
                } else { None }
            }
            fn to_data(&self) -> $crate::system::fields::Data {
                $crate::system::fields::Data::Part($crate::system::fields::PartType::fields(self))
            }
        }
        impl $crate::system::fields::FieldType for Vec<$type> {
            const SHAPE: $crate::system::fields::Shape =
                $crate::system::fields::Shape::Parts(<$type as $crate::system::fields::PartType>::PART);
            fn from_data(data: $crate::system::fields::Data) -> Option<Self> {
                if let $crate::system::fields::Data::Parts(parts) = data {
                    parts.into_iter().map($crate::system::fields::PartType::from_fields).collect()
                } else { None }
            }
            fn to_data(&self) -> $crate::system::fields::Data {
                $crate::system::fields::Data::Parts(self.iter().map($crate::system::fields::PartType::fields).collect())
            }
        }
    )+ };
}
pub(crate) use parts;

/// The value of a field that was not given; `None` when it is required.
#[must_use]
pub fn default_of(field: &Field) -> Option<Data> {
    Some(match (&field.missing, &field.shape) {
        (Missing::Required, _) => return None,
        (Missing::Absent, _) => Data::Nothing,
        (Missing::Text(text), _) => Data::Text((*text).to_owned()),
        (Missing::Flag(flag), _) => Data::Flag(*flag),
        (Missing::Number(number), _) => Data::Number(*number),
        (Missing::Texts(texts), _) => Data::Texts(texts.iter().map(|text| (*text).to_owned()).collect()),
        (Missing::Part, Shape::Part(part)) => {
            let fields: Option<Vec<_>> = part.fields.iter().map(|field| Some((field.name, default_of(field)?))).collect();
            Data::Part(fields?)
        }
        (Missing::Empty, Shape::Pairs) => Data::Pairs(BTreeMap::new()),
        (Missing::Empty, Shape::Parts(_)) => Data::Parts(Vec::new()),
        (Missing::Empty | Missing::Part, _) => Data::Texts(Vec::new()),
    })
}
