//! The edge: everything that touches the world.

pub mod config;
pub mod embedded;
