//! Operators are made by whoever has the database owner's login, never through a page.

use super::check_password_rules;
use crate::db::migrate::owner_connection;
use lorikeet_contract::UserId;
use sqlx::Connection;
use sqlx::postgres::PgConnectOptions;
use uuid::Uuid;

/// Makes `email` an operator with this password, whether the account exists or not. Repeating it
/// changes nothing; otherwise the account's sessions end, because whoever signed up with the address
/// need not be who it belongs to. `url` logs in as `lk_owner`, or as an administrator.
pub async fn create_operator(
    url: &PgConnectOptions,
    email: &str,
    password: &str,
) -> anyhow::Result<UserId> {
    let email = email.trim();
    check_password_rules(password, email)?;
    let mut conn = owner_connection(url).await?;
    let operator: Option<(Uuid, String)> = sqlx::query_as(
        "select id, password_hash from app_user
         where lower(email) = lower($1) and deleted_at is null and is_operator",
    )
    .bind(email)
    .fetch_optional(&mut conn)
    .await?;
    if let Some((id, hash)) = operator
        && super::password::matches(password, &hash)
    {
        return Ok(UserId::from_uuid(id));
    }
    let hash = super::password::hash(password)?;
    let mut tx = conn.begin().await?;
    let id: Uuid = sqlx::query_scalar(
        "insert into app_user (id, email, password_hash, is_operator) values ($1, $2, $3, true)
         on conflict (lower(email)) where deleted_at is null
           do update set password_hash = excluded.password_hash, is_operator = true
         returning id",
    )
    .bind(UserId::new().as_uuid())
    .bind(email)
    .bind(hash)
    .fetch_one(&mut *tx)
    .await?;
    sqlx::query("delete from session where user_id = $1").bind(id).execute(&mut *tx).await?;
    tx.commit().await?;
    conn.close().await?;
    Ok(UserId::from_uuid(id))
}
