//! The workloads, B1 to B8. Each function is one turn on one side.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use fruix_drv::{Hash, HashAlgo, Hasher};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::Result;
use crate::daemon::{Daemon, Side, settle};
use crate::graph::Graph;
use crate::report::{Figure, Unit, figure, latencies, rate};
use crate::storm::{Dice, Text, plain_text, storm};
use crate::wire::{Connection, LAST, MAGIC_DAEMON, Request, VERSION, put_string, set_options};

/// How big the workloads are.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    pub(crate) connections: Vec<usize>,
    pub(crate) texts: usize,
    pub(crate) clients: usize,
    pub(crate) live: usize,
    pub(crate) dead: usize,
    pub(crate) queries: usize,
    pub(crate) big_file: usize,
    pub(crate) trees: Vec<usize>,
}

impl Sizes {
    pub(crate) fn full() -> Self {
        Self {
            connections: vec![100, 1000],
            texts: 5600,
            clients: 8,
            live: 100_000,
            dead: 30_000,
            queries: 10_000,
            big_file: 1 << 30,
            trees: vec![10_000, 100_000],
        }
    }

    pub(crate) fn quick() -> Self {
        Self {
            connections: vec![100],
            texts: 800,
            clients: 8,
            live: 10_000,
            dead: 3_000,
            queries: 2_000,
            big_file: 1 << 27,
            trees: vec![2_000],
        }
    }
}

/// What all turns of a run share.
pub(crate) struct Bench {
    pub(crate) sizes: Sizes,
    /// The archive of the big file, and its hash, once B5 has run.
    pub(crate) big: Option<Vec<u8>>,
    /// The archives of trees by number of files.
    pub(crate) trees: BTreeMap<usize, Vec<u8>>,
    /// The storm of each side, once it has run.
    pub(crate) storms: BTreeMap<String, Vec<Vec<Text>>>,
}

/// What a turn found, and the calls that wait for the disk, if they were counted.
pub(crate) type Turn = (Vec<Figure>, BTreeMap<String, u64>);

/// Memory, while the connections are open, and the end of the daemon.
fn finish<C>(mut figures: Vec<Figure>, daemon: Daemon, connections: C) -> Result<Turn> {
    figures.push(peak(&daemon));
    // Else a tracer would wait for the sessions, and we for it.
    drop(connections);
    Ok((figures, daemon.stop()?))
}

fn peak(daemon: &Daemon) -> Figure {
    figure("daemon's memory at its peak (sum over processes)", Unit::MiB, daemon.peak() as f64 / 1024.0)
}

fn greet(socket: &Path) -> Result<Connection> {
    let mut connection = Connection::open(socket)?;
    connection.call(&set_options(), "")?;
    Ok(connection)
}

/// Keeps this thread, and what it starts, on one processor until it is dropped.
///
/// When a client and a daemon take turns on two processors, each sleeps while the other works, and to wake a sleeping one takes a virtual machine
/// anything from 10 to 100 µs, whichever daemon it is. On one processor a turn costs a change of process, and what is measured is the work.
struct OneProcessor(CpuSet);

impl OneProcessor {
    fn only() -> Result<OneProcessor> {
        let (this, all) = (Pid::from_raw(0), sched_getaffinity(Pid::from_raw(0))?);
        let first = (0..CpuSet::count()).find(|cpu| all.is_set(*cpu).unwrap_or(false)).ok_or("no processor")?;
        let mut one = CpuSet::new();
        one.set(first)?;
        sched_setaffinity(this, &one)?;
        Ok(OneProcessor(all))
    }
}

impl Drop for OneProcessor {
    fn drop(&mut self) {
        let _ = sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}

/// What a turn of client and daemon takes on this machine when there is nothing to do: eight bytes there and back, by `read` and `write`.
fn bare_turns(count: usize) -> Result<Figure> {
    let (mut client, mut server) = UnixStream::pair()?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let mut word = [0; 8];
        for _ in 0..count {
            server.read_exact(&mut word)?;
            server.write_all(&word)?;
        }
        Ok(())
    });
    let mut times = Vec::with_capacity(count);
    let mut word = [0; 8];
    for _ in 0..count {
        let begin = Instant::now();
        client.write_all(&word)?;
        client.read_exact(&mut word)?;
        times.push(begin.elapsed());
    }
    echo.join().map_err(|_| "the echo died")??;
    let figure = latencies("(the machine: eight bytes there and back", times).into_iter().next().ok_or("no figure")?;
    Ok(Figure { name: format!("{})", figure.name), ..figure })
}

