//! The reader of system files in TOML. Every error names file, line, field and what to do.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fields::{Check, Data, Field, Part, PartType, Shape, default_of};
use super::model::{OperatingSystem, Problem, REPOSITORY, item};
use super::pkg::{Circles, Locked, PkgRepository, RepositoryFields};
use super::source::{FreebsdSource, SourceFields};

/// The longest file that is read, in bytes.
pub const MAX_FILE: usize = 4 << 20;

/// A problem with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The problem.
    pub problem: Problem,
}

impl std::fmt::Display for Located {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Problem { field, problem, remedy } = &self.problem;
        write!(f, "{}:{}: {field}: {problem}; {remedy}", self.file.display(), self.line)
    }
}

/// A file that was read, and where in it what stands.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The file; what it names is relative to its directory.
    pub path: PathBuf,
    /// The line of each field that was given.
    lines: BTreeMap<String, usize>,
}

impl Origin {
    /// Says where in the file a problem is: the line of its field, or of what that is in.
    #[must_use]
    pub fn locate(&self, problem: Problem) -> Located {
        let mut field = problem.field.as_str();
        let line = loop {
            if let Some(line) = self.lines.get(field) {
                break *line;
            }
            match field.rfind(['.', '[']) {
                Some(end) => field = field.get(..end).unwrap_or_default(),
                None => break 1,
            }
        };
        Located { file: self.path.clone(), line, problem }
    }

    /// The file that `name` means in this one.
    #[must_use]
    pub fn resolve(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(name)
    }
}

/// A system file that was read.
#[derive(Clone, Debug)]
pub struct SystemFile {
    /// Where it comes from.
    pub origin: Origin,
    /// What it describes.
    pub system: OperatingSystem,
}

impl SystemFile {
    /// Reads `text`, the contents of the file `path`, and checks all that can be checked without looking further.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the lines.
    pub fn parse(path: &Path, text: &str) -> Result<SystemFile, Vec<Located>> {
        let (system, origin) = read::<OperatingSystem>(path, text, &table(path, text)?, OperatingSystem::problems)?;
        Ok(SystemFile { origin, system })
    }
}

/// A file that declares a source: a system file with `[base.source]`, or one with `[source]` alone.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Where it comes from.
    pub origin: Origin,
    /// What it declares.
    pub source: FreebsdSource,
    /// Where the source stands: `source` or `base.source`.
    pub field: &'static str,
    text: String,
}

impl SourceFile {
    /// Reads `text`, the contents of the file `path`.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the lines.
    pub fn parse(path: &Path, text: &str) -> Result<SourceFile, Vec<Located>> {
        let table = table(path, text)?;
        let found = |source, field, origin| SourceFile { origin, source, field, text: text.to_owned() };
        if !OperatingSystem::PART.fields.iter().any(|field| table.get_ref().contains_key(field.name)) {
            let check = |fields: &SourceFields| fields.source.problems("source");
            let (SourceFields { source }, origin) = read(path, text, &table, check)?;
            return Ok(found(source, "source", origin));
        }
        let (system, origin) = read::<OperatingSystem>(path, text, &table, OperatingSystem::problems)?;
        match system.base.source {
            Some(source) => Ok(found(source, "base.source", origin)),
            None => {
                let remedy = "write a table [base.source], or name a file with a table [source]";
                Err(vec![origin.locate(Problem::new("base.source", "is missing", remedy))])
            }
        }
    }

    /// The text of the file with another pin, and everything else as it is, comments and layout too. `None` for what cannot be written so.
    #[must_use]
    pub fn with_pin(&self, commit: Option<&str>, sha256: &str) -> Option<String> {
        let mut wanted = self.source.clone();
        let mut file = self.clone();
        for (name, value) in [("commit", commit), ("sha256", Some(sha256))] {
            let Some(value) = value else { continue };
            *(if name == "commit" { &mut wanted.commit } else { &mut wanted.sha256 }) = Some(value.to_owned());
            // Whether it is right shows when it is read again.
            let texts = with_value(&file.text, self.field, name, &format!("\"{value}\""), &["commit", "ref", "path", "url", "kind"])?;
            file =
                texts.into_iter().find_map(|text| SourceFile::parse(&self.origin.path, &text).ok().filter(|file| file.source == wanted))?;
        }
        Some(file.text)
    }
}

