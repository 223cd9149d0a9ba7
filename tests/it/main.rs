//! Integration tests: real PostgreSQL, real TLS. They start what they need.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test reads the world, and fails by panicking"
)]

mod support;

mod check;
mod circumstances;
mod cli;
mod config;
mod connections;
mod database;
mod daemon;
mod delivery;
mod deploy;
mod doorbell;
mod embedded;
mod examples;
mod interop;
mod guard;
mod hostile;
mod layers;
mod pacing;
mod page;
mod plans;
mod pooler;
mod prometheus;
mod properties;
mod reference;
mod registration;
mod registry_conformance;
mod schema;
mod shares;
mod sharing;
mod keys;
mod lanes;
mod leases;
mod manager;
mod metrics;
mod observing;
mod pulse;
mod queue;
mod rolling;
mod sealed;
mod sealing;
mod sellers;
mod sending;
mod resting;
mod settling;
mod states;
mod traces;
mod walks;
mod watch;
mod why;
