//! The tables of the database in memory, as they were at one moment.
//!
//! A query reads six or so pages of the database, each of them somewhere else. Whoever asks for much, such as a client that plans a big build, is
//! answered from here ([`crate::memory`]) once it has taken longer to read rows one by one than it takes to read all of them in order.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fruix_drv::{Hash, HashAlgo, StorePath};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use crate::graph::{Edges, Names, Nodes};
use crate::info::{Outputs, Paths};
use crate::{PathInfo, Result};

/// Rows of `ValidPaths` from which on no picture is made: it takes some 200 bytes for each.
pub(crate) const MOST_ROWS: i64 = 500_000;

/// How many rows of all are read in the time of one query, which finds its own alone.
const ROWS_A_QUERY: i64 = 25;

/// Queries below which it is not worth while to think about it.
pub(crate) const FEW: usize = 4096;

/// Whether so many queries of single rows have taken long enough for all `rows` to be read at once.
pub(crate) fn worth_while(queries: usize, rows: i64) -> bool {
    rows <= MOST_ROWS && i64::try_from(queries).is_ok_and(|queries| queries.saturating_mul(ROWS_A_QUERY) >= rows)
}

/// Rows after which somebody who reads all of them looks at the time.
const ROWS_BETWEEN: u32 = 64;

/// How long he reads before others may have the processor, and for how long they may.
const BREATH: Duration = Duration::from_micros(100);
const PAUSE: Duration = Duration::from_micros(50);

/// Lets others have the processor between rows: they wait for an answer, and nobody waits for a picture.
struct Patient {
    rows: u32,
    since: Instant,
}

impl Patient {
    fn new() -> Patient {
        Patient { rows: 0, since: Instant::now() }
    }

    fn next<'r>(&mut self, rows: &'r mut rusqlite::Rows<'_>) -> rusqlite::Result<Option<&'r Row<'r>>> {
        self.rows = self.rows.wrapping_add(1);
        if self.rows.is_multiple_of(ROWS_BETWEEN) && self.since.elapsed() > BREATH {
            std::thread::sleep(PAUSE);
            self.since = Instant::now();
        }
        rows.next()
    }
}

/// All valid paths, and what is known of them.
#[derive(Debug, Default)]
pub(crate) struct Picture {
    names: Names,
    details: Vec<Details>,
    references: Edges,
    referrers: Edges,
    /// Of each derivation, in order of the nodes.
    outputs: Vec<Output>,
    /// Names that are no valid path's: of derivers, outputs, and what outputs are called.
    others: Others,
    /// Nodes whose rows are not as they should be: whoever asks for these must look himself.
    odd: HashSet<u32>,
}

/// What else a row says.
#[derive(Clone, Copy, Debug)]
struct Details {
    /// `None` when the row is odd.
    nar_hash: Option<[u8; 32]>,
    registration_time: u64,
    nar_size: u64,
    deriver: Option<Named>,
}

#[derive(Clone, Copy, Debug)]
struct Output {
    drv: u32,
    name: u32,
    path: Named,
}

/// A store path.
#[derive(Clone, Copy, Debug)]
enum Named {
    Node(u32),
    Other(u32),
}

