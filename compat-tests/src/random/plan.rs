//! From operations to the bytes of requests: what names stand for, what derivations look like.
//!
//! Paths are worked out here, without asking a daemon, so that both are sent the same whatever they answer.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bstr::{BString, ByteSlice};
use fruix_drv::modulo::compute_output_paths;
use fruix_drv::path::{fixed_output_path, text_path};
use fruix_drv::{Derivation, DerivationOutput, Hash, HashAlgo, StoreDir, StorePath, aterm, base32, hash_derivation_modulo};

use super::case::{Op, Value};
use super::wire::{Shape, put_string, put_strings, put_word};

/// The store directory of the daemons.
pub const STORE: &str = "/frx/store";

/// The operations of one path or other string: verb, number, reply.
const OF_ONE: &[(&str, u64, Shape)] = &[
    ("valid?", 1, Shape::Word),
    ("has-substitutes", 3, Shape::Word),
    ("hash", 4, Shape::Text),
    ("references", 5, Shape::Texts),
    ("referrers", 6, Shape::Texts),
    ("ensure", 10, Shape::Word),
    ("temp-root", 11, Shape::Word),
    ("indirect-root", 12, Shape::Word),
    ("deriver", 18, Shape::Text),
    ("substitutable", 21, Shape::Word),
    ("outputs", 22, Shape::Texts),
    ("info", 26, Shape::Info),
    ("output-names", 28, Shape::Texts),
    ("from-hash", 29, Shape::Text),
    ("derivers", 33, Shape::Texts),
];

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A request.
    Call {
        /// Its bytes.
        request: Vec<u8>,
        /// Its reply.
        shape: Shape,
        /// Whether its log comes in no particular order.
        sorted: bool,
        /// Whether the connection is of no use afterwards.
        last: bool,
    },
    /// The client goes, and its session with it.
    Close,
    /// The daemon is stopped and started.
    Restart,
    /// A link below the state directory: its name there, and the target; or its removal.
    Link(String, Option<Vec<u8>>),
    /// Something happens to the file below the store directory.
    Damage(Vec<u8>, Damage),
}

/// What happens to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Bytes are added to it; a directory gets another file, a link another target.
    Append,
    /// It goes.
    Delete,
    /// It becomes writable.
    Chmod,
    /// It is from today; directories are left alone.
    Touch,
    /// It is from today, directories too.
    Age,
    /// It is made, as a file that nobody registered.
    Junk,
}

/// What an operation's name stands for.
#[derive(Debug, Clone)]
struct Thing {
    path: Vec<u8>,
    outputs: BTreeMap<String, Vec<u8>>,
    modulo: Option<Hash>,
}

/// What is known on the way through a case.
#[derive(Debug)]
pub struct Plan {
    dir: StoreDir,
    things: BTreeMap<String, Thing>,
    tools: Arc<Vec<u8>>,
    tools_path: Vec<u8>,
}

/// The archive of a directory with the program that builders are, and its path.
pub fn tools(busybox: &[u8]) -> Arc<Vec<u8>> {
    let mut nar = Vec::new();
    put_string(&mut nar, b"nix-archive-1");
    for token in ["(", "type", "directory", "entry", "(", "name", "busybox", "node", "(", "type", "regular", "executable", "", "contents"] {
        put_string(&mut nar, token.as_bytes());
    }
    put_string(&mut nar, busybox);
    for token in [")", ")", ")"] {
        put_string(&mut nar, token.as_bytes());
    }
    Arc::new(nar)
}

/// A path with a good name that nothing has.
fn missing(word: &str) -> Vec<u8> {
    let name: String = word.chars().filter(|c| c.is_ascii_alphanumeric()).take(20).collect();
    format!("{STORE}/{}-missing-{name}", base32::encode(&Hash::sha256(word).compress(20))).into_bytes()
}

fn number(value: &Value) -> u64 {
    match value.as_word() {
        "max" => u64::MAX,
        word => word.parse().unwrap_or(0),
    }
}

