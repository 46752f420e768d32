//! Cases from a seed.
//!
//! What docs/differences.md lists is not generated where that is easy: the cases kept in `compat-tests/random/cases` and the scripts of
//! `compat-tests/differential` show it.

use super::case::{Case, Op, Value};
use super::side::KEEP_GOING;

/// Numbers that follow from a seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

/// What lies where items lie, and is too short to be one.
const WITHOUT_NAME: &str = "/frx/store/00000000000000000000000000000000";

impl Random {
    /// All that follows is decided by `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number (splitmix64).
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.number() % n.max(1) as u64) as usize
    }

    /// True `percent` times of a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of several; the default of none.
    pub fn pick<T: Clone + Default>(&mut self, of: &[T]) -> T {
        of.get(self.below(of.len())).cloned().unwrap_or_default()
    }
}

fn word(text: impl Into<String>) -> Value {
    Value::word(text)
}

fn text(text: impl Into<Vec<u8>>) -> Value {
    Value::text(text)
}

fn list(items: impl IntoIterator<Item = Value>) -> Value {
    Value::List(items.into_iter().collect())
}

/// `[KEY VALUE...]`.
fn keyed(key: &str, values: impl IntoIterator<Item = Value>) -> Value {
    Value::List(std::iter::once(word(key)).chain(values).collect())
}

/// What a derivation can say about the references of its outputs.
const RESTRICTIONS: [&str; 4] = ["allowedReferences", "disallowedReferences", "allowedRequisites", "disallowedRequisites"];

