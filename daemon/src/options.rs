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
    /// Bytes that a build may write to its log; 0: no limit. For trusted clients to set.
    pub max_log_size: u64,
}

/// A setting whose value makes no sense: the session ends.
#[derive(Debug, thiserror::Error)]
pub enum BadOption {
    /// It should be a number and is not.
    #[error("configuration setting `{0}' should have an integer value")]
    Number(String),
    /// It should be a truth value and is not.
    #[error("configuration option `{0}' should be either `true' or `false', not `{1}'")]
    Boolean(String, String),
}

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
            max_log_size: 0,
        }
    }

    /// Takes one named setting of the client. Those that are not for it to set are passed over, as upstream does.
    pub fn set(&mut self, name: &[u8], value: &[u8], trusted: bool) -> Result<(), BadOption> {
        let number = || {
            std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.trim_start().parse::<i64>().ok())
                .ok_or_else(|| BadOption::Number(String::from_utf8_lossy(name).into_owned()))
        };
        // Upstream takes what is below zero, and means nothing sensible by it: no time is no limit.
        let seconds = || number().map(|number| u64::try_from(number).unwrap_or(0));
        // A count wraps.
        let count = || number().map(|number| u64::try_from(number).unwrap_or_else(|_| u64::from(number as u32)));
        match name {
            b"build-timeout" => self.timeout = seconds()?,
            b"build-max-silent-time" => self.max_silent_time = seconds()?,
            b"build-max-jobs" => self.max_jobs = count()?,
            b"build-cores" => self.cores = count()?,
            b"build-repeat" => self.rounds = count()?.saturating_add(1),
            b"multiplexed-build-output" => {
                self.multiplexed = match value {
                    b"true" => true,
                    b"false" => false,
                    _ => {
                        return Err(BadOption::Boolean(
                            String::from_utf8_lossy(name).into_owned(),
                            String::from_utf8_lossy(value).into_owned(),
                        ));
                    }
                }
            }
            b"print-extended-build-trace" => self.extended_trace = value == b"1",
            b"build-max-log-size" if trusted => self.max_log_size = count()?,
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
