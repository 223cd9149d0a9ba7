//! Strips credentials from results before they are stored and sent.
//!
//! The members and the task types are those of the AdCP Python SDK (`account_projection`,
//! `error_sanitization`), so that a task reads the same whoever completed it.

use serde_json::{Map, Value};

/// The result as it may be stored for a task of this type.
pub(super) fn strip(task_type: &str, mut result: Value) -> Value {
    if TASK_TYPES.contains(&task_type) {
        walk(&mut result);
    }
    result
}

fn walk(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(walk),
        Value::Object(members) => {
            strip_members(members);
            members.values_mut().for_each(walk);
        }
        _ => {}
    }
}

fn strip_members(members: &mut Map<String, Value>) {
    if let Some(Value::Array(agents)) = members.get_mut("governance_agents") {
        for agent in agents.iter_mut().filter_map(Value::as_object_mut) {
            agent.remove("authentication");
        }
    }
    if let Some(Value::Array(configs)) = members.get_mut("notification_configs") {
        for config in configs.iter_mut() {
            if let Some(authentication) = config.get_mut("authentication").and_then(Value::as_object_mut) {
                authentication.remove("credentials");
            }
        }
    }
    for entity in ["billing_entity", "invoice_recipient"] {
        if let Some(Value::Object(entity)) = members.get_mut(entity) {
            entity.remove("bank");
        }
    }
    if let Some(authorization) = members.get("authorization") {
        match keep(authorization, &AUTHORIZATION) {
            Some(kept) => members.insert("authorization".to_owned(), kept),
            None => members.remove("authorization"),
        };
    }
    if let Some(Value::Array(errors)) = members.get_mut("errors") {
        errors.iter_mut().for_each(sanitize_error);
    }
    if let Some(error) = members.get_mut("adcp_error") {
        sanitize_error(error);
    }
}

/// Only `names`, and of those the non-null; `None` when nothing is left.
fn keep(value: &Value, names: &[&str]) -> Option<Value> {
    let members = value.as_object()?;
    let kept: Map<String, Value> = names
        .iter()
        .filter_map(|name| {
            Some(((*name).to_owned(), members.get(*name).filter(|value| !value.is_null())?.clone()))
        })
        .collect();
    (!kept.is_empty()).then_some(Value::Object(kept))
}

/// An error's details say what is missing, never what was tried.
fn sanitize_error(error: &mut Value) {
    let Some(members) = error.as_object_mut() else { return };
    let Some(details) = members.remove("details") else { return };
    let Some(code) = members.get("code").and_then(Value::as_str) else { return };
    let details = match code {
        "AUTHORIZATION_REQUIRED" => keep(&details, &AUTHORIZATION_DETAILS).map(|mut details| {
            for list in ["required_connections", "missing_connections"] {
                if let Some(Value::Array(connections)) = details.get_mut(list) {
                    *connections = connections.iter().filter_map(connection).collect();
                }
            }
            details
        }),
        _ => Some(details).filter(|details| details.as_object().is_some_and(|details| !details.is_empty())),
    };
    if let Some(details) = details {
        members.insert("details".to_owned(), details);
    }
}

fn connection(value: &Value) -> Option<Value> {
    let mut kept = keep(value, &CONNECTION)?;
    if let Some(resource) = kept.get("resource_ref") {
        match keep(resource, &RESOURCE) {
            Some(resource) => kept["resource_ref"] = resource,
            None => {
                kept.as_object_mut()?.remove("resource_ref");
            }
        }
    }
    Some(kept)
}

const TASK_TYPES: [&str; 8] = [
    "create_media_buy",
    "get_media_buys",
    "list_accounts",
    "list_creatives",
    "sync_accounts",
    "sync_creatives",
    "sync_governance",
    "update_media_buy",
];
const AUTHORIZATION: [&str; 4] = ["allowed_tasks", "field_scopes", "scope_name", "read_only"];
const AUTHORIZATION_DETAILS: [&str; 4] =
    ["required_connections", "missing_connections", "authorization_url", "authorization_instructions"];
const CONNECTION: [&str; 10] = [
    "provider",
    "connection_type",
    "required_for",
    "scope",
    "status",
    "connection_id",
    "resource_ref",
    "authorization_url",
    "authorization_instructions",
    "expires_at",
];
const RESOURCE: [&str; 6] =
    ["platform_account_id", "identity_id", "handle", "profile_url", "post_id", "post_url"];

#[cfg(test)]
mod tests {
    use super::*;

    /// What the AdCP Python SDK 9.2.0 stores for given results.
    const VECTORS: &str = include_str!("../../tests/vectors/credential-stripping.json");

    #[test]
    fn results_are_stripped_as_the_python_sdk_strips_them() {
        let cases: Vec<(String, Value, Value)> = serde_json::from_str(VECTORS).unwrap();
        assert!(!cases.is_empty());
        for (task_type, given, expected) in cases {
            assert_eq!(strip(&task_type, given), expected, "{task_type}");
        }
    }
}
