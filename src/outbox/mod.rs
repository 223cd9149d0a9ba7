//! The table of webhooks owed: claim under a lease, settle under its token.