/// What a connection of B1 takes on this machine when nothing is done for it: as many bytes each way, in as many turns, by a process that knows how
/// many to expect.
fn bare_connections(socket: &Path, query: &Request, count: usize) -> Result<Figure> {
    let listener = UnixListener::bind(socket)?;
    let expected = [24, set_options().0.len(), query.0.len()];
    let server = std::thread::spawn(move || -> std::io::Result<()> {
        let mut buffer = [0; 4096];
        for _ in 0..count {
            let (mut client, _) = listener.accept()?;
            client.read_exact(&mut buffer[..8])?;
            client.write_all(&[MAGIC_DAEMON.to_le_bytes(), VERSION.to_le_bytes()].concat())?;
            for (turn, bytes) in expected.into_iter().enumerate() {
                client.read_exact(&mut buffer[..bytes])?;
                client.write_all(&LAST.to_le_bytes())?;
                if turn == 2 {
                    client.write_all(&[0; 8])?;
                }
            }
            // Until it is gone.
            let _ = client.read(&mut buffer)?;
        }
        Ok(())
    });
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        let mut connection = greet(socket)?;
        connection.call(query, "w")?;
        times.push(begin.elapsed());
    }
    server.join().map_err(|_| "the server died")??;
    fs::remove_file(socket)?;
    let figure = latencies("(the machine: a connection, as many turns, and nothing else", times).into_iter().next().ok_or("no figure")?;
    Ok(Figure { name: format!("{})", figure.name), ..figure })
}

fn threads<T: Send>(count: usize, body: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let handles: Result<Vec<_>> = (0..count)
            .map(|i| {
                let body = &body;
                Ok(std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, move || body(i))?)
            })
            .collect();
        handles?.into_iter().map(|handle| handle.join().unwrap_or_else(|_| Err("a client's thread died".into()))).collect()
    })
}

/// B1: greeting, options, one query.
pub(crate) fn connections(bench: &Bench, side: &Side, trace: bool) -> Result<Turn> {
    side.wipe()?;
    let query = Request::new(1).string(format!("{}/{}-none", side.store().as_str(), "0".repeat(32)));
    let mut figures = Vec::new();
    if !trace {
        let _one = OneProcessor::only()?;
        let daemon = side.start(false)?;
        let mut times = Vec::new();
        for _ in 0..300 {
            let begin = Instant::now();
            let mut connection = greet(&daemon.socket)?;
            connection.call(&query, "w")?;
            times.push(begin.elapsed());
            drop(connection);
        }
        figures.extend(latencies("one client after another", times));
        figures.push(bare_turns(10_000)?);
        figures.push(bare_connections(&side.root.join("bare-socket"), &query, 300)?);
        quiet(&daemon, 2);
        daemon.stop()?;
    }
    let daemon = side.start(trace)?;
    for count in &bench.sizes.connections {
        let mut times = Vec::new();
        let mut left = None;
        // As many clients again and again until it is enough to take a median of.
        for _ in 0..(1000 / count).max(1) {
            drop(left.take());
            quiet(&daemon, 2);
            let before = daemon.memory();
            let begin = Instant::now();
            let clients = at_once(&daemon.socket, *count, &query)?;
            times.push(begin.elapsed());
            left = Some((clients, before));
        }
        let Some((clients, before)) = left else { continue };
        times.sort_unstable();
        figures.push(rate(format!("{count} clients at once"), *count, times[times.len() / 2]));
        figures.push(figure(
            format!("memory for each of {count} idle connections"),
            Unit::KiB,
            daemon.memory().saturating_sub(before) as f64 / *count as f64,
        ));
        let peak = peak(&daemon);
        figures.push(Figure { name: format!("{} with {count}", peak.name), ..peak });
        drop(clients);
    }
    quiet(&daemon, 2);
    Ok((figures, daemon.stop()?))
}

