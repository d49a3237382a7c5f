//! Limits on attempts to log in and to sign up, counted in Postgres so that all copies of the control
//! plane share them.
//!
//! Attempts on one account from one address are few: guessing there closes the account to that address
//! and to no other, so that a stranger cannot lock its owner out. An account from all addresses, and an
//! address for all accounts, have wider bounds, against guessing from many of either; what the narrow
//! one refuses does not count towards them.
//!
//! An attempt is counted before the password is looked at: of many at once, no more than the limit
//! get that far. A success takes its own count back.

use super::ClientAddress;
use crate::error::ApiError;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use std::net::IpAddr;
use time::OffsetDateTime;

const WINDOW_S: i64 = 15 * 60;
const LOG_INS_PER_ACCOUNT_AND_ADDRESS: i32 = 10;
const LOG_INS_PER_ACCOUNT: i32 = 200;
const LOG_INS_PER_ADDRESS: i32 = 100;
const SIGN_UPS_PER_ADDRESS: i32 = 100;

/// What is counted: hashed, so that the table holds no personal data in clear.
pub struct Attempt {
    subjects: Vec<(Vec<u8>, i32)>,
    window: OffsetDateTime,
}

impl Attempt {
    /// Counts a log-in to `email` from `address`, or refuses it.
    pub async fn log_in(pool: &PgPool, email: &str, from: ClientAddress) -> Result<Self, ApiError> {
        let (email, network) = (email.to_lowercase(), network(from.0));
        let both = [&network[..], email.as_bytes()].concat();
        let subjects = vec![
            (subject("account and address", &both), LOG_INS_PER_ACCOUNT_AND_ADDRESS),
            (subject("address", &network), LOG_INS_PER_ADDRESS),
            (subject("account", email.as_bytes()), LOG_INS_PER_ACCOUNT),
        ];
        Self::count(pool, subjects).await
    }

    /// Counts a sign-up from `address`, or refuses it. It stays counted when it succeeds.
    pub async fn sign_up(pool: &PgPool, from: ClientAddress) -> Result<(), ApiError> {
        let address = subject("sign-up", &network(from.0));
        Self::count(pool, vec![(address, SIGN_UPS_PER_ADDRESS)]).await.map(drop)
    }

    async fn count(pool: &PgPool, subjects: Vec<(Vec<u8>, i32)>) -> Result<Self, ApiError> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let start = now - now.rem_euclid(WINDOW_S);
        let window = OffsetDateTime::from_unix_timestamp(start).map_err(ApiError::internal)?;
        for (subject, limit) in &subjects {
            let failures: i32 = sqlx::query_scalar(
                "insert into login_attempt as a (subject, window_start, failures) values ($1, $2, 1)
                 on conflict (subject, window_start)
                   do update set failures = least(a.failures + 1, 1000000)
                 returning failures",
            )
            .bind(subject)
            .bind(window)
            .fetch_one(pool)
            .await?;
            if failures > *limit {
                let retry_after_s = (start + WINDOW_S - now).unsigned_abs();
                return Err(ApiError::TooManyAttempts { retry_after_s });
            }
        }
        Ok(Self { subjects, window })
    }

    /// The password was right: this attempt was no failure, and the earlier ones on this account from
    /// this address were its owner's slips.
    pub async fn succeeded(self, pool: &PgPool) -> Result<(), ApiError> {
        let Some(((own, _), others)) = self.subjects.split_first() else { return Ok(()) };
        sqlx::query("delete from login_attempt where subject = $1 and window_start = $2")
            .bind(own)
            .bind(self.window)
            .execute(pool)
            .await?;
        for (subject, _) in others {
            sqlx::query(
                "update login_attempt set failures = greatest(failures - 1, 0)
                 where subject = $1 and window_start = $2",
            )
            .bind(subject)
            .bind(self.window)
            .execute(pool)
            .await?;
        }
        Ok(())
    }
}

fn subject(kind: &str, value: &[u8]) -> Vec<u8> {
    Sha256::new().chain_update(kind).chain_update(b"\0").chain_update(value).finalize().to_vec()
}

/// One host of IPv6 has a whole /64 to choose addresses from.
fn network(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets()[..8].to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one() {
        let network = |text: &str| network(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }
}
