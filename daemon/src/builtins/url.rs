//! The URLs of a download: parsed strictly, printed on one line, references resolved as in RFC 3986.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Longest accepted URL, in bytes.
pub const MAX_LEN: usize = 8192;

/// A URL without white space, control characters or anything else that could pass for two lines of a log or of a request.
/// Characters outside ASCII in path and query are held percent-encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// In lower case.
    pub scheme: String,
    /// What stands before `@`: never sent in a request line, and not printed.
    pub userinfo: Option<String>,
    /// Host name or address (an IPv6 address with its brackets); empty where the URL has none.
    pub host: String,
    /// Port, where given.
    pub port: Option<u16>,
    /// Path, empty or (behind a host) beginning with `/`.
    pub path: String,
    /// What follows `?`.
    pub query: Option<String>,
}

/// Prints all but the user information, which may be a password, and the fragment.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if !self.host.is_empty() || self.path.starts_with('/') {
            write!(f, "//{}", self.host)?;
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)?;
        if let Some(query) = &self.query {
            write!(f, "?{query}")?;
        }
        Ok(())
    }
}

/// Splits `scheme:rest`.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let mut bytes = scheme.bytes();
    let ok = bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    ok.then_some((scheme, rest))
}

/// Percent-encodes what a request line cannot carry. `None` for control characters; for a space unless `lenient`.
fn encode(text: &str, lenient: bool) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' ' if lenient => out.push_str("%20"),
            c if c.is_whitespace() || c.is_control() => return None,
            '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}' => {
                out.push_str(&format!("%{:02X}", c as u32));
            }
            c if c.is_ascii() => out.push(c),
            c => {
                let mut buf = [0; 4];
                for b in c.encode_utf8(&mut buf).bytes() {
                    out.push_str(&format!("%{b:02X}"));
                }
            }
        }
    }
    Some(out)
}

/// A path with its `.` and `..` segments resolved; `..` never leaves the root.
fn remove_dot_segments(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." => {}
            ".." => {
                if out.len() > 1 {
                    out.pop();
                }
            }
            s => {
                out.push(s);
                continue;
            }
        }
        if last {
            // "a/." and "a/.." name directories.
            out.push("");
        }
    }
    out.join("/")
}

impl Url {
    /// Parses an absolute URL. `None` where there is no scheme, a host, port or character is not allowed, or it is too long.
    pub fn parse(text: &str) -> Option<Url> {
        Self::parse_with(text, false)
    }

    fn parse_with(text: &str, lenient: bool) -> Option<Url> {
        if text.len() > MAX_LEN {
            return None;
        }
        let text = text.split_once('#').map_or(text, |(before, _)| before);
        let text = encode(text, lenient)?;
        let (scheme, rest) = split_scheme(&text)?;
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query.to_owned())),
            None => (rest, None),
        };
        let (authority, path) = match rest.strip_prefix("//") {
            None => ("", rest),
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        };
        let (userinfo, host_port) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user.to_owned()), host),
            None => (None, authority),
        };
        let (host, port) = if host_port.starts_with('[') {
            let end = host_port.find(']')?.checked_add(1)?;
            host_port.split_at(end)
        } else {
            host_port.split_at(host_port.find(':').unwrap_or(host_port.len()))
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            Some("") => None,
            Some(p) if p.bytes().all(|b| b.is_ascii_digit()) => Some(p.parse().ok()?),
            _ => return None,
        };
        if !host_is_valid(host) || (host.is_empty() && (userinfo.is_some() || port.is_some())) {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        if host.is_empty() && matches!(scheme.as_str(), "http" | "https" | "ftp" | "mirror" | "git") {
            return None;
        }
        Some(Url { scheme, userinfo, host: host.to_owned(), port, path: path.to_owned(), query })
    }

    /// The URL that the reference `text` (a `Location` header) means at this one. Spaces are taken for `%20`.
    /// `None` where it is no reference.
    pub fn resolve(&self, text: &str) -> Option<Url> {
        let text = text.trim_matches([' ', '\t']);
        if split_scheme(text).is_some() {
            return Self::parse_with(text, true);
        }
        if let Some(rest) = text.strip_prefix("//") {
            return Self::parse_with(&format!("{}://{rest}", self.scheme), true);
        }
        if text.len() > MAX_LEN {
            return None;
        }
        let text = text.split_once('#').map_or(text, |(before, _)| before);
        let text = encode(text, true)?;
        let mut url = self.clone();
        let (path, query) = match text.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (text.as_str(), None),
        };
        if path.is_empty() {
            if query.is_some() {
                url.query = query;
            }
        } else {
            url.query = query;
            url.path = if path.starts_with('/') {
                remove_dot_segments(path)
            } else {
                let directory = url.path.rsplit_once('/').map_or("", |(dir, _)| dir);
                remove_dot_segments(&format!("{directory}/{path}"))
            };
        }
        Some(url)
    }

    /// Path and query as the request line carries them.
    pub fn path_and_query(&self) -> String {
        let mut out = if self.path.starts_with('/') { self.path.clone() } else { format!("/{}", self.path) };
        if let Some(query) = &self.query {
            out.push('?');
            out.push_str(query);
        }
        out
    }

    /// The file that a `file:` URL of this machine names; `None` for other URLs.
    pub fn local_path(&self) -> Option<PathBuf> {
        let local = self.scheme == "file" && (self.host.is_empty() || self.host == "localhost");
        local.then(|| OsString::from_vec(percent_decode(&self.path)).into())
    }

    /// The absolute URL to request: no user information, no fragment.
    pub fn request_uri(&self) -> String {
        let port = self.port.map_or(String::new(), |p| format!(":{p}"));
        format!("{}://{}{port}{}", self.scheme, self.host, self.path_and_query())
    }
}

