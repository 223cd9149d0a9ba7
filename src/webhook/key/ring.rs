//! Key sets: which key signs now, which are published, and how one takes over from another.
//!
//! A rotation overlaps at both ends. Receivers cache a JWKS for up to half an hour (AdCP
//! webhook verifier checklist), so a new key is published a while before it signs (`nbf`); the
//! last signature of the old one lives for five minutes, so it stays published a while after
//! (`exp`). Both moments stand in the key file: every daemon that reads it changes over at once.
//!
//! ```text
//!   old    ── signs ────────────────────────────┤── published ──┤ exp
//!   new              ├── published ─────────────┤── signs ──────────
//!                 rotate                       nbf
//! ```

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use secrecy::{ExposeSecret, SecretString};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{KeyError, SigningKey};
use crate::task::SigningScope;

/// The keys of one signing scope.
#[derive(Debug, Default, PartialEq)]
pub struct KeyRing(Vec<SigningKey>);

/// Every key set of an installation: the default one, and those of signing scopes.
#[derive(Debug, Default, PartialEq)]
pub struct KeySets {
    default: KeyRing,
    scopes: BTreeMap<SigningScope, KeyRing>,
}

impl KeyRing {
    /// A ring; without keys it signs nothing.
    ///
    /// # Errors
    /// [`KeyError::DuplicateKid`].
    pub fn new(keys: Vec<SigningKey>) -> Result<Self, KeyError> {
        let mut kids = HashSet::new();
        match keys.iter().find(|key| !kids.insert(key.kid())) {
            Some(key) => Err(KeyError::DuplicateKid(key.kid().to_owned())),
            None => Ok(Self(keys)),
        }
    }

    /// Reads a key file: a private JWKS (`{"keys": […]}`, what [`KeyRing::rotate`] leaves), a
    /// private JWK, or PEM.
    ///
    /// # Errors
    /// [`KeyError`], which never repeats what the file says.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        #[derive(serde::Deserialize)]
        struct File<'a> {
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        match serde_json::from_str::<File<'_>>(text) {
            Ok(file) => {
                let keys = file.keys.into_iter().map(|key| SigningKey::from_jwk(key.get(), None));
                Self::new(keys.collect::<Result<_, _>>()?)
            }
            Err(_) => Self::new(vec![SigningKey::parse(text, None)?]),
        }
    }

    /// The keys of both.
    ///
    /// # Errors
    /// [`KeyError::DuplicateKid`].
    pub fn join(self, other: Self) -> Result<Self, KeyError> {
        Self::new(self.0.into_iter().chain(other.0).collect())
    }

    /// The key that signs at `now`: the one that took over last; the first of several that never
    /// had to wait.
    #[must_use]
    pub fn signing(&self, now: SystemTime) -> Option<&SigningKey> {
        let now = unix(now);
        let may = |key: &&SigningKey| key.signs_from.unwrap_or(0) <= now && key.is_published(now);
        // `max_by_key` gives the last of equals.
        self.0.iter().rev().filter(may).max_by_key(|key| key.signs_from.unwrap_or(0))
    }

    /// Every key, in the order of the files.
    pub fn iter(&self) -> impl Iterator<Item = &SigningKey> {
        self.0.iter()
    }

    /// The JWKS document for `/.well-known/jwks.json` at `now`: public members only, of keys
    /// that will sign, sign, or have a signature that may still be on its way.
    #[must_use]
    pub fn jwks(&self, now: SystemTime) -> Value {
        let published = self.0.iter().filter(|key| key.is_published(unix(now)));
        json!({ "keys": published.map(SigningKey::to_public_jwk).collect::<Vec<_>>() })
    }

    /// The same keys and a new one, which signs after `lead` and replaces them `overlap` later.
    /// Keys that are no longer published are dropped. Gives the new key's id too.
    ///
    /// # Errors
    /// [`RotationError`]: nothing was changed.
    pub fn rotate(
        self,
        now: SystemTime,
        lead: Duration,
        overlap: Duration,
    ) -> Result<(Self, String), RotationError> {
        let signing = self.signing(now).ok_or(RotationError::NoKey)?;
        let (algorithm, purpose) = (signing.algorithm(), signing.purpose);
        let now = unix(now);
        if let Some(waiting) = self.0.iter().find(|key| key.signs_from.unwrap_or(0) > now) {
            let seconds = waiting.signs_from.unwrap_or(0) - now;
            return Err(RotationError::UnderWay { kid: waiting.kid.clone(), seconds });
        }
        let takes_over = now + lead.as_secs();
        let mut keys = self.0;
        keys.retain(|key| key.is_published(now));
        for key in &mut keys {
            key.published_until.get_or_insert(takes_over + overlap.as_secs());
        }
        let new = SigningKey::generate(algorithm, None)?;
        let kid = new.kid.clone();
        keys.push(SigningKey { purpose, signs_from: Some(takes_over), ..new });
        Ok((Self::new(keys)?, kid))
    }

    /// Every key as a private JWKS, for a file with mode 0600.
    ///
    /// # Errors
    /// [`KeyError::Random`] when the library does not give out a private half.
    pub fn to_private_jwks(&self) -> Result<SecretString, KeyError> {
        let mut text = Zeroizing::new("{\"keys\": [\n".to_owned());
        for (n, key) in self.0.iter().enumerate() {
            text.push_str(if n == 0 { "" } else { ",\n" });
            text.push_str(key.to_private_jwk()?.expose_secret().trim_end());
        }
        text.push_str("\n]}\n");
        Ok(SecretString::from(text.as_str()))
    }
}

