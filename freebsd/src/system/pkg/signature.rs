//! The signature of a repository, in the two forms that pkg has: `fingerprints` (members `NAME.sig` and `NAME.pub` beside the catalogue) and `pubkey`
//! (a member `signature`, for a key that one has).
//!
//! What is signed is the SHA-256 of the catalogue as 64 digits of text. RSA: PKCS#1 with SHA-256. `$PKGSIGN:ecdsa$` before signature and key: ECDSA with
//! SHA-256 on secp384r1, the key as DER (`pkgsign_ossl.c`, `pkgsign_ecc.c`). A fingerprint is the SHA-256 of the bytes of the key's file.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use rustls_pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use webpki::RawPublicKeyEntity;

use super::MAX_CATALOGUE;
use super::archive::{REMEDY, each_entry};
use super::sum::hex;
use crate::system::sets;
use crate::tree::show;

/// The largest signature or key, in bytes, and the most of these: pkg's own limits.
const MAX_SIGNATURE: u64 = 1 << 20;
const MAX_SIGNATURES: usize = 8;
const HEAD: &[u8] = b"$PKGSIGN:";

/// A signature or a key, with the name of its kind.
type Signed = (String, Vec<u8>);

/// What a catalogue's archive has.
#[derive(Debug, Default)]
pub struct Extracted {
    /// The SHA-256 of the catalogue, in base 16.
    pub sha256: String,
    signatures: BTreeMap<String, Signed>,
    keys: BTreeMap<String, Signed>,
    /// The member `signature`.
    single: Option<Signed>,
}

