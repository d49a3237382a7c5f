//! Typed identifiers: a UUIDv7 behind a public prefix, so that a log line or a support
//! mail says what an id is of, and the compiler keeps one kind out of another's place.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// Why a text is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind} id: expected `{prefix}` followed by 32 hexadecimal digits")]
pub struct ParseIdError {
    kind: &'static str,
    prefix: &'static str,
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            pub const PREFIX: &'static str = $prefix;

            /// A new id. UUIDv7: ids made later sort later, which keeps indexes compact.
            #[expect(clippy::new_without_default, reason = "each call makes another value")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", $prefix, self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.strip_prefix($prefix)
                    .filter(|hex| hex.len() == 32)
                    .and_then(|hex| Uuid::try_parse(hex).ok())
                    .map(Self)
                    .ok_or_else(|| ParseIdError {
                        kind: $kind,
                        prefix: $prefix,
                        text: text.chars().take(64).collect(),
                    })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(/// Who is billed.
    TenantId, "ten_", "tenant");
id!(/// A person who logs in; may belong to several tenants.
    UserId, "usr_", "user");
id!(/// A named adapter of one tenant.
    AdapterId, "ad_", "adapter");
id!(/// One uploaded version of an adapter.
    AdapterVersionId, "adv_", "adapter version");
id!(/// A name that points at a version of an adapter.
    AliasId, "ali_", "alias");
id!(/// An API key's row, not the secret.
    KeyId, "key_", "key");
id!(/// One request, minted once, at the node.
    RequestId, "req_", "request");
id!(/// One data-plane process and its data directory.
    NodeId, "node_", "node");
id!(/// One upload in progress.
    UploadId, "up_", "upload");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_printed() {
        let id = AdapterVersionId::new();
        assert_eq!(id.to_string().parse::<AdapterVersionId>(), Ok(id));
        assert!(id.to_string().starts_with("adv_"));
    }

    #[test]
    fn an_id_of_another_kind_is_refused_by_name() {
        let text = TenantId::new().to_string();
        let error = text.parse::<KeyId>().unwrap_err().to_string();
        assert!(error.contains("is not a key id"), "{error}");
    }
}
