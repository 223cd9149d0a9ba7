//! `taskbell completions` and `taskbell man`: what packages ship, made of the command line itself.

use std::io;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;

/// Which shell.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    /// Prints them.
    pub(super) fn run(self, command: &mut Command) {
        clap_complete::generate(self.shell, command, "taskbell", &mut io::stdout());
    }
}

/// Where to.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// The directory, which is made if it is not there.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Man {
    /// Writes a page for the program and one for each command: taskbell.1, taskbell-run.1, …
    pub(super) fn run(self, command: Command) -> anyhow::Result<()> {
        let name = || self.directory.display().to_string();
        std::fs::create_dir_all(&self.directory).with_context(name)?;
        clap_mangen::generate_to(command, &self.directory).with_context(name)
    }
}
