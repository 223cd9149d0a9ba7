//! Integration tests: real PostgreSQL, real TLS. They start what they need.

mod support;

mod config;
mod delivery;
mod doorbell;
mod embedded;
mod registration;
mod registry_conformance;
mod schema;
