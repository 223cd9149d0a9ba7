//! Both tables as one: the worker claims, attempts and settles without asking where a row stands.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{
    Claimed, Entered, Look, NativeOutbox, Outbox, OutboxError, Room, SealedOutbox, SettledRows, Settlement,
    Source, Transition,
};

/// The native outbox and, where one is configured, the sealed one.
pub struct Outboxes {
    native: NativeOutbox,
    sealed: Option<SealedOutbox>,
    /// Whose turn it is to be asked first, so that neither starves behind the other's backlog.
    sealed_first: AtomicBool,
}

impl Outboxes {
    /// Both.
    #[must_use]
    pub fn new(native: NativeOutbox, sealed: Option<SealedOutbox>) -> Self {
        Self { native, sealed, sealed_first: AtomicBool::new(false) }
    }
}

impl Outbox for Outboxes {
    async fn claim(&self, room: &Room) -> Result<Claimed, OutboxError> {
        // Only our own triggers say where.
        let sealed = self.sealed.as_ref().filter(|_| !matches!(room.look, Look::At { .. }));
        let Some(sealed) = sealed else { return self.native.claim(room).await };
        // What the second one may take depends on what the first one took.
        let (mut claimed, second) = if self.sealed_first.fetch_xor(true, Ordering::Relaxed) {
            let first = sealed.claim(room).await?;
            let second = self.native.claim(&room.after(&first.claims)).await;
            (first, second)
        } else {
            let first = self.native.claim(room).await?;
            let second = sealed.claim(&room.after(&first.claims)).await;
            (first, second)
        };
        match second {
            Ok(second) => {
                claimed.transitions.extend(second.transitions);
                claimed.claims.extend(second.claims);
                claimed.more |= second.more;
                claimed.recorded = claimed.recorded.or(second.recorded);
                claimed.fault = claimed.fault.or(second.fault);
            }
            // What was claimed must be attempted; the other table is asked again in a moment.
            Err(error) => claimed.fault = Some(error),
        }
        Ok(claimed)
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<SettledRows, OutboxError> {
        let Some(sealed) = &self.sealed else { return self.native.settle(settlements).await };
        let of = |source| {
            let rows = settlements.iter().filter(move |settlement| settlement.row.source == source);
            rows.cloned().collect::<Vec<_>>()
        };
        let (native, theirs) = (of(Source::Native), of(Source::Sealed));
        let (first, second) = tokio::join!(
            async {
                if native.is_empty() { Ok(SettledRows::default()) } else { self.native.settle(&native).await }
            },
            async {
                if theirs.is_empty() { Ok(SettledRows::default()) } else { sealed.settle(&theirs).await }
            },
        );
        let mut settled = SettledRows::default();
        for (answer, asked) in [(first, native), (second, theirs)] {
            match answer {
                Ok(rows) => settled.extend(rows),
                Err(error) => settled.unwritten(&asked.iter().collect::<Vec<_>>(), error),
            }
        }
        Ok(settled)
    }

    async fn before(&self, changes: &[Transition]) -> Result<Vec<Option<Entered>>, OutboxError> {
        self.native.before(changes).await
    }

    async fn next_due(&self) -> Result<Option<Duration>, OutboxError> {
        let Some(sealed) = &self.sealed else { return self.native.next_due().await };
        let (native, theirs) = tokio::try_join!(self.native.next_due(), sealed.next_due())?;
        Ok(native.into_iter().chain(theirs).min())
    }

    async fn expire(&self) -> Result<u64, OutboxError> {
        let Some(sealed) = &self.sealed else { return self.native.expire().await };
        let (native, theirs) = tokio::try_join!(self.native.expire(), sealed.expire())?;
        Ok(native + theirs)
    }

    async fn ring(&self) -> Result<(), OutboxError> {
        self.native.ring().await
    }
}