/// A file that declares repositories of packages: a system file with `[base.repository]` or `[repository]`, or one with `[repository]` alone.
#[derive(Clone, Debug)]
pub struct RepositoryFile {
    /// Where it comes from.
    pub origin: Origin,
    /// What it declares, each with where it stands: `repository` or `base.repository`.
    pub repositories: Vec<(&'static str, PkgRepository, Circles)>,
    text: String,
}

impl RepositoryFile {
    /// Reads `text`, the contents of the file `path`.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the lines.
    pub fn parse(path: &Path, text: &str) -> Result<RepositoryFile, Vec<Located>> {
        let table = table(path, text)?;
        let found = |repositories, origin| RepositoryFile { origin, repositories, text: text.to_owned() };
        let of_systems = OperatingSystem::PART.fields.iter().filter(|field| field.name != REPOSITORY);
        if !of_systems.into_iter().any(|field| table.get_ref().contains_key(field.name)) {
            let check = |fields: &RepositoryFields| fields.repository.problems(REPOSITORY);
            let (RepositoryFields { repository }, origin) = read(path, text, &table, check)?;
            return Ok(found(vec![(REPOSITORY, repository, Circles::Refused)], origin));
        }
        let (system, origin) = read::<OperatingSystem>(path, text, &table, OperatingSystem::problems)?;
        let repositories: Vec<_> = system.repositories().map(|(field, repository, circles)| (field, repository.clone(), circles)).collect();
        if repositories.is_empty() {
            let remedy = "write a table [repository] or [base.repository]";
            return Err(vec![origin.locate(Problem::new(REPOSITORY, "is missing", remedy))]);
        }
        Ok(found(repositories, origin))
    }

    /// The text of the file as it is.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The file with another pin of the repository at `field`, and everything else as it is. `None` for what cannot be written so.
    #[must_use]
    pub fn with_pin(&self, field: &str, sha256: &str, locked: &[Locked]) -> Option<RepositoryFile> {
        let mut wanted = self.repositories.clone();
        let lines: Vec<String> = locked.iter().map(ToString::to_string).collect();
        let list: String = lines.iter().map(|line| format!("  \"{line}\",\n")).collect();
        let (_, repository, _) = wanted.iter_mut().find(|(known, ..)| *known == field)?;
        let mut file = self.clone();
        for (name, value) in [("sha256", format!("\"{sha256}\"")), ("locked", format!("[\n{list}]"))] {
            if name == "sha256" {
                repository.sha256 = Some(sha256.to_owned());
            } else {
                repository.locked.clone_from(&lines);
            }
            let expected = repository.clone();
            // Whether it is right shows when it is read again.
            let texts = with_value(&file.text, field, name, &value, &["sha256", "packages", "pubkey", "fingerprints", "url"])?;
            file = texts.into_iter().find_map(|text| {
                let file = RepositoryFile::parse(&self.origin.path, &text).ok()?;
                file.repositories.iter().any(|(known, found, _)| *known == field && *found == expected).then_some(file)
            })?;
        }
        (file.repositories == wanted).then_some(file)
    }
}

/// Texts of which one may have `value` for the field `name` of the part at `field`: in its place, or after the first of the fields `after` that is there.
fn with_value(text: &str, field: &str, name: &str, value: &str, after: &[&str]) -> Option<Vec<String>> {
    let table = DeTable::parse(text).ok()?;
    let mut part = table.get_ref();
    for step in field.split('.') {
        part = part.iter().find(|(key, _)| key.get_ref() == step)?.1.get_ref().as_table()?;
    }
    let spans = |name: &str| part.iter().find(|(key, _)| key.get_ref() == name).map(|(key, value)| (key.span(), value.span()));
    let put = |at: Range<usize>, new: &str| Some([text.get(..at.start)?, new, text.get(at.end..)?].concat());
    if let Some((_, at)) = spans(name) {
        return Some(vec![put(at, value)?]);
    }
    // After another field: the last that belongs before it, on a line of its own that begins as that one does, or in the same table of one line.
    let (key, at) = after.iter().find_map(|name| spans(name))?;
    let start = text.get(..key.start)?.rfind('\n').map_or(0, |at| at + 1);
    let end = at.end + text.get(at.end..)?.find('\n').map_or(text.len() - at.end, |at| at + 1);
    let line = text.get(start..end)?;
    let before = text.get(start..key.start)?;
    let (gap, ending) = if line.ends_with("\r\n") {
        ("", "\r\n")
    } else if line.ends_with('\n') {
        ("", "\n")
    } else {
        ("\n", "")
    };
    Some(vec![put(end..end, &format!("{gap}{before}{name} = {value}{ending}"))?, put(at.end..at.end, &format!(", {name} = {value}"))?])
}

/// The table that a text of TOML is.
fn table<'t>(path: &Path, text: &'t str) -> Result<Spanned<DeTable<'t>>, Vec<Located>> {
    let located = |line: usize, problem: Problem| vec![Located { file: path.to_owned(), line, problem }];
    if text.len() > MAX_FILE {
        return Err(located(1, Problem::new("file", "is too long", format!("write less than {MAX_FILE} bytes"))));
    }
    DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| Starts::new(text).line_of(span.start));
        let message = error.message().replace('\n', " ");
        let what = text.lines().nth(line.saturating_sub(1)).unwrap_or_default().trim();
        let field: String = what.split(['=', ' ']).next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(40).collect();
        let field = if field.is_empty() { "file".to_owned() } else { field };
        located(line, Problem::new(field, format!("is no TOML: {message}"), "correct the line (see toml.io)"))
    })
}

