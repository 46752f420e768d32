//! Where else a file may be had: `mirror://` lists, and servers that know files by their hash.

use super::sexp::Datum;
use super::url::Url;
use fruix_drv::base32;

/// One entry of the mirror list: the name in `mirror://NAME/…` and base URLs, most authoritative first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Name.
    pub name: String,
    /// Base URLs, as written by the client.
    pub bases: Vec<String>,
}

/// The entries of a mirror list, `((NAME URL …) …)`. Entries of another shape are left out: only the one that is asked for must
/// be right.
pub fn parse_mirrors(datum: &Datum) -> Vec<Mirror> {
    let entry = |datum: &Datum| {
        let (name, bases) = datum.as_list()?.split_first()?;
        Some(Mirror {
            name: name.as_atom()?.to_owned(),
            bases: bases.iter().map(|b| b.as_str().map(str::to_owned)).collect::<Option<_>>()?,
        })
    };
    datum.as_list().unwrap_or(&[]).iter().filter_map(entry).collect()
}

/// The URLs, as text, that `url` stands for: itself, or for `mirror://NAME/PATH` each base URL of NAME with PATH, with one slash
/// between them. `None` where the list has no base URL for NAME.
pub fn expand(url: &Url, mirrors: &[Mirror]) -> Option<Vec<String>> {
    let bases = &mirrors.iter().find(|m| m.name == url.host)?.bases;
    if bases.is_empty() {
        return None;
    }
    let path = url.path.trim_matches('/');
    Some(bases.iter().map(|base| format!("{}/{path}", base.trim_end_matches('/'))).collect())
}

/// A server that has files by content hash, as Guix's default `content-addressed-mirrors` knows it.
struct ContentAddressed {
    /// The string literal in the client's file that stands for the server.
    literal: &'static str,
    /// The URL of a file there.
    url: fn(&FileHash<'_>) -> String,
}

/// What content-addressed servers are asked for.
#[derive(Debug, Clone, Copy)]
pub struct FileHash<'a> {
    /// Name of the file, without store directory and hash.
    pub name: &'a str,
    /// `sha256` and the like.
    pub algorithm: &'a str,
    /// The hash of the file's bytes.
    pub hash: &'a [u8],
}

const CONTENT_ADDRESSED: [ContentAddressed; 4] = [
    ContentAddressed { literal: "bordeaux.guix.gnu.org", url: |f| guix_publish("bordeaux.guix.gnu.org", f) },
    ContentAddressed { literal: "ci.guix.gnu.org", url: |f| guix_publish("ci.guix.gnu.org", f) },
    ContentAddressed {
        literal: "https://tarballs.nixos.org/",
        url: |f| format!("https://tarballs.nixos.org/{}/{}", f.algorithm, base32::encode(f.hash)),
    },
    ContentAddressed {
        literal: "https://archive.softwareheritage.org/api/1/content/",
        url: |f| {
            format!("https://archive.softwareheritage.org/api/1/content/{}:{}/raw/", f.algorithm, data_encoding::HEXLOWER.encode(f.hash))
        },
    },
];

fn guix_publish(host: &str, f: &FileHash<'_>) -> String {
    format!("https://{host}/file/{}/{}/{}", f.name, f.algorithm, base32::encode(f.hash))
}

/// The URLs of a file at the content-addressed servers that the client's file names.
///
/// That file is a Scheme program. It is looked at as data: a server of our table is asked when the string that stands for it
/// occurs in the program, so a client that leaves one out, or gives an empty list, is heeded. Nothing of it is evaluated, and
/// servers that are not in the table are not asked.
pub fn content_addressed(program: &Datum, file: &FileHash<'_>) -> Vec<String> {
    let mut found = [false; CONTENT_ADDRESSED.len()];
    program.for_each_str(&mut |text| {
        for (entry, found) in CONTENT_ADDRESSED.iter().zip(&mut found) {
            *found |= entry.literal == text;
        }
    });
    CONTENT_ADDRESSED.iter().zip(found).filter(|(_, found)| *found).map(|(entry, _)| (entry.url)(file)).collect()
}

/// The Internet Archive's copy of `url`. It redirects to the date closest to the one given, so any date serves.
pub fn internet_archive(url: &Url) -> Option<String> {
    matches!(url.scheme.as_str(), "http" | "https").then(|| format!("https://web.archive.org/web/20991231235959/{url}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::sexp;
    use super::*;

    /// Guix 1.5.0's own list, shortened to its structure.
    const PROGRAM: &str = r#"(begin (use-modules (guix base16) (guix base32))
      (define (guix-publish host) (lambda (file algo hash) (string-append "https://" host "/file/" file)))
      (list (guix-publish "bordeaux.guix.gnu.org") (guix-publish "ci.guix.gnu.org")
            (lambda (file algo hash) (string-append "https://tarballs.nixos.org/" (symbol->string algo)))
            (lambda (file algo hash)
              (string-append "https://archive.softwareheritage.org/api/1/content/" (symbol->string algo) ":"))))"#;

    #[test]
    fn content_addressed_servers_are_those_the_client_names() {
        // sha256 of "hello\n"; the base 32 form was printed by guix.
        let hash = [
            0x58, 0x91, 0xb5, 0xb5, 0x22, 0xd5, 0xdf, 0x08, 0x6d, 0x0f, 0xf0, 0xb1, 0x10, 0xfb, 0xd9, 0xd2, 0x1b, 0xb4, 0xfc, 0x71, 0x63,
            0xaf, 0x34, 0xd0, 0x82, 0x86, 0xa2, 0xe8, 0x46, 0xf6, 0xbe, 0x03,
        ];
        let file = FileHash { name: "f404", algorithm: "sha256", hash: &hash };
        let b32 = "00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq";
        assert_eq!(
            content_addressed(&sexp::read(PROGRAM).unwrap(), &file),
            [
                format!("https://bordeaux.guix.gnu.org/file/f404/sha256/{b32}"),
                format!("https://ci.guix.gnu.org/file/f404/sha256/{b32}"),
                format!("https://tarballs.nixos.org/sha256/{b32}"),
                "https://archive.softwareheritage.org/api/1/content/sha256:\
                 5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03/raw/"
                    .to_owned(),
            ]
        );
        for none in ["()", "(quote ())", r#"(list (lambda _ "https://evil.example/"))"#, r#"(system "ci.guix.gnu.org/")"#] {
            assert_eq!(content_addressed(&sexp::read(none).unwrap(), &file), Vec::<String>::new(), "{none}");
        }
        assert_eq!(content_addressed(&sexp::read(r#"(x "ci.guix.gnu.org")"#).unwrap(), &file).len(), 1);
    }

    #[test]
    fn mirrors_expand_in_order() {
        let list = sexp::read(r#"((gnu "https://a/gnu/" "ftp://b/gnu") (netfilter.org "https://n/") (bad 1) (none) 7)"#).unwrap();
        let mirrors = parse_mirrors(&list);
        let expand = |u: &str| expand(&Url::parse(u).unwrap(), &mirrors);
        assert_eq!(expand("mirror://gnu//hello/h.tar.gz").unwrap(), ["https://a/gnu/hello/h.tar.gz", "ftp://b/gnu/hello/h.tar.gz"]);
        assert_eq!(expand("mirror://netfilter.org/x").unwrap(), ["https://n/x"]);
        for unknown in ["mirror://bad/x", "mirror://none/x", "mirror://other/x"] {
            assert_eq!(expand(unknown), None, "{unknown}");
        }
    }
}
