//! What JSON can be stored, and when two documents are the same.

use serde_json::Value;

use super::RegistryError;

/// Refuses what the database would refuse later, and what no receiver would take.
pub(super) fn check(field: &'static str, value: &Value) -> Result<(), RegistryError> {
    if has_nul(value) {
        return Err(RegistryError::Refused {
            field,
            problem: "has a NUL character, which jsonb cannot store",
        });
    }
    if value.to_string().len() > MAX_BYTES {
        return Err(RegistryError::Refused {
            field,
            problem: "is larger than 10 MB, more than a webhook may carry",
        });
    }
    Ok(())
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(members) => members.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Whether two documents are equal as the AdCP Python SDK compares them: `1`, `1.0` and `true`
/// are one value, and the order of members means nothing.
pub(super) fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(name, value)| right.get(name).is_some_and(|other| same(value, other)))
        }
        (Value::Bool(_) | Value::Number(_), Value::Bool(_) | Value::Number(_)) => {
            match (integer(left), integer(right)) {
                (Some(left), Some(right)) => left == right,
                _ => number(left) == number(right),
            }
        }
        _ => left == right,
    }
}

fn integer(value: &Value) -> Option<i128> {
    match value {
        Value::Bool(flag) => Some(i128::from(*flag)),
        Value::Number(number) => number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from)),
        _ => None,
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        _ => value.as_f64(),
    }
}

/// Room for the envelope around it, inside the 10 MiB of a body.
const MAX_BYTES: usize = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_are_compared_as_python_compares_them() {
        for (left, right, expected) in [
            (json!({"a": 1, "b": [1.0]}), json!({"b": [true], "a": 1.0}), true),
            (json!(9_007_199_254_740_993_u64), json!(9_007_199_254_740_992_u64), false),
            (json!("1"), json!(1), false),
            (json!(null), json!({}), false),
            (json!({"a": null}), json!({}), false),
            (json!([1, 2]), json!([2, 1]), false),
            (json!(0), json!(false), true),
        ] {
            assert_eq!(same(&left, &right), expected, "{left} {right}");
        }
    }

    #[test]
    fn a_nul_is_found_at_any_depth() {
        for value in [json!("a\0"), json!([{"a": ["\0"]}]), json!({"\0": 1})] {
            assert!(check("result", &value).is_err());
        }
        assert!(check("result", &json!({"a": "\u{1}"})).is_ok());
    }
}
