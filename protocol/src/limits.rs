//! Every bound that a peer can run into, in one place.
//!
//! Lengths are bytes and counts are items. A declared length is never believed: memory grows with the bytes that
//! arrive, in steps of [`GROWTH_STEP`] or of what has arrived already, whichever is more.

/// Deepest nesting of an archive's nodes, the root being the first. Nix refuses the same depth, so that a tree that
/// one daemon takes is not refused by another.
pub const NAR_DEPTH: usize = 64;
/// Longest name of a directory entry in an archive.
pub const NAR_NAME: usize = 255;
/// Longest target of a symbolic link in an archive.
pub const NAR_TARGET: usize = 4095;
/// Longest token of an archive's grammar; the longest that exists has 13 bytes.
pub const NAR_TOKEN: usize = 32;

/// Memory that may be taken before any byte of a string has arrived, and the largest blind step thereafter.
pub const GROWTH_STEP: usize = 64 * 1024;
/// Bytes of a string that have come when room is made for the rest of it.
pub const GROWTH_END: usize = 1024 * 1024;

/// Longest short string on the wire: algorithm names, names of options, base names, hash parts.
pub const SHORT_STRING: usize = 4096;
/// Longest path on the wire, store path or other.
pub const PATH: usize = 4096;
/// Longest value of an option. Lists of URLs travel here.
pub const OPTION_VALUE: usize = 64 * 1024;
/// Longest text that `AddTextToStore` takes. Derivations of whole systems have a few MiB.
pub const TEXT: usize = 32 * 1024 * 1024;
/// Longest piece of a log line, message or error that the client half takes from a daemon.
pub const MESSAGE: usize = 16 * 1024 * 1024;

/// Most items in one collection of a request.
pub const REQUEST_ITEMS: u64 = 256 * 1024;
/// Most bytes of strings in one request, all fields taken together; a body that is streamed does not count.
pub const REQUEST_BYTES: u64 = 40 * 1024 * 1024;
/// Bytes of strings that any request may have at any time. A larger one takes room that connections share, of which there is
/// for [`MEDIUM_REQUESTS`] up to [`MEDIUM_REQUEST`] and for [`LARGE_REQUESTS`] beyond; others wait for their turn.
pub const SMALL_REQUEST: u64 = 64 * 1024;
/// Bytes of strings in a request that is not large.
pub const MEDIUM_REQUEST: u64 = 1024 * 1024;
/// Requests of up to [`MEDIUM_REQUEST`] bytes at a time, and answers that list the whole store.
pub const MEDIUM_REQUESTS: usize = 16;
/// Requests of more than [`MEDIUM_REQUEST`] bytes at a time.
pub const LARGE_REQUESTS: usize = 1;
/// Most items in one collection of a reply; daemons list whole stores.
pub const REPLY_ITEMS: u64 = 16 * 1024 * 1024;
/// Most bytes of strings in one reply.
pub const REPLY_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// Bytes of a client's that a session keeps while a handler works and does not read: what a client that does not
/// wait for answers has sent ahead. Beyond that the socket's own buffer fills and the client waits.
pub const READ_AHEAD: usize = 16 * 1024;
/// Bytes kept between the socket and the reader of a streamed body.
pub const BODY_BUFFER: usize = 256 * 1024;
/// What an idle session keeps of its buffers.
pub const IDLE_BUFFER: usize = 4 * 1024;
/// Log bytes that wait for a client that does not read. What comes beyond is dropped, and its lines are counted.
pub const LOG_BACKLOG: usize = 1024 * 1024;
/// Bytes of one `STDERR_WRITE` or `STDERR_READ` frame.
pub const TUNNEL_FRAME: usize = 64 * 1024;
