//! `builtin:download` and `builtin:git-download` against servers on the loopback interface.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use fruixd::builtins::{self, BuiltinInput, BuiltinOutput, EXIT_DONE, EXIT_FAILED, Timeouts, ca, sexp};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What a server does with a request: gets its path and the stream to answer on.
type Handler = Arc<dyn Fn(&str, &mut dyn Write) + Send + Sync>;

/// A server on a port of its own; it ends with the test process.
struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Server {
    fn start(tls: Option<Arc<rustls::ServerConfig>>, handler: Handler) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (tls, handler, seen) = (tls.clone(), handler.clone(), seen.clone());
                thread::spawn(move || serve(stream, tls, &handler, &seen));
            }
        });
        Server { port, requests }
    }

    fn http(handler: impl Fn(&str, &mut dyn Write) + Send + Sync + 'static) -> Server {
        Self::start(None, Arc::new(handler))
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn https_url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn read_head(stream: &mut dyn Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

fn serve(stream: TcpStream, tls: Option<Arc<rustls::ServerConfig>>, handler: &Handler, seen: &Mutex<Vec<String>>) {
    let mut stream: Box<dyn Stream> = match tls {
        None => Box::new(stream),
        Some(config) => {
            let connection = rustls::ServerConnection::new(config).unwrap();
            Box::new(rustls::StreamOwned::new(connection, stream))
        }
    };
    let Some(head) = read_head(&mut stream) else {
        return;
    };
    let path = head.split(' ').nth(1).unwrap_or("").to_owned();
    seen.lock().unwrap().push(head);
    handler(&path, &mut stream);
    let _ = stream.flush();
}

fn answer(out: &mut dyn Write, status: &str, headers: &str, body: &[u8]) {
    let _ = write!(out, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    let _ = out.write_all(body);
}

/// A server with a bit of everything.
fn site() -> Server {
    Server::http(|path, out| match path {
        "/ok" | "/pub/ok" | "/ok?x" => answer(out, "200 OK", "", b"hello\n"),
        "/nolen" => {
            let _ = out.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello\n");
        }
        "/chunked" => {
            let _ = out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhell\r\n2\r\no\n\r\n0\r\n\r\n");
        }
        "/chunked-short" => {
            let _ = out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhell\r\n9\r\no");
        }
        "/short" => {
            let _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello\n");
        }
        "/long" => {
            let _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\nand more");
        }
        "/garbage" => {
            let _ = out.write_all(b"\x1b]0;title\x07 220 ready\r\n\r\n");
        }
        "/gzip" => answer(out, "200 OK", "Content-Encoding: gzip\r\n", b"hello\n"),
        "/loop" => answer(out, "302 Found", "Location: /loop\r\n", b""),
        "/to-file" => answer(out, "302 Found", "Location: file:///etc/passwd\r\n", b""),
        "/to-nowhere" => answer(out, "302 Found", "", b""),
        "/to-escape" => answer(out, "302 Found", "Location: //127.0.0.1/\x1b[2J\r\n", b""),
        "/stall" => {
            let _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhe");
            let _ = out.flush();
            thread::sleep(Duration::from_secs(20));
        }
        "/silent" => thread::sleep(Duration::from_secs(20)),
        p if p.starts_with("/r/") => {
            let n: u32 = p[3..].parse().unwrap();
            let to = match n.checked_sub(1) {
                None => "../ok?x".to_owned(),
                Some(n) => n.to_string(),
            };
            let status = ["301 a", "302 b", "303 c", "307 d", "308 e"][n as usize % 5];
            answer(out, status, &format!("Location: {to}\r\n"), b"elsewhere");
        }
        _ => answer(out, "404 Not Found", "", b"no such thing"),
    })
}

/// A download in a directory that plays the store.
struct Job {
    dir: TempDir,
    input: BuiltinInput,
}

impl Job {
    fn new(env: &[(&str, &str)]) -> Job {
        let dir = tempfile::tempdir().unwrap();
        let store = fs::canonicalize(dir.path()).unwrap();
        let path = store.join("00000000000000000000000000000000-out.tar.gz");
        let mut env: Vec<(String, String)> = env.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        if !env.iter().any(|(k, _)| k == "download-methods") {
            // No test may depend on a server elsewhere.
            env.push(("download-methods".into(), "(upstream)".into()));
        }
        let input = BuiltinInput {
            drv_path: "/s/x.drv".into(),
            store_dir: store.to_str().unwrap().into(),
            env,
            outputs: vec![BuiltinOutput {
                name: "out".into(),
                path: path.to_str().unwrap().into(),
                write_to: None,
                hash_algo: "sha256".into(),
                hash: "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".into(),
            }],
            timeouts: Timeouts { resolve: 5000, connect: 5000, respond: 2000, stall: 2000 },
            ..Default::default()
        };
        Job { dir, input }
    }

    fn get(url: &str) -> Job {
        Job::new(&[("url", &sexp::quoted(url))])
    }

    /// With a list of URLs.
    fn get_any(urls: &[&str]) -> Job {
        let list: Vec<String> = urls.iter().map(|u| sexp::quoted(u)).collect();
        Job::new(&[("url", &format!("({})", list.join(" ")))])
    }

    fn set(&mut self, name: &str, value: &str) {
        self.input.env.retain(|(k, _)| k != name);
        self.input.env.push((name.into(), value.into()));
    }

    fn out(&self) -> PathBuf {
        PathBuf::from(&self.input.outputs[0].path)
    }

    /// Runs the builder; returns the exit status, the output's content if it is a file, and the log.
    fn run(&self, name: &str) -> (i32, Option<Vec<u8>>, String) {
        let mut log = Vec::new();
        let status = builtins::perform(name, &self.input, &mut log);
        let log = String::from_utf8(log).unwrap();
        assert!(!log.contains(|c: char| c.is_control() && c != '\n'), "control characters in the log: {log:?}");
        (status, fs::read(self.out()).ok(), log)
    }

    fn store_file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().into()
    }
}

#[track_caller]
fn succeeds(job: &Job) -> String {
    let (status, content, log) = job.run("download");
    assert_eq!((status, content.as_deref()), (EXIT_DONE, Some(&b"hello\n"[..])), "{log}");
    log
}

/// The file was found nowhere: nothing is left, and (as upstream) the exit status leaves the message to the daemon.
#[track_caller]
fn finds_nothing(job: &Job, reason: &str) {
    let (status, content, log) = job.run("download");
    assert_eq!((status, content), (EXIT_DONE, None), "{log}");
    assert!(log.contains(reason), "no {reason:?} in: {log}");
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("failed to download \""), "{log}");
    assert!(fs::symlink_metadata(job.out()).is_err(), "leftovers");
}

#[track_caller]
fn is_refused(job: &Job, message: &str) {
    let (status, content, log) = job.run("download");
    assert_eq!((status, content), (EXIT_FAILED, None), "{log}");
    assert!(log.contains(message), "no {message:?} in: {log}");
}

#[test]
fn bodies_of_every_kind() {
    let site = site();
    for path in ["/ok", "/nolen", "/chunked", "/long", "/gzip", "/r/0", "/r/12"] {
        succeeds(&Job::get(&site.url(path)));
    }
    finds_nothing(&Job::get(&site.url("/nothing")), "404 \"Not Found\"");
    finds_nothing(&Job::get(&site.url("/short")), "6 bytes");
    finds_nothing(&Job::get(&site.url("/chunked-short")), "download failed");
    finds_nothing(&Job::get(&site.url("/garbage")), "download failed");
    let head = site.requests()[0].to_ascii_lowercase();
    assert!(head.starts_with("get /ok http/1.1\r\n"), "{head}");
    let host = format!("host: 127.0.0.1:{}\r\n", site.port);
    for line in ["user-agent: fruixd/", "accept: */*\r\n", &host] {
        assert!(head.contains(line), "{line} not in {head}");
    }
    // A body is stored as it comes: compressed ones are not to be asked for.
    assert!(!head.contains("gzip"), "{head}");
}

#[test]
fn redirects_end_and_stay_on_the_web() {
    let site = site();
    let log = succeeds(&Job::get(&site.url("/r/3")));
    let hops: Vec<&str> = log.lines().filter(|l| l.starts_with("following redirection")).collect();
    assert_eq!(hops.len(), 4);
    assert_eq!(hops[0], format!("following redirection to `{}'...", site.url("/r/2")));
    finds_nothing(&Job::get(&site.url("/r/30")), "more than 20 redirections");
    finds_nothing(&Job::get(&site.url("/loop")), "more than 20 redirections");
    finds_nothing(&Job::get(&site.url("/to-nowhere")), "redirection without a location");
    finds_nothing(&Job::get(&site.url("/to-escape")), "download failed");
    let mut job = Job::get(&site.url("/to-file"));
    // Even where the client may ask for local files, a server may not.
    job.input.allow_file = true;
    finds_nothing(&job, "redirection to file:///etc/passwd refused");
}

#[test]
fn urls_are_tried_in_order_and_mirrors_expanded() {
    let site = site();
    let (short, ok) = (site.url("/short"), site.url("/ok"));
    let log = succeeds(&Job::get_any(&["gopher://127.0.0.1/x", "ftp://127.0.0.1/x", &short, &ok]));
    assert!(log.contains("unsupported scheme: gopher"), "{log}");
    assert!(log.contains("ftp is not supported"), "{log}");

    let mut job = Job::get("mirror://a.b/ok");
    let file =
        job.store_file("mirrors", &format!("((x) (a.b \"{}\" \"bad url\" \"file:///etc\" \"{}\"))", site.url("/none/"), site.url("/pub")));
    job.set("mirrors", &file);
    let log = succeeds(&job);
    assert!(log.contains(&format!("{}...", site.url("/none/ok"))), "{log}");
    assert!(log.contains("unsupported scheme: file"), "{log}");
    assert!(log.contains("bad mirror URL \"bad url/ok\""), "{log}");

    let mut unknown = Job::get("mirror://x/ok");
    let file = unknown.store_file("mirrors", "((x) (y \"http://a/\"))");
    unknown.set("mirrors", &file);
    is_refused(&unknown, "unsupported URL mirror kind x");
}

#[test]
fn traces_are_those_that_the_client_reads() {
    let site = site();
    let (short, url) = (site.url("/short"), site.url("/r/0"));
    let mut job = Job::get_any(&[&short, &url]);
    job.input.extended_trace = true;
    let log = succeeds(&job);
    let out = job.out();
    let out = out.display();
    let traces: Vec<&str> = log.lines().filter(|l| l.starts_with("@ ")).collect();
    assert_eq!(
        traces,
        [
            format!("@ download-started {out} {short} 100"),
            format!("@ download-progress {out} {short} 100 6"),
            format!("@ download-progress {out} {url} 6 6"),
            format!("@ download-progress {out} {url} 6 6"),
            format!("@ download-succeeded {out} {url} 6"),
        ]
    );
    job.input.extended_trace = false;
    assert!(!succeeds(&job).contains("@ download"));
}

#[test]
fn slow_servers_are_left() {
    let site = site();
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    let started = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| finds_nothing(&Job::get(&site.url("/stall")), "2 bytes"));
        scope.spawn(|| finds_nothing(&Job::get(&site.url("/silent")), "timed out"));
        // The kernel accepts these connections; nobody answers, with https not even the handshake.
        scope.spawn(|| finds_nothing(&Job::get(&format!("http://127.0.0.1:{port}/")), "timed out"));
        scope.spawn(|| {
            let mut job = Job::get(&format!("https://127.0.0.1:{port}/"));
            job.input.timeouts.connect = 2000;
            finds_nothing(&job, "timed out");
        });
    });
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(15), "{took:?}");
    finds_nothing(&Job::get("http://127.0.0.1:1/x"), "onnection refused");
}

