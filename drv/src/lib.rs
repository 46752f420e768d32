//! What things are called and how they are written: store directories, store paths, hashes, nix-base32, derivations and
//! the computation that names one from the other. Pure: no I/O, no async, no store directory of its own.
//!
//! | module | what |
//! |---|---|
//! | [`store_path`] | [`StoreDir`] (data, never a constant) and [`StorePath`] (a checked `HASH-NAME`) |
//! | [`hash`] | [`HashAlgo`], [`struct@Hash`], the streaming [`Hasher`] |
//! | [`base32`] | nix's own base 32 |
//! | [`derivation`] | [`Derivation`] and what can be read off it |
//! | [`aterm`] | the bytes of a `.drv` file: [`aterm::parse`], [`aterm::print`] |
//! | [`path`] | names of texts, sources, fixed outputs, outputs |
//! | [`modulo`] | `hash-derivation-modulo`, and whether a derivation's output paths are the right ones |
//!
//! # How a store path gets its name
//! ```text
//! path  = STOREDIR "/" base32(fold20(sha256(TYPE ":sha256:" hex(INNER) ":" STOREDIR ":" NAME))) "-" NAME
//! ```
//! `fold20` XORs the 32 bytes down to 20 ([`Hash::compress`]).
//!
//! | what | TYPE | INNER | NAME |
//! |---|---|---|---|
//! | text | `text` and `:PATH` for each reference, sorted | sha256 of the contents | its name |
//! | recursive, sha256 | `source` | sha256 of the NAR | its name |
//! | flat, or another algorithm | `output:out` | sha256 of `fixed:out:[r:]ALGO:hex(HASH):` | its name |
//! | output of a derivation | `output:OUTPUT` | hash modulo of the derivation with its own outputs blanked | the derivation's, and `-OUTPUT` unless `out` |
//!
//! # Grammar of a derivation, as printed
//! ```text
//! derivation = "Derive(" outputs "," inputs "," strings "," string "," string "," strings "," env ")"
//!              ; outputs, input derivations, input sources, platform, builder, arguments, environment
//! outputs    = "[" [ output *( "," output ) ] "]"
//! output     = "(" string "," string "," string "," string ")"   ; name, path, ["r:"] algorithm, hash in base 16
//! inputs     = "[" [ input *( "," input ) ] "]"
//! input      = "(" string "," strings ")"                        ; .drv path, names of the outputs wanted
//! env        = "[" [ "(" string "," string ")" *( "," "(" string "," string ")" ) ] "]"
//! strings    = "[" [ string *( "," string ) ] "]"
//! string     = DQUOTE *( byte / "\" byte ) DQUOTE                ; \n \r \t \" \\ ; all other bytes are themselves
//! ```
//! Outputs, inputs, wanted outputs, sources and environment come sorted by bytes; arguments in their order. What the
//! parser takes beyond that, as guix-daemon does, is listed at [`aterm::parse`].

pub mod aterm;
pub mod base32;
pub mod derivation;
pub mod hash;
pub mod modulo;
pub mod narinfo;
pub mod path;
pub mod store_path;

pub use derivation::{Derivation, DerivationOutput};
pub use hash::{Hash, HashAlgo, HashError, Hasher};
pub use modulo::{ModuloCache, hash_derivation_modulo, verify_output_paths};
pub use store_path::{StoreDir, StorePath, StorePathError, check_name};
