//! `builtin:download`: one file from the first of several URLs that gives it.

use super::http::Client;
use super::mirrors::{self, FileHash, Mirror};
use super::sexp::{self, Datum};
use super::url::Url;
use super::{BuiltinError, BuiltinInput, BuiltinOutput, ca, say};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes read and written at once.
const BUFFER_LEN: usize = 64 << 10;
/// Least time between two `@ download-progress` lines.
const TRACE_INTERVAL: Duration = Duration::from_millis(200);
/// Least time between two progress lines for people.
const TEXT_INTERVAL: Duration = Duration::from_secs(5);

/// Downloads what the derivation says to its output. `Ok` without an output means that no URL gave the file; each failure is in
/// `log`.
///
/// # Errors
/// The derivation is refused, or the output cannot be written.
pub fn perform(input: &BuiltinInput, log: &mut dyn Write) -> Result<(), BuiltinError> {
    let output = input.fixed_output()?;
    let text = input.get("url").ok_or_else(|| BuiltinError::Missing { drv: input.drv_path.clone(), what: "URL" })?;
    let datum = input.datum("url", text)?;
    let given = urls(input, &datum)?;
    let urls = plan(input, output, &given, log)?;

    let mut client = Client::new(input);
    let mut progress = Progress::new(input, output, log);
    for url in &urls {
        progress.say(&format!("\nStarting download of {}\nFrom {url}...", output.path));
        let result = remove(output.target()).and_then(|()| fetch(input, &mut client, url, output.target(), &mut progress));
        match result {
            Ok(()) => {
                if input.get("executable") == Some("1") {
                    fs::set_permissions(output.target(), fs::Permissions::from_mode(0o755))
                        .map_err(BuiltinError::io("making executable", output.target()))?;
                }
                return Ok(());
            }
            // The same disk would refuse the next server's bytes too.
            Err(error @ BuiltinError::Io { .. }) => {
                let _ = remove(output.target());
                return Err(error);
            }
            Err(error) => progress.say(&error.to_string()),
        }
    }
    progress.say(&format!("failed to download {} from {datum}", sexp::quoted(&output.path)));
    remove(output.target())
}

/// The URLs of the variable `url`: a string or a list of strings, all of them valid.
fn urls(input: &BuiltinInput, datum: &Datum) -> Result<Vec<Url>, BuiltinError> {
    let texts: Option<Vec<&str>> = match datum {
        Datum::Str(text) => Some(vec![text]),
        Datum::List(items) => items.iter().map(Datum::as_str).collect(),
        _ => None,
    };
    texts
        .ok_or_else(|| BuiltinError::Shape { drv: input.drv_path.clone(), name: "url", expected: "a string or a list of strings" })?
        .into_iter()
        .map(|text| input.check_url(text))
        .collect()
}

/// All URLs to try, in order: those given, mirrors expanded; servers that know the hash; the Internet Archive.
fn plan(input: &BuiltinInput, output: &BuiltinOutput, given: &[Url], log: &mut dyn Write) -> Result<Vec<Url>, BuiltinError> {
    let mirrors = match store_datum(input, "mirrors")? {
        Some(datum) => mirrors::parse_mirrors(&datum),
        None => Vec::new(),
    };
    let mut upstream = Vec::new();
    for url in given {
        upstream.extend(expand(url, &mirrors, log)?);
    }
    let mut urls = Vec::new();
    if input.method_enabled("content-addressed-mirrors")?
        // Those servers look files up by the hash of their bytes; the recursive hash of an executable is another.
        && !output.hash_algo.starts_with("r:")
        && let Some(program) = store_datum(input, "content-addressed-mirrors")?
        && let Ok(hash) = data_encoding::HEXLOWER_PERMISSIVE.decode(output.hash.as_bytes())
    {
        let base = output.path.rsplit('/').next().unwrap_or("");
        let file = FileHash { name: base.split_once('-').map_or(base, |(_, name)| name), algorithm: &output.hash_algo, hash: &hash };
        urls.extend(mirrors::content_addressed(&program, &file).iter().filter_map(|u| Url::parse(u)));
    }
    if input.method_enabled("internet-archive")? {
        urls.extend(upstream.first().and_then(mirrors::internet_archive).and_then(|u| Url::parse(&u)));
    }
    if input.method_enabled("upstream")? {
        upstream.extend(urls);
        urls = upstream;
    }
    Ok(urls)
}

fn expand(url: &Url, mirrors: &[Mirror], log: &mut dyn Write) -> Result<Vec<Url>, BuiltinError> {
    if url.scheme != "mirror" {
        return Ok(vec![url.clone()]);
    }
    let texts =
        mirrors::expand(url, mirrors).ok_or_else(|| BuiltinError::UnknownMirror { kind: url.host.clone(), url: url.to_string() })?;
    Ok(texts
        .iter()
        .filter_map(|text| match Url::parse(text) {
            Some(url) if url.scheme != "mirror" => Some(url),
            _ => {
                say(log, &format!("skipping bad mirror URL {}", sexp::quoted(text)));
                None
            }
        })
        .collect())
}