/// A shell word; without NULs, which no derivation may have.
fn quoted(bytes: &[u8]) -> BString {
    let mut out = BString::from("'");
    let text: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
    out.extend_from_slice(&text.replace("'", "'\\''"));
    out.push(b'\'');
    out
}

impl Plan {
    /// At the start of a case; `tools` is what [`tools`] made.
    pub fn new(tools: Arc<Vec<u8>>) -> Plan {
        let dir = StoreDir::new(STORE);
        let path = fixed_output_path(&dir, true, &Hash::sha256(&*tools), "busybox").map(|path| dir.display(&path)).unwrap_or_default();
        let thing = Thing { path: path.clone().into_bytes(), outputs: BTreeMap::new(), modulo: None };
        Plan { dir, things: BTreeMap::from([("tools".to_owned(), thing)]), tools, tools_path: path.into_bytes() }
    }

    /// A path, or text with paths in it.
    pub fn text(&self, value: &Value) -> Vec<u8> {
        match value {
            Value::Text(text) => text.clone(),
            Value::List(items) => items.iter().flat_map(|item| self.text(item)).collect(),
            Value::Word(word) => {
                let (id, output) = word.split_once('.').map_or((word.as_str(), None), |(id, output)| (id, Some(output)));
                let found = self.things.get(id).and_then(|thing| match output {
                    None => Some(&thing.path),
                    Some("hash") => None,
                    Some(output) => thing.outputs.get(output),
                });
                match (found, word.strip_suffix(".hash")) {
                    (Some(path), _) => path.clone(),
                    // The hash part alone.
                    (None, Some(of)) => {
                        let path = self.text(&Value::word(of));
                        path.get(STORE.len() + 1..STORE.len() + 33).unwrap_or_default().to_vec()
                    }
                    (None, None) => missing(word),
                }
            }
        }
    }

    fn texts(&self, value: &Value) -> Vec<Vec<u8>> {
        value.items().iter().map(|item| self.text(item)).collect()
    }

    fn path(&self, value: &Value) -> Option<StorePath> {
        self.dir.parse(self.text(value)).ok()
    }

    fn learn(&mut self, op: &Op, path: Option<StorePath>) {
        if let Some(path) = path {
            let path = self.dir.display(&path).into_bytes();
            self.things.insert(op.id.clone(), Thing { path, outputs: BTreeMap::new(), modulo: None });
        }
    }

    fn node(&self, tree: &Value, out: &mut Vec<u8>) {
        let (kind, rest) = tree.items().split_first().map_or(("", [].as_slice()), |(kind, rest)| (kind.as_word(), rest));
        let put = |out: &mut Vec<u8>, tokens: &[&[u8]]| tokens.iter().for_each(|token| put_string(out, token));
        put(out, &[b"(", b"type"]);
        match kind {
            "dir" => {
                put(out, &[b"directory"]);
                for entry in rest {
                    let name = self.text(entry.items().first().unwrap_or(&Value::text("x")));
                    put(out, &[b"entry", b"(", b"name", &name, b"node"]);
                    self.node(entry.items().get(1).unwrap_or(&Value::word("")), out);
                    put(out, &[b")"]);
                }
            }
            "link" => put(out, &[b"symlink", b"target", &self.text(&Value::List(rest.to_vec()))]),
            "odd" => put(out, &[&self.text(&Value::List(rest.to_vec()))]),
            "exec" => put(out, &[b"regular", b"executable", b"", b"contents", &self.contents(rest)]),
            _ => put(out, &[b"regular", b"contents", &self.contents(rest)]),
        }
        put(out, &[b")"]);
    }

    /// What a file has: texts and paths; a number stands for as many bytes.
    fn contents(&self, items: &[Value]) -> Vec<u8> {
        let mut out = Vec::new();
        for item in items {
            match item.as_word().parse::<usize>() {
                Ok(count) => out.extend((0..count.min(1 << 22)).map(|n| (n % 251) as u8)),
                Err(_) => out.extend(self.text(item)),
            }
        }
        out
    }

    fn archive(&self, tree: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        put_string(&mut out, b"nix-archive-1");
        self.node(tree, &mut out);
        out
    }