/// Texts by number.
#[derive(Debug, Default)]
struct Others {
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Others {
    fn push(&mut self, text: &[u8]) -> u32 {
        self.text.extend_from_slice(text);
        self.ends.push(self.text.len());
        // The rows are counted in 32 bits.
        (self.ends.len() - 1) as u32
    }

    fn get(&self, number: u32) -> &[u8] {
        let number = number as usize;
        let start = number.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(number).and_then(|end| self.text.get(start..*end)).unwrap_or_default()
    }
}

impl Details {
    fn of_row(row: &Row<'_>) -> rusqlite::Result<Details> {
        let nar_hash = row.get_ref(2)?.as_str().ok().and_then(|hash| Hash::parse_prefixed(hash).ok());
        let nar_hash = nar_hash.filter(|hash| hash.algo() == HashAlgo::Sha256).and_then(|hash| hash.as_bytes().try_into().ok());
        let number = |column| match row.get_ref(column)? {
            ValueRef::Null => Ok(Some(0)),
            ValueRef::Integer(number) => Ok(u64::try_from(number).ok()),
            _ => Ok::<_, rusqlite::Error>(None),
        };
        let (time, size) = (number(3)?, number(4)?);
        Ok(Details {
            nar_hash: nar_hash.filter(|_| time.is_some() && size.is_some()),
            registration_time: time.unwrap_or(0),
            nar_size: size.unwrap_or(0),
            deriver: None,
        })
    }
}

/// The base name of the path in `value`, if it is a store path's.
fn store_path<'v>(value: ValueRef<'v>, prefix: &[u8]) -> Option<&'v [u8]> {
    let name = value.as_bytes().ok()?.strip_prefix(prefix)?;
    StorePath::from_base_name(name).is_ok().then_some(name)
}

impl Picture {
    /// What `db`, in which a transaction has begun, says of paths beneath `prefix`, which ends in a slash.
    pub(crate) fn load(db: &Connection, prefix: &[u8]) -> Result<Picture> {
        let mut picture = Picture::default();
        let mut ids = Vec::new();
        // From the index alone, which has them in order.
        let mut paths = db.prepare("select path, id from ValidPaths order by path")?;
        let mut rows = paths.query([])?;
        let mut patient = Patient::new();
        while let Some(row) = patient.next(&mut rows)? {
            if let Some(name) = store_path(row.get_ref(0)?, prefix) {
                picture.names.push(name);
                ids.push(row.get(1)?);
            }
        }
        let by_id = Nodes::new(&ids);
        picture.load_details(db, &by_id, prefix)?;
        picture.load_references(db, &by_id)?;
        picture.load_outputs(db, &by_id, prefix)?;
        Ok(picture)
    }

    fn load_details(&mut self, db: &Connection, by_id: &Nodes, prefix: &[u8]) -> Result<()> {
        self.details = vec![Details { nar_hash: None, registration_time: 0, nar_size: 0, deriver: None }; self.names.len()];
        // In the order in which they are stored.
        let mut paths = db.prepare("select id, deriver, hash, registrationTime, narSize from ValidPaths not indexed")?;
        let mut rows = paths.query([])?;
        let mut patient = Patient::new();
        while let Some(row) = patient.next(&mut rows)? {
            let Some(node) = by_id.get(row.get(0)?) else { continue };
            let mut details = Details::of_row(row)?;
            let mut odd = details.nar_hash.is_none();
            let deriver = row.get_ref(1)?;
            if !matches!(deriver, ValueRef::Null | ValueRef::Text(b"")) {
                details.deriver = store_path(deriver, prefix).map(|name| self.named(name));
                odd |= details.deriver.is_none();
            }
            if odd {
                self.odd.insert(node);
            }
            if let Some(place) = self.details.get_mut(node as usize) {
                *place = details;
            }
        }
        Ok(())
    }

    fn load_references(&mut self, db: &Connection, by_id: &Nodes) -> Result<()> {
        let mut pairs = Vec::new();
        let mut references = db.prepare("select referrer, reference from Refs not indexed")?;
        let mut rows = references.query([])?;
        let mut patient = Patient::new();
        while let Some(row) = patient.next(&mut rows)? {
            match (by_id.get(row.get(0)?), by_id.get(row.get(1)?)) {
                (Some(from), Some(to)) => pairs.push((from, to)),
                // To or from a row that is no store path's.
                (Some(odd), None) | (None, Some(odd)) => drop(self.odd.insert(odd)),
                (None, None) => {}
            }
        }
        self.references = Edges::new(self.names.len(), &pairs);
        pairs.iter_mut().for_each(|(from, to)| std::mem::swap(from, to));
        self.referrers = Edges::new(self.names.len(), &pairs);
        Ok(())
    }

