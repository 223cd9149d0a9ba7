//! The edge: everything that touches the world. The core takes values.

#![allow(clippy::disallowed_methods, reason = "reading the world is what the edge is for")]

pub mod cli;
pub mod config;
pub mod telemetry;
mod journal;
#[cfg(feature = "otlp")]
mod traces;
pub mod dsn;
pub mod database;
pub mod pooler;
mod descriptors;
pub mod run;
pub mod keys;
mod published;
mod sealer;
mod overdue;
pub mod sources;
mod gauges;
mod reporter;
pub mod pulse;
mod admin;
mod manager;
pub mod embedded;
