//! The table of operations. One declaration says of each operation its number, its names, the version it came with,
//! its fields, its reply, what follows its fields on the stream, and who may not use it. From it follow the request
//! types and their codecs, [`Operation`], [`TABLE`], [`Request`], [`Reply`], the [`Service`] that a daemon implements,
//! [`dispatch`], the client's methods, and `docs/protocol.md`.
//!
//! A dialect is a block of the declaration. What differs between the versions of one dialect is said at the field
//! ([`Until`]); what differs between dialects is another block with its own module.

use std::{collections::BTreeSet, fmt, future::Future};

use bstr::BString;

use crate::{
    client::{Client, Error as ClientError},
    kinds::{
        AnyPath, Bool, BuildMode, Candidates, GcAction, Int, List, Long, Maybe, MaybePath, NarHash, One, OptionValue, Pair, Path, Set,
        ShortString, SortedList, StoreItem, Text, Until,
    },
    sample::Samples,
    server::{OpError, Peer, Work},
    wire::{Codec, Error, Sink, Source, Version},
};

/// A family of versions with its own operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Guix, versions 1.96 (0x160) and up.
    Guix,
}

/// What the stream carries for an operation between its fields and its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Nothing.
    Plain,
    /// An archive, right behind the fields and without a length of its own.
    Archive,
    /// Bytes from the client, which the daemon asks for with `STDERR_READ` frames.
    TunnelIn,
    /// Bytes to the client, in `STDERR_WRITE` frames.
    TunnelOut,
}

/// Whom a rule refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Who {
    /// Everybody.
    Anyone,
    /// Clients of another machine.
    Remote,
    /// Clients that are neither root nor the daemon's own user.
    Untrusted,
}

/// When a rule is applied, and what becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Before the fields are read; the connection ends.
    Unread,
    /// After the fields are read; the connection ends nonetheless, as with guix-daemon.
    Closing,
    /// After the fields are read; the connection goes on.
    Keeping,
}

/// A rule that refuses an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// Whom.
    pub who: Who,
    /// For which requests, in words.
    pub when: &'static str,
    /// At which moment.
    pub stage: Stage,
    /// With which error message.
    pub message: &'static str,
}

/// A field of a request.
#[derive(Clone, Copy)]
pub struct FieldInfo {
    /// Its name.
    pub name: &'static str,
    /// The name of its kind.
    pub kind: fn() -> String,
    /// What it means, line by line.
    pub doc: &'static [&'static str],
}

impl fmt::Debug for FieldInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, (self.kind)())
    }
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct OperationInfo {
    /// Which operation.
    pub operation: Operation,
    /// Where it belongs.
    pub dialect: Dialect,
    /// Its number on the wire.
    pub code: u64,
    /// Its name, as upstream has it.
    pub name: &'static str,
    /// Its method's name.
    pub method: &'static str,
    /// The first version that has it. A daemon serves it to older clients too, as upstream does.
    pub since: Version,
    /// Its fields, in their order.
    pub fields: &'static [FieldInfo],
    /// What follows them.
    pub stream: Stream,
    /// The name of its reply's kind.
    pub reply: fn() -> String,
    /// Who may not use it.
    pub denials: &'static [Denial],
    /// What it does, line by line.
    pub doc: &'static [&'static str],
}

/// A request's type.
pub trait Call: Codec<Value = Self> {
    /// Its row of the table.
    const OPERATION: Operation;
    /// The kind of its reply.
    type Reply: Codec;
}