/// Clients who all take each step before any takes the next, so that the daemon has all of them to serve at the same time.
fn at_once(socket: &Path, count: usize, query: &Request) -> Result<Vec<Connection>> {
    let clients: Result<Vec<Connection>> = (0..count).map(|_| Connection::begin(socket)).collect();
    let mut clients = clients?;
    clients.iter_mut().try_for_each(Connection::greet)?;
    let options = set_options();
    for request in [&options, query] {
        for client in &mut clients {
            client.done()?;
            client.send(&request.0)?;
        }
    }
    clients.iter_mut().try_for_each(|client| client.skip("w"))?;
    Ok(clients)
}

/// Waits until processes of former clients have ended.
fn quiet(daemon: &Daemon, processes: usize) {
    for _ in 0..200 {
        if daemon.processes().len() <= processes {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn add_each(connection: &mut Connection, texts: &[&Text]) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(texts.len());
    for text in texts {
        let begin = Instant::now();
        connection.send(&text.request.0)?;
        check_text(connection, text)?;
        times.push(begin.elapsed());
    }
    Ok(times)
}

fn check_text(connection: &mut Connection, text: &Text) -> Result<()> {
    connection.done()?;
    if connection.string()? == text.path.as_bytes() { Ok(()) } else { Err(format!("{} got another path", text.path).into()) }
}

impl Bench {
    fn storm(&mut self, side: &Side) -> Result<&Vec<Vec<Text>>> {
        let dir = side.store();
        if !self.storms.contains_key(dir.as_str()) {
            self.storms.insert(dir.as_str().to_owned(), storm(&dir, self.sizes.texts, self.sizes.clients)?);
        }
        Ok(&self.storms[dir.as_str()])
    }
}

/// One text of each part in turn, so that the order of references is kept.
fn in_turn(parts: &[Vec<Text>]) -> Vec<&Text> {
    let longest = parts.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest).flat_map(|i| parts.iter().filter_map(move |part| part.get(i))).collect()
}

/// B2 by one client, then B3 on what it left.
pub(crate) fn storm_of_one(bench: &mut Bench, side: &Side, trace: bool) -> Result<Turn> {
    side.wipe()?;
    let texts = in_turn(bench.storm(side)?);
    let _one = OneProcessor::only()?;
    let daemon = side.start(trace)?;
    let mut connection = greet(&daemon.socket)?;
    let begin = Instant::now();
    let times = add_each(&mut connection, &texts)?;
    let mut figures = vec![rate("B2 new texts, one client", texts.len(), begin.elapsed())];
    figures.extend(latencies("B2 one text", times));
    if trace {
        return finish(figures, daemon, connection);
    }
    settle()?;

    let begin = Instant::now();
    let times = add_each(&mut connection, &texts)?;
    let plain = begin.elapsed();
    figures.push(rate("B3 known texts, one at a time", texts.len(), plain));
    figures.extend(latencies("B3 one text", times));
    let mut all = plain;
    if side.pipelines {
        let mut writer = connection.writer()?;
        let begin = Instant::now();
        std::thread::scope(|scope| -> Result<()> {
            let sender = scope.spawn(|| texts.iter().try_for_each(|text| writer.write_all(&text.request.0)));
            texts.iter().try_for_each(|text| check_text(&mut connection, text))?;
            Ok(sender.join().map_err(|_| "the sender died")??)
        })?;
        all = begin.elapsed();
    }
    figures.push(rate("B3 known texts, pipelined", texts.len(), all));
    figures.push(machine(side, &[texts])?);
    finish(figures, daemon, connection)
}

/// How long it takes to write the files of a storm, each part by a thread of its own, and to commit their rows, without hashing, locks or a client:
/// what a daemon that loses nothing when it is killed can at most come to on this machine. Whoever has the database commits all rows that wait for it.
fn bare(side: &Side, parts: &[Vec<&Text>]) -> Result<Duration> {
    let root = side.root.join("bare");
    fs::create_dir(&root)?;
    let schema: Vec<String> = rusqlite::Connection::open(side.database())?
        .prepare("select sql from sqlite_master where sql is not null and name not like 'sqlite_%'")?
        .query_map([], |row| row.get(0))?
        .collect::<std::result::Result<_, _>>()?;
    let connection = rusqlite::Connection::open(root.join("db.sqlite"))?;
    connection.query_row("pragma journal_mode = wal", [], |_| Ok(()))?;
    connection.execute_batch(&format!("pragma synchronous = normal; pragma foreign_keys = 1; {};", schema.join(";")))?;
    let hash = format!("sha256:{}", Hash::sha256("anything").base16());
    let database = Mutex::new((connection, HashMap::new()));
    let waiting: Mutex<Vec<&Text>> = Mutex::default();
    settle()?;
    let begin = Instant::now();
    threads(parts.len(), |part| {
        for (number, text) in parts[part].iter().enumerate() {
            fs::write(root.join(format!("{part}-{number}")), &text.contents)?;
            waiting.lock().map_err(|_| "poisoned")?.push(text);
            let mut database = database.lock().map_err(|_| "poisoned")?;
            let (connection, ids) = &mut *database;
            let batch = std::mem::take(&mut *waiting.lock().map_err(|_| "poisoned")?);
            if !batch.is_empty() {
                commit(connection, ids, &hash, &batch)?;
            }
        }
        Ok(())
    })?;
    Ok(begin.elapsed())
}

fn commit(connection: &mut rusqlite::Connection, ids: &mut HashMap<String, i64>, hash: &str, batch: &[&Text]) -> Result<()> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for text in batch {
        let insert = "insert into ValidPaths (path, hash, registrationTime, deriver, narSize) values (?, ?, 1700000000, null, 120)";
        let id = transaction.prepare_cached(insert)?.insert([text.path.as_str(), hash])?;
        for reference in &text.references {
            let to: Option<&i64> = ids.get(reference.as_str());
            transaction.prepare_cached("insert or ignore into Refs (referrer, reference) values (?, ?)")?.execute((id, to))?;
        }
        if let Some(output) = &text.output {
            transaction.prepare_cached("insert into DerivationOutputs (drv, id, path) values (?, 'out', ?)")?.execute((id, output))?;
        }
        ids.insert(text.path.clone(), id);
    }
    Ok(transaction.commit()?)
}