impl SigningKey {
    fn is_published(&self, now: u64) -> bool {
        self.published_until.is_none_or(|until| until > now)
    }

    /// The same key, published now and signing only from `at` on.
    #[must_use]
    pub fn signing_from(self, at: SystemTime) -> Self {
        Self { signs_from: Some(unix(at)), ..self }
    }
}

impl KeySets {
    /// The default key set and those of signing scopes.
    #[must_use]
    pub fn new(default: KeyRing, scopes: BTreeMap<SigningScope, KeyRing>) -> Self {
        Self { default, scopes }
    }

    /// One key set; `None` for a scope that has none.
    #[must_use]
    pub fn ring(&self, scope: Option<&SigningScope>) -> Option<&KeyRing> {
        match scope {
            None => Some(&self.default),
            Some(scope) => self.scopes.get(scope),
        }
    }

    /// Every key set, the default one first.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&SigningScope>, &KeyRing)> {
        let scopes = self.scopes.iter().map(|(scope, ring)| (Some(scope), ring));
        std::iter::once((None, &self.default)).chain(scopes)
    }
}

impl From<KeyRing> for KeySets {
    fn from(default: KeyRing) -> Self {
        Self { default, scopes: BTreeMap::new() }
    }
}

/// Why no key takes over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// The file has no key that signs now.
    #[error("no key of the file signs now: make one with `taskbell keys generate`")]
    NoKey,
    /// A key waits already.
    #[error("a rotation is under way: `{kid}` signs in {seconds} s")]
    UnderWay {
        /// The key that waits.
        kid: String,
        /// How long it still does.
        seconds: u64,
    },
    /// No key could be made.
    #[error(transparent)]
    Key(#[from] KeyError),
}

fn unix(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::super::SigningAlgorithm;
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const OVERLAP: Duration = Duration::from_secs(900);

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    fn key(kid: &str) -> SigningKey {
        SigningKey::generate(SigningAlgorithm::EcdsaP256, Some(kid)).unwrap()
    }

    fn published(ring: &KeyRing, seconds: u64) -> Vec<String> {
        let jwks = ring.jwks(at(seconds));
        jwks["keys"].as_array().unwrap().iter().map(|jwk| jwk["kid"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_first_of_several_plain_keys_signs_and_all_are_published() {
        let ring = KeyRing::new(vec![key("a"), key("b")]).unwrap();
        assert_eq!(ring.signing(at(0)).unwrap().kid(), "a");
        assert_eq!(published(&ring, 0), ["a", "b"]);
        assert!(KeyRing::default().signing(at(0)).is_none());
    }

    #[test]
    fn a_rotation_overlaps_at_both_ends_and_survives_its_file() {
        let (ring, new) = KeyRing::new(vec![key("old")]).unwrap().rotate(at(0), HOUR, OVERLAP).unwrap();
        let ring = KeyRing::parse(ring.to_private_jwks().unwrap().expose_secret()).unwrap();
        for (seconds, signs, shown) in [
            (0, "old", vec!["old", &new]),
            (3599, "old", vec!["old", &new]),
            (3600, &new, vec!["old", &new]),
            (4499, &new, vec!["old", &new]),
            (4500, &new, vec![&new]),
        ] {
            assert_eq!(ring.signing(at(seconds)).unwrap().kid(), signs, "{seconds}");
            assert_eq!(published(&ring, seconds), shown, "{seconds}");
        }
        assert_eq!(ring.signing(at(0)).unwrap().algorithm(), SigningAlgorithm::EcdsaP256);
        let text = ring.to_private_jwks().unwrap();
        let again = || KeyRing::parse(text.expose_secret()).unwrap();
        assert_eq!(
            again().rotate(at(10), HOUR, OVERLAP).unwrap_err(),
            RotationError::UnderWay { kid: new.clone(), seconds: 3590 }
        );
        let (later, newest) = again().rotate(at(9000), HOUR, OVERLAP).unwrap();
        assert_eq!(published(&later, 9000), [new, newest]);
        assert_eq!(KeyRing::default().rotate(at(0), HOUR, OVERLAP).unwrap_err(), RotationError::NoKey);
    }

    #[test]
    fn each_scope_has_its_own_keys() {
        let scope = SigningScope::parse("tenant").unwrap();
        let of_tenant = KeyRing::new(vec![key("t")]).unwrap();
        let sets = KeySets::new(KeyRing::new(vec![key("d")]).unwrap(), [(scope.clone(), of_tenant)].into());
        assert_eq!(sets.ring(None).unwrap().signing(at(0)).unwrap().kid(), "d");
        assert_eq!(sets.ring(Some(&scope)).unwrap().signing(at(0)).unwrap().kid(), "t");
        assert!(sets.ring(Some(&SigningScope::parse("other").unwrap())).is_none());
        assert_eq!(sets.iter().count(), 2);
    }
}
