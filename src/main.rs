//! `taskbell`: see `taskbell --help`.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use taskbell::daemon::cli::{self, Cli};

/// A tenth of the processor time of a delivery went into the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match cli::main(Cli::parse()).await {
        Ok(code) => ExitCode::from(code),
        // As `head` does when it has read enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("taskbell: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