/// A certificate authority.
struct Authority {
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: rcgen::Issuer::new(params, key) }
    }

    /// A server on 127.0.0.1 with a certificate for `name`.
    fn server(&self, name: &str, expired: bool) -> Server {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let handler = |path: &str, out: &mut dyn Write| match path.strip_prefix("/to/") {
            Some(to) => answer(out, "302 Found", &format!("Location: {to}\r\n"), b""),
            None => answer(out, "200 OK", "", b"hello\n"),
        };
        Server::start(Some(Arc::new(config)), Arc::new(handler))
    }
}

/// A download that trusts the authorities in `bundle`.
fn trusting(bundle: Option<&str>, urls: &[&str]) -> Job {
    let mut job = Job::get_any(urls);
    job.input.ca_bundle = bundle.map(|pem| job.store_file("ca.pem", pem).into());
    job
}

#[test]
fn certificates_are_checked() {
    let (good, evil) = (Authority::new("good"), Authority::new("evil"));
    let both = format!("{}{}", evil.pem, good.pem);
    let both = Some(both.as_str());
    let server = good.server("127.0.0.1", false);
    let url = server.https_url("/x");
    succeeds(&trusting(both, &[&url]));
    // Another authority, those compiled in, none.
    finds_nothing(&trusting(Some(&evil.pem), &[&url]), "UnknownIssuer");
    finds_nothing(&trusting(None, &[&url]), "UnknownIssuer");
    finds_nothing(&trusting(Some("nothing"), &[&url]), "no certificate found");
    let other = good.server("127.0.0.2", false).https_url("/x");
    finds_nothing(&trusting(both, &[&other]), "not valid for");
    let named = good.server("example.org", false).https_url("/x");
    finds_nothing(&trusting(both, &[&named]), "not valid for");
    let old = good.server("127.0.0.1", true).https_url("/x");
    finds_nothing(&trusting(both, &[&old]), "expired");
    // A bundle that cannot be read is named, and does not keep an http URL behind it from being tried.
    let site = site();
    let mut job = trusting(None, &[&url, &site.url("/ok")]);
    job.input.ca_bundle = Some("/nonexistent/ca.pem".into());
    assert!(succeeds(&job).contains("CA certificates in `/nonexistent/ca.pem'"));

    // Redirects go up to https and (as upstream: the hash is what counts) down to http; each https hop is checked.
    let via = |target: &str| server.https_url(&format!("/to/{target}"));
    succeeds(&trusting(both, &[&via(&site.url("/ok"))]));
    finds_nothing(&trusting(both, &[&via(&other)]), "not valid for");
    let up = Server::http(move |_, out| answer(out, "308 x", &format!("Location: {url}\r\n"), b""));
    succeeds(&trusting(both, &[&up.url("/")]));
    finds_nothing(&trusting(Some(&evil.pem), &[&up.url("/")]), "UnknownIssuer");
}