/// Reads a whole file as one part. `check` says what does not hold among its fields.
fn read<P: PartType>(
    path: &Path,
    text: &str,
    table: &Spanned<DeTable<'_>>,
    check: impl Fn(&P) -> Vec<Problem>,
) -> Result<(P, Origin), Vec<Located>> {
    let mut reader = Reader { starts: Starts::new(text), lines: BTreeMap::new(), problems: Vec::new() };
    let fields = reader.part(P::PART, table.get_ref(), "", table.span());
    let sort = |mut found: Vec<Located>| {
        found.sort_by_key(|problem| problem.line);
        found
    };
    let Reader { lines, problems, .. } = reader;
    if !problems.is_empty() {
        let located = |(line, problem)| Located { file: path.to_owned(), line, problem };
        return Err(sort(problems.into_iter().map(located).collect()));
    }
    let origin = Origin { path: path.to_owned(), lines };
    let Some(part) = fields.and_then(P::from_fields) else {
        return Err(vec![origin.locate(Problem::new("file", "cannot be understood", "report this as an error of fruix"))]);
    };
    let problems = check(&part);
    if problems.is_empty() {
        return Ok((part, origin));
    }
    Err(sort(problems.into_iter().map(|problem| origin.locate(problem)).collect()))
}

/// Where the second line of a text begins, and each after it.
struct Starts(Vec<usize>);

impl Starts {
    fn new(text: &str) -> Starts {
        Starts(text.bytes().zip(1..).filter(|(byte, _)| *byte == b'\n').map(|(_, next)| next).collect())
    }

    /// The number of the line, from 1, in which the byte `at` is.
    fn line_of(&self, at: usize) -> usize {
        self.0.partition_point(|start| *start <= at).saturating_add(1)
    }
}

struct Reader {
    starts: Starts,
    lines: BTreeMap<String, usize>,
    problems: Vec<(usize, Problem)>,
}

impl Reader {
    fn complain(&mut self, at: &Range<usize>, field: &str, problem: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push((self.starts.line_of(at.start), Problem::new(field, problem, remedy)));
    }

    fn part(&mut self, part: &'static Part, table: &DeTable<'_>, prefix: &str, span: Range<usize>) -> Option<Vec<(&'static str, Data)>> {
        let under = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        for key in table.keys() {
            let name: &str = key.get_ref();
            if part.field(name).is_none() {
                let near = part.fields.iter().map(|field| (distance(field.name, name), field.name)).min();
                let remedy = match near {
                    Some((distance, near)) if distance <= 3 => format!("did you mean `{near}'?"),
                    _ => format!("known are {}", part.fields.iter().map(|field| field.name).collect::<Vec<_>>().join(", ")),
                };
                let shown: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
                self.complain(&key.span(), &under(&shown), format!("is no field of {}", part.name), remedy);
            }
        }
        let mut fields = Vec::new();
        let mut whole = true;
        for field in part.fields {
            let name = under(field.name);
            let data = match table.iter().find(|(key, _)| key.get_ref() == field.name) {
                Some((key, value)) => {
                    self.lines.insert(name.clone(), self.starts.line_of(key.span().start));
                    self.value(field, value, &name)
                }
                None => {
                    let data = default_of(field);
                    if data.is_none() {
                        self.complain(&span, &name, "is missing", example(field));
                    }
                    data
                }
            };
            match data {
                Some(data) => fields.push((field.name, data)),
                None => whole = false,
            }
        }
        whole.then_some(fields)
    }

    fn text_value(&mut self, check: Check, text: &str, name: &str, span: &Range<usize>) {
        if let Some((problem, remedy)) = check.problem(text) {
            self.complain(span, name, problem, remedy);
        }
    }

