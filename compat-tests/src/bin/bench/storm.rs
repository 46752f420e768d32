//! A storm of derivations, as `guix build -d` makes one: for each package a builder's text and a derivation that refers to it and to
//! earlier derivations, all of them right.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fruix_drv::modulo::compute_output_paths;
use fruix_drv::path::text_path;
use fruix_drv::{Derivation, DerivationOutput, Hash, StoreDir, StorePath, aterm, hash_derivation_modulo};

use crate::Result;
use crate::wire::Request;

/// What it takes to add one text.
pub(crate) struct Text {
    pub(crate) request: Request,
    /// What the daemon must answer.
    pub(crate) path: String,
    /// For a derivation what it would make.
    pub(crate) output: Option<String>,
    /// What goes onto the disk, and what it refers to.
    pub(crate) contents: Vec<u8>,
    pub(crate) references: Vec<String>,
}

/// Numbers that only look like chance: the same in every run.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.word() % limit.max(1) as u64) as usize
    }
}

fn add_text(dir: &StoreDir, name: &str, contents: &[u8], references: &BTreeSet<StorePath>) -> Result<(StorePath, Text)> {
    let path = text_path(dir, name, contents, references)?;
    let references: Vec<String> = references.iter().map(|path| dir.display(path)).collect();
    let request = Request::new(8).string(name).string(contents).strings(&references);
    let text = Text { request, path: dir.display(&path), output: None, contents: contents.to_vec(), references };
    Ok((path, text))
}

/// What the daemon is asked to add as `name`, with some 2 KB of text.
pub(crate) fn plain_text(dir: &StoreDir, name: &str) -> Result<Text> {
    let mut contents = format!("(begin ;; {name}\n");
    let mut line = 0;
    while contents.len() < 2000 {
        line += 1;
        contents.push_str(&format!("  (invoke \"make\" \"-C\" \"src/{line}\" \"install\" (string-append \"prefix=\" (getenv \"out\")))\n"));
    }
    contents.push_str(")\n");
    Ok(add_text(dir, name, contents.as_bytes(), &BTreeSet::new())?.1)
}

/// `count` texts in `parts` that do not refer to one another.
pub(crate) fn storm(dir: &StoreDir, count: usize, parts: usize) -> Result<Vec<Vec<Text>>> {
    (0..parts).map(|part| part_of_storm(dir, count / parts, part)).collect()
}

fn part_of_storm(dir: &StoreDir, count: usize, part: usize) -> Result<Vec<Text>> {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (part as u64 + 1));
    let mut texts = Vec::with_capacity(count);
    let mut known: Vec<(StorePath, StorePath)> = Vec::new();
    let mut hashes: HashMap<StorePath, Hash> = HashMap::new();
    for i in 0..count / 2 {
        let name = format!("package-{part}-{i}-1.0.{}", i % 7);
        let text = plain_text(dir, &format!("{name}-builder"))?;
        let builder = dir.parse(&text.path)?;
        texts.push(text);

        // Half of the inputs are recent, as in a chain of packages; the others come from the bottom, as a toolchain does.
        let mut input_drvs = BTreeMap::new();
        let mut environment = BTreeMap::new();
        for j in 0..8.min(known.len()) {
            let at = if j % 2 == 0 { known.len() - 1 - dice.below(known.len().min(40)) } else { dice.below(known.len().min(60)) };
            let (drv, output) = &known[at];
            input_drvs.insert(drv.clone(), BTreeSet::from(["out".to_owned()]));
            environment.insert(format!("input{j}").into(), dir.display(output).into());
        }
        let mut drv = Derivation {
            outputs: BTreeMap::from([(
                "out".to_owned(),
                DerivationOutput { path: builder.clone(), hash_algo: String::new(), hash: String::new() },
            )]),
            input_drvs,
            input_srcs: BTreeSet::from([builder.clone()]),
            platform: "x86_64-linux".into(),
            builder: "/bin/guile".into(),
            args: vec!["--no-auto-compile".into(), dir.display(&builder).into()],
            env: environment,
        };
        drv.env.insert("out".into(), "".into());
        drv.env.insert("guix properties".into(), format!("((type . graft) (graft (count . {i})))").into());
        let mut hash_of = |path: &StorePath| hashes.get(path).copied().ok_or_else(|| std::io::Error::other("an input that is not known"));
        let outputs = compute_output_paths(dir, &name, &drv, &mut hash_of)?;
        let output = outputs.get("out").ok_or("no output")?.clone();
        if let Some(out) = drv.outputs.get_mut("out") {
            out.path = output.clone();
        }
        drv.env.insert("out".into(), dir.display(&output).into());
        let hash = hash_derivation_modulo(dir, &drv, &mut hash_of)?;
        let (path, text) = add_text(dir, &format!("{name}.drv"), &aterm::print(dir, &drv), &drv.references())?;
        hashes.insert(path.clone(), hash);
        texts.push(Text { output: Some(dir.display(&output)), ..text });
        known.push((path, output));
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(bytes: &[u8], at: &mut usize) -> Vec<u8> {
        let length = u64::from_le_bytes(bytes[*at..*at + 8].try_into().unwrap()) as usize;
        let found = bytes[*at + 8..*at + 8 + length].to_vec();
        *at += 8 + length.next_multiple_of(8);
        found
    }

    #[test]
    fn a_storm_is_of_right_derivations() {
        let dir = StoreDir::new("/frx/store");
        let mut hashes = HashMap::new();
        let mut checked = 0;
        for text in storm(&dir, 200, 2).unwrap().iter().flatten().filter(|text| text.output.is_some()) {
            let mut at = 8;
            let name = String::from_utf8(string(&text.request.0, &mut at)).unwrap();
            let drv = aterm::parse(&dir, &string(&text.request.0, &mut at)).unwrap();
            let mut input = |path: &StorePath| hashes.get(path).copied().ok_or_else(|| std::io::Error::other("it comes later"));
            fruix_drv::verify_output_paths(&dir, name.strip_suffix(".drv").unwrap(), &drv, &mut input).unwrap();
            let hash = hash_derivation_modulo(&dir, &drv, &mut input).unwrap();
            hashes.insert(dir.parse(&text.path).unwrap(), hash);
            checked += 1;
        }
        assert_eq!(checked, 100);
    }
}