#[test]
fn the_bundle_is_found() {
    let authority = Authority::new("any");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.pem");
    fs::write(&file, &authority.pem).unwrap();
    fs::write(dir.path().join("b.crt"), "junk").unwrap();
    symlink("nowhere", dir.path().join("0dangling.pem")).unwrap();
    let with = |name: &'static str, value: &Path| {
        let value = value.to_owned();
        ca::collect(move |n| (n == name).then(|| value.clone().into()))
    };
    let pem = with("SSL_CERT_FILE", &file).unwrap().unwrap();
    assert_eq!(pem, authority.pem.as_bytes());
    let pem = with("SSL_CERT_DIR", dir.path()).unwrap().unwrap();
    assert_eq!(String::from_utf8(pem).unwrap().trim(), authority.pem.trim());
    assert!(with("SSL_CERT_FILE", &dir.path().join("b.crt")).is_err());
    assert!(with("NIX_SSL_CERT_FILE", Path::new("/nonexistent")).is_err());
    assert!(with("SSL_CERT_FILE", Path::new("/dev/zero")).is_err());
    ca::collect(|_| None).unwrap();
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().unwrap().stdout == b"0\n"
}

#[test]
fn local_files_are_read_only_where_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a file");
    fs::write(&file, "hello\n").unwrap();
    let url = format!("file://{}", file.display()).replace(' ', "%20");
    let mut job = Job::get(&url);
    is_refused(&job, &format!("URL \"{url}\" is for a local file"));
    job.input.allow_file = true;
    succeeds(&job);
    for (url, reason) in [
        ("file:///dev/zero", "not a regular file"),
        ("file:///", "not a regular file"),
        ("file:///nonexistent", "No such file"),
        ("file://host/etc/passwd", "file of another host"),
    ] {
        job.set("url", &sexp::quoted(url));
        finds_nothing(&job, reason);
    }
    // What this user may not read stays unread. Root may read all, so the builder's entry refuses to work for it.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    job.set("url", &sexp::quoted(&url));
    if is_root() {
        let input = serde_json::to_vec(&job.input).unwrap();
        assert_eq!(builtins::run("download", &input), EXIT_FAILED);
        assert!(!job.out().exists());
    } else {
        finds_nothing(&job, "denied");
    }
}

