//! The kinds of fields that messages have: each is a [`Codec`] and says which Rust type holds it.

use std::{collections::BTreeSet, marker::PhantomData};

use bstr::{BString, ByteSlice};
use fruix_drv::{Hash, HashAlgo, StorePath};

use crate::{
    limits,
    sample::Samples,
    wire::{Codec, Context, Error, Sink, Source, Version, is_in_store},
};

/// A word that is true when it is not 0, written as 0 or 1.
#[derive(Debug)]
pub struct Bool;

impl Codec for Bool {
    type Value = bool;
    fn name() -> String {
        "bool".into()
    }
    fn encode(value: &bool, sink: &mut Sink<'_>) {
        sink.word(u64::from(*value));
    }
    async fn decode(source: &mut Source<'_>) -> Result<bool, Error> {
        Ok(source.int("a truth value").await? != 0)
    }
    fn sample(samples: &mut Samples) -> bool {
        samples.coin()
    }
}

/// A word of which only 32 bits may be used.
#[derive(Debug)]
pub struct Int;

impl Codec for Int {
    type Value = u32;
    fn name() -> String {
        "int".into()
    }
    fn encode(value: &u32, sink: &mut Sink<'_>) {
        sink.word(u64::from(*value));
    }
    async fn decode(source: &mut Source<'_>) -> Result<u32, Error> {
        source.int("an integer").await
    }
    fn sample(samples: &mut Samples) -> u32 {
        u32::try_from(samples.below(1 << 20)).unwrap_or(0)
    }
}

/// A whole word.
#[derive(Debug)]
pub struct Long;

impl Codec for Long {
    type Value = u64;
    fn name() -> String {
        "long".into()
    }
    fn encode(value: &u64, sink: &mut Sink<'_>) {
        sink.word(*value);
    }
    async fn decode(source: &mut Source<'_>) -> Result<u64, Error> {
        source.word("a long integer").await
    }
    fn sample(samples: &mut Samples) -> u64 {
        if samples.coin() { u64::MAX } else { samples.word() }
    }
}

/// The word 1, said by operations that have nothing else to say.
#[derive(Debug)]
pub struct One;

impl Codec for One {
    type Value = ();
    fn name() -> String {
        "one".into()
    }
    fn encode(_: &(), sink: &mut Sink<'_>) {
        sink.word(1);
    }
    async fn decode(source: &mut Source<'_>) -> Result<(), Error> {
        source.int("an acknowledgement").await?;
        Ok(())
    }
    fn sample(_: &mut Samples) {}
}

/// No bytes at all, not even a word.
#[derive(Debug)]
pub struct Nothing;