/// The datum in the store file that the variable `name` names.
fn store_datum(input: &BuiltinInput, name: &'static str) -> Result<Option<Datum>, BuiltinError> {
    let Some(path) = input.get(name) else {
        return Ok(None);
    };
    let path = Path::new(path);
    let path = fs::canonicalize(path).map_err(BuiltinError::io("resolving", path))?;
    let inside = path.strip_prefix(&input.store_dir).is_ok_and(|rest| !rest.as_os_str().is_empty());
    if !inside {
        return Err(BuiltinError::NotInStore { path: sexp::quoted(&path.to_string_lossy()) });
    }
    let max = u64::try_from(sexp::MAX_LEN).unwrap_or(u64::MAX);
    let bytes = ca::read_limited(&path, max).map_err(BuiltinError::io("reading", &path))?;
    input.datum(name, &String::from_utf8_lossy(&bytes)).map(Some)
}

/// Fetches `url` to `target`, which must not exist.
fn fetch(input: &BuiltinInput, client: &mut Client<'_>, url: &Url, target: &Path, progress: &mut Progress<'_>) -> Result<(), BuiltinError> {
    let failed = |reason: String| BuiltinError::Fetch { url: sexp::quoted(&url.to_string()), reason };
    let (size, mut reader): (Option<u64>, Box<dyn Read>) = match url.scheme.as_str() {
        "http" | "https" => {
            let body = client.get(url, progress.log)?;
            (body.size, body.reader)
        }
        "file" if input.allow_file => {
            let (size, file) = open_local(url).map_err(|e| failed(e.to_string()))?;
            (Some(size), Box::new(file))
        }
        "ftp" => return Err(failed("ftp is not supported by this build daemon".to_owned())),
        scheme => {
            return Err(failed(format!("skipping URI with unsupported scheme: {scheme}")));
        }
    };

    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW)
        .open(target)
        .map_err(BuiltinError::io("creating", target))?;
    progress.start(url, size);
    let mut buffer = vec![0; BUFFER_LEN];
    let mut total = 0u64;
    loop {
        let len = match reader.read(&mut buffer) {
            Ok(len) => len,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(failed(format!("after {total} bytes: {e}"))),
        };
        let Some(bytes) = buffer.get(..len).filter(|b| !b.is_empty()) else {
            break;
        };
        file.write_all(bytes).map_err(BuiltinError::io("writing", target))?;
        total = total.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        progress.advance(total);
    }
    if size.is_some_and(|size| size != total) {
        return Err(failed(format!("EOF while reading response body: {total} bytes of {}", size.unwrap_or(0))));
    }
    progress.succeed(total);
    Ok(())
}

/// Opens the regular file of a `file:` URL with the rights of this process.
fn open_local(url: &Url) -> io::Result<(u64, File)> {
    let path = url.local_path().ok_or_else(|| io::Error::other("file of another host"))?;
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok((metadata.len(), file))
}

/// Removes what an earlier attempt left.
fn remove(target: &Path) -> Result<(), BuiltinError> {
    match fs::remove_file(target) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(BuiltinError::io("removing", target)(e)),
        _ => Ok(()),
    }
}

/// Tells how far a download is.
struct Progress<'a> {
    log: &'a mut dyn Write,
    trace: bool,
    /// The store path: what the client matches with the derivation's output.
    item: &'a str,
    url: String,
    size: Option<u64>,
    started: bool,
    last: Option<Instant>,
}

impl<'a> Progress<'a> {
    fn new(input: &BuiltinInput, output: &'a BuiltinOutput, log: &'a mut dyn Write) -> Self {
        Progress { log, trace: input.extended_trace, item: &output.path, url: String::new(), size: None, started: false, last: None }
    }

    fn say(&mut self, line: &str) {
        say(self.log, line);
    }

    fn size(&self) -> String {
        self.size.map_or("-".to_owned(), |size| size.to_string())
    }

    fn start(&mut self, url: &Url, size: Option<u64>) {
        self.url = url.to_string();
        self.size = size;
        self.last = None;
        // The client keeps one entry per `download-started`; one for the whole series of URLs is what `download-succeeded` ends.
        if self.trace && !self.started {
            self.started = true;
            let line = format!("@ download-started {} {} {}", self.item, self.url, self.size());
            self.say(&line);
        }
    }

    fn advance(&mut self, total: u64) {
        let interval = if self.trace { TRACE_INTERVAL } else { TEXT_INTERVAL };
        match self.last {
            Some(last) if last.elapsed() < interval => return,
            // People need no line for what takes no time.
            None if !self.trace => {
                self.last = Some(Instant::now());
                return;
            }
            _ => self.last = Some(Instant::now()),
        }
        self.report(total);
    }

    fn report(&mut self, total: u64) {
        let line = if self.trace {
            format!("@ download-progress {} {} {} {total}", self.item, self.url, self.size())
        } else {
            let name = self.url.rsplit('/').next().unwrap_or("");
            let of = self.size.map_or(String::new(), |s| format!(" of {}", human(s)));
            format!(" {name}  {}{of}", human(total))
        };
        self.say(&line);
    }

    fn succeed(&mut self, total: u64) {
        self.report(total);
        if self.trace {
            let line = format!("@ download-succeeded {} {} {total}", self.item, self.url);
            self.say(&line);
        }
    }
}

/// A number of bytes for people: `6B`, `12KiB`, `3.4MiB`, `1.2GiB`.
fn human(bytes: u64) -> String {
    let tenths = |unit: u64| {
        let tenths = bytes / (unit / 10);
        format!("{}.{}", tenths / 10, tenths % 10)
    };
    match bytes {
        0..1024 => format!("{bytes}B"),
        1024..0x10_0000 => format!("{}KiB", bytes / 1024),
        0x10_0000..0x4000_0000 => format!("{}MiB", tenths(1 << 20)),
        _ => format!("{}GiB", tenths(1 << 30)),
    }
}