/// Whether the first argument is a name that is probably refused.
fn odd(args: &[Value]) -> bool {
    !matches!(args.first(), Some(Value::Text(name)) if name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-._".contains(byte)) && !name.starts_with(b".") && !name.is_empty())
}

struct Derivation {
    id: String,
    outputs: Vec<String>,
}

struct Generator {
    random: Random,
    case: Case,
    client: String,
    /// Names of items that were added.
    items: Vec<String>,
    drvs: Vec<Derivation>,
    links: Vec<String>,
    trees: Vec<Value>,
    /// Every build is one derivation with one input at the most, and need not keep going; else all do, so that the order does not matter.
    linear: bool,
    /// Items may vanish from the disk, and nothing is collected: guix-daemon's collections do not see the rows of what is not there.
    losses: bool,
}

/// The case of a seed.
pub fn case(seed: u64) -> Case {
    let mut generator = Generator {
        random: Random::new(seed),
        case: Case::default(),
        client: "a".to_owned(),
        items: Vec::new(),
        drvs: Vec::new(),
        links: Vec::new(),
        trees: Vec::new(),
        linear: false,
        losses: false,
    };
    generator.losses = generator.random.chance(25);
    generator.linear = generator.random.chance(30);
    if !generator.linear {
        generator.case.flags.push(KEEP_GOING.to_owned());
    }
    generator.flags();
    let builds = generator.random.chance(70);
    if builds {
        generator.push("tools", vec![]);
        if generator.random.chance(80) {
            generator.push("link", vec![word("var/gcroots/tools"), word("tools")]);
        }
    }
    for _ in 0..15 + generator.random.below(60) {
        generator.operation(builds);
    }
    generator.case
}

impl Generator {
    fn flags(&mut self) {
        let mut flag = |percent, flags: &[&str]| {
            if self.random.chance(percent) {
                self.case.flags.push(self.random.pick(&flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>()));
            }
        };
        flag(35, &["--cache-failures"]);
        flag(20, &["--gc-keep-outputs", "--gc-keep-outputs=yes"]);
        flag(20, &["--gc-keep-derivations=no", "--gc-keep-derivations=yes"]);
        flag(30, &["--log-compression=none", "--log-compression=gzip", "--log-compression=bzip2"]);
        flag(4, &["--rounds=2", "--rounds=3"]);
        flag(10, &["--disable-deduplication"]);
        flag(10, &["--cores=3"]);
        flag(5, &["--lose-logs"]);
    }

    fn push(&mut self, verb: &str, args: Vec<Value>) -> String {
        let id = format!("{}{}", verb.chars().next().unwrap_or('x'), self.case.ops.len());
        self.case.ops.push(Op { id: id.clone(), client: self.client.clone(), verb: verb.to_owned(), args });
        id
    }

    /// A path, mostly of something that is there.
    fn path(&mut self) -> Value {
        match self.random.below(100) {
            0..=3 => word(format!("m{}", self.random.below(5))),
            4 => self.odd_path(),
            5..=9 => word("tools"),
            10..=49 if !self.drvs.is_empty() => self.output(),
            50..=64 if !self.drvs.is_empty() => self.drv(),
            _ if !self.items.is_empty() => word(self.random.pick(&self.items)),
            _ => word("tools"),
        }
    }

    fn paths(&mut self, most: usize) -> Value {
        let count = self.random.below(most + 1);
        list((0..count).map(|_| self.path()).collect::<Vec<_>>())
    }

    fn drv(&mut self) -> Value {
        // The last ones more often.
        let n = self.drvs.len();
        let at = if self.random.chance(40) { n.saturating_sub(1) } else { self.random.below(n) };
        word(self.drvs.get(at).map_or("m9", |drv| drv.id.as_str()))
    }

    fn output(&mut self) -> Value {
        let at = self.random.below(self.drvs.len());
        match self.drvs.get(at) {
            Some(drv) => word(format!("{}.{}", drv.id, self.random.pick(&drv.outputs))),
            None => word("m8"),
        }
    }

    fn odd_path(&mut self) -> Value {
        let some = if self.items.is_empty() { word("m1") } else { word(self.random.pick(&self.items)) };
        match self.random.below(8) {
            0 => text("/frx/store"),
            1 => text(""),
            2 => text("/tmp/x"),
            3 => text("/frx/store/00000000000000000000000000000000-x y"),
            4 => text(WITHOUT_NAME),
            5 => list([some, text("/sub")]),
            6 => list([some, text("x")]),
            _ => text("/frx/store/EEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEE-bad-digits"),
        }
    }

    fn name(&mut self) -> Value {
        const ODD: [&[u8]; 11] =
            [b".hidden", b"a b", b"\xc3\xa9", b"x/y", b"a+b-._?=x", b"x.lock", b"x.chroot", b"x.drv", b"a\nb", b"\xff", b"-n"];
        match self.random.below(100) {
            0..=4 => text(self.random.pick(&ODD.map(<[u8]>::to_vec))),
            // With room for what is put behind it (`.drv.chroot`): whose error a longer one gets is not the same.
            5 => text("n".repeat(200 + self.random.below(12))),
            _ => text(self.random.pick(&["foo", "bar", "baz", "lib", "hello-2.12", "x"].map(str::as_bytes).map(<[u8]>::to_vec))),
        }
    }

    /// Contents of a file: few different ones, so that files are alike.
    fn contents(&mut self) -> Vec<Value> {
        match self.random.below(10) {
            0 => vec![],
            1 => vec![word(self.random.pick(&["1", "7", "8", "4095", "4096", "70000"].map(str::to_owned)))],
            2 => vec![text(b"\x00\xff\n".to_vec())],
            3..=5 => vec![text(format!("text {}", self.random.below(4)))],
            6 => vec![text("see "), self.path(), text("/bin\n")],
            7 => vec![self.path(), self.path()],
            _ => vec![text(format!("unique {}", self.random.below(1 << 20)))],
        }
    }

    fn tree(&mut self, depth: usize) -> Value {
        const NAMES: [&[u8]; 14] =
            [b"-n", b".x", b"A", b"a", b"a b", b"a\"b", b"a'b", b"a\nb", b"b", b"bin", b"c", b"lib", b"\xc3\xa9", b"\xff\xfe"];
        match self.random.below(if depth == 0 { 5 } else { 9 }) {
            0..=2 => keyed("file", self.contents()),
            3 => keyed("exec", self.contents()),
            4 => {
                let target = if self.random.chance(50) {
                    vec![text(self.random.pick(&["a", "/", "../x y", "/nonexistent"].map(str::to_owned)))]
                } else {
                    vec![self.path()]
                };
                keyed("link", target)
            }
            _ => {
                let mut names: Vec<Vec<u8>> = (0..self.random.below(4)).map(|_| self.random.pick(&NAMES.map(<[u8]>::to_vec))).collect();
                names.sort();
                names.dedup();
                let entries: Vec<_> = names.into_iter().map(|name| list([text(name), self.tree(depth - 1)])).collect();
                keyed("dir", entries)
            }
        }
    }

    fn bad_tree(&mut self) -> Value {
        let inner = keyed("file", [text("x")]);
        match self.random.below(4) {
            0 => keyed("odd", [text("fifo")]),
            1 => keyed("dir", [list([text(".."), inner])]),
            2 => keyed("dir", [list([text("a/b"), inner])]),
            _ => keyed("dir", [list([text(""), inner])]),
        }
    }

    fn add(&mut self) {
        let name = self.name();
        let again = !self.trees.is_empty() && self.random.chance(15);
        let tree = if again {
            self.random.pick(&self.trees.iter().cloned().map(Some).collect::<Vec<_>>()).unwrap_or(word(""))
        } else {
            self.tree(3)
        };
        // guix-daemon follows a link that is called like a derivation, and cannot read a directory.
        let derivation = matches!(&name, Value::Text(name) if name.ends_with(b".drv"));
        let file = tree.items().first().is_some_and(|kind| kind.as_word() == "file");
        let tree = if derivation && !file { keyed("file", [text("x")]) } else { tree };
        self.trees.push(tree.clone());
        let algo = if self.random.chance(60) {
            "sha256"
        } else {
            ["sha1", "md5", "sha512", "sha3-256", "sha3-512", "blake2s-256", "bogus"][self.random.below(7)]
        };
        let is_file = tree.items().first().is_some_and(|kind| ["file", "exec"].contains(&kind.as_word()));
        let mode = match self.random.below(10) {
            0..=2 if is_file => "flat",
            3 => "unfixed",
            // One error only: which of two is told is not fixed.
            4 if algo != "bogus" && !odd(std::slice::from_ref(&name)) && self.random.chance(10) => "flat",
            _ => "recursive",
        };
        let args = if self.random.chance(3) {
            vec![name, word(algo), word(mode), self.bad_tree(), word("last")]
        } else {
            // A flat addition of what is no file leaves the rest unread.
            let last = mode == "flat" && !is_file;
            let mut args = vec![name, word(algo), word(mode), tree];
            args.extend(last.then(|| word("last")));
            args
        };
        let good = args.len() == 4 && algo != "bogus" && !odd(&args);
        let id = self.push("add", args);
        if good || self.random.chance(10) {
            self.items.push(id);
        }
    }

    fn add_text(&mut self) {
        let name = self.name();
        let contents = list(self.contents());
        // Of what is no derivation and refers to what is not there, either may be told.
        let derivation = matches!(&name, Value::Text(name) if name.ends_with(b".drv"));
        let references = if !derivation && self.random.chance(40) { self.paths(3) } else { list([]) };
        let args = vec![name, contents, references];
        let good = !odd(&args);
        let id = self.push("add-text", args);
        if good || self.random.chance(10) {
            self.items.push(id);
        }
    }

    fn build_env(&mut self, outputs: &[String]) -> Vec<Value> {
        let mut env = Vec::new();
        if self.random.chance(10) {
            env.push(list([text("who"), self.path()]));
        }
        if self.random.chance(12) {
            // guix-daemon does not find what an output needs when another of the same build is among it.
            let keys = RESTRICTIONS.map(str::to_owned);
            let key = self.random.pick(keys.get(..if outputs.len() == 1 { 4 } else { 2 }).unwrap_or_default());
            let mut value = vec![];
            for _ in 0..self.random.below(3) {
                value.push(if self.random.chance(20) { text(outputs.first().cloned().unwrap_or_default()) } else { self.path() });
                value.push(text(" "));
            }
            env.push(list(std::iter::once(text(key)).chain(value)));
        }
        if self.random.chance(6) {
            env.push(list([text("exportReferencesGraph"), text("graph "), self.path()]));
        }
        if self.random.chance(4) {
            env.push(list([text("preferLocalBuild"), text("1")]));
        }
        if self.random.chance(3) {
            env.push(list([text("impureEnvVars"), text("http_proxy TZ HOME")]));
        }
        if self.random.chance(3) {
            env.push(list([text("requiredSystemFeatures"), text("kvm big")]));
        }
        if self.random.chance(3) {
            env.push(list([
                text(self.random.pick(&["HOME", "PATH", "TMPDIR", "NIX_STORE", "NIX_BUILD_CORES", "a b", ""].map(str::to_owned))),
                text("v"),
            ]));
        }
        env
    }

    fn make_output(&mut self, output: &str, steps: &mut Vec<Value>) {
        let steps_for = |generator: &mut Generator, place: String, steps: &mut Vec<Value>| {
            let contents = generator.contents();
            match generator.random.below(8) {
                0 => steps.push(keyed("link", [word(place), generator.path()])),
                1 => {
                    steps.push(keyed("put", std::iter::once(word(&place)).chain(contents)));
                    let mode = generator.random.pick(&["755", "4755", "2711", "600", "0", "1777", "444"].map(str::to_owned));
                    steps.push(keyed("chmod", [word(place), word(mode)]));
                }
                2 => {
                    steps.push(keyed("put", std::iter::once(word(&place)).chain(contents)));
                    steps.push(keyed("touch", [word(place), word("12345")]));
                }
                _ => steps.push(keyed("put", std::iter::once(word(place)).chain(contents))),
            }
        };
        match self.random.below(20) {
            // Not at all.
            0 => {}
            1..=9 => steps_for(self, output.to_owned(), steps),
            10 => steps.push(keyed("env", [word(output)])),
            _ => {
                steps.push(keyed("mkdir", [word(output)]));
                for name in ["a", "b", "c"].iter().take(self.random.below(4)) {
                    if self.random.chance(15) {
                        steps.push(keyed("mkdir", [word(format!("{output}/{name}"))]));
                        steps_for(self, format!("{output}/{name}/in"), steps);
                    } else {
                        steps_for(self, format!("{output}/{name}"), steps);
                    }
                }
                if self.random.chance(10) {
                    steps.push(keyed("hard", [word(format!("{output}/a")), word(format!("{output}/z"))]));
                }
                if self.random.chance(5) {
                    let mode = self.random.pick(&["755", "777", "555", "2755", "1777"].map(str::to_owned));
                    steps.push(keyed("chmod", [word(output), word(mode)]));
                }
            }
        }
    }

    fn derivation(&mut self) {
        let name = if self.random.chance(4) { self.name() } else { text(self.random.pick(&["foo", "bar", "pkg-1.0"].map(str::to_owned))) };
        // Of outputs that are called like derivations guix-daemon follows links, and says otherwise of directories.
        let name = if name == text("x.drv") { text("x") } else { name };
        let outputs: Vec<String> = match self.random.below(10) {
            0..=6 => vec!["out"],
            7 => vec!["lib", "out"],
            8 => vec!["doc", "lib", "out"],
            _ => vec![["lib", "out", "a"][self.random.below(3)], "dev"],
        }
        .into_iter()
        .map(str::to_owned)
        .collect();
        let mut inputs = Vec::new();
        let mut srcs = Vec::new();
        let mut uses = Vec::new();
        for _ in 0..self.random.below(if self.linear { 2 } else { 3 }) {
            let at = self.random.below(self.drvs.len());
            if let Some(drv) = self.drvs.get(at) {
                let output = self.random.pick(&drv.outputs);
                inputs.push(list([word(&drv.id), word(&output)]));
                uses.push(word(format!("{}.{output}", drv.id)));
            }
        }
        for _ in 0..self.random.below(3) {
            let src = if self.random.chance(95) && !self.items.is_empty() { word(self.random.pick(&self.items)) } else { self.path() };
            srcs.push(src.clone());
            uses.push(src);
        }
        let mut args = vec![name, keyed("outputs", outputs.iter().map(word))];
        if !inputs.is_empty() {
            args.push(keyed("inputs", inputs));
        }
        if !srcs.is_empty() {
            args.push(keyed("srcs", srcs));
        }
        let mut env = self.build_env(&outputs);
        let mut steps = Vec::new();
        if self.random.chance(50) {
            steps.push(keyed("say", [text(format!("building {}", self.random.below(3)))]));
        }
        match self.random.below(60) {
            0 => steps.push(keyed("raw", [text("no end of line")])),
            1 => steps.push(keyed("raw", [text("a\\r\\nb\\0c\\377\\n@ build-failed x\\n\\n")])),
            2 => steps.push(keyed("look", [])),
            3 => steps.push(keyed("err", [text("warning")])),
            _ => {}
        }
        let fixed = outputs == ["out"] && self.random.chance(15);
        if fixed {
            let algo = self.random.pick(&["sha256", "sha256", "sha1", "sha512", "md5", "bogus"].map(str::to_owned));
            let recursive = self.random.chance(50);
            let tree = if recursive { self.tree(2) } else { keyed("file", self.contents()) };
            let made = if self.random.chance(80) { tree.clone() } else { keyed("file", [text("something else")]) };
            args.push(keyed("fixed", [word(algo), word(if recursive { "recursive" } else { "flat" }), tree]));
            steps.push(keyed("tree", [made]));
        } else {
            if self.random.chance(12) {
                steps.push(keyed("exit", [word(self.random.pick(&["1", "2", "100", "255"].map(str::to_owned)))]));
            }
            for output in &outputs {
                self.make_output(output, &mut steps);
                for used in &uses {
                    if self.random.chance(40) {
                        steps.push(keyed(
                            "add",
                            [word(format!("{output}{}", if self.random.chance(30) { "/a" } else { "" })), used.clone()],
                        ));
                    }
                }
                if self.random.chance(12) {
                    let other = self.random.pick(&outputs);
                    steps.push(keyed("add", [word(output), text("$"), word(other)]));
                }
            }
        }
        let makes = |step: &Value, output: &str| match step.items() {
            [key, place, ..] => matches!(key.as_word(), "put" | "mkdir" | "link" | "env") && place.as_word() == output,
            _ => false,
        };
        let is_made = |output: &String| steps.iter().any(|step| makes(step, output));
        if !fixed && !outputs.iter().all(is_made) {
            // Of an output that is missing and one that refers to what it may not, either may be told.
            env.retain(|entry| !matches!(entry.items().first(), Some(Value::Text(key)) if RESTRICTIONS.iter().any(|name| name.as_bytes() == key.as_slice())));
        }
        if !env.is_empty() {
            args.push(keyed("env", env));
        }
        args.push(keyed("script", steps));
        if self.random.chance(2) {
            args.push(keyed("system", [word(self.random.pick(&["i686-linux", "aarch64-linux", "x86_64-linux"].map(str::to_owned)))]));
        }
        if self.random.chance(2) {
            let builder = self.path();
            args.push(keyed("builder", [builder, text("x")]));
        }
        // An input that is no reference, and is not there, makes guix-daemon's session crash.
        let alone = !args.iter().any(|arg| arg.items().first().is_some_and(|key| key.as_word() == "inputs"));
        if alone && self.random.chance(3) {
            // Not the system: of an odd one guix-daemon says what std::string does. Nor what may be in a hash: a path with one wrong digit is refused, or
            // is not the right one.
            let from = self.random.pick(&["Derive(", "\"out\"", ")", "[", "/frx/store/", "/sh", "-c", "\\n"].map(str::to_owned));
            let to = self.random.pick(&["", "(", "x", "\"", "[]", "\\q"].map(str::to_owned));
            args.push(keyed("mangle", [text(from), text(to)]));
            // Of two things that are wrong either may be told.
            args.push(keyed("refs", []));
        } else if alone && self.random.chance(3) {
            let references = self.paths(3);
            args.push(keyed("refs", references.items().to_vec()));
        }
        let id = self.push("drv", args);
        self.drvs.push(Derivation { id: id.clone(), outputs });
        if self.random.chance(65) {
            self.build(Some(word(id)));
        }
    }

    fn build(&mut self, target: Option<Value>) {
        let mode = match self.random.below(20) {
            0..=2 => "check",
            3..=4 => "repair",
            _ => "normal",
        };
        let mut args = vec![word(if target.is_some() && self.random.chance(90) { "normal" } else { mode })];
        let normal = args.first().is_some_and(|mode| mode.as_word() == "normal");
        let count = if self.linear || !normal || self.random.chance(80) { 1 } else { self.random.below(4) };
        for _ in 0..count {
            let path = match &target {
                Some(target) => target.clone(),
                None if self.drvs.is_empty() || self.random.chance(8) => match self.path() {
                    // A session of guix-daemon's crashes when the name is too short.
                    Value::Text(_) => word("m7"),
                    path => path,
                },
                None => self.drv(),
            };
            let outputs = self.drvs.iter().find(|drv| drv.id == path.as_word()).map(|drv| drv.outputs.clone());
            args.push(match outputs {
                Some(outputs) if self.random.chance(10) => list([path, text("!"), text(self.random.pick(&outputs))]),
                Some(_) if self.random.chance(2) => list([path, text("!nope,out")]),
                _ => path,
            });
        }
        self.push("build", args);
    }

    fn options(&mut self) {
        let mut args = Vec::new();
        let linear = self.linear;
        let mut flag = |key: &str, percent, value: &str| {
            if self.random.chance(percent) {
                args.push(keyed(key, [word(value)]));
            }
        };
        flag("keep-failed", 10, "1");
        flag("keep-going", if linear { 50 } else { 100 }, "1");
        flag("fallback", 20, "1");
        flag("build-verbosity", 10, "1");
        flag("trace", 20, "0");
        flag("substitutes", 20, "1");
        let mut settings = Vec::new();
        let mut setting = |percent, key: &str, value: &str| {
            if self.random.chance(percent) {
                settings.push(list([text(key), text(value)]));
            }
        };
        setting(10, "build-cores", "2");
        setting(5, "build-cores", "0");
        setting(5, "build-repeat", "1");
        setting(10, "build-max-jobs", "1");
        setting(3, "build-max-silent-time", "30");
        setting(3, "build-timeout", "30");
        setting(10, "print-extended-build-trace?", "1");
        setting(10, "locale", "de_DE.UTF-8");
        setting(10, "substitute-urls", "https://example.org https://example.net");
        setting(5, "terminal-columns", "80");
        if !settings.is_empty() {
            args.push(keyed("settings", settings));
        }
        self.push("options", args);
    }

    fn query(&mut self) {
        let path = self.path();
        match self.random.below(17) {
            0 => self.push("valid?", vec![path]),
            1 => self.push("has-substitutes", vec![path]),
            2 => self.push("hash", vec![path]),
            3 => self.push("references", vec![path]),
            4 => self.push("referrers", vec![path]),
            5 => self.push("deriver", vec![path]),
            6 => self.push("substitutable", vec![path]),
            7 => self.push("outputs", vec![path]),
            8 => self.push("info", vec![path]),
            9 => self.push("output-names", vec![path]),
            10 => {
                let part = match path {
                    Value::Word(of) if self.random.chance(90) => word(format!("{of}.hash")),
                    _ => text(
                        self.random
                            .pick(&["", "xyz", "00000000000000000000000000000000", "EEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEE"].map(str::to_owned)),
                    ),
                };
                self.push("from-hash", vec![part])
            }
            11 => self.push("derivers", vec![path]),
            12 => {
                let paths = self.paths(5);
                self.push("valid", vec![paths])
            }
            13 => {
                let paths = self.paths(3);
                self.push("substitutables", vec![paths])
            }
            14 => {
                let paths = self.paths(3);
                self.push("substitutable-paths", vec![paths])
            }
            15 => {
                let verb = self.random.pick(&["builtins", "urls", "failed"]);
                self.push(verb, vec![])
            }
            _ => self.push("all-valid", vec![]),
        };
    }

    fn collect(&mut self) {
        if self.losses {
            return self.query();
        }
        let (action, paths) = match self.random.below(10) {
            0..=2 => ("live", list([])),
            3..=5 => ("dead", list([])),
            6..=7 => ("specific", self.paths(3)),
            _ => ("delete", list([])),
        };
        let mut args = vec![word(action), paths];
        match self.random.below(20) {
            // guix-daemon's session crashes when single paths reach the limit.
            0 if args.first().is_some_and(|action| action.as_word() != "specific") => args.push(word("0")),
            1 => args.extend([word("max"), word("1")]),
            _ => {}
        }
        let deletes = args.first().is_some_and(|action| action.as_word() == "delete");
        self.push("gc", args);
        if deletes && self.random.chance(80) {
            // What is gone is of little interest from now on.
            self.items.clear();
            self.drvs.clear();
        }
        if self.random.chance(50) {
            self.push("tools", vec![]);
        }
    }

    /// Something that was added before, again.
    fn again(&mut self) {
        let adds: Vec<Op> = self.case.ops.iter().filter(|op| ["add", "add-text", "drv"].contains(&op.verb.as_str())).cloned().collect();
        let Some(op) = adds.get(self.random.below(adds.len())) else { return self.add() };
        let id = self.push(&op.verb, op.args.clone());
        if op.verb == "drv" {
            let outputs = op.option("outputs").unwrap_or_default().iter().map(|output| output.as_word().to_owned()).collect();
            self.drvs.push(Derivation { id, outputs });
        } else {
            self.items.push(id);
        }
    }

    fn roots(&mut self) {
        match self.random.below(6) {
            0 => {
                let path = self.path();
                self.push("temp-root", vec![path]);
            }
            1..=2 => {
                let name = format!("var/gcroots/r{}", self.random.below(4));
                let target = if self.random.chance(85) { self.path() } else { self.odd_path() };
                self.links.push(name.clone());
                self.push("link", vec![word(name), target]);
            }
            3 => {
                let name = format!("links/l{}", self.random.below(4));
                let target = self.path();
                self.push("link", vec![word(&name), target]);
                self.links.push(name.clone());
                let path = if self.random.chance(90) {
                    format!("/frx/{name}")
                } else {
                    self.random.pick(&["/frx/links/none", "/", "/frx/links/l1/x"].map(str::to_owned))
                };
                self.push("indirect-root", vec![text(path)]);
            }
            4 if !self.links.is_empty() => {
                let name = self.random.pick(&self.links);
                self.push("link", vec![word(name)]);
            }
            _ => {
                self.push("roots", vec![]);
            }
        }
    }

    fn damage(&mut self) {
        let path = self.path();
        // Something in it, now and then.
        // Not derivations: fruixd remembers some of what it has read of them.
        let path = if self.drvs.iter().any(|drv| drv.id == path.as_word()) { self.output() } else { path };
        let within = self.random.chance(20);
        let path = if within { list([path, text("/a")]) } else { path };
        let how = self.random.pick(&["append", "append", "delete", "chmod", "touch", "junk"].map(str::to_owned));
        // A text that is not there may be written when it is added again; guix-daemon believes the database.
        let id = path.as_word();
        let a_text = self.case.ops.iter().any(|op| op.id == id && op.verb == "add-text");
        let how = if how == "delete" && !within && (!self.losses || a_text) { "append".to_owned() } else { how };
        // guix-daemon shares a file whose mode is wrong with the next that has its contents: case `wrong-mode-shared'.
        let unique = || self.case.ops.iter().any(|op| op.id == id && op.to_string().contains("[file \"unique "));
        let how = if how == "chmod" && (within || !unique()) { "append".to_owned() } else { how };
        self.push("damage", vec![word(how), path]);
    }

    fn operation(&mut self, builds: bool) {
        self.client = match self.random.below(100) {
            0..=79 => "a",
            80..=93 => "b",
            _ => "u",
        }
        .to_owned();
        match self.random.below(100) {
            0..=9 => self.add(),
            10..=13 => self.again(),
            14..=23 => self.add_text(),
            24..=39 if builds => self.derivation(),
            40..=51 if builds => self.build(None),
            52..=69 => self.query(),
            70..=76 => self.collect(),
            77..=81 => self.roots(),
            82..=84 => self.options(),
            85..=88 => self.damage(),
            89..=91 => {
                let mut args = Vec::new();
                args.extend(self.random.chance(60).then(|| word("contents")));
                args.extend(self.random.chance(40).then(|| word("repair")));
                self.push("verify", args);
            }
            92 if !self.losses => {
                self.push("optimise", vec![]);
            }
            93 => {
                self.push("failed", vec![]);
            }
            94 => {
                let paths = if self.random.chance(50) { list([text("*")]) } else { self.paths(3) };
                self.push("clear-failed", vec![paths]);
            }
            95 => {
                let path = self.path();
                // guix-daemon dies of it: case `ensure-a-short-name'.
                if path != text(WITHOUT_NAME) {
                    self.push("ensure", vec![path]);
                }
            }
            96 => {
                self.push("close", vec![]);
            }
            97 => {
                self.push("sync", vec![]);
            }
            98 if self.random.chance(50) => {
                self.push("restart", vec![]);
            }
            _ => self.query(),
        }
    }
}
