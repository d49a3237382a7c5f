//! API keys: `lk_live_<key id, 8>_<secret, 43 base62>_<crc32, 6 base62>`.
//!
//! The checksum lets a node refuse junk without a look-up. The secret is 256 random bits, so a
//! plain domain-separated SHA-256 is stored and pushed: there is nothing to guess, hence no
//! pepper and no slow hash.

use rand::RngCore;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const PREFIX: &str = "lk_live_";
const KEY_ID_LEN: usize = 8;
const SECRET_LEN: usize = 43;
const CRC_LEN: usize = 6;
const DOMAIN: &[u8] = b"lorikeet api key v1\0";

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Call `/v1` on a node.
    Inference,
    /// Change the tenant's adapters and keys through `/api/v1`.
    Manage,
    /// Read the tenant's adapters, keys and usage through `/api/v1`.
    Read,
}

impl Scope {
    pub const ALL: [Scope; 3] = [Scope::Inference, Scope::Manage, Scope::Read];

    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Inference => "inference",
            Scope::Manage => "manage",
            Scope::Read => "read",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }
}

/// Why a text is not a key. Says nothing of whether such a key exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    #[error("an API key starts with `lk_live_` and has the form lk_live_<id>_<secret>_<checksum>")]
    Form,
    #[error("the API key's checksum does not match: a character is missing or mistyped")]
    Checksum,
}

/// A whole key, in memory only while it is being shown or checked. Deliberately not `Debug`.
#[derive(Clone)]
pub struct ApiKey {
    text: String,
}

impl ApiKey {
    /// A new key from the operating system's randomness.
    pub fn generate() -> Self {
        let mut id = [0u8; 8];
        let mut secret = [0u8; 32];
        rand::rng().fill_bytes(&mut id);
        rand::rng().fill_bytes(&mut secret);
        let id = base62(&id, KEY_ID_LEN);
        let body = format!("{PREFIX}{id}_{}", base62(&secret, SECRET_LEN));
        let crc = base62(&crc32fast::hash(body.as_bytes()).to_be_bytes(), CRC_LEN);
        Self { text: format!("{body}_{crc}") }
    }

    /// Checks form and checksum; a pure function of the text.
    pub fn parse(text: &str) -> Result<Self, ParseKeyError> {
        let rest = text.strip_prefix(PREFIX).ok_or(ParseKeyError::Form)?;
        let mut parts = rest.split('_');
        let lengths = [KEY_ID_LEN, SECRET_LEN, CRC_LEN];
        for want in lengths {
            let part = parts.next().ok_or(ParseKeyError::Form)?;
            if part.len() != want || !part.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err(ParseKeyError::Form);
            }
        }
        if parts.next().is_some() {
            return Err(ParseKeyError::Form);
        }
        let (body, crc) = text.split_at(text.len() - CRC_LEN - 1);
        let want = base62(&crc32fast::hash(body.as_bytes()).to_be_bytes(), CRC_LEN);
        if crc[1..] != want {
            return Err(ParseKeyError::Checksum);
        }
        Ok(Self { text: text.to_owned() })
    }

    /// The whole key, to be shown once.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// The 8 characters that name the key in look-ups and on pages.
    pub fn key_id(&self) -> &str {
        &self.text[PREFIX.len()..PREFIX.len() + KEY_ID_LEN]
    }

    /// What is stored and pushed instead of the secret.
    pub fn secret_hash(&self) -> [u8; 32] {
        let secret = &self.text[PREFIX.len() + KEY_ID_LEN + 1..][..SECRET_LEN];
        Sha256::new().chain_update(DOMAIN).chain_update(secret).finalize().into()
    }

    /// In constant time, so that timing tells nothing of the stored hash.
    pub fn matches(&self, stored_hash: &[u8]) -> bool {
        self.secret_hash()[..].ct_eq(stored_hash).into()
    }
}

/// Big-endian base62 of `bytes`, the lowest `len` digits, zero-padded. 43 digits hold 256 bits.
fn base62(bytes: &[u8], len: usize) -> String {
    let mut digits = vec![0u8; len];
    for &byte in bytes {
        let mut carry = u32::from(byte);
        for digit in digits.iter_mut().rev() {
            carry += u32::from(*digit) << 8;
            *digit = (carry % 62) as u8;
            carry /= 62;
        }
    }
    digits.into_iter().map(|d| char::from(ALPHABET[usize::from(d)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_parses_and_matches_its_own_hash_only() {
        let key = ApiKey::generate();
        let parsed = ApiKey::parse(key.reveal()).expect("own key");
        assert_eq!(parsed.key_id(), key.key_id());
        assert!(parsed.matches(&key.secret_hash()));
        assert!(!parsed.matches(&ApiKey::generate().secret_hash()));
        assert!(!parsed.matches(b""));
    }

    #[test]
    fn any_single_changed_character_is_refused_by_the_checksum() {
        let key = ApiKey::generate();
        for i in PREFIX.len()..key.reveal().len() {
            let mut bytes = key.reveal().as_bytes().to_vec();
            bytes[i] = if bytes[i] == b'x' { b'y' } else { b'x' };
            let text = String::from_utf8(bytes).expect("ascii");
            assert!(ApiKey::parse(&text).is_err(), "position {i}");
        }
    }

    #[test]
    fn junk_of_any_kind_is_refused_without_a_panic() {
        for text in ["", "lk_live_", "sk-abc", "lk_live_a_b_c", "lk_live_é_é_é", &"x".repeat(9999)]
        {
            assert!(ApiKey::parse(text).is_err(), "{text}");
        }
    }
}
