//! `record --listen SOCKET --forward SOCKET --output FILE`: stands between clients and a daemon and writes down what
//! they say, until SIGTERM.

use std::path::PathBuf;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// Stand between clients and a daemon, and write down what they say.
#[derive(Debug, Parser)]
struct Options {
    /// Where clients connect.
    #[arg(long)]
    listen: PathBuf,
    /// Where the daemon listens.
    #[arg(long)]
    forward: PathBuf,
    /// The transcript; what is there is lost.
    #[arg(long)]
    output: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async {
        terminate.recv().await;
    };
    fruix_compat_tests::recorder::record(&options.listen, &options.forward, &options.output, stop).await
}