#[test]
fn hostile_derivations_are_refused() {
    let site = site();
    let ok = site.url("/ok");
    for (url, message) in [
        (format!("\"{ok}\\nX: y\""), "can't be decoded"),
        (format!("\"{ok} HTTP/1.0\\r\\n\\r\\n\""), "can't be decoded"),
        (format!("\"{ok}\\x1b[2J\""), "can't be decoded"),
        ("\"http://h\\x00/\"".into(), "can't be decoded"),
        ("\"/etc/passwd\"".into(), "can't be decoded"),
        ("\"not a url\"".into(), "can't be decoded"),
        ("\"FILE:///etc/shadow\"".into(), "is for a local file"),
        (format!("(\"{ok}\" \"file:///etc/shadow\")"), "is for a local file"),
        ("foo".into(), "expected a string or a list of strings"),
        (format!("(\"{ok}\" b)"), "expected a string or a list of strings"),
        (format!("(\"{ok}\""), "unexpected end of input"),
        ("#.(system \"id\")".into(), "reader extension refused"),
        (String::new(), "unexpected end of input"),
    ] {
        is_refused(&Job::new(&[("url", &url)]), message);
    }
    is_refused(&Job::new(&[]), "/s/x.drv: missing URL");
    let mut job = Job::get(&ok);
    job.input.outputs[0].hash.clear();
    is_refused(&job, "/s/x.drv is not a fixed-output derivation");
    finds_nothing(&Job::get_any(&[]), "from ()");

    // Files that the derivation names are data, and in the store.
    for name in ["mirrors", "content-addressed-mirrors"] {
        let mut job = Job::get(&ok);
        job.input.env.retain(|(k, _)| k != "download-methods");
        job.set(name, "/etc/passwd");
        is_refused(&job, "\"/etc/passwd\" is not in the store");
        let link = job.dir.path().join("link");
        symlink("/etc/passwd", &link).unwrap();
        job.set(name, link.to_str().unwrap());
        is_refused(&job, "\"/etc/passwd\" is not in the store");
        let program = job.store_file("program", "#.(exit 0)");
        job.set(name, &program);
        is_refused(&job, "reader extension refused");
    }
    assert_eq!(site.requests(), Vec::<String>::new(), "something was requested");

    assert_eq!(builtins::run("download", b"{}"), EXIT_FAILED);
    let nothing = BuiltinInput::default();
    assert_eq!(builtins::perform("no-such", &nothing, &mut Vec::new()), EXIT_FAILED);
    assert_eq!(
        builtins::names().collect::<Vec<_>>(),
        [
            "download",
            "freebsd-base",
            "freebsd-image",
            "freebsd-pkg",
            "freebsd-profile",
            "freebsd-rootfs",
            "freebsd-source",
            "freebsd-source-part",
            "freebsd-system",
            "git-download"
        ]
    );
    for name in builtins::names() {
        assert!(builtins::lookup(&format!("builtin:{name}")).is_some());
    }
    assert!(builtins::lookup("nar").is_none());
}

