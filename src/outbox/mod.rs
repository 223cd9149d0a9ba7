//! The table of webhooks owed: claim under a lease, settle under its token.
//!
//! [`Outbox`] is the seam between the worker and a table. A claim is a timed right to make one
//! attempt; [`Outbox::settle`] matches row *and* token, so a claim whose lease ran out changes
//! nothing. The database's clock decides what is due and who holds a lease.

pub mod native;

use std::time::{Duration, SystemTime};

use crate::task::{AccountId, TaskId};
use crate::webhook::{Prepared, Unsendable};