/// The row for [`bare`].
fn machine(side: &Side, parts: &[Vec<&Text>]) -> Result<Figure> {
    let by = if parts.len() > 1 { format!(", {} threads", parts.len()) } else { String::new() };
    let name = format!("(the machine: a file and a commit for each text of B2, and nothing else{by})");
    Ok(rate(name, parts.iter().map(Vec::len).sum(), bare(side, parts)?))
}

/// B2 by several clients.
pub(crate) fn storm_of_many(bench: &mut Bench, side: &Side, trace: bool) -> Result<Turn> {
    side.wipe()?;
    let parts = bench.storm(side)?;
    let daemon = side.start(trace)?;
    let barrier = Barrier::new(parts.len());
    let times = threads(parts.len(), |i| {
        let connection = greet(&daemon.socket);
        barrier.wait();
        let begin = Instant::now();
        let mut connection = connection?;
        let texts: Vec<&Text> = parts[i].iter().collect();
        let times = add_each(&mut connection, &texts)?;
        Ok((begin, Instant::now(), times, connection))
    })?;
    let begin = times.iter().map(|(begin, ..)| *begin).min().ok_or("no client")?;
    let end = times.iter().map(|(_, end, ..)| *end).max().ok_or("no client")?;
    let count = parts.iter().map(Vec::len).sum();
    let mut figures = vec![rate(format!("B2 new texts, {} clients", parts.len()), count, end - begin)];
    let (times, connections): (Vec<_>, Vec<_>) = times.into_iter().map(|(_, _, times, connection)| (times, connection)).unzip();
    figures.extend(latencies("B2 one text", times.concat()));
    if !trace {
        settle()?;
        let parts: Vec<Vec<&Text>> = parts.iter().map(|part| part.iter().collect()).collect();
        figures.push(machine(side, &parts)?);
    }
    finish(figures, daemon, connections)
}

/// An empty store with its database, which guix-daemon makes for its first client.
fn make_database(side: &Side) -> Result<()> {
    side.wipe()?;
    let daemon = side.start(false)?;
    drop(greet(&daemon.socket)?);
    daemon.stop()?;
    Ok(())
}