    /// The shell commands that make `tree` at `place`.
    fn commands(&self, place: &[u8], tree: &Value, out: &mut Vec<u8>) {
        let place_quoted = [b"\"$out\"".as_slice(), &quoted(place)].concat();
        let (kind, rest) = tree.items().split_first().map_or(("", [].as_slice()), |(kind, rest)| (kind.as_word(), rest));
        let mut line = |parts: &[&[u8]]| {
            out.extend(parts.concat());
            out.push(b'\n');
        };
        match kind {
            "dir" => {
                line(&[b"$bb mkdir ", &place_quoted]);
                for entry in rest {
                    let name = self.text(entry.items().first().unwrap_or(&Value::text("x")));
                    self.commands(&[place, b"/", &name].concat(), entry.items().get(1).unwrap_or(&Value::word("")), out);
                }
            }
            "link" => line(&[b"$bb ln -s ", &quoted(&self.text(&Value::List(rest.to_vec()))), b" ", &place_quoted]),
            _ => {
                line(&[b"printf %s ", &quoted(&self.contents(rest)), b" > ", &place_quoted]);
                if kind == "exec" {
                    line(&[b"$bb chmod +x ", &place_quoted]);
                }
            }
        }
    }

    /// A builder's script. A place is an output's name and, behind a `/`, a name in it.
    fn script(&self, steps: &[Value]) -> Vec<u8> {
        let place = |value: Option<&Value>| {
            let text = value.map(Value::as_word).unwrap_or_default();
            let (output, rest) = text.find('/').map_or((text, ""), |at| text.split_at(at));
            let output: String = output.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            format!("\"${output}\"{rest}")
        };
        let mut out = Vec::new();
        for step in steps {
            let Some((verb, rest)) = step.items().split_first() else { continue };
            let texts = || quoted(&self.contents(rest));
            let behind = || quoted(&self.contents(rest.get(1..).unwrap_or_default()));
            let line: Vec<u8> = match verb.as_word() {
                "say" => [b"echo ".as_slice(), &texts()].concat(),
                "err" => [b"echo ".as_slice(), &texts(), b" >&2"].concat(),
                "raw" => [b"printf %b ".as_slice(), &texts()].concat(),
                "put" => [b"printf %s ".as_slice(), &behind(), b" > ", place(rest.first()).as_bytes()].concat(),
                "add" => [b"printf %s ".as_slice(), &behind(), b" >> ", place(rest.first()).as_bytes()].concat(),
                "mkdir" => [b"$bb mkdir ".as_slice(), place(rest.first()).as_bytes()].concat(),
                "link" => [b"$bb ln -s ".as_slice(), &behind(), b" ", place(rest.first()).as_bytes()].concat(),
                "hard" => [b"$bb ln ".as_slice(), place(rest.first()).as_bytes(), b" ", place(rest.get(1)).as_bytes()].concat(),
                "chmod" => format!("$bb chmod {} {}", rest.get(1).map_or("644", Value::as_word), place(rest.first())).into_bytes(),
                "touch" => format!("$bb touch -d @{} {}", rest.get(1).map_or(7, number), place(rest.first())).into_bytes(),
                "env" => format!("$bb env | $bb sort >> {}", place(rest.first())).into_bytes(),
                "look" => b"$bb ls /; $bb ls -ld /tmp /dev/* /etc/*; $bb id; $bb pwd; $bb hostname; cat /etc/passwd /etc/group /etc/hosts; ulimit -a; umask"
                    .to_vec(),
                "cat" => [b"$bb cat ".as_slice(), &texts()].concat(),
                "copy" => [b"$bb cp -a ".as_slice(), &behind(), b" ", place(rest.first()).as_bytes()].concat(),
                "sleep" => format!("$bb sleep {}", rest.first().map_or(0, number)).into_bytes(),
                "exit" => format!("exit {}", rest.first().map_or(1, number)).into_bytes(),
                "tree" => {
                    let mut lines = Vec::new();
                    rest.first().into_iter().for_each(|tree| self.commands(b"", tree, &mut lines));
                    lines.pop();
                    lines
                }
                _ => continue,
            };
            out.extend(line);
            out.push(b'\n');
        }
        out
    }