/// Structures of fields, one behind the other.
macro_rules! structures {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident $label:literal { $( $(#[doc = $fdoc:literal])+ $field:ident : $kind:ty, )* }
    )*) => { $(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $( $(#[doc = $fdoc])+ pub $field: <$kind as Codec>::Value, )*
        }

        impl Codec for $name {
            type Value = $name;
            fn name() -> String {
                $label.into()
            }
            fn encode(value: &$name, sink: &mut Sink<'_>) {
                let _ = (value, &sink);
                $( <$kind as Codec>::encode(&value.$field, sink); )*
            }
            async fn decode(source: &mut Source<'_>) -> Result<$name, Error> {
                let _ = &source;
                $( let $field = <$kind as Codec>::decode(source).await?; )*
                Ok($name { $( $field, )* })
            }
            fn sample(samples: &mut Samples) -> $name {
                let _ = &samples;
                $( let $field = <$kind as Codec>::sample(samples); )*
                $name { $( $field, )* }
            }
        }
    )* };
}

macro_rules! client_method {
    (Plain, $method:ident, $name:ident, $reply:ty, $($doc:literal)+) => {
        $(#[doc = $doc])+
        ///
        /// # Errors
        /// [`ClientError::Remote`] is the daemon's own error; after any other the connection is of no use.
        pub async fn $method(&mut self, request: $name) -> Result<<$reply as Codec>::Value, ClientError> {
            self.call(&request).await
        }
    };
    (Archive, $method:ident, $name:ident, $reply:ty, $($doc:literal)+) => {
        $(#[doc = $doc])+
        ///
        /// `archive` is read to its end and must be one whole archive.
        ///
        /// # Errors
        /// [`ClientError::Remote`] is the daemon's own error; after any other the connection is of no use.
        pub async fn $method(
            &mut self,
            request: $name,
            archive: &mut (dyn tokio::io::AsyncRead + Unpin + Send),
        ) -> Result<<$reply as Codec>::Value, ClientError> {
            self.call_with_archive(&request, archive).await
        }
    };
    (TunnelIn, $method:ident, $name:ident, $reply:ty, $($doc:literal)+) => {
        $(#[doc = $doc])+
        ///
        /// The daemon takes what it needs from `input`.
        ///
        /// # Errors
        /// [`ClientError::Remote`] is the daemon's own error; after any other the connection is of no use.
        pub async fn $method(
            &mut self,
            request: $name,
            input: &mut (dyn tokio::io::AsyncRead + Unpin + Send),
        ) -> Result<<$reply as Codec>::Value, ClientError> {
            self.call_with_input(&request, input).await
        }
    };
    (TunnelOut, $method:ident, $name:ident, $reply:ty, $($doc:literal)+) => {
        $(#[doc = $doc])+
        ///
        /// The daemon's bytes go to `output`.
        ///
        /// # Errors
        /// [`ClientError::Remote`] is the daemon's own error; after any other the connection is of no use.
        pub async fn $method(
            &mut self,
            request: $name,
            output: &mut (dyn tokio::io::AsyncWrite + Unpin + Send),
        ) -> Result<<$reply as Codec>::Value, ClientError> {
            self.call_with_output(&request, output).await
        }
    };
}

macro_rules! operations {
    (dialect $dialect:ident; $(
        $(#[doc = $doc:literal])+
        $code:literal $name:ident $method:ident since $since:literal {
            $( $(#[doc = $fdoc:literal])+ $field:ident : $kind:ty, )*
        } $stream:ident -> $reply:ty
        $( , deny $who:ident when $when:literal ($cond:expr) $stage:ident $message:literal )*
        ;
    )*) => {
        $(
            structures! {
                $(#[doc = $doc])+
                $name "request" { $( $(#[doc = $fdoc])+ $field : $kind, )* }
            }

            impl Call for $name {
                const OPERATION: Operation = Operation::$name;
                type Reply = $reply;
            }

            impl From<$name> for Request {
                fn from(request: $name) -> Request {
                    Request::$name(request)
                }
            }
        )*

        /// An operation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Operation {
            $( $(#[doc = $doc])+ $name, )*
        }

        impl Operation {
            /// Its row of the table.
            pub const fn info(self) -> &'static OperationInfo {
                match self { $( Operation::$name => {
                    const INFO: OperationInfo = OperationInfo {
                        operation: Operation::$name,
                        dialect: Dialect::$dialect,
                        code: $code,
                        name: stringify!($name),
                        method: stringify!($method),
                        since: Version($since),
                        fields: &[ $( FieldInfo {
                            name: stringify!($field),
                            kind: <$kind as Codec>::name,
                            doc: &[ $( $fdoc, )+ ],
                        }, )* ],
                        stream: Stream::$stream,
                        reply: <$reply as Codec>::name,
                        denials: &[ $( Denial {
                            who: Who::$who,
                            when: $when,
                            stage: Stage::$stage,
                            message: $message,
                        }, )* ],
                        doc: &[ $( $doc, )+ ],
                    };
                    &INFO
                } )* }
            }

            /// Its number on the wire.
            pub const fn code(self) -> u64 {
                self.info().code
            }

            /// Some request, for tests, fuzzers and sweeps.
            pub fn sample_request(self, samples: &mut Samples) -> Request {
                match self { $( Operation::$name => Request::$name($name::sample(samples)), )* }
            }

            /// Some reply, likewise.
            pub fn sample_reply(self, samples: &mut Samples) -> Reply {
                match self { $( Operation::$name => Reply::$name(<$reply as Codec>::sample(samples)), )* }
            }
        }

        impl TryFrom<u64> for Operation {
            type Error = UnknownOperation;
            fn try_from(code: u64) -> Result<Operation, UnknownOperation> {
                match code {
                    $( $code => Ok(Operation::$name), )*
                    _ => Err(UnknownOperation(code)),
                }
            }
        }

        /// Every operation, in the order of the numbers.
        pub static TABLE: &[&OperationInfo] = &[ $( Operation::$name.info(), )* ];

        /// A request with its fields; what is streamed behind them is not in it.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Request {
            $( $(#[doc = $doc])+ $name($name), )*
        }

        impl Request {
            /// Whose request it is.
            pub const fn operation(&self) -> Operation {
                match self { $( Request::$name(_) => Operation::$name, )* }
            }

            /// Appends the fields; the operation's number is not among them.
            pub fn encode(&self, sink: &mut Sink<'_>) {
                match self { $( Request::$name(request) => $name::encode(request, sink), )* }
            }

            /// Reads the fields.
            ///
            /// # Errors
            /// [`Error`]; the stream is then out of step.
            pub async fn decode(operation: Operation, source: &mut Source<'_>) -> Result<Request, Error> {
                match operation { $( Operation::$name => $name::decode(source).await.map(Request::$name), )* }
            }

            /// The rule that refuses this request to this client, if there is one.
            pub fn denial(&self, peer: &Peer) -> Option<&'static Denial> {
                match self { $( Request::$name(request) => {
                    let conditions: &[fn(&$name) -> bool] = &[ $( $cond, )* ];
                    Operation::$name.info().denials.iter().zip(conditions)
                        .find(|(denial, applies)| peer.is(denial.who) && applies(request))
                        .map(|(denial, _)| denial)
                } )* }
            }
        }

        /// A reply.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Reply {
            $(
                #[doc = concat!("Of [`", stringify!($name), "`].")]
                $name(<$reply as Codec>::Value),
            )*
        }

        impl Reply {
            /// What it answers.
            pub const fn operation(&self) -> Operation {
                match self { $( Reply::$name(_) => Operation::$name, )* }
            }

            /// Appends it.
            pub fn encode(&self, sink: &mut Sink<'_>) {
                match self { $( Reply::$name(reply) => <$reply as Codec>::encode(reply, sink), )* }
            }

            /// Reads it.
            ///
            /// # Errors
            /// [`Error`]; the stream is then out of step.
            pub async fn decode(operation: Operation, source: &mut Source<'_>) -> Result<Reply, Error> {
                match operation {
                    $( Operation::$name => <$reply as Codec>::decode(source).await.map(Reply::$name), )*
                }
            }
        }

        /// What a daemon does for one connection: one method an operation.
        ///
        /// A method's future is dropped when the client goes away. What the method has started on other threads must
        /// notice by itself: reads and writes through [`Work`] fail there.
        pub trait Service: Send {
            $(
                $(#[doc = $doc])+
                ///
                /// # Errors
                /// What the client is to be told.
                fn $method(
                    &mut self,
                    request: $name,
                    work: &mut Work,
                ) -> impl Future<Output = Result<<$reply as Codec>::Value, OpError>> + Send;
            )*
        }

        /// Hands a request to the method that it belongs to.
        ///
        /// # Errors
        /// Those of the method.
        pub async fn dispatch<S: Service>(
            service: &mut S,
            request: Request,
            work: &mut Work,
        ) -> Result<Reply, OpError> {
            match request { $(
                Request::$name(request) => service.$method(request, work).await.map(Reply::$name),
            )* }
        }

        impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Client<S> {
            $( client_method!($stream, $method, $name, $reply, $($doc)+); )*
        }
    };
}

/// A number that no operation has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid operation {0}")]
pub struct UnknownOperation(pub u64);

structures! {
    /// What is registered of a store item.
    PathInfo "path info" {
        /// The derivation that it was built from, if known.
        deriver: MaybePath,
        /// The hash of its archive.
        hash: NarHash,
        /// What it refers to, itself included where it does.
        references: Set<Path>,
        /// Seconds since 1970.
        registration_time: Int,
        /// Size of its archive in bytes; 0 when unknown.
        nar_size: Long,
    }

    /// What substituters say of a store item.
    SubstitutableInfo "substitutable info" {
        /// The derivation that it was built from, if known.
        deriver: MaybePath,
        /// What it refers to.
        references: Set<Path>,
        /// Bytes to download; 0 when unknown.
        download_size: Long,
        /// Size of its archive in bytes; 0 when unknown.
        nar_size: Long,
    }

    /// What a collection of garbage found or freed.
    GcResults "garbage collection results" {
        /// The paths, live, dead or deleted.
        paths: Set<AnyPath>,
        /// Bytes that were freed.
        bytes_freed: Long,
        /// Once a number of blocks; always 0.
        obsolete: Long,
    }
}

operations! {
    dialect Guix;

    /// Whether a path is valid: registered, complete and usable.
    1 IsValidPath is_valid_path since 0x160 {
        /// The path. One outside of the store is an error that leaves the connection usable.
        path: AnyPath,
    } Plain -> Bool;

    /// Whether a substituter offers a path.
    3 HasSubstitutes has_substitutes since 0x160 {
        /// The path.
        path: Path,
    } Plain -> Bool;

    /// The hash of a valid path's archive.
    4 QueryPathHash query_path_hash since 0x160 {
        /// The path.
        path: Path,
    } Plain -> NarHash;

    /// What a valid path refers to.
    5 QueryReferences query_references since 0x160 {
        /// The path.
        path: Path,
    } Plain -> Set<Path>;

    /// What refers to a path.
    6 QueryReferrers query_referrers since 0x160 {
        /// The path.
        path: Path,
    } Plain -> Set<Path>;

    /// Adds a file or a tree to the store, and makes it a temporary root.
    7 AddToStore add_to_store since 0x160 {
        /// The name that the item gets.
        base_name: ShortString,
        /// Obsolete. When false, `hash_algo` and `recursive` are overridden by `sha256` and true.
        fixed: Bool,
        /// Whether the whole archive is hashed; else it must hold one file, whose contents are.
        recursive: Bool,
        /// The hash algorithm's name.
        hash_algo: ShortString,
    } Archive -> Path;

    /// Adds a text with known references to the store, and makes it a temporary root.
    8 AddTextToStore add_text_to_store since 0x160 {
        /// The name that the item gets.
        name: ShortString,
        /// Its contents.
        text: Text,
        /// What it refers to.
        references: List<Path>,
    } Plain -> Path;

    /// Builds derivations, or substitutes their outputs or other paths, and returns when all are done.
    9 BuildPaths build_paths since 0x160 {
        /// Derivations (`PATH.drv`, or `PATH.drv!OUTPUT,...` for some outputs) and paths to substitute.
        paths: List<StoreItem>,
        /// How.
        mode: BuildMode,
    } Plain -> One,
        deny Untrusted when "`mode` is Repair" (|request| request.mode == BuildMode::Repair)
            Closing "repairing is a privileged operation";

    /// Makes a path valid by substituting it, if it is not.
    10 EnsurePath ensure_path since 0x160 {
        /// The path.
        path: Path,
    } Plain -> One;

    /// Keeps a path from being collected as long as the connection lives.
    11 AddTempRoot add_temp_root since 0x160 {
        /// The path.
        path: Path,
    } Plain -> One;

    /// Registers a symbolic link of the user's as a root.
    12 AddIndirectRoot add_indirect_root since 0x160 {
        /// The link.
        path: AnyPath,
    } Plain -> One;

    /// Waits until a collection of garbage that is going on has read the temporary roots.
    13 SyncWithGC sync_with_gc since 0x160 {} Plain -> One;

    /// The roots: pairs of a link and the store path that it leads to, sorted by link.
    14 FindRoots find_roots since 0x160 {} Plain -> Set<Pair<AnyPath, Path>>;

    /// Exports a path: its archive and what is registered of it.
    16 ExportPath export_path since 0x160 {
        /// The path.
        path: Path,
        /// Whether to sign it.
        sign: Bool,
    } TunnelOut -> One;

    /// The derivation that a valid path was built from, if known.
    18 QueryDeriver query_deriver since 0x160 {
        /// The path.
        path: Path,
    } Plain -> MaybePath;

    /// Sets the options of this connection.
    19 SetOptions set_options since 0x160 {
        /// Keep the directory of a build that fails.
        keep_failed: Bool,
        /// Go on with other builds when one fails.
        keep_going: Bool,
        /// Build when substituting fails.
        fallback: Bool,
        /// How much the daemon says, 0 to 7.
        verbosity: Int,
        /// Builds at a time.
        max_build_jobs: Until<Int, 0x61>,
        /// Seconds that a build may be silent.
        max_silent_time: Until<Int, 0x61>,
        /// Offload builds to other machines.
        use_build_hook: Bool,
        /// From which verbosity on builders' output is shown: 0 shows it.
        build_verbosity: Int,
        /// Format of log lines; ignored.
        log_type: Int,
        /// Print build traces (lines that begin with `@ `).
        print_build_trace: Bool,
        /// Cores for each build.
        build_cores: Until<Int, 0x61>,
        /// Use substitutes, if the daemon does.
        use_substitutes: Bool,
        /// Further options by name.
        settings: List<Pair<ShortString, OptionValue>>,
    } Plain -> crate::kinds::Nothing;

    /// Lists or deletes paths that nothing needs, or lists those that something needs.
    20 CollectGarbage collect_garbage since 0x160 {
        /// What to do.
        action: GcAction,
        /// The paths to delete, for `DeleteSpecific`.
        paths_to_delete: List<StoreItem>,
        /// Delete what is needed, too: refused to everybody.
        ignore_liveness: Bool,
        /// Bytes after which to stop; 2^64-1 for no limit. 0 frees nothing.
        max_freed: Long,
        /// Obsolete.
        obsolete1: Int,
        /// Obsolete.
        obsolete2: Int,
        /// Obsolete.
        obsolete3: Int,
    } Plain -> GcResults,
        deny Remote when "always" (|_| true)
            Unread "Garbage collection is disabled for remote hosts.",
        deny Anyone when "`ignore_liveness` is set" (|request| request.ignore_liveness)
            Keeping "you are not allowed to ignore liveness";

    /// What substituters say of a path.
    21 QuerySubstitutablePathInfo query_substitutable_path_info since 0x160 {
        /// The path.
        path: AnyPath,
    } Plain -> Maybe<SubstitutableInfo>;

    /// The output paths of a derivation.
    22 QueryDerivationOutputs query_derivation_outputs since 0x160 {
        /// The derivation.
        path: Path,
    } Plain -> Set<Path>;

    /// All valid paths.
    23 QueryAllValidPaths query_all_valid_paths since 0x160 {} Plain -> SortedList<Path>;

    /// The outputs whose build has failed, if failures are remembered.
    24 QueryFailedPaths query_failed_paths since 0x160 {} Plain -> Set<Path>;

    /// Forgets failures.
    25 ClearFailedPaths clear_failed_paths since 0x160 {
        /// The outputs, or `*` for all.
        paths: List<AnyPath>,
    } Plain -> One;

    /// What is registered of a valid path.
    26 QueryPathInfo query_path_info since 0x160 {
        /// The path.
        path: Path,
    } Plain -> PathInfo;

    /// Imports paths that were exported; each must be signed by a key that the daemon's machine authorizes.
    27 ImportPaths import_paths since 0x160 {} TunnelIn -> List<Path>;

    /// The names of a derivation's outputs.
    28 QueryDerivationOutputNames query_derivation_output_names since 0x160 {
        /// The derivation.
        path: Path,
    } Plain -> Set<ShortString>;

    /// The valid path with this hash part, if there is one.
    29 QueryPathFromHashPart query_path_from_hash_part since 0x160 {
        /// 32 digits of base 32.
        hash_part: ShortString,
    } Plain -> MaybePath;

    /// What substituters say of several paths; those that none offers are left out.
    30 QuerySubstitutablePathInfos query_substitutable_path_infos since 0x160 {
        /// The paths.
        paths: Candidates,
    } Plain -> List<Pair<Path, SubstitutableInfo>>;

    /// Those of several paths that are valid.
    31 QueryValidPaths query_valid_paths since 0x160 {
        /// The paths.
        paths: Candidates,
    } Plain -> Set<Path>;

    /// Those of several paths that a substituter offers.
    32 QuerySubstitutablePaths query_substitutable_paths since 0x160 {
        /// The paths.
        paths: Candidates,
    } Plain -> Set<Path>;

    /// The valid derivations that a path may come from.
    33 QueryValidDerivers query_valid_derivers since 0x160 {
        /// The path.
        path: Path,
    } Plain -> Set<Path>;

    /// Replaces equal files of the store by links to one.
    34 OptimiseStore optimise_store since 0x160 {} Plain -> One;

    /// Checks that valid paths exist; the reply is whether errors remain.
    35 VerifyStore verify_store since 0x160 {
        /// Hash their contents, too.
        check_contents: Bool,
        /// Substitute those that are missing or corrupt.
        repair: Bool,
    } Plain -> Bool,
        deny Untrusted when "`repair` is set" (|request| request.repair)
            Keeping "you are not privileged to repair paths";

    /// The builders that the daemon has built in.
    80 BuiltinBuilders builtin_builders since 0x160 {} Plain -> Set<ShortString>;

    /// Where the daemon substitutes from, in order of preference.
    81 SubstituteURLs substitute_urls since 0x164 {} Plain -> List<ShortString>;
}

impl Default for SetOptions {
    /// What changes nothing: every flag off, every number the daemon's, no settings.
    fn default() -> Self {
        SetOptions {
            keep_failed: false,
            keep_going: false,
            fallback: false,
            verbosity: 0,
            max_build_jobs: None,
            max_silent_time: None,
            use_build_hook: false,
            build_verbosity: 0,
            log_type: 0,
            print_build_trace: false,
            build_cores: None,
            use_substitutes: false,
            settings: Vec::new(),
        }
    }
}

impl AddToStore {
    /// Whether the archive is hashed as a whole, and by which algorithm's name, the obsolete flag considered.
    pub fn method(&self) -> (bool, &[u8]) {
        if self.fixed { (self.recursive, &self.hash_algo) } else { (true, b"sha256") }
    }
}

impl Operation {
    /// Whether the answer may be as long as the store is large.
    pub fn lists_the_store(self) -> bool {
        use Operation::{CollectGarbage, FindRoots, QueryAllValidPaths, QueryFailedPaths, QueryReferrers};
        matches!(self, CollectGarbage | FindRoots | QueryAllValidPaths | QueryFailedPaths | QueryReferrers)
    }

    /// The answer to a request about a path that lies directly beneath the store directory under a name that no store
    /// path has. guix-daemon looks such paths up in its database, where they are not.
    ///
    /// # Errors
    /// For most operations that the path is not valid.
    pub fn impossible(self, path: &BString) -> Result<Reply, OpError> {
        match self {
            Operation::HasSubstitutes => Ok(Reply::HasSubstitutes(false)),
            Operation::QueryReferrers => Ok(Reply::QueryReferrers(BTreeSet::new())),
            Operation::QueryValidDerivers => Ok(Reply::QueryValidDerivers(BTreeSet::new())),
            Operation::AddTempRoot => Ok(Reply::AddTempRoot(())),
            Operation::EnsurePath => Err(OpError::new(format!("path `{path}' does not exist and cannot be created"))),
            _ => Err(OpError::new(format!("path `{path}' is not valid"))),
        }
    }
}