#[test]
fn the_output_is_made_anew_and_executable_if_wished() {
    let site = site();
    let mut job = Job::get(&site.url("/ok"));
    job.set("executable", "1");
    // Whatever stands at the output's place is replaced, never written through.
    let canary = job.store_file("canary", "keep");
    symlink(&canary, job.out()).unwrap();
    succeeds(&job);
    let metadata = fs::symlink_metadata(job.out()).unwrap();
    assert!(metadata.is_file());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::read(canary).unwrap(), b"keep");

    let mut job = Job::get(&site.url("/ok"));
    job.input.outputs[0].write_to = Some("/nonexistent/out".into());
    is_refused(&job, "creating `/nonexistent/out': No such file");
}

#[test]
fn credentials_go_to_their_host_alone() {
    let other = site();
    let target = other.url("/ok");
    let site = Server::http(move |_, out| answer(out, "302 x", &format!("Location: {target}\r\n"), b""));
    let log = succeeds(&Job::get(&format!("http://me:p%40ss@127.0.0.1:{}/", site.port)));
    assert!(!log.contains("p%40ss"), "{log}");
    let head = site.requests().remove(0);
    assert!(head.contains("Basic bWU6cEBzcw==\r\n"), "{head}");
    let head = other.requests().remove(0).to_ascii_lowercase();
    assert!(!head.contains("authorization"), "{head}");
}

