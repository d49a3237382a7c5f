//! Password hashing: argon2id with OWASP's parameters, on blocking threads and a few at a time, so
//! that a burst of log-ins can neither exhaust memory (19 MiB each) nor stop the server.

use crate::error::ApiError;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use std::sync::{Arc, LazyLock};
use tokio::sync::Semaphore;

const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
/// Hashes at a time: 38 MiB.
const CONCURRENCY: usize = 2;
/// Waiting at most this many, about four seconds' worth; one more is answered 503.
const WAITING: usize = 64;

#[derive(Clone)]
pub struct Passwords {
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        // Now, or the first unknown address would take twice as long.
        LazyLock::force(&NOBODY);
        Self {
            running: Arc::new(Semaphore::new(CONCURRENCY)),
            admitted: Arc::new(Semaphore::new(CONCURRENCY + WAITING)),
        }
    }
}

/// Of a random password: what an unknown address is checked against, so that it takes as long.
static NOBODY: LazyLock<String> = LazyLock::new(|| {
    hash(&hex::encode(rand::random::<[u8; 32]>())).expect("a short text can always be hashed")
});

impl Passwords {
    /// A PHC string (`$argon2id$...`) with a random salt.
    pub async fn hash(&self, password: String) -> Result<String, ApiError> {
        self.run(move || hash(&password)).await?.map_err(ApiError::internal)
    }

    /// `stored` is `None` for an unknown address: the answer is no, after the same work.
    pub async fn verify(&self, password: String, stored: Option<String>) -> Result<bool, ApiError> {
        self.run(move || {
            let phc = stored.as_deref().unwrap_or(NOBODY.as_str());
            matches(&password, phc) && stored.is_some()
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let _admitted = self.admitted.try_acquire().map_err(|_| ApiError::Busy)?;
        let permit = self.running.clone().acquire_owned().await.map_err(ApiError::internal)?;
        // The permit goes along: a caller that hangs up must not let another hash start early.
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        })
        .await
        .map_err(ApiError::internal)
    }
}

pub(super) fn hash(password: &str) -> Result<String, argon2::password_hash::Error> {
    hasher().hash_password(password.as_bytes()).map(|hash| hash.to_string())
}

pub(super) fn matches(password: &str, phc: &str) -> bool {
    hasher().verify_password(password.as_bytes(), phc).is_ok()
}

fn hasher() -> Argon2<'static> {
    let params =
        Params::new(MEMORY_KIB, PASSES, 1, None).expect("the parameters are constants in range");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    #[error("the password needs at least 8 characters")]
    TooShort,
    #[error("the password may have at most 128 characters")]
    TooLong,
    #[error("the password must not be the e-mail address")]
    IsEmail,
    #[error("the password is a single character repeated")]
    Repetition,
}

/// NIST SP 800-63B: length counts, composition rules do not help.
pub fn check_password_rules(password: &str, email: &str) -> Result<(), PasswordError> {
    let length = password.chars().count();
    if length < 8 {
        return Err(PasswordError::TooShort);
    }
    if length > 128 {
        return Err(PasswordError::TooLong);
    }
    if password.eq_ignore_ascii_case(email) {
        return Err(PasswordError::IsEmail);
    }
    let mut chars = password.chars();
    let first = chars.next();
    if chars.all(|c| Some(c) == first) {
        return Err(PasswordError::Repetition);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_matches_its_own_hash_and_an_unknown_account_matches_nothing() {
        let passwords = Passwords::default();
        let stored = passwords.hash("correct horse".into()).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        let verify = |password: &str, stored| passwords.verify(password.to_owned(), stored);
        assert!(verify("correct horse", Some(stored.clone())).await.unwrap());
        assert!(!verify("correct house", Some(stored)).await.unwrap());
        assert!(!verify("correct horse", None).await.unwrap());
        assert!(!verify("correct horse", Some("not a hash".into())).await.unwrap());
    }

    #[tokio::test]
    async fn more_log_ins_than_may_wait_are_told_to_come_back() {
        let passwords = Passwords::default();
        let _all = passwords.admitted.acquire_many((CONCURRENCY + WAITING) as u32).await.unwrap();
        assert!(matches!(passwords.hash("anything".into()).await, Err(ApiError::Busy)));
    }

    #[test]
    fn weak_passwords_are_refused_with_the_reason() {
        let check = |password: &str| check_password_rules(password, "ann@example.com");
        assert_eq!(check("short"), Err(PasswordError::TooShort));
        assert_eq!(check(&"ab".repeat(65)), Err(PasswordError::TooLong));
        assert_eq!(check("Ann@Example.com"), Err(PasswordError::IsEmail));
        assert_eq!(check("aaaaaaaaaaaa"), Err(PasswordError::Repetition));
        assert_eq!(check("pässwört mit Leerzeichen"), Ok(()));
    }
}