    /// `NAME [outputs out ...] [inputs [d1 out ...] ...] [srcs t1 ...] [env ["k" text] ...] [script STEP ...] [fixed ALGO recursive|flat TREE]
    /// [system S] [builder PATH ARG ...] [mangle "from" "to"] [refs PATH ...]`.
    fn derivation(&self, op: &Op) -> (Vec<u8>, Vec<Vec<u8>>, Thing) {
        let name = self.text(op.arg(0)).to_str_lossy().into_owned();
        let option = |key| op.option(key).unwrap_or_default();
        let placeholder = || StorePath::from_base_name(format!("{}-x", "0".repeat(32)));
        let mut drv = Derivation {
            outputs: BTreeMap::new(),
            input_drvs: BTreeMap::new(),
            input_srcs: option("srcs").iter().filter_map(|src| self.path(src)).collect(),
            platform: option("system").first().map_or("x86_64-linux", Value::as_word).into(),
            builder: BString::default(),
            args: Vec::new(),
            env: BTreeMap::new(),
        };
        let mut names: Vec<String> = option("outputs").iter().map(|output| output.as_word().to_owned()).collect();
        if names.is_empty() {
            names.push("out".to_owned());
        }
        let (mut algo, mut hash) = (String::new(), String::new());
        if let [kind, mode, rest @ ..] = option("fixed") {
            let recursive = mode.as_word() == "recursive";
            let bytes = match rest.first() {
                Some(tree) if recursive => self.archive(tree),
                Some(tree) => self.contents(tree.items().get(1..).unwrap_or_default()),
                None => Vec::new(),
            };
            algo = format!("{}{}", if recursive { "r:" } else { "" }, kind.as_word());
            hash = HashAlgo::parse(kind.as_word()).map_or_else(|_| "00".to_owned(), |algo| Hash::of(algo, bytes).base16());
        }
        for name in names {
            if let Ok(path) = placeholder() {
                drv.outputs.insert(name, DerivationOutput { path, hash_algo: algo.clone(), hash: hash.clone() });
            }
        }
        for input in option("inputs") {
            let Some((input, outputs)) = input.items().split_first() else { continue };
            let Some(path) = self.path(input) else { continue };
            let outputs = outputs.iter().map(|output| output.as_word().to_owned());
            drv.input_drvs.entry(path).or_default().extend(outputs);
        }
        match option("builder") {
            [] => {
                drv.builder = [self.tools_path.as_slice(), b"/busybox"].concat().into();
                drv.args = vec!["sh".into(), "-e".into(), "-c".into(), self.script(option("script")).into()];
                drv.env.insert("bb".into(), drv.builder.clone());
                drv.input_srcs.extend(self.path(&Value::word("tools")));
            }
            [builder, args @ ..] => {
                drv.builder = self.text(builder).into();
                drv.args = args.iter().map(|arg| self.text(arg).into()).collect();
            }
        }
        for pair in option("env") {
            if let [key, value @ ..] = pair.items() {
                drv.env.insert(self.text(key).into(), self.contents(value).into());
            }
        }
        let mut input = |path: &StorePath| -> Result<Hash, Infallible> {
            let path = self.dir.display(path);
            let known = self.things.values().find(|thing| thing.path == path.as_bytes()).and_then(|thing| thing.modulo);
            Ok(known.unwrap_or_else(|| Hash::sha256(path)))
        };
        for output in drv.outputs.keys() {
            drv.env.entry(output.as_str().into()).or_default();
        }
        let outputs = compute_output_paths(&self.dir, &name, &drv, &mut input).unwrap_or_default();
        for (output, path) in &outputs {
            drv.env.insert(output.as_str().into(), self.dir.display(path).into());
            if let Some(output) = drv.outputs.get_mut(output) {
                output.path = path.clone();
            }
        }
        let Ok(modulo) = hash_derivation_modulo(&self.dir, &drv, &mut input);
        let mut text = aterm::print(&self.dir, &drv);
        if let [from, to, ..] = option("mangle") {
            let from = self.text(from);
            if !from.is_empty() {
                text = text.replacen(from, self.text(to), 1);
            }
        }
        let references = match op.option("refs") {
            None => drv.references().iter().map(|path| self.dir.display(path).into_bytes()).collect(),
            Some(refs) => refs.iter().map(|value| self.text(value)).collect(),
        };
        let outputs = outputs.into_iter().map(|(name, path)| (name, self.dir.display(&path).into_bytes())).collect();
        (text, references, Thing { path: Vec::new(), outputs, modulo: Some(modulo) })
    }