#[test]
fn the_proxy_of_the_environment_is_used() {
    // A proxy answers CONNECT, and then the request that it would pass on.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let proxy = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n"].map(|reply| {
            let head = read_head(&mut stream).unwrap();
            stream.write_all(reply.as_bytes()).unwrap();
            head
        })
    });
    let mut job = Job::get("http://127.0.0.1:1/x");
    job.set("http_proxy", &format!("http://127.0.0.1:{port}"));
    succeeds(&job);
    let heads = proxy.join().unwrap();
    assert!(heads[0].starts_with("CONNECT 127.0.0.1:1 "), "{heads:?}");
    assert!(heads[1].starts_with("GET /x "), "{heads:?}");
    for bad in ["socks5://127.0.0.1:1", "gopher://x", "\u{1}"] {
        job.set("http_proxy", bad);
        finds_nothing(&job, "cannot use the proxy");
    }
}

/// Most memory this process ever had, in KiB.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn huge_bodies_are_streamed() {
    const LEN: u64 = 256 << 20;
    let server = Server::http(|_, out| {
        let _ = write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {LEN}\r\n\r\n");
        let block = vec![7; 1 << 20];
        while out.write_all(&block).is_ok() {}
    });
    let job = Job::get(&server.url("/huge"));
    let before = peak_memory();
    assert_eq!(builtins::perform("download", &job.input, &mut Vec::new()), EXIT_DONE);
    assert_eq!(fs::metadata(job.out()).unwrap().len(), LEN);
    // Other tests run in this process at the same time.
    let grown = peak_memory() - before;
    assert!(grown < 64 << 10, "{grown} KiB");
}

#[test]
fn fallbacks_follow_the_derivation() {
    // The hosts of the fallbacks cannot be reached where tests run; a proxy that refuses stands for them and is told their names.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let head = read_head(&mut stream).unwrap_or_default();
            let target = head.split(' ').nth(1).unwrap_or("").to_owned();
            seen.lock().unwrap().push(target);
            let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let site = site();
    let hosts = |methods: &str, program: Option<&str>, algorithm: &str| {
        let mut job = Job::get(&site.url("/nothing"));
        job.set("https_proxy", &format!("http://127.0.0.1:{port}"));
        job.set("download-methods", methods);
        job.input.outputs[0].hash_algo = algorithm.into();
        if let Some(program) = program {
            let file = job.store_file("program", program);
            job.set("content-addressed-mirrors", &file);
        }
        finds_nothing(&job, "download");
        std::mem::take(&mut *asked.lock().unwrap()).join(" ")
    };
    let program = r#"(list (f "ci.guix.gnu.org") (g "https://tarballs.nixos.org/") (h "https://evil.example/"))"#;
    let (known, archive) = ("ci.guix.gnu.org:443 tarballs.nixos.org:443", "web.archive.org:443");
    assert_eq!(hosts("#f", Some(program), "sha256"), format!("{known} {archive}"));
    assert_eq!(hosts("#f", Some("(quote ())"), "sha256"), archive);
    assert_eq!(hosts("#f", None, "sha256"), archive);
    assert_eq!(hosts("#f", Some(program), "r:sha256"), archive);
    assert_eq!(hosts("(upstream)", Some(program), "sha256"), "");
    assert_eq!(hosts("(content-addressed-mirrors)", Some(program), "sha256"), known);
}

fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"])
        .args(args)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The names in a directory, sorted; none if there is no directory.