impl Codec for Nothing {
    type Value = ();
    fn name() -> String {
        "nothing".into()
    }
    fn encode(_: &(), _: &mut Sink<'_>) {}
    async fn decode(_: &mut Source<'_>) -> Result<(), Error> {
        Ok(())
    }
    fn sample(_: &mut Samples) {}
}

macro_rules! string_kinds {
    ($( $(#[$doc:meta])* $kind:ident $name:literal $what:literal $limit:expr, $sample:expr; )*) => { $(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $kind;

        impl Codec for $kind {
            type Value = BString;
            fn name() -> String {
                $name.into()
            }
            fn encode(value: &BString, sink: &mut Sink<'_>) {
                sink.bytes(value);
            }
            async fn decode(source: &mut Source<'_>) -> Result<BString, Error> {
                source.bytes($limit, $what).await
            }
            fn sample(samples: &mut Samples) -> BString {
                let sample: fn(&mut Samples) -> BString = $sample;
                sample(samples)
            }
        }
    )* };
}

string_kinds! {
    /// A short string: a name, an algorithm, a hash part.
    ShortString "short string" "a short string" limits::SHORT_STRING, |samples| samples.name(12).into();
    /// Any path, which the handler has to check.
    AnyPath "any path" "a path" limits::PATH, |samples| format!("/tmp/{}", samples.name(30)).into();
    /// The value of an option.
    OptionValue "option value" "the value of an option" limits::OPTION_VALUE, |samples| samples.bytes(20);
    /// Text of any bytes.
    Text "text" "a text" limits::TEXT, |samples| samples.bytes(300);
}

/// A store path. One that is not directly beneath the store directory ends the connection, as with guix-daemon; one
/// that lies there under an impossible name cannot be valid, which is answered without reaching the handler.
#[derive(Debug)]
pub struct Path;

impl Codec for Path {
    type Value = StorePath;
    fn name() -> String {
        "store path".into()
    }
    fn encode(value: &StorePath, sink: &mut Sink<'_>) {
        sink.store_path(value);
    }
    async fn decode(source: &mut Source<'_>) -> Result<StorePath, Error> {
        let mut short = [0; SHORT_PATH];
        match source.short_bytes(&mut short, "a store path").await? {
            Ok(path) => store_path(path, source),
            Err(length) => {
                let path = source.bytes_of(length, limits::PATH, "a store path").await?;
                store_path(&path, source)
            }
        }
    }
    fn sample(samples: &mut Samples) -> StorePath {
        samples.store_path()
    }
}

/// Bytes that suffice for nearly all store paths, with their padding.
const SHORT_PATH: usize = 256;

/// As what messages name a [`StoreItem`].
const STORE_ITEM: &str = "a store item";

/// One of the [`Candidates`].
fn candidate(path: &[u8], context: &Context) -> Result<Option<StorePath>, Error> {
    match context.store_dir.parse(path) {
        Ok(path) => Ok(Some(path)),
        Err(_) if is_in_store(path, &context.store_dir) => Ok(None),
        Err(_) => Err(Error::NotInStore { path: path.into() }),
    }
}

/// What an impossible path is read as while the rest of a request that will be refused is read.
const PLACEHOLDER: &str = "00000000000000000000000000000000-refused";

fn store_path(path: &[u8], source: &mut Source<'_>) -> Result<StorePath, Error> {
    let store_dir = &source.context().store_dir;
    if let Ok(path) = store_dir.parse(path) {
        return Ok(path);
    }
    if !is_in_store(path, store_dir) {
        return Err(Error::NotInStore { path: path.into() });
    }
    source.note_impossible(path.into());
    StorePath::from_base_name(PLACEHOLDER).map_err(|_| Error::NotInStore { path: path.into() })
}

/// A store path, or an empty string for none.
#[derive(Debug)]
pub struct MaybePath;

impl Codec for MaybePath {
    type Value = Option<StorePath>;
    fn name() -> String {
        "store path or empty".into()
    }
    fn encode(value: &Option<StorePath>, sink: &mut Sink<'_>) {
        match value {
            Some(path) => Path::encode(path, sink),
            None => sink.bytes(b""),
        }
    }
    async fn decode(source: &mut Source<'_>) -> Result<Option<StorePath>, Error> {
        let path = source.bytes(limits::PATH, "a store path").await?;
        if path.is_empty() { Ok(None) } else { store_path(&path, source).map(Some) }
    }
    fn sample(samples: &mut Samples) -> Option<StorePath> {
        samples.coin().then(|| samples.store_path())
    }
}

/// Store paths of which the known ones are asked for. One under an impossible name is known to nobody and left out;
/// one that is not directly beneath the store directory ends the connection.
#[derive(Debug)]
pub struct Candidates;

impl Codec for Candidates {
    type Value = Vec<StorePath>;
    fn name() -> String {
        "list of store path, impossible ones left out".into()
    }
    fn encode(value: &Vec<StorePath>, sink: &mut Sink<'_>) {
        List::<Path>::encode(value, sink);
    }
    async fn decode(source: &mut Source<'_>) -> Result<Vec<StorePath>, Error> {
        let mut paths = Vec::new();
        let mut short = [0; SHORT_PATH];
        for _ in 0..source.count("store paths").await? {
            let path = match source.short_bytes(&mut short, STORE_ITEM).await? {
                Ok(path) => candidate(path, source.context())?,
                Err(length) => candidate(&source.bytes_of(length, limits::PATH, STORE_ITEM).await?, source.context())?,
            };
            paths.extend(path);
        }
        Ok(paths)
    }
    fn sample(samples: &mut Samples) -> Vec<StorePath> {
        List::<Path>::sample(samples)
    }
}

/// Items in the order of the wire, duplicates included.
#[derive(Debug)]
pub struct List<C>(PhantomData<C>);

impl<C: Codec> Codec for List<C> {
    type Value = Vec<C::Value>;
    fn name() -> String {
        format!("list of {}", C::name())
    }
    fn encode(value: &Vec<C::Value>, sink: &mut Sink<'_>) {
        sink.count(value.len());
        for item in value {
            C::encode(item, sink);
        }
    }
    async fn decode(source: &mut Source<'_>) -> Result<Vec<C::Value>, Error> {
        let mut items = Vec::new();
        for _ in 0..source.count("items").await? {
            items.push(C::decode(source).await?);
        }
        Ok(items)
    }
    fn sample(samples: &mut Samples) -> Vec<C::Value> {
        (0..samples.below(5)).map(|_| C::sample(samples)).collect()
    }
}

/// Items in ascending order without duplicates: what guix-daemon's replies consist of. Any order is read.
#[derive(Debug)]
pub struct Set<C>(PhantomData<C>);

impl<C: Codec<Value: Ord>> Codec for Set<C> {
    type Value = BTreeSet<C::Value>;
    fn name() -> String {
        format!("set of {}", C::name())
    }
    fn encode(value: &BTreeSet<C::Value>, sink: &mut Sink<'_>) {
        sink.count(value.len());
        for item in value {
            C::encode(item, sink);
        }
    }
    async fn decode(source: &mut Source<'_>) -> Result<BTreeSet<C::Value>, Error> {
        // They come in order: a set is made of that at one stroke.
        Ok(List::<C>::decode(source).await?.into_iter().collect())
    }
    fn sample(samples: &mut Samples) -> BTreeSet<C::Value> {
        (0..samples.below(5)).map(|_| C::sample(samples)).collect()
    }
}

/// A [`Set`] that whoever answers has in ascending order and without duplicates already; it may be long.
#[derive(Debug)]
pub struct SortedList<C>(PhantomData<C>);

impl<C: Codec<Value: Ord>> Codec for SortedList<C> {
    type Value = Vec<C::Value>;
    fn name() -> String {
        Set::<C>::name()
    }
    fn encode(value: &Vec<C::Value>, sink: &mut Sink<'_>) {
        List::<C>::encode(value, sink);
    }
    async fn decode(source: &mut Source<'_>) -> Result<Vec<C::Value>, Error> {
        List::<C>::decode(source).await
    }
    fn sample(samples: &mut Samples) -> Vec<C::Value> {
        Set::<C>::sample(samples).into_iter().collect()
    }
}

/// Two fields, one after the other.
#[derive(Debug)]
pub struct Pair<A, B>(PhantomData<(A, B)>);

impl<A: Codec, B: Codec> Codec for Pair<A, B> {
    type Value = (A::Value, B::Value);
    fn name() -> String {
        format!("({}, {})", A::name(), B::name())
    }
    fn encode(value: &Self::Value, sink: &mut Sink<'_>) {
        A::encode(&value.0, sink);
        B::encode(&value.1, sink);
    }
    async fn decode(source: &mut Source<'_>) -> Result<Self::Value, Error> {
        let first = A::decode(source).await?;
        Ok((first, B::decode(source).await?))
    }
    fn sample(samples: &mut Samples) -> Self::Value {
        (A::sample(samples), B::sample(samples))
    }
}

/// A count of 0, or of 1 and the item.
#[derive(Debug)]
pub struct Maybe<C>(PhantomData<C>);

impl<C: Codec> Codec for Maybe<C> {
    type Value = Option<C::Value>;
    fn name() -> String {
        format!("optional {}", C::name())
    }
    fn encode(value: &Option<C::Value>, sink: &mut Sink<'_>) {
        sink.word(u64::from(value.is_some()));
        if let Some(value) = value {
            C::encode(value, sink);
        }
    }
    async fn decode(source: &mut Source<'_>) -> Result<Option<C::Value>, Error> {
        if source.int("a truth value").await? == 0 { Ok(None) } else { C::decode(source).await.map(Some) }
    }
    fn sample(samples: &mut Samples) -> Option<C::Value> {
        samples.coin().then(|| C::sample(samples))
    }
}

/// A field that exists for clients below version 1.`MINOR` only; for others it is `None`.
#[derive(Debug)]
pub struct Until<C, const MINOR: u32>(PhantomData<C>);

impl<C: Codec<Value: Default>, const MINOR: u32> Codec for Until<C, MINOR> {
    type Value = Option<C::Value>;
    fn name() -> String {
        format!("{} (below {})", C::name(), Version(0x100 | MINOR))
    }
    fn encode(value: &Option<C::Value>, sink: &mut Sink<'_>) {
        if sink.context().version.minor() < MINOR {
            match value {
                Some(value) => C::encode(value, sink),
                None => C::encode(&C::Value::default(), sink),
            }
        }
    }
    async fn decode(source: &mut Source<'_>) -> Result<Option<C::Value>, Error> {
        if source.context().version.minor() < MINOR { C::decode(source).await.map(Some) } else { Ok(None) }
    }
    fn sample(_: &mut Samples) -> Option<C::Value> {
        None
    }
}

/// Something directly beneath the store directory, under whatever name: what guix-daemon takes for a store path where
/// also `PATH!OUTPUT` or a leftover file may be meant. Elsewhere ends the connection.
#[derive(Debug)]
pub struct StoreItem;

impl Codec for StoreItem {
    type Value = BString;
    fn name() -> String {
        "store item".into()
    }
    fn encode(value: &BString, sink: &mut Sink<'_>) {
        sink.bytes(value);
    }
    async fn decode(source: &mut Source<'_>) -> Result<BString, Error> {
        let path = source.bytes(limits::PATH, STORE_ITEM).await?;
        if is_in_store(&path, &source.context().store_dir) { Ok(path) } else { Err(Error::NotInStore { path }) }
    }
    fn sample(samples: &mut Samples) -> BString {
        let path = samples.store_path();
        let end = if samples.coin() { "!out" } else { "" };
        format!("{}{end}", samples.store_dir().display(&path)).into()
    }
}

/// The SHA-256 of a store item's archive, in base 16.
#[derive(Debug)]
pub struct NarHash;

impl Codec for NarHash {
    type Value = Hash;
    fn name() -> String {
        "SHA-256 in base 16".into()
    }
    fn encode(value: &Hash, sink: &mut Sink<'_>) {
        sink.bytes(value.base16().as_bytes());
    }
    async fn decode(source: &mut Source<'_>) -> Result<Hash, Error> {
        let text = source.bytes(limits::SHORT_STRING, "a hash").await?;
        Hash::parse_base16(HashAlgo::Sha256, &text).map_err(|_| Error::Invalid { what: "hash", value: text })
    }
    fn sample(samples: &mut Samples) -> Hash {
        Hash::sha256(samples.bytes(10).as_bytes())
    }
}

macro_rules! enum_kinds {
    ($( $(#[$doc:meta])* $kind:ident $name:literal { $( $(#[$vdoc:meta])* $variant:ident = $code:literal, )* } )*) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $kind {
            $( $(#[$vdoc])* $variant = $code, )*
        }

        impl $kind {
            /// All of them.
            pub const ALL: &'static [$kind] = &[ $( $kind::$variant, )* ];

            /// Its number on the wire.
            pub const fn code(self) -> u32 {
                self as u32
            }
        }

        impl Codec for $kind {
            type Value = $kind;
            fn name() -> String {
                let mut name = String::from($name);
                $( name.push_str(concat!(" ", $code, "=", stringify!($variant))); )*
                name
            }
            fn encode(value: &$kind, sink: &mut Sink<'_>) {
                sink.word(u64::from(value.code()));
            }
            async fn decode(source: &mut Source<'_>) -> Result<$kind, Error> {
                match source.int($name).await? {
                    $( $code => Ok($kind::$variant), )*
                    other => Err(Error::Invalid { what: $name, value: other.to_string().into() }),
                }
            }
            fn sample(samples: &mut Samples) -> $kind {
                samples.pick($kind::ALL).copied().unwrap_or($kind::ALL[0])
            }
        }
    )* };
}

enum_kinds! {
    /// How `BuildPaths` builds.
    BuildMode "build mode" {
        /// What is not valid yet.
        Normal = 0,
        /// What is corrupt, anew. Only for the trusted.
        Repair = 1,
        /// Again, to compare with what is there.
        Check = 2,
    }
    /// What `CollectGarbage` does.
    GcAction "garbage collection action" {
        /// List what is reachable from a root.
        ReturnLive = 0,
        /// List what is not.
        ReturnDead = 1,
        /// Delete what is not.
        DeleteDead = 2,
        /// Delete the given paths, if nothing needs them.
        DeleteSpecific = 3,
    }
}