/// B4: fills the database, once a run.
pub(crate) fn prepare_queries(bench: &Bench, side: &Side) -> Result<Graph> {
    make_database(side)?;
    let graph = Graph::new(&side.store(), "live", bench.sizes.live / 2);
    graph.register(&side.database())?;
    Ok(graph)
}

/// B4: queries of each kind, one at a time and pipelined.
pub(crate) fn queries(bench: &Bench, side: &Side, graph: &Graph, trace: bool) -> Result<Turn> {
    let _one = OneProcessor::only()?;
    let daemon = side.start(trace)?;
    let mut connection = greet(&daemon.socket)?;
    let mut dice = Dice(77);
    let mut figures = Vec::new();
    let kinds =
        [("valid path?", 1, "w"), ("path info:", 26, "sslww"), ("references:", 5, "l"), ("referrers:", 6, "l"), ("outputs:", 22, "l")];
    let mut paths = Vec::new();
    for _ in 0..bench.sizes.queries {
        let (drv, out) = &graph.pairs[dice.below(graph.pairs.len())];
        paths.push((drv, out));
    }
    for (name, operation, shape) in kinds {
        let requests: Vec<Request> =
            paths.iter().map(|(drv, out)| Request::new(operation).string(if operation == 22 { drv } else { out })).collect();
        for request in requests.iter().take(200) {
            connection.call(request, shape)?;
        }
        let mut times = Vec::with_capacity(requests.len());
        for request in &requests {
            let begin = Instant::now();
            connection.call(request, shape)?;
            times.push(begin.elapsed());
        }
        let mut all: Duration = times.iter().sum();
        if side.pipelines {
            let mut writer = connection.writer()?;
            let begin = Instant::now();
            std::thread::scope(|scope| -> Result<()> {
                let sender = scope.spawn(|| requests.iter().try_for_each(|request| writer.write_all(&request.0)));
                requests.iter().try_for_each(|_| connection.skip(shape))?;
                Ok(sender.join().map_err(|_| "the sender died")??)
            })?;
            all = begin.elapsed();
        }
        figures.extend(latencies(&format!("{name} one at a time"), times));
        figures.push(figure(format!("{name} pipelined, mean"), Unit::Microseconds, all.as_secs_f64() * 1e6 / requests.len() as f64));
    }
    let many: Vec<&String> = paths.iter().map(|(_, out)| *out).collect();
    let many_kinds = [
        ("which of all those are valid, in one request", 31),
        ("substitutes for all those, with none to ask", 32),
        ("all valid paths", 23),
    ];
    for (name, operation) in many_kinds {
        let request = if operation == 23 { Request::new(operation) } else { Request::new(operation).strings(&many) };
        let mut times = Vec::new();
        for _ in 0..5 {
            let begin = Instant::now();
            connection.call(&request, "l")?;
            times.push(begin.elapsed());
        }
        times.sort_unstable();
        figures.push(figure(name, Unit::Microseconds, times[2].as_secs_f64() * 1e6));
    }
    figures.push(bare_turns(10_000)?);
    finish(figures, daemon, connection)
}

/// B4, the plan of a build in which all is done: derivations and outputs that exist, asked for at once. Once a run.
pub(crate) fn prepare_plan(bench: &mut Bench, side: &Side) -> Result<Vec<String>> {
    side.wipe()?;
    let texts = in_turn(bench.storm(side)?);
    let daemon = side.start(false)?;
    add_each(&mut greet(&daemon.socket)?, &texts)?;
    daemon.stop()?;
    let mut connection = rusqlite::Connection::open(side.database())?;
    let transaction = connection.transaction()?;
    let hash = format!("sha256:{}", Hash::sha256("anything").base16());
    let mut derivations = Vec::new();
    for text in &texts {
        let Some(output) = &text.output else { continue };
        fs::write(output, "done\n")?;
        transaction.execute(
            "insert into ValidPaths (path, hash, registrationTime, deriver, narSize) values (?, ?, 1700000000, ?, 120)",
            [output, &hash, &text.path],
        )?;
        derivations.push(text.path.clone());
    }
    transaction.commit()?;
    Ok(derivations)
}