fn names(dir: &Path) -> String {
    let mut names: Vec<String> =
        fs::read_dir(dir).map(|d| d.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()).unwrap_or_default();
    names.sort();
    names.join(" ")
}

#[test]
fn git_checkouts_have_the_tree_and_nothing_else() {
    let Some(program) = builtins::git_download::find_git(std::env::var_os("PATH").as_deref()) else {
        eprintln!("skipped: no git on this machine");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (sub, main) = (dir.path().join("sub"), dir.path().join("main"));
    for repository in [&sub, &main] {
        fs::create_dir(repository).unwrap();
        git(repository, &["init", "-q", "-b", "trunk"]);
        fs::write(repository.join("file"), "old\n").unwrap();
        git(repository, &["add", "."]);
        git(repository, &["commit", "-qm", "one"]);
    }
    let first = git(&main, &["rev-parse", "HEAD"]);
    let url = format!("file://{}", sub.display());
    git(&main, &["submodule", "--quiet", "add", &url, "inner"]);
    fs::write(main.join("file"), "new\n").unwrap();
    fs::write(main.join(".gitattributes"), "file filter=evil\n").unwrap();
    symlink("/etc", main.join("link")).unwrap();
    git(&main, &["add", "."]);
    git(&main, &["commit", "-qm", "two"]);
    git(&main, &["tag", "v1.0"]);

    let job = |commit: &str, recursive: &str| {
        let mut job = Job::get(&format!("file://{}", main.display()));
        job.set("commit", commit);
        job.set("recursive?", recursive);
        job.input.git = Some(program.clone());
        job.input.allow_file = true;
        job
    };
    let fetch = |job: &Job| {
        let (status, _, log) = job.run("git-download");
        assert_eq!(status, EXIT_DONE, "{log}");
        names(&job.out())
    };
    let tagged = job("v1.0", "#f");
    assert_eq!(fetch(&tagged), ".gitattributes .gitmodules file inner link");
    assert_eq!(fs::read(tagged.out().join("file")).unwrap(), b"new\n");
    assert_eq!(names(&tagged.out().join("inner")), "");
    let old = job(&first, "#f");
    assert_eq!(fetch(&old), "file");
    assert_eq!(fs::read(old.out().join("file")).unwrap(), b"old\n");
    let recursive = job("v1.0", "#t");
    assert_eq!(fetch(&recursive), ".gitattributes .gitmodules file inner link");
    assert_eq!(names(&recursive.out().join("inner")), "file");
    let absent = job("v9", "#f");
    assert_eq!(fetch(&absent), "");
    assert!(!absent.out().exists());

    let refused = |change: &dyn Fn(&mut Job), message: &str| {
        let mut job = job("v1.0", "#f");
        change(&mut job);
        let (status, _, log) = job.run("git-download");
        assert_eq!(status, EXIT_FAILED, "{log}");
        assert!(log.contains(message), "no {message:?} in {log}");
        assert!(!job.out().exists());
    };
    for (name, value, message) in [
        ("commit", "--upload-pack=id", "is not a Git commit"),
        ("commit", "a:b", "is not a Git commit"),
        ("url", "\"ext::sh -c id\"", "can't be decoded"),
        ("url", "\"ext::id\"", "cannot clone"),
        ("url", "\"ssh://-oProxyCommand=id/x\"", "can't be decoded"),
        ("url", "\"ssh://h/x\"", "cannot clone"),
        ("url", "\"--upload-pack=id\"", "can't be decoded"),
        ("url", "(\"http://a/\")", "expected a string"),
    ] {
        refused(&|job| job.set(name, value), message);
    }
    refused(&|job| job.input.env.retain(|(k, _)| k != "commit"), "missing Git commit");
    refused(&|job| job.input.env.retain(|(k, _)| k != "url"), "missing Git URL");
    refused(&|job| job.input.allow_file = false, "is for a local file");
    refused(&|job| job.input.git = None, "has no `git' program");
    refused(&|job| job.input.git = Some("/nonexistent/git".into()), "has no `git' program");
    refused(&|job| job.input.outputs[0].hash.clear(), "is not a fixed-output derivation");
}