/// Whose signature counts.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// That of a key with one of these SHA-256.
    Fingerprints(&'a [String]),
    /// That of this key, a PEM.
    Key(&'a [u8]),
}

/// What is wrong with a signature.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// No key of those that signed is one that counts: whether it should, only the user knows.
    #[error("no key that it is signed with is trusted")]
    Untrusted {
        /// The fingerprints of the keys that it is signed with.
        found: Vec<String>,
    },
    /// The key is no key: another file must be named.
    #[error("the key {0}")]
    Key(&'static str),
    /// What was signed is something else, or was not signed by that key.
    #[error("{0}")]
    Wrong(String),
}

fn typed(bytes: Vec<u8>) -> Signed {
    if let Some(rest) = bytes.strip_prefix(HEAD)
        && let Some(end) = rest.iter().position(|byte| *byte == b'$')
    {
        let kind = String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned();
        return (kind, rest.get(end + 1..).unwrap_or_default().to_vec());
    }
    ("rsa".to_owned(), bytes)
}

/// Unpacks the catalogue in `archive`, the member that is no signature, to the new file `to`, and keeps the signatures.
///
/// # Errors
/// What is wrong with the archive, in words.
pub fn extract(archive: &Path, to: &Path) -> Result<Extracted, String> {
    let mut input = sets::open(archive).map_err(|error| format!("cannot be opened: {error}; {REMEDY}"))?;
    let mut found = Extracted::default();
    let mut count = 0;
    let read = each_entry(&mut input, |head, body| {
        let name = show(head.path());
        let told = |error: io::Error| format!("`{name}': {error}");
        let ending = name.rsplit_once('.').filter(|(_, ending)| matches!(*ending, "sig" | "pub"));
        if ending.is_none() && name != "signature" {
            if !found.sha256.is_empty() {
                return Err(format!("has a second catalogue, `{name}'"));
            }
            if !head.is_file() || head.size() > MAX_CATALOGUE {
                return Err(format!("`{name}' is no file of at most {MAX_CATALOGUE} bytes"));
            }
            let mut out = io::BufWriter::new(fs::File::create_new(to).map_err(told)?);
            let mut hash = Sha256::new();
            let mut buffer = vec![0; 1 << 16];
            loop {
                let count = body.read(&mut buffer).map_err(told)?;
                let bytes = buffer.get(..count).filter(|bytes| !bytes.is_empty());
                let Some(bytes) = bytes else { break };
                hash.update(bytes);
                out.write_all(bytes).map_err(told)?;
            }
            out.flush().map_err(told)?;
            found.sha256 = hex(&hash.finalize());
        } else {
            count += 1;
            if count > MAX_SIGNATURES || head.size() > MAX_SIGNATURE {
                return Err(format!("has more than {MAX_SIGNATURES} signatures and keys, or one of more than {MAX_SIGNATURE} bytes"));
            }
            let mut bytes = Vec::new();
            body.take(MAX_SIGNATURE).read_to_end(&mut bytes).map_err(told)?;
            let place = match ending {
                Some((name, "sig")) => found.signatures.insert(name.to_owned(), typed(bytes)).is_some(),
                Some((name, _)) => found.keys.insert(name.to_owned(), typed(bytes)).is_some(),
                None => found.single.replace(typed(bytes)).is_some(),
            };
            if place {
                return Err(format!("has two `{name}'"));
            }
        }
        Ok(())
    });
    read.map_err(|why| format!("{why}; {REMEDY}"))?;
    if found.sha256.is_empty() {
        return Err(format!("has no catalogue; {REMEDY}"));
    }
    Ok(found)
}

/// Whether the catalogue is signed by somebody who counts.
///
/// # Errors
/// [`SignatureError`].
pub fn verify(extracted: &Extracted, trust: Trust<'_>) -> Result<(), SignatureError> {
    let wrong = |why: &str| SignatureError::Wrong(why.to_owned());
    let message = extracted.sha256.as_bytes();
    match trust {
        Trust::Key(key) => {
            let Some((kind, signature)) = &extracted.single else {
                return Err(wrong(if extracted.signatures.is_empty() {
                    "the catalogue is not signed"
                } else {
                    "the catalogue has no member `signature', as it has for `pubkey'"
                }));
            };
            if kind != "rsa" {
                return Err(SignatureError::Wrong(format!("a signature of kind `{kind}' goes with fingerprints, and not with pubkey")));
            }
            // Older versions of pkg wrote the NUL at its end, too.
            let signature = signature.strip_suffix(b"\0").filter(|rest| rest.len().is_multiple_of(64)).unwrap_or(signature);
            check(kind, key, message, signature)
        }
        Trust::Fingerprints(trusted) => {
            if extracted.signatures.is_empty() {
                return Err(wrong(if extracted.single.is_none() {
                    "the catalogue is not signed"
                } else {
                    "the catalogue has a signature without its key, as it has for `pubkey'"
                }));
            }
            let mut found = Vec::new();
            let mut last = None;
            for (name, (kind, signature)) in &extracted.signatures {
                let Some((_, key)) = extracted.keys.get(name) else { continue };
                let fingerprint = hex(&Sha256::digest(key));
                if !trusted.contains(&fingerprint) {
                    found.push(fingerprint);
                    continue;
                }
                match check(kind, key, message, signature) {
                    Ok(()) => return Ok(()),
                    Err(error) => last = Some(error),
                }
            }
            Err(last.unwrap_or(SignatureError::Untrusted { found }))
        }
    }
}

fn check(kind: &str, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
    let algorithm: &dyn SignatureVerificationAlgorithm = match kind {
        "rsa" => webpki::ring::RSA_PKCS1_2048_8192_SHA256,
        "ecdsa" | "ecc" => webpki::ring::ECDSA_P384_SHA256,
        other => {
            let shown: String = other.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
            return Err(SignatureError::Wrong(format!("signatures of kind `{shown}' are not known; rsa and ecdsa are")));
        }
    };
    let der = if kind == "rsa" {
        SubjectPublicKeyInfoDer::from_pem_slice(key).map_err(|_| SignatureError::Key("is no PEM with a public key"))?
    } else {
        SubjectPublicKeyInfoDer::from(key)
    };
    let entity = RawPublicKeyEntity::try_from(&der).map_err(|_| SignatureError::Key("cannot be understood"))?;
    entity.verify_signature(algorithm, message, signature).map_err(|error| match error {
        webpki::Error::InvalidSignatureForPublicKey => {
            SignatureError::Wrong("the signature is not of this catalogue: one of the two was changed".into())
        }
        _ => SignatureError::Key("is not of that kind, or has fewer than 2048 bits"),
    })
}