    fn add_text(&mut self, op: &Op, name: &[u8], text: &[u8], references: &[Vec<u8>]) -> Vec<u8> {
        let paths = references.iter().filter_map(|reference| self.dir.parse(reference).ok()).collect();
        let path = text_path(&self.dir, &name.to_str_lossy(), text, &paths).ok();
        self.learn(op, path);
        let mut request = Vec::new();
        put_string(&mut request, name);
        put_string(&mut request, text);
        put_strings(&mut request, references);
        request
    }

    /// What `op` does; `None` for a verb that there is not.
    pub fn step(&mut self, op: &Op) -> Option<Step> {
        let mut fields = Vec::new();
        let (mut sorted, mut last) = (false, false);
        let (code, shape) = match op.verb.as_str() {
            "close" => return Some(Step::Close),
            "restart" => return Some(Step::Restart),
            "link" => return Some(Step::Link(op.arg(0).as_word().to_owned(), op.args.get(1).map(|target| self.text(target)))),
            "damage" => {
                let path = self.text(op.arg(1));
                // Only what is in the store, under its name.
                let path = path.strip_prefix(STORE.as_bytes()).and_then(|path| path.strip_prefix(b"/"))?;
                if path.is_empty() || path.split_str("/").any(|part| part == b".." || part == b"." || part == b".links") {
                    return None;
                }
                let damage = match op.arg(0).as_word() {
                    "append" => Damage::Append,
                    "delete" => Damage::Delete,
                    "chmod" => Damage::Chmod,
                    "touch" => Damage::Touch,
                    "age" => Damage::Age,
                    "junk" => Damage::Junk,
                    _ => return None,
                };
                return Some(Step::Damage(path.to_vec(), damage));
            }
            "tools" => {
                put_string(&mut fields, b"busybox");
                put_word(&mut fields, 1);
                put_word(&mut fields, 1);
                put_string(&mut fields, b"sha256");
                fields.extend_from_slice(&self.tools);
                (7, Shape::Text)
            }
            "add" => {
                // NAME ALGO recursive|flat|unfixed TREE
                let name = self.text(op.arg(0));
                let algo = op.arg(1).as_word();
                let mode = op.arg(2).as_word();
                put_string(&mut fields, &name);
                put_word(&mut fields, u64::from(mode != "unfixed"));
                put_word(&mut fields, u64::from(mode == "recursive"));
                put_string(&mut fields, algo.as_bytes());
                let archive = self.archive(op.arg(3));
                fields.extend_from_slice(&archive);
                let hash_algo = if mode == "unfixed" { "sha256" } else { algo };
                if let Ok(algo) = HashAlgo::parse(hash_algo) {
                    let bytes = if mode == "flat" { self.contents(op.arg(3).items().get(1..).unwrap_or_default()) } else { archive };
                    let path = fixed_output_path(&self.dir, mode != "flat", &Hash::of(algo, bytes), &name.to_str_lossy()).ok();
                    self.learn(op, path);
                }
                // What is not read to its end leaves the connection out of step.
                last = op.args.get(4).is_some();
                (7, Shape::Text)
            }
            "add-text" => {
                let (name, text, references) =
                    (self.text(op.arg(0)), self.contents(std::slice::from_ref(op.arg(1))), self.texts(op.arg(2)));
                fields = self.add_text(op, &name, &text, &references);
                (8, Shape::Text)
            }
            "drv" => {
                let (text, references, thing) = self.derivation(op);
                let name = [self.text(op.arg(0)).as_slice(), b".drv"].concat();
                fields = self.add_text(op, &name, &text, &references);
                if let Some(known) = self.things.get_mut(&op.id) {
                    *known = Thing { path: known.path.clone(), ..thing };
                }
                (8, Shape::Text)
            }
            "build" => {
                // normal|repair|check PATH ...
                let paths: Vec<_> = op.args.iter().skip(1).map(|path| self.text(path)).collect();
                put_strings(&mut fields, &paths);
                put_word(
                    &mut fields,
                    match op.arg(0).as_word() {
                        "repair" => 1,
                        "check" => 2,
                        other => other.parse().unwrap_or(0),
                    },
                );
                sorted = paths.len() > 1;
                (9, Shape::Word)
            }
            "sync" => (13, Shape::Word),
            "roots" => {
                sorted = true;
                (14, Shape::Pairs)
            }
            "options" => {
                // [keep-failed 0] ... [settings ["k" "v"] ...]
                let flag = |key, default| op.option(key).and_then(|values| values.first()).map_or(default, number);
                put_word(&mut fields, flag("keep-failed", 0));
                put_word(&mut fields, flag("keep-going", u64::from(op.id.is_empty())));
                put_word(&mut fields, flag("fallback", 0));
                put_word(&mut fields, flag("verbosity", 0));
                put_word(&mut fields, flag("hook", 0));
                put_word(&mut fields, flag("build-verbosity", 0));
                put_word(&mut fields, 0);
                put_word(&mut fields, flag("trace", 1));
                put_word(&mut fields, flag("substitutes", 0));
                let settings = op.option("settings").unwrap_or_default();
                put_word(&mut fields, settings.len() as u64);
                for pair in settings {
                    put_string(&mut fields, &pair.items().first().map(|key| self.text(key)).unwrap_or_default());
                    put_string(&mut fields, &pair.items().get(1).map(|value| self.text(value)).unwrap_or_default());
                }
                (19, Shape::Nothing)
            }
            "gc" => {
                // live|dead|delete|specific [PATH ...] MAX-FREED IGNORE-LIVENESS
                put_word(
                    &mut fields,
                    match op.arg(0).as_word() {
                        "live" => 0,
                        "dead" => 1,
                        "delete" => 2,
                        "specific" => 3,
                        other => other.parse().unwrap_or(1),
                    },
                );
                put_strings(&mut fields, &self.texts(op.arg(1)));
                put_word(&mut fields, number(op.arg(3)));
                put_word(&mut fields, op.args.get(2).map_or(u64::MAX, number));
                (0..3).for_each(|_| put_word(&mut fields, 0));
                sorted = true;
                (20, Shape::Collected)
            }
            "all-valid" => (23, Shape::Texts),
            "failed" => (24, Shape::Texts),
            "clear-failed" => {
                put_strings(&mut fields, &self.texts(op.arg(0)));
                (25, Shape::Word)
            }
            "substitutables" => {
                put_strings(&mut fields, &self.texts(op.arg(0)));
                (30, Shape::Texts)
            }
            "valid" => {
                put_strings(&mut fields, &self.texts(op.arg(0)));
                (31, Shape::Texts)
            }
            "substitutable-paths" => {
                put_strings(&mut fields, &self.texts(op.arg(0)));
                (32, Shape::Texts)
            }
            "optimise" => {
                sorted = true;
                (34, Shape::Word)
            }
            "verify" => {
                put_word(&mut fields, u64::from(op.args.iter().any(|arg| arg.as_word() == "contents")));
                put_word(&mut fields, u64::from(op.args.iter().any(|arg| arg.as_word() == "repair")));
                (35, Shape::Word)
            }
            "builtins" => (80, Shape::Texts),
            "urls" => (81, Shape::Texts),
            verb => {
                let (_, code, shape) = OF_ONE.iter().find(|(name, ..)| *name == verb)?;
                put_string(&mut fields, &self.text(op.arg(0)));
                (*code, *shape)
            }
        };
        let mut request = Vec::new();
        put_word(&mut request, code);
        request.extend(fields);
        Some(Step::Call { request, shape, sorted, last })
    }
}
