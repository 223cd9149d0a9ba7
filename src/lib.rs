//! Taskbell rings the buyer when a seller's human is done.
//!
//! The crate has the durable [`registry`] that sellers written in Rust use, the schema and
//! triggers that record what is owed ([`migrations`]), and the daemon that delivers it.
//! `ARCHITECTURE.md` walks through one delivery; the modules below stand in that order.

pub mod task;
pub mod registry;
pub mod migrations;
#[cfg(feature = "daemon")]
pub mod listener;
#[cfg(feature = "daemon")]
pub mod outbox;
#[cfg(feature = "daemon")]
pub mod webhook;
#[cfg(feature = "daemon")]
pub mod worker;
#[cfg(feature = "daemon")]
pub mod metrics;
#[cfg(feature = "daemon")]
pub mod daemon;
