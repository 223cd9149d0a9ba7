//! How a registration reaches the database: as it is, with its secrets sealed, or in the form
//! that the AdCP Python SDK opens.

#[cfg(feature = "sealing")]
use std::sync::Arc;

use super::{NewTask, RegistryError};
#[cfg(feature = "sealing")]
use crate::task::{Authentication, Binding, SdkKeys, SdkSealed, SealingKeys, Secrets};
use crate::task::{Registration, TaskId};

/// What a registry does with registrations.
#[derive(Clone, Default)]
pub(super) enum Keeper {
    /// Leaves their secrets to a daemon that has a sealing key.
    #[default]
    Plain,
    /// Seals their secrets.
    #[cfg(feature = "sealing")]
    Sealing(Arc<SealingKeys>),
    /// Writes them into the task's row, as the SDK does. Whoever settles the task must be the SDK.
    #[cfg(feature = "sealing")]
    Sdk(Arc<SdkKeys>),
}

/// A registration, ready for its statement.
pub(super) enum Kept {
    /// For `taskbell.register_webhook`.
    Native(Registering),
    /// For the columns `webhook_registration` of the task.
    #[cfg(feature = "sealing")]
    Sdk(SdkSealed),
}

/// The arguments of `taskbell.register_webhook`.
#[derive(Default)]
pub(super) struct Registering {
    pub(super) config: String,
    pub(super) states: Vec<&'static str>,
    pub(super) signing_scope: Option<String>,
    pub(super) sealed: Option<Vec<u8>>,
    pub(super) nonce: Option<Vec<u8>>,
    pub(super) sealed_with: Option<String>,
}

impl Keeper {
    /// The registration of a task that is about to be issued.
    pub(super) fn keep(
        &self,
        id: &TaskId,
        task: &NewTask,
        registration: &Registration,
    ) -> Result<Kept, RegistryError> {
        match self {
            Self::Plain => {
                let _ = (id, task);
                Ok(Kept::Native(Registering::plain(registration)))
            }
            #[cfg(feature = "sealing")]
            Self::Sealing(keys) => seal(keys, id, task, registration).map(Kept::Native),
            #[cfg(feature = "sealing")]
            Self::Sdk(keys) => seal_for_sdk(keys, id, task, registration).map(Kept::Sdk),
        }
    }
}

impl Registering {
    fn plain(registration: &Registration) -> Self {
        Self {
            config: registration.to_config().to_string(),
            states: registration.states.iter().map(|status| status.as_str()).collect(),
            signing_scope: registration.signing_scope.as_ref().map(|scope| scope.as_str().to_owned()),
            ..Self::default()
        }
    }
}

#[cfg(feature = "sealing")]
fn seal(
    keys: &SealingKeys,
    id: &TaskId,
    task: &NewTask,
    registration: &Registration,
) -> Result<Registering, RegistryError> {
    let authentication = registration.authentication.as_ref();
    let secrets = Secrets {
        token: registration.token.clone(),
        credentials: authentication.map(|authentication| authentication.secret().clone()),
    };
    if secrets.is_empty() || keys.current().is_none() {
        return Ok(Registering::plain(registration));
    }
    let binding = Binding {
        account: Some(task.account.as_str()),
        task_id: id.as_str(),
        task_type: task.task_type.as_str(),
        url: registration.url.as_str(),
        operation_id: registration.operation_id.as_str(),
        scheme: authentication.map(Authentication::scheme),
    };
    let sealed = keys.seal(&secrets, &binding).map_err(|_| UNSEALED)?;
    Ok(Registering {
        config: registration.to_config_without_secrets().to_string(),
        sealed: Some(sealed.ciphertext),
        nonce: Some(sealed.nonce.to_vec()),
        sealed_with: Some(sealed.key_id),
        ..Registering::plain(registration)
    })
}

/// The SDK would refuse for ever to end a task whose webhook it cannot make: such a one is
/// refused here.
#[cfg(feature = "sealing")]
fn seal_for_sdk(
    keys: &SdkKeys,
    id: &TaskId,
    task: &NewTask,
    registration: &Registration,
) -> Result<SdkSealed, RegistryError> {
    let refuse = |field, problem| RegistryError::Refused { field, problem };
    if !task.task_type.is_known() {
        let problem = "is not one that a webhook can name; without a registration any type may be a task";
        return Err(refuse("task_type", problem));
    }
    if !registration.states.is_empty() {
        return Err(refuse("states", "are more than the SDK tells: it rings at the end of a task only"));
    }
    let (account, kind) = (task.account.as_str(), task.task_type.as_str());
    keys.seal_registration(registration, account, id.as_str(), kind).map_err(|_| UNSEALED)
}

#[cfg(feature = "sealing")]
const UNSEALED: RegistryError = RegistryError::Refused {
    field: "registration",
    problem: "cannot be sealed: no key is configured, or the cryptographic library failed",
};
