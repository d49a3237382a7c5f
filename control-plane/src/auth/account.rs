//! Sign up and log in: what the API and the pages do alike.

use super::limits::Attempt;
use super::session::{NewSession, Session, SessionTenant};
use super::{ClientAddress, check_password_rules};
use crate::db::{Acting, Actor};
use crate::error::{ApiError, OnConstraint};
use crate::state::AppState;
use crate::tenants::{self, TenantLimits};
use lorikeet_contract::link::ResourceKind;
use lorikeet_contract::{TenantId, UserId};
use serde::Deserialize;
use uuid::Uuid;

/// Who stands behind a request, as far as the connection tells.
#[derive(Debug, Clone)]
pub struct Visitor {
    pub address: ClientAddress,
    pub user_agent: String,
    pub request_id: Option<String>,
}

#[derive(Deserialize)]
pub struct SignUp {
    pub email: String,
    pub password: String,
    pub tenant_name: String,
}

#[derive(Deserialize)]
pub struct LogIn {
    pub email: String,
    pub password: String,
}

/// A session that has just begun; its cookie goes to the browser.
pub struct LoggedIn {
    pub session: NewSession,
    pub user: UserId,
    pub email: String,
    pub is_operator: bool,
    pub tenant: Option<SessionTenant>,
}

/// A new user with a new tenant, published to the nodes, and a first session.
pub async fn sign_up(
    state: &AppState,
    visitor: &Visitor,
    form: SignUp,
) -> Result<LoggedIn, ApiError> {
    let email = checked_email(&form.email)?;
    let name = form.tenant_name.trim().to_owned();
    if name.is_empty() || name.chars().count() > 80 {
        return Err(ApiError::invalid("tenant_name", "the name needs 1 to 80 characters"));
    }
    check_password_rules(&form.password, &email)
        .map_err(|e| ApiError::invalid("password", e.to_string()))?;
    Attempt::sign_up(state.db.app.untenanted(), visitor.address).await?;
    let password_hash = state.passwords.hash(form.password).await?;

    let (user, tenant) = (UserId::new(), TenantId::new());
    let acting =
        Acting { tenant, actor: Actor::User(user), request_id: visitor.request_id.clone() };
    let session = NewSession::new(user, Some(tenant));
    let mut tx = state.db.app.write(&acting).await?;
    sqlx::query("insert into app_user (id, email, password_hash) values ($1, $2, $3)")
        .bind(user.as_uuid())
        .bind(&email)
        .bind(password_hash)
        .execute(&mut *tx)
        .await
        .on_constraint("app_user_email_key", || ApiError::EmailTaken)?;
    sqlx::query("insert into tenant (id, name) values ($1, $2)")
        .bind(tenant.as_uuid())
        .bind(&name)
        .execute(&mut *tx)
        .await?;
    sqlx::query("insert into membership (tenant_id, user_id, role) values ($1, $2, 'owner')")
        .bind(tenant.as_uuid())
        .bind(user.as_uuid())
        .execute(&mut *tx)
        .await?;
    session.insert(&mut tx, &visitor.user_agent).await?;
    let mut tx = tx.audit("tenant.create", tenant, serde_json::json!({})).await?;
    let resource = tenants::resource(tenant, &name, false, TenantLimits::default());
    tx.publish(ResourceKind::Tenant, tenant, &resource).await?;
    tx.commit().await?;

    let tenant = SessionTenant { id: tenant, name, role: "owner".to_owned(), suspended: false };
    Ok(LoggedIn { session, user, email, is_operator: false, tenant: Some(tenant) })
}

#[derive(sqlx::FromRow)]
struct StoredUser {
    id: Uuid,
    email: String,
    password_hash: String,
    is_operator: bool,
}

#[derive(sqlx::FromRow)]
struct Membership {
    tenant_id: Uuid,
    tenant_name: String,
    role: String,
    suspended: bool,
}

/// An unknown address and a wrong password get one answer, after the same work. A browser's old
/// session ends, so that a session planted before the log-in is worth nothing after it.
pub async fn log_in(
    state: &AppState,
    visitor: &Visitor,
    old_session: Option<Session>,
    form: LogIn,
) -> Result<LoggedIn, ApiError> {
    let email = form.email.trim();
    let stored = check_credentials(state, visitor.address, email, form.password).await?;
    let user = UserId::from_uuid(stored.id);
    let membership: Option<Membership> =
        sqlx::query_as("select * from auth_memberships($1) limit 1")
            .bind(stored.id)
            .fetch_optional(state.db.app.untenanted())
            .await?;
    let tenant = membership.map(|m| SessionTenant {
        id: TenantId::from_uuid(m.tenant_id),
        name: m.tenant_name,
        role: m.role,
        suspended: m.suspended,
    });
    if let Some(old) = old_session {
        old.end(state, visitor.request_id.clone()).await?;
    }
    let session = NewSession::new(user, tenant.as_ref().map(|t| t.id));
    session.begin(state, visitor).await?;
    let (email, is_operator) = (stored.email, stored.is_operator);
    Ok(LoggedIn { session, user, email, is_operator, tenant })
}

/// Asks for the password again. Counts as a log-in does, so that a stolen session cannot guess.
pub async fn confirm_password(
    state: &AppState,
    address: ClientAddress,
    session: &Session,
    password: String,
) -> Result<(), ApiError> {
    check_credentials(state, address, &session.email, password).await.map(drop)
}

async fn check_credentials(
    state: &AppState,
    address: ClientAddress,
    email: &str,
    password: String,
) -> Result<StoredUser, ApiError> {
    let pool = state.db.app.untenanted();
    let attempt = Attempt::log_in(pool, email, address).await?;
    let stored: Option<StoredUser> = sqlx::query_as("select * from auth_user_by_email($1)")
        .bind(email)
        .fetch_optional(pool)
        .await?;
    let hash = stored.as_ref().map(|user| user.password_hash.clone());
    let matches = state.passwords.verify(password, hash).await?;
    let stored = stored.filter(|_| matches).ok_or(ApiError::WrongCredentials)?;
    attempt.succeeded(pool).await?;
    Ok(stored)
}

/// Only a message to it proves an address; this catches slips.
fn checked_email(text: &str) -> Result<String, ApiError> {
    let email = text.trim();
    let plausible = email.len() <= 254
        && !email.chars().any(|c| c.is_whitespace() || c.is_control())
        && email.split_once('@').is_some_and(|(name, host)| {
            !name.is_empty() && !host.is_empty() && !host.contains('@')
        });
    if plausible {
        return Ok(email.to_owned());
    }
    Err(ApiError::invalid("email", "this is not an e-mail address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_a_name_and_a_host() {
        for good in ["a@b", " ann@example.com ", "ännchen+x@bücher.example"] {
            assert!(checked_email(good).is_ok(), "{good}");
        }
        for bad in ["", "@", "a@", "@b", "a b@c", "a@b@c", &format!("{}@b", "a".repeat(254))] {
            assert!(checked_email(bad).is_err(), "{bad}");
        }
    }
}