/// Resolves `%XX`; anything else stays.
pub(super) fn percent_decode(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%').then(|| tail.split_at_checked(2)).flatten().and_then(|(digits, tail)| {
            let byte = data_encoding::HEXUPPER_PERMISSIVE.decode(digits).ok()?;
            Some((byte, tail))
        });
        match escaped {
            Some((byte, tail)) => {
                out.extend(byte);
                rest = tail;
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

fn host_is_valid(host: &str) -> bool {
    if host.len() > 255 || host.starts_with(['-', '.']) {
        return false;
    }
    match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn resolves_references() {
        let base = Url::parse("http://user:pw@a:81/b/c/d?q").unwrap();
        for (reference, result) in [
            ("g", "http://a:81/b/c/g"),
            ("./g/", "http://a:81/b/c/g/"),
            ("/g", "http://a:81/g"),
            ("?y", "http://a:81/b/c/d?y"),
            ("g?y/../x#f", "http://a:81/b/c/g?y/../x"),
            ("", "http://a:81/b/c/d?q"),
            ("..", "http://a:81/b/"),
            ("../../../../etc", "http://a:81/etc"),
            ("//h/x", "http://h/x"),
            ("https://h:1?z", "https://h:1?z"),
            ("a b.tar", "http://a:81/b/c/a%20b.tar"),
            ("/é|", "http://a:81/%C3%A9%7C"),
        ] {
            assert_eq!(base.resolve(reference).unwrap().to_string(), result, "{reference}");
        }
        for bad in ["/a\r\nX: y", "http:// h/", "http://h\u{0}/", "\u{1b}[2J", "//h:99999/", "http:///x"] {
            assert_eq!(base.resolve(bad), None, "{bad:?}");
        }
        // Credentials belong to their host alone.
        assert_eq!(base.resolve("//h/x").unwrap().userinfo, None);
        assert_eq!(base.resolve("/x").unwrap().userinfo.as_deref(), Some("user:pw"));
    }

    #[test]
    fn parses_or_refuses() {
        let url = Url::parse("HTTP://[::1]:8080?x").unwrap();
        assert_eq!((url.host.as_str(), url.port), ("[::1]", Some(8080)));
        assert_eq!(url.request_uri(), "http://[::1]:8080/?x");
        assert_eq!(Url::parse("file:///etc/x").unwrap().path, "/etc/x");
        assert_eq!(Url::parse("file:///etc/x").unwrap().to_string(), "file:///etc/x");
        let path = |u: &str| Url::parse(u).unwrap().local_path();
        assert_eq!(path("file:///a%20b/%zz?c#d"), Some("/a b/%zz".into()));
        assert_eq!(path("file://localhost/a"), path("file:/a"));
        assert_eq!((path("file://h/a"), path("http://h/a")), (None, None));
        assert_eq!(Url::parse("mailto:a@b").unwrap().to_string(), "mailto:a@b");
        for bad in [
            "",
            "foo",
            "/etc/passwd",
            "not a url",
            "http:",
            "http://",
            "http:///x",
            "http://a b/",
            "http://a/\nX",
            "http://a:b/",
            "http://-oProxyCommand=x/",
            "http://a:+80/",
            "http://[::1/",
            "http://[x]/",
            "1http://a/",
            "http://a\u{2028}/",
            "http://é/",
            "http://a:70000/",
        ] {
            assert_eq!(Url::parse(bad), None, "{bad:?}");
        }
        assert_eq!(Url::parse(&format!("http://a/{}", "x".repeat(MAX_LEN))), None);
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_one_clean_line_and_stable(
            s in prop_oneof![any::<String>(), "(http|file|mirror|x)://?[a-z@:0-9\\[\\]%]{0,9}/?\\PC{0,20}"],
            r in any::<String>(),
        ) {
            if let Some(url) = Url::parse(&s) {
                for url in [url.resolve(&r), Some(url)].into_iter().flatten() {
                    let printed = url.to_string();
                    prop_assert!(printed.bytes().all(|b| b.is_ascii_graphic()), "{}", printed);
                    let again = Url::parse(&printed);
                    prop_assert_eq!(again.map(|u| u.to_string()), Some(printed));
                }
            }
        }
    }
}
