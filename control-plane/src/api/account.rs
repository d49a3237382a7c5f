//! Sign up, log in, log out, and who am I.

use super::extract::Json;
use crate::access::{Access, Registry};
use crate::auth::limits::Attempt;
use crate::auth::{
    Caller, ClientAddress, NewSession, RequestId, Session, check_password_rules, removal_cookie,
};
use crate::db::{Acting, Actor};
use crate::error::{ApiError, OnConstraint};
use crate::state::AppState;
use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum_extra::extract::CookieJar;
use lorikeet_contract::link::{ResourceKind, TenantResource};
use lorikeet_contract::{TenantId, UserId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(super) fn routes(registry: Registry) -> Registry {
    registry
        .post("/api/v1/signup", Access::Public, sign_up)
        .post("/api/v1/login", Access::Public, log_in)
        .post("/api/v1/logout", Access::Session, log_out)
        .get("/api/v1/me", Access::Authenticated, me)
}

/// The caller, as they are told who they are.
#[derive(Serialize)]
struct Me {
    user: Option<Person>,
    tenant: Option<OwnTenant>,
    /// What a session's changes carry in `x-csrf-token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    csrf_token: Option<String>,
    /// Of a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<&'static str>>,
}

#[derive(Serialize)]
struct Person {
    id: UserId,
    email: String,
    is_operator: bool,
}

#[derive(Serialize)]
struct OwnTenant {
    id: TenantId,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
}

#[derive(Deserialize)]
struct SignUp {
    email: String,
    password: String,
    tenant_name: String,
}

async fn sign_up(
    State(state): State<AppState>,
    Extension(request_id): Extension<RequestId>,
    address: ClientAddress,
    jar: CookieJar,
    headers: HeaderMap,
    Json(body): Json<SignUp>,
) -> Result<(StatusCode, CookieJar, axum::Json<Me>), ApiError> {
    let email = checked_email(&body.email)?;
    let tenant_name = body.tenant_name.trim().to_owned();
    if tenant_name.is_empty() || tenant_name.chars().count() > 80 {
        return Err(ApiError::invalid("tenant_name", "the name needs 1 to 80 characters"));
    }
    check_password_rules(&body.password, &email)
        .map_err(|e| ApiError::invalid("password", e.to_string()))?;
    Attempt::sign_up(state.db.app.untenanted(), address).await?;
    let password_hash = state.passwords.hash(body.password).await?;

    let (user, tenant) = (UserId::new(), TenantId::new());
    let acting = Acting { tenant, actor: Actor::User(user), request_id: Some(request_id.0) };
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
        .bind(&tenant_name)
        .execute(&mut *tx)
        .await?;
    sqlx::query("insert into membership (tenant_id, user_id, role) values ($1, $2, 'owner')")
        .bind(tenant.as_uuid())
        .bind(user.as_uuid())
        .execute(&mut *tx)
        .await?;
    session.insert(&mut tx, user_agent(&headers)).await?;
    let mut tx = tx.audit("tenant.create", tenant, serde_json::json!({})).await?;
    let resource = TenantResource {
        id: tenant.to_string(),
        name: tenant_name.clone(),
        suspended: false,
        limits: None,
        max_staleness_s: None,
    };
    tx.publish(ResourceKind::Tenant, tenant, &resource).await?;
    tx.commit().await?;

    let me = Me {
        user: Some(Person { id: user, email, is_operator: false }),
        tenant: Some(OwnTenant { id: tenant, name: tenant_name, role: Some("owner".to_owned()) }),
        csrf_token: Some(session.csrf_token()),
        scopes: None,
    };
    Ok((StatusCode::CREATED, jar.add(session.cookie(&state.config)), axum::Json(me)))
}

#[derive(Deserialize)]
struct LogIn {
    email: String,
    password: String,
}

#[derive(sqlx::FromRow)]
struct StoredUser {
    id: Uuid,
    password_hash: String,
    is_operator: bool,
}

#[derive(sqlx::FromRow)]
struct Membership {
    tenant_id: Uuid,
    tenant_name: String,
    role: String,
}

/// An unknown address and a wrong password get one answer, after the same work.
async fn log_in(
    State(state): State<AppState>,
    address: ClientAddress,
    old_session: Option<Session>,
    jar: CookieJar,
    headers: HeaderMap,
    Json(body): Json<LogIn>,
) -> Result<(CookieJar, axum::Json<Me>), ApiError> {
    let pool = state.db.app.untenanted();
    let email = body.email.trim();
    let attempt = Attempt::log_in(pool, email, address).await?;
    let stored: Option<StoredUser> = sqlx::query_as("select * from auth_user_by_email($1)")
        .bind(email)
        .fetch_optional(pool)
        .await?;
    let hash = stored.as_ref().map(|user| user.password_hash.clone());
    let matches = state.passwords.verify(body.password, hash).await?;
    let Some(stored) = stored.filter(|_| matches) else {
        return Err(ApiError::WrongCredentials);
    };
    attempt.succeeded(pool).await?;

    let user = UserId::from_uuid(stored.id);
    let membership: Option<Membership> =
        sqlx::query_as("select * from auth_memberships($1) limit 1")
            .bind(stored.id)
            .fetch_optional(pool)
            .await?;
    let tenant = membership.as_ref().map(|m| TenantId::from_uuid(m.tenant_id));
    let session = NewSession::new(user, tenant);
    if let Some(old) = old_session {
        old.end(&state).await?;
    }
    let mut tx = state.db.app.user(user).await?;
    session.insert(&mut tx, user_agent(&headers)).await?;
    tx.commit().await?;

    let me = Me {
        user: Some(Person { id: user, email: email.to_owned(), is_operator: stored.is_operator }),
        tenant: membership.map(|m| OwnTenant {
            id: TenantId::from_uuid(m.tenant_id),
            name: m.tenant_name,
            role: Some(m.role),
        }),
        csrf_token: Some(session.csrf_token()),
        scopes: None,
    };
    Ok((jar.add(session.cookie(&state.config)), axum::Json(me)))
}

async fn log_out(
    State(state): State<AppState>,
    session: Session,
    jar: CookieJar,
) -> Result<(StatusCode, CookieJar), ApiError> {
    session.end(&state).await?;
    Ok((StatusCode::NO_CONTENT, jar.add(removal_cookie(&state.config))))
}

async fn me(caller: Caller) -> axum::Json<Me> {
    axum::Json(match caller {
        Caller::Session(session) => Me {
            user: Some(Person {
                id: session.user,
                email: session.email,
                is_operator: session.is_operator,
            }),
            tenant: session.tenant.map(|t| OwnTenant {
                id: t.id,
                name: t.name,
                role: Some(t.role),
            }),
            csrf_token: Some(session.csrf_token),
            scopes: None,
        },
        Caller::Key(key) => Me {
            user: None,
            tenant: Some(OwnTenant { id: key.tenant, name: key.tenant_name, role: None }),
            csrf_token: None,
            scopes: Some(key.scopes.into_iter().map(|s| s.as_str()).collect()),
        },
    })
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

fn user_agent(headers: &HeaderMap) -> &str {
    headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default()
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
