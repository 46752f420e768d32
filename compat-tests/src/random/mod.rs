//! Random sequences of operations against two daemons, until they disagree.
//!
//! A [`case::Case`] is a sequence as text: what is kept, replayed and made smaller. [`plan`] turns an operation into the bytes of a request,
//! [`side`] runs a case against one daemon in namespaces of its own and writes down what happened, [`generate`] makes cases from a seed and
//! [`shrink`] makes one that shows a disagreement smaller. The program is `random-diff`; `compat-tests/random/run.sh` prepares what it needs.

pub mod case;
pub mod generate;
pub mod plan;
pub mod shrink;
pub mod side;
pub mod wire;

/// The result of what can fail for reasons that end the program.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
