//! Sessions: an opaque 256-bit token in a cookie, stored hashed.
//!
//! The CSRF token is derived from the session token, so a page can show it without storing it and
//! nobody who lacks the cookie can compute it.

use super::Visitor;
use crate::config::Config;
use crate::db::{Acting, Actor};
use crate::error::ApiError;
use crate::state::AppState;
use axum::http::HeaderMap;
use axum_extra::extract::CookieJar;
use axum_extra::extract::cookie::{Cookie, SameSite};
use lorikeet_contract::{TenantId, UserId};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// However much it is used. Unused for three days, a session ends too (`auth_session`).
const LIFE: Duration = Duration::days(14);
/// `last_seen_at` is written at most this often.
const TOUCH_EVERY: Duration = Duration::minutes(5);
/// A log-in this young stands for the password where one is asked for again.
const FRESH: Duration = Duration::minutes(10);

/// A logged-in user.
#[derive(Debug, Clone)]
pub struct Session {
    pub id: Uuid,
    pub user: UserId,
    pub email: String,
    pub is_operator: bool,
    /// The tenant chosen in this session.
    pub tenant: Option<SessionTenant>,
    pub csrf_token: String,
    created_at: OffsetDateTime,
}

#[derive(Debug, Clone)]
pub struct SessionTenant {
    pub id: TenantId,
    pub name: String,
    /// owner, admin, member or viewer
    pub role: String,
    pub suspended: bool,
}

#[derive(sqlx::FromRow)]
struct Row {
    session_id: Uuid,
    user_id: Uuid,
    email: String,
    is_operator: bool,
    tenant_id: Option<Uuid>,
    tenant_name: Option<String>,
    role: Option<String>,
    suspended_at: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
    last_seen_at: OffsetDateTime,
}

impl Session {
    /// The session of the request's cookie; `None` without one, or with one that has ended.
    pub async fn authenticate(
        state: &AppState,
        headers: &HeaderMap,
    ) -> Result<Option<Self>, ApiError> {
        let jar = CookieJar::from_headers(headers);
        let Some(token) = jar.get(cookie_name(&state.config)).map(Cookie::value) else {
            return Ok(None);
        };
        let row: Option<Row> = sqlx::query_as("select * from auth_session($1)")
            .bind(&token_hash(token)[..])
            .fetch_optional(state.db.app.untenanted())
            .await?;
        let Some(row) = row else { return Ok(None) };
        let unseen_for = OffsetDateTime::now_utc() - row.last_seen_at;
        let session = Self::from_row(row, token);
        if unseen_for > TOUCH_EVERY {
            session.touch(state).await?;
        }
        Ok(Some(session))
    }

    fn from_row(row: Row, token: &str) -> Self {
        let tenant = match (row.tenant_id, row.tenant_name, row.role) {
            (Some(id), Some(name), Some(role)) => Some(SessionTenant {
                id: TenantId::from_uuid(id),
                name,
                role,
                suspended: row.suspended_at.is_some(),
            }),
            _ => None,
        };
        Self {
            id: row.session_id,
            user: UserId::from_uuid(row.user_id),
            email: row.email,
            is_operator: row.is_operator,
            tenant,
            csrf_token: csrf_token(token),
            created_at: row.created_at,
        }
    }

    async fn touch(&self, state: &AppState) -> Result<(), ApiError> {
        let mut tx = state.db.app.user(self.user).await?;
        sqlx::query("update session set last_seen_at = now() where id = $1")
            .bind(self.id)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// True shortly after the log-in, when the password need not be asked for again.
    pub fn is_fresh(&self) -> bool {
        OffsetDateTime::now_utc() - self.created_at < FRESH
    }

    /// Ends this session; repeating it is harmless.
    pub async fn end(&self, state: &AppState, request_id: Option<String>) -> Result<(), ApiError> {
        const DELETE: &str = "delete from session where id = $1";
        let Some(tenant) = &self.tenant else {
            let mut tx = state.db.app.user(self.user).await?;
            sqlx::query(DELETE).bind(self.id).execute(&mut *tx).await?;
            return Ok(tx.commit().await?);
        };
        let acting = Acting { tenant: tenant.id, actor: Actor::User(self.user), request_id };
        let mut tx = state.db.app.write(&acting).await?;
        sqlx::query(DELETE).bind(self.id).execute(&mut *tx).await?;
        let tx = tx.audit("session.end", self.user, serde_json::json!({})).await?;
        Ok(tx.commit().await?)
    }
}

/// A session about to begin. The token exists here and in the browser only.
pub struct NewSession {
    token: String,
    user: UserId,
    tenant: Option<TenantId>,
}

impl NewSession {
    pub(super) fn new(user: UserId, tenant: Option<TenantId>) -> Self {
        Self { token: hex::encode(rand::random::<[u8; 32]>()), user, tenant }
    }

    /// With an audit row, where there is a tenant to whom it can belong.
    pub(super) async fn begin(&self, state: &AppState, visitor: &Visitor) -> Result<(), ApiError> {
        let Some(tenant) = self.tenant else {
            let mut tx = state.db.app.user(self.user).await?;
            self.insert(&mut tx, &visitor.user_agent).await?;
            return Ok(tx.commit().await?);
        };
        let request_id = visitor.request_id.clone();
        let acting = Acting { tenant, actor: Actor::User(self.user), request_id };
        let mut tx = state.db.app.write(&acting).await?;
        self.insert(&mut tx, &visitor.user_agent).await?;
        let tx = tx.audit("session.begin", self.user, serde_json::json!({})).await?;
        Ok(tx.commit().await?)
    }

    /// In a transaction that has the user set.
    pub(super) async fn insert(
        &self,
        tx: &mut PgConnection,
        user_agent: &str,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(
            "insert into session (id, token_hash, user_id, tenant_id, expires_at, user_agent)
             values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(Uuid::now_v7())
        .bind(&token_hash(&self.token)[..])
        .bind(self.user.as_uuid())
        .bind(self.tenant.map(|t| t.as_uuid()))
        .bind(OffsetDateTime::now_utc() + LIFE)
        .bind(user_agent.chars().take(200).collect::<String>())
        .execute(tx)
        .await?;
        Ok(())
    }

    pub fn csrf_token(&self) -> String {
        csrf_token(&self.token)
    }

    pub fn cookie(&self, config: &Config) -> Cookie<'static> {
        let mut cookie = cookie(config, self.token.clone());
        cookie.set_max_age(LIFE);
        cookie
    }
}

/// Takes the session cookie out of the browser.
pub fn removal_cookie(config: &Config) -> Cookie<'static> {
    let mut cookie = cookie(config, String::new());
    cookie.make_removal();
    cookie
}

/// `__Host-` binds the cookie to https, this host and the path `/`; browsers refuse it on http.
fn cookie_name(config: &Config) -> &'static str {
    if is_https(config) { "__Host-lorikeet" } else { "lorikeet_session" }
}

fn cookie(config: &Config, value: String) -> Cookie<'static> {
    Cookie::build((cookie_name(config), value))
        .path("/")
        .http_only(true)
        .same_site(SameSite::Lax)
        .secure(is_https(config))
        .build()
}

fn is_https(config: &Config) -> bool {
    config.public_url.scheme() == "https"
}

fn token_hash(token: &str) -> [u8; 32] {
    Sha256::new().chain_update(b"lorikeet session v1\0").chain_update(token).finalize().into()
}

fn csrf_token(token: &str) -> String {
    hex::encode(Sha256::new().chain_update(b"lorikeet csrf v1\0").chain_update(token).finalize())
}
