//! `taskbell`: see `taskbell --help`.

use std::process::ExitCode;

use clap::Parser;
use taskbell::daemon::cli::{self, Cli};

#[tokio::main]
async fn main() -> ExitCode {
    match cli::main(Cli::parse()).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("taskbell: {error:#}");
            ExitCode::from(2)
        }
    }
}