/// B4, that plan.
pub(crate) fn plan(side: &Side, derivations: &[String], trace: bool) -> Result<Turn> {
    let _one = OneProcessor::only()?;
    let daemon = side.start(trace)?;
    let mut connection = greet(&daemon.socket)?;
    let mut figures = Vec::new();
    let last = &derivations[derivations.len() - 1..];
    let mut times = Vec::new();
    for _ in 0..1000 {
        let begin = Instant::now();
        connection.call(&Request::new(9).strings(last).word(0), "w")?;
        times.push(begin.elapsed());
    }
    figures.extend(latencies("build one that is built", times));
    let request = Request::new(9).strings(derivations).word(0);
    let begin = Instant::now();
    connection.call(&request, "w")?;
    figures.push(figure(format!("build {} that are built", derivations.len()), Unit::Seconds, begin.elapsed().as_secs_f64()));
    finish(figures, daemon, connection)
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    let mut data = Vec::with_capacity(bytes);
    while data.len() < bytes {
        data.extend_from_slice(&dice.word().to_le_bytes());
    }
    data.truncate(bytes);
    data
}

fn put_file(out: &mut Vec<u8>, contents: &[u8]) {
    for word in ["(", "type", "regular", "contents"] {
        put_string(out, word.as_bytes());
    }
    put_string(out, contents);
    put_string(out, b")");
}

