//! What a client asked for with SetOptions.

use crate::config::Settings;

/// How loud a message is: a client sees those up to its verbosity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Errors and traces: always seen.
    Error = 0,
    /// What is built.
    Info = 1,
    /// Details.
    Talkative = 2,
    /// More details.
    Chatty = 3,
    /// Debugging.
    Debug = 4,
}

/// The options of one session; they begin as the daemon's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Keep the build directory of a failed build.
    pub keep_failed: bool,
    /// Go on with other builds when one fails.
    pub keep_going: bool,
    /// Messages up to this level are sent.
    pub verbosity: u64,
    /// Builder output is sent if `verbosity` reaches this.
    pub build_verbosity: u64,
    /// Send `@ ` traces.
    pub print_build_trace: bool,
    /// Prefix builder output with `@ build-log PID LENGTH`.
    pub multiplexed: bool,
    /// Trace downloads in detail.
    pub extended_trace: bool,
    /// Builds at once.
    pub max_jobs: u64,
    /// Cores a build may use; 0: all.
    pub cores: u64,
    /// Seconds a build may take; 0: no limit.
    pub timeout: u64,
    /// Seconds a build may be silent; 0: no limit.
    pub max_silent_time: u64,
    /// Rounds of each build.
    pub rounds: u64,
}

/// A setting that should be a number and is not.
#[derive(Debug, thiserror::Error)]
#[error("configuration setting `{0}' should have an integer value")]
pub struct NotANumber(String);

impl ClientOptions {
    /// The daemon's own.
    #[must_use]
    pub fn new(settings: &Settings) -> ClientOptions {
        ClientOptions {
            keep_failed: false,
            keep_going: false,
            verbosity: Level::Info as u64,
            build_verbosity: Level::Error as u64,
            print_build_trace: false,
            multiplexed: false,
            extended_trace: false,
            max_jobs: settings.max_jobs,
            cores: settings.cores,
            timeout: settings.timeout,
            max_silent_time: settings.max_silent_time,
            rounds: settings.rounds,
        }
    }

    /// Takes one named setting of the client. Those that are not for clients to set are passed over, as upstream does.
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> Result<(), NotANumber> {
        let number = || {
            std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
                .ok_or_else(|| NotANumber(String::from_utf8_lossy(name).into_owned()))
        };
        match name {
            b"build-timeout" => self.timeout = number()?,
            b"build-max-silent-time" => self.max_silent_time = number()?,
            b"build-max-jobs" => self.max_jobs = number()?,
            b"build-cores" => self.cores = number()?,
            b"build-repeat" => self.rounds = number()?.saturating_add(1),
            b"multiplexed-build-output" => self.multiplexed = value == b"true",
            b"print-extended-build-trace" => self.extended_trace = value == b"1",
            _ => {}
        }
        Ok(())
    }

    /// Whether a message of `level` is for this client.
    #[must_use]
    pub fn wants(&self, level: Level) -> bool {
        level as u64 <= self.verbosity
    }
}