    fn value(&mut self, field: &'static Field, value: &Spanned<DeValue<'_>>, name: &str) -> Option<Data> {
        let span = value.span();
        match (field.shape, value.get_ref()) {
            (Shape::Text, DeValue::String(text)) => {
                self.text_value(field.check, text, name, &span);
                Some(Data::Text(text.clone().into_owned()))
            }
            (Shape::Flag, DeValue::Boolean(flag)) => Some(Data::Flag(*flag)),
            (Shape::Number, DeValue::Integer(number)) => {
                let Ok(number) = u64::from_str_radix(number.as_str(), number.radix()) else {
                    self.complain(&span, name, format!("{number} is out of range"), example(field));
                    return None;
                };
                if let Some((problem, remedy)) = field.check.number_problem(number) {
                    self.complain(&span, name, problem, remedy);
                }
                Some(Data::Number(number))
            }
            (Shape::Texts, DeValue::Array(items)) => {
                let mut texts = Vec::new();
                for (index, value) in items.iter().enumerate() {
                    let name = item(name, index);
                    self.lines.insert(name.clone(), self.starts.line_of(value.span().start));
                    if let DeValue::String(text) = value.get_ref() {
                        self.text_value(field.check, text, &name, &value.span());
                        texts.push(text.clone().into_owned());
                    } else {
                        self.complain(&value.span(), &name, "is no text", "put it between quotation marks");
                    }
                }
                Some(Data::Texts(texts))
            }
            (Shape::Pairs, DeValue::Table(table)) => {
                let mut pairs = BTreeMap::new();
                for (key, value) in table {
                    let name = format!("{name}.{}", key.get_ref());
                    self.lines.insert(name.clone(), self.starts.line_of(key.span().start));
                    self.text_value(field.check, key.get_ref(), &name, &key.span());
                    let text = match value.get_ref() {
                        DeValue::String(text) => text.clone().into_owned(),
                        DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
                        DeValue::Boolean(flag) => if *flag { "YES" } else { "NO" }.to_owned(),
                        _ => {
                            self.complain(&value.span(), &name, "is no text, number or boolean", "write a text");
                            continue;
                        }
                    };
                    self.text_value(Check::Line, &text, &name, &value.span());
                    pairs.insert(key.get_ref().clone().into_owned(), text);
                }
                Some(Data::Pairs(pairs))
            }
            (Shape::Part(part), DeValue::Table(table)) => self.part(part, table, name, span).map(Data::Part),
            (Shape::Parts(part), DeValue::Array(items)) => {
                let mut parts = Vec::new();
                let mut whole = true;
                for (index, value) in items.iter().enumerate() {
                    let name = item(name, index);
                    self.lines.insert(name.clone(), self.starts.line_of(value.span().start));
                    match value.get_ref() {
                        DeValue::Table(table) => match self.part(part, table, &name, value.span()) {
                            Some(fields) => parts.push(fields),
                            None => whole = false,
                        },
                        _ => {
                            self.complain(&value.span(), &name, "is no table", example(field));
                            whole = false;
                        }
                    }
                }
                whole.then_some(Data::Parts(parts))
            }
            (_, value) => {
                self.complain(&span, name, format!("is {}, not a {}", kind(value), field.shape.name()), example(field));
                None
            }
        }
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// How to write a field.
fn example(field: &Field) -> String {
    let name = field.name;
    match (field.shape, field.check) {
        (Shape::Text, Check::OneOf(words)) => format!("write {name} = \"{}\"", words.join("\" or \"")),
        (Shape::Text, _) => format!("write {name} = \"...\""),
        (Shape::Flag, _) => format!("write {name} = true or false"),
        (Shape::Number, Check::Range(low, high)) => format!("write {name} = a number from {low} to {high}"),
        (Shape::Number, _) => format!("write {name} = a number"),
        (Shape::Texts, _) => format!("write {name} = [\"...\"]"),
        (Shape::Pairs | Shape::Part(_), _) => format!("write a table [{name}]"),
        (Shape::Parts(_), _) => format!("write tables [[{name}]]"),
    }
}

/// How many characters must be changed, added or taken away to come from one name to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, char) in from.chars().enumerate() {
        let mut next = vec![index + 1];
        for (column, other) in to.iter().enumerate() {
            let here = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX - 1);
            let change = here(&row, column) + usize::from(char != *other);
            next.push(change.min(here(&row, column + 1) + 1).min(here(&next, column) + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}