/// The archive of a directory of directories with a hundred files of 3 KB each.
fn tree(files: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(files * 3400);
    let put = |out: &mut Vec<u8>, words: &[&str]| words.iter().for_each(|word| put_string(out, word.as_bytes()));
    put(&mut out, &["nix-archive-1", "(", "type", "directory"]);
    for directory in 0..files.div_ceil(100) {
        put(&mut out, &["entry", "(", "name", &format!("directory-{directory:05}"), "node", "(", "type", "directory"]);
        for file in 0..100.min(files - directory * 100) {
            put(&mut out, &["entry", "(", "name", &format!("file-{file:03}.scm"), "node"]);
            put_file(&mut out, &noise(3000, ((directory * 100 + file) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            put(&mut out, &[")"]);
        }
        put(&mut out, &[")", ")"]);
    }
    put(&mut out, &[")"]);
    out
}

/// Adds an archive and says how long that took until the reply.
fn add_archive(side: &Side, socket: &Path, name: &str, archive: &[u8], hash: &Hash) -> Result<(Duration, Connection)> {
    let mut connection = greet(socket)?;
    let head = Request::new(7).string(name).word(1).word(1).string("sha256");
    let begin = Instant::now();
    connection.send(&head.0)?;
    for piece in archive.chunks(1 << 18) {
        connection.send(piece)?;
    }
    connection.done()?;
    let path = connection.string()?;
    let time = begin.elapsed();
    let expected = fruix_drv::path::fixed_output_path(&side.store(), true, hash, name)?;
    if path == side.store().display(&expected).as_bytes() { Ok((time, connection)) } else { Err("the archive got another path".into()) }
}

fn hash(archive: &[u8]) -> Hash {
    let mut hasher = Hasher::new(HashAlgo::Sha256);
    hasher.update(archive);
    hasher.finish()
}

/// B5: one big file.
pub(crate) fn big_file(bench: &mut Bench, side: &Side, trace: bool) -> Result<Turn> {
    side.wipe()?;
    let size = bench.sizes.big_file;
    let archive = bench.big.get_or_insert_with(|| {
        let mut archive = Vec::with_capacity(size + 200);
        put_string(&mut archive, b"nix-archive-1");
        put_file(&mut archive, &noise(size, 99));
        archive
    });
    let hash = hash(archive);
    let daemon = side.start(trace)?;
    let (time, connection) = add_archive(side, &daemon.socket, "big", archive, &hash)?;
    let speed = figure("one big file", Unit::MiBPerSecond, size as f64 / f64::from(1 << 20) / time.as_secs_f64());
    finish(vec![speed], daemon, connection)
}

/// B6: trees of small files.
pub(crate) fn small_files(bench: &mut Bench, side: &Side, trace: bool) -> Result<Turn> {
    let mut figures = Vec::new();
    side.wipe()?;
    let daemon = side.start(trace)?;
    let mut connections = Vec::new();
    for files in bench.sizes.trees.clone() {
        settle()?;
        let archive = bench.trees.entry(files).or_insert_with(|| tree(files));
        let hash = hash(archive);
        let (time, connection) = add_archive(side, &daemon.socket, &format!("tree-{files}"), archive, &hash)?;
        figures.push(rate(format!("a tree of {files} files"), files, time));
        connections.push(connection);
    }
    finish(figures, daemon, connections)
}

/// What B8 keeps between turns.
pub(crate) struct Rubbish {
    dead: Graph,
    database: std::path::PathBuf,
}

/// B8: fills store and database, once a run.
pub(crate) fn prepare_rubbish(bench: &Bench, side: &Side) -> Result<Rubbish> {
    make_database(side)?;
    let live = Graph::new(&side.store(), "live", bench.sizes.live / 2);
    live.register(&side.database())?;
    live.make_files()?;
    live.root(side)?;
    let dead = Graph::new(&side.store(), "dead", bench.sizes.dead / 2);
    dead.register(&side.database())?;
    let database = side.root.with_extension("template");
    fs::copy(side.database(), &database)?;
    Ok(Rubbish { dead, database })
}

/// B8: lists the dead, then deletes them while another client adds texts.
pub(crate) fn collect(side: &Side, rubbish: &Rubbish, trace: bool) -> Result<Turn> {
    rubbish.dead.make_files()?;
    for suffix in ["-wal", "-shm", ""] {
        let mut name = side.database().into_os_string();
        name.push(suffix);
        let _ = fs::remove_file(name);
    }
    fs::copy(&rubbish.database, side.database())?;
    settle()?;
    let daemon = side.start(trace)?;
    // Action, paths, ignore liveness, all of it, three that mean nothing.
    let collect = |action: u64| Request::new(20).word(action).word(0).word(0).word(u64::MAX).word(0).word(0).word(0);
    let run = |connection: &mut Connection, action: u64| -> Result<Duration> {
        let begin = Instant::now();
        connection.send(&collect(action).0)?;
        connection.done()?;
        let time = begin.elapsed();
        let found = connection.strings()?;
        let expected = rubbish.dead.pairs.len() as u64 * 2;
        connection.skip_words(2)?;
        if found < expected { Err(format!("{found} dead paths instead of {expected}").into()) } else { Ok(time) }
    };
    let mut connection = greet(&daemon.socket)?;
    let mut figures = vec![figure("list the dead, first time", Unit::Seconds, run(&mut connection, 1)?.as_secs_f64())];
    figures.push(figure("list the dead again", Unit::Seconds, run(&mut connection, 1)?.as_secs_f64()));

    // A text every 20 ms, whether or not the one before is done: what waits behind a slow one has waited, too.
    let over = AtomicBool::new(false);
    let dir = side.store();
    let (time, (times, added)) = std::thread::scope(|scope| -> Result<_> {
        let adder = scope.spawn(|| -> Result<(Vec<Duration>, Vec<String>)> {
            let mut connection = greet(&daemon.socket)?;
            let (mut times, mut added) = (Vec::new(), Vec::new());
            let begin = Instant::now();
            for i in 0_u32.. {
                let due = begin + Duration::from_millis(20) * i;
                let text = plain_text(&dir, &format!("meanwhile-{i}"))?;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if over.load(Ordering::Relaxed) && due > begin {
                    // Those that would have been due in the meantime are not asked for.
                    break;
                }
                connection.send(&text.request.0)?;
                check_text(&mut connection, &text)?;
                times.push(due.elapsed());
                added.push(text.path);
            }
            Ok((times, added))
        });
        std::thread::sleep(Duration::from_millis(20));
        let time = run(&mut connection, 2);
        over.store(true, Ordering::Relaxed);
        let adder = adder.join().map_err(|_| "the adder died")?;
        Ok((time?, adder?))
    })?;
    figures.push(figure("delete the dead", Unit::Seconds, time.as_secs_f64()));
    let longest = times.iter().max().copied().unwrap_or_default();
    figures.extend(latencies("add a text meanwhile", times));
    figures.push(figure("add a text meanwhile, longest", Unit::Microseconds, longest.as_secs_f64() * 1e6));
    let turn = finish(figures, daemon, connection)?;
    for path in added {
        fs::remove_file(path)?;
    }
    Ok(turn)
}