    fn load_outputs(&mut self, db: &Connection, by_id: &Nodes, prefix: &[u8]) -> Result<()> {
        let mut names: HashMap<Vec<u8>, u32> = HashMap::new();
        let mut outputs = db.prepare("select drv, id, path from DerivationOutputs not indexed")?;
        let mut rows = outputs.query([])?;
        let mut patient = Patient::new();
        while let Some(row) = patient.next(&mut rows)? {
            let Some(drv) = by_id.get(row.get(0)?) else { continue };
            let name = row.get_ref(1)?.as_str().ok();
            let (Some(name), Some(path)) = (name, store_path(row.get_ref(2)?, prefix)) else {
                self.odd.insert(drv);
                continue;
            };
            let name = match names.get(name.as_bytes()) {
                Some(name) => *name,
                None => *names.entry(name.into()).or_insert(self.others.push(name.as_bytes())),
            };
            let path = self.named(path);
            self.outputs.push(Output { drv, name, path });
        }
        self.outputs.sort_by_key(|output| output.drv);
        Ok(())
    }

    fn named(&mut self, name: &[u8]) -> Named {
        self.names.find(name).map_or_else(|| Named::Other(self.others.push(name)), Named::Node)
    }

    fn path(&self, named: Named) -> Option<StorePath> {
        let name = match named {
            Named::Node(node) => self.names.get(node),
            Named::Other(other) => self.others.get(other),
        };
        StorePath::from_base_name(name).ok()
    }

    fn paths(&self, nodes: &[u32]) -> Option<Paths> {
        nodes.iter().map(|node| self.path(Named::Node(*node))).collect()
    }

    fn find(&self, path: &StorePath) -> Option<u32> {
        self.names.find(path.base_name().as_bytes())
    }

    /// All valid paths, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = StorePath> {
        (0..self.names.len() as u32).filter_map(|node| self.path(Named::Node(node)))
    }

    /// How many valid paths there are.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether `path` is valid.
    pub(crate) fn is_valid(&self, path: &StorePath) -> bool {
        self.find(path).is_some()
    }

    /// What is known of `path`: `Some(None)` that it is not valid, `None` when its row is odd.
    pub(crate) fn info(&self, path: &StorePath) -> Option<Option<Arc<PathInfo>>> {
        let Some(node) = self.find(path) else { return Some(None) };
        if self.odd.contains(&node) {
            return None;
        }
        let details = self.details.get(node as usize)?;
        let deriver = match details.deriver {
            Some(deriver) => Some(self.path(deriver)?),
            None => None,
        };
        Some(Some(Arc::new(PathInfo {
            path: path.clone(),
            nar_hash: Hash::from_bytes(HashAlgo::Sha256, &details.nar_hash?).ok()?,
            references: self.paths(self.references.of(node))?,
            deriver,
            registration_time: details.registration_time,
            nar_size: details.nar_size,
        })))
    }

    /// What refers to `path`; `None` when its row is odd.
    pub(crate) fn referrers(&self, path: &StorePath) -> Option<Arc<Paths>> {
        let Some(node) = self.find(path) else { return Some(Arc::new(BTreeSet::new())) };
        if self.odd.contains(&node) { None } else { self.paths(self.referrers.of(node)).map(Arc::new) }
    }

    /// The outputs of `path`; `None` when it is not valid, or its row is odd.
    pub(crate) fn outputs(&self, path: &StorePath) -> Option<Arc<Outputs>> {
        let node = self.find(path).filter(|node| !self.odd.contains(node))?;
        let first = self.outputs.partition_point(|output| output.drv < node);
        let outputs = self.outputs.get(first..).unwrap_or_default().iter().take_while(|output| output.drv == node);
        let mut all = BTreeMap::new();
        for output in outputs {
            all.insert(str::from_utf8(self.others.get(output.name)).ok()?.to_owned(), self.path(output.path)?);
        }
        Some(Arc::new(all))
    }
}
