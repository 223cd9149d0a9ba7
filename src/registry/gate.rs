//! Production refuses a registry that a restart would empty.

use super::TaskRegistry;

/// What `ADCP_ENV` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdcpEnv {
    /// `production`.
    Production,
    /// Anything else.
    Development,
}

impl AdcpEnv {
    /// Reads `ADCP_ENV` from the process's environment.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "one reader, offered to sellers' own main functions")]
    pub fn from_env() -> Self {
        Self::parse(std::env::var("ADCP_ENV").ok().as_deref())
    }

    /// What a value means.
    #[must_use]
    pub fn parse(value: Option<&str>) -> Self {
        if value == Some("production") { Self::Production } else { Self::Development }
    }
}

/// Passes a registry on, unless it would lose tasks in production.
///
/// # Errors
/// [`NotDurable`], when the environment is production and the registry is not durable.
pub fn require_durable<R: TaskRegistry>(environment: AdcpEnv, registry: R) -> Result<R, NotDurable> {
    if environment == AdcpEnv::Production && !R::IS_DURABLE { Err(NotDurable) } else { Ok(registry) }
}

/// A registry that forgets, in production.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ADCP_ENV=production refuses a registry that loses its tasks on restart: use PostgresTaskRegistry")]
pub struct NotDurable;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::InMemoryTaskRegistry;

    #[test]
    fn production_refuses_a_registry_that_forgets() {
        let refused = require_durable(AdcpEnv::parse(Some("production")), InMemoryTaskRegistry::new());
        assert!(refused.err().is_some_and(|error| error.to_string().contains("PostgresTaskRegistry")));
        assert!(require_durable(AdcpEnv::parse(None), InMemoryTaskRegistry::new()).is_ok());
    }
}
