//! Operators are made by whoever has the database owner's login, never through a page.

use super::check_password_rules;
use crate::db::migrate::owner_connection;
use lorikeet_contract::UserId;
use sqlx::Connection;
use sqlx::postgres::PgConnectOptions;

/// Makes `email` an operator with this password, whether the account exists or not. Safe to repeat.
/// `url` logs in as `lk_owner`, or as an administrator.
pub async fn create_operator(
    url: &PgConnectOptions,
    email: &str,
    password: &str,
) -> anyhow::Result<UserId> {
    let email = email.trim();
    check_password_rules(password, email)?;
    let hash = super::password::hash(password)?;
    let mut conn = owner_connection(url).await?;
    let id: uuid::Uuid = sqlx::query_scalar(
        "insert into app_user (id, email, password_hash, is_operator) values ($1, $2, $3, true)
         on conflict (lower(email)) where deleted_at is null
           do update set password_hash = excluded.password_hash, is_operator = true
         returning id",
    )
    .bind(UserId::new().as_uuid())
    .bind(email)
    .bind(hash)
    .fetch_one(&mut conn)
    .await?;
    conn.close().await?;
    Ok(UserId::from_uuid(id))
}
