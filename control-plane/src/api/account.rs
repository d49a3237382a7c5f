//! Sign up, log in, log out, and who am I.

use super::extract::Json;
use crate::access::{Access, Registry};
use crate::auth::{Caller, LogIn, LoggedIn, Session, SignUp, Visitor, account, removal_cookie};
use crate::error::ApiError;
use crate::state::AppState;
use axum::extract::State;
use axum::http::StatusCode;
use axum_extra::extract::CookieJar;
use lorikeet_contract::{TenantId, UserId};
use lorikeet_reference::{Operation, named};
use serde::Serialize;

pub(super) fn routes(registry: Registry) -> Registry {
    registry
        .post("/api/v1/signup", Access::Public, sign_up)
        .described(
            Operation::new("Make an account with a tenant")
                .body(named("SignUp"))
                .answers(201, "Logged in: the session is in a cookie", named("Me"))
                .fails(409, "`email_taken`")
                .fails(429, "`too_many_attempts`"),
        )
        .post("/api/v1/login", Access::Public, log_in)
        .described(
            Operation::new("Log in")
                .body(named("LogIn"))
                .answers(200, "The session is in a cookie", named("Me"))
                .fails(401, "`wrong_credentials`")
                .fails(429, "`too_many_attempts`"),
        )
        .post("/api/v1/logout", Access::Session, log_out)
        .described(Operation::new("End the session").answers_nothing(204, "It has ended"))
        .get("/api/v1/me", Access::Authenticated, me)
        .described(Operation::new("Who calls").answers(200, "The caller", named("Me")))
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
    /// Of a session: owner, admin, member or viewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
}

impl From<LoggedIn> for Me {
    fn from(new: LoggedIn) -> Self {
        Self {
            user: Some(Person { id: new.user, email: new.email, is_operator: new.is_operator }),
            tenant: new.tenant.map(|t| OwnTenant { id: t.id, name: t.name, role: Some(t.role) }),
            csrf_token: Some(new.session.csrf_token()),
            scopes: None,
        }
    }
}

impl From<Caller> for Me {
    fn from(caller: Caller) -> Self {
        match caller {
            Caller::Session(s) => Self {
                user: Some(Person { id: s.user, email: s.email, is_operator: s.is_operator }),
                tenant: s.tenant.map(|t| OwnTenant { id: t.id, name: t.name, role: Some(t.role) }),
                csrf_token: Some(s.csrf_token),
                scopes: None,
            },
            Caller::Key(key) => Self {
                user: None,
                tenant: Some(OwnTenant { id: key.tenant, name: key.tenant_name, role: None }),
                csrf_token: None,
                scopes: Some(key.scopes.into_iter().map(|s| s.as_str()).collect()),
            },
        }
    }
}

async fn sign_up(
    State(state): State<AppState>,
    visitor: Visitor,
    jar: CookieJar,
    Json(form): Json<SignUp>,
) -> Result<(StatusCode, CookieJar, axum::Json<Me>), ApiError> {
    let new = account::sign_up(&state, &visitor, form).await?;
    let jar = jar.add(new.session.cookie(&state.config));
    Ok((StatusCode::CREATED, jar, axum::Json(new.into())))
}

async fn log_in(
    State(state): State<AppState>,
    visitor: Visitor,
    old_session: Option<Session>,
    jar: CookieJar,
    Json(form): Json<LogIn>,
) -> Result<(CookieJar, axum::Json<Me>), ApiError> {
    let new = account::log_in(&state, &visitor, old_session, form).await?;
    Ok((jar.add(new.session.cookie(&state.config)), axum::Json(new.into())))
}

async fn log_out(
    State(state): State<AppState>,
    visitor: Visitor,
    session: Session,
    jar: CookieJar,
) -> Result<(StatusCode, CookieJar), ApiError> {
    session.end(&state, visitor.request_id).await?;
    Ok((StatusCode::NO_CONTENT, jar.add(removal_cookie(&state.config))))
}

async fn me(caller: Caller) -> axum::Json<Me> {
    axum::Json(caller.into())
}
