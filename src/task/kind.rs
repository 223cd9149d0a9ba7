//! Task types: the AdCP operations that can become tasks, and the protocol each belongs to.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::IdError;

/// The AdCP operation that a task answers, such as `create_media_buy`.
///
/// Any printable name may be a task; only those of [`task_types`] (and the ones that an
/// operator adds to `taskbell.task_type`) may have a webhook, because receivers refuse others.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskType(String);

impl TaskType {
    /// Longest accepted name, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// Parses a name.
    ///
    /// # Errors
    /// [`IdError`] when it is empty, too long, or has anything but printable ASCII without
    /// spaces.
    pub fn parse(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        if text.is_empty() {
            return Err(IdError::Empty { field: "task_type" });
        }
        if text.len() > Self::MAX_BYTES {
            return Err(IdError::TooLong { field: "task_type", max: Self::MAX_BYTES });
        }
        if !text.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
            return Err(IdError::Characters { field: "task_type" });
        }
        Ok(Self(text))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the AdCP enum has it.
    #[must_use]
    pub fn is_known(&self) -> bool {
        TABLE.iter().any(|(name, _)| *name == self.0)
    }
}

impl fmt::Display for TaskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TaskType {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::parse(text)
    }
}

impl From<TaskType> for String {
    fn from(kind: TaskType) -> String {
        kind.0
    }
}

/// Every task type of the AdCP enum (`enums/task-type.json`, 3.2.4).
pub fn task_types() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, _)| *name)
}

/// The envelope's `protocol` for a task type, where the AdCP SDKs name one.
///
/// `None` means that the optional member is left out: a receiver's fingerprint covers it, so
/// an invented value could make two deliveries of one event look different.
#[must_use]
pub fn protocol_of(task_type: &str) -> Option<&'static str> {
    TABLE.iter().find(|(name, _)| *name == task_type).and_then(|(_, protocol)| *protocol)
}

const TABLE: &[(&str, Option<&str>)] = &[
    ("accept_proposal", None),
    ("acquire_rights", Some("brand")),
    ("activate_signal", Some("signals")),
    ("build_creative", None),
    ("buy_products", None),
    ("control_media_buy", None),
    ("create_media_buy", Some("media-buy")),
    ("create_property_list", Some("governance")),
    ("decline_proposals", None),
    ("delete_property_list", Some("governance")),
    ("get_account_financials", Some("media-buy")),
    ("get_brand_identity", Some("brand")),
    ("get_creative_delivery", Some("creative")),
    ("get_creative_features", None),
    ("get_principal", None),
    ("get_products", Some("media-buy")),
    ("get_property_list", Some("governance")),
    ("get_rights", Some("brand")),
    ("get_signals", Some("signals")),
    ("list_property_lists", Some("governance")),
    ("log_event", Some("media-buy")),
    ("media_buy_delivery", None),
    ("preview_creative", None),
    ("refine_proposals", None),
    ("request_proposals", None),
    ("search_brands", None),
    ("sync_accounts", Some("media-buy")),
    ("sync_agent_notification_configs", None),
    ("sync_audiences", Some("media-buy")),
    ("sync_catalogs", Some("media-buy")),
    ("sync_creatives", Some("creative")),
    ("sync_event_sources", Some("media-buy")),
    ("sync_principal", None),
    ("sync_reporting_receipts", Some("media-buy")),
    ("sync_reporting_status", Some("media-buy")),
    ("update_media_buy", Some("media-buy")),
    ("update_property_list", Some("governance")),
    ("update_rights", None),
];
