//! API keys: made, shown once, revoked.

use super::account::told;
use super::{Page, format, render};
use crate::access::{Access, Registry};
use crate::api::extract::{Form, Path};
use crate::auth::{ClientAddress, Session, TenantCaller, account};
use crate::error::ApiError;
use crate::keys::{self, CreatedKey, KeyInfo, NewKey};
use crate::link::status::{RevocationReach, revocation_reach};
use crate::state::AppState;
use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use lorikeet_contract::KeyId;
use lorikeet_contract::key::Scope;
use serde::Deserialize;
use time::{Duration, OffsetDateTime};

/// So long the page says how far a revocation has come.
const REACH_SHOWN: Duration = Duration::DAY;

pub(super) fn routes(registry: Registry) -> Registry {
    registry
        .get("/keys", Access::Tenant(Scope::Read), list)
        .post("/keys", Access::Tenant(Scope::Manage), create)
        .post("/keys/{key_id}/revoke", Access::Tenant(Scope::Manage), revoke)
}

#[derive(Template)]
#[template(path = "keys.html")]
struct KeysPage {
    page: Page,
    keys: Vec<KeyRow>,
    created: Option<Created>,
    error: Option<String>,
}

struct Created {
    name: String,
    key: String,
}

struct KeyRow {
    id: KeyId,
    key_id: String,
    name: String,
    scopes: String,
    created_at: String,
    last_used_at: String,
    active: bool,
    state_text: &'static str,
    state_class: &'static str,
    /// How far its revocation has come.
    reach: Option<String>,
}

impl KeyRow {
    fn new(key: KeyInfo, reach: Option<RevocationReach>, now: OffsetDateTime) -> Self {
        let expired = key.expires_at.is_some_and(|at| at <= now);
        let (state_text, state_class) = match (key.revoked_at, expired) {
            (Some(_), _) => ("revoked", ""),
            (None, true) => ("expired", "warn"),
            (None, false) => ("active", "good"),
        };
        Self {
            id: key.id,
            key_id: key.key_id,
            name: key.name,
            scopes: key.scopes.join(", "),
            created_at: format::moment(key.created_at),
            last_used_at: key.last_used_at.map_or("never".into(), |at| format::ago(at, now)),
            active: state_class == "good",
            state_text,
            state_class,
            reach: reach.map(reach_text),
        }
    }
}

fn reach_text(reach: RevocationReach) -> String {
    let RevocationReach { acknowledged, connected, away } = reach;
    let refused = format!("refused on {acknowledged} of {connected} nodes");
    match away {
        0 => refused,
        away => format!("{refused}; {away} away, which may still accept it"),
    }
}

async fn page(
    state: &AppState,
    session: &Session,
    caller: &TenantCaller,
    created: Option<CreatedKey>,
    error: Option<String>,
) -> Result<Response, ApiError> {
    let now = OffsetDateTime::now_utc();
    let mut rows = Vec::new();
    let keys = keys::list(state, caller).await?;
    let mut tx = state.db.app.read(&caller.acting()).await?;
    for key in keys {
        let reach = match key.revoked_at {
            Some(at) if now - at < REACH_SHOWN => revocation_reach(&mut tx, key.id).await?,
            _ => None,
        };
        rows.push(KeyRow::new(key, reach, now));
    }
    drop(tx);
    let page = KeysPage {
        page: Page::new(session, "keys"),
        keys: rows,
        created: created.map(|c| Created { name: c.info.name, key: c.key }),
        error,
    };
    Ok(render(&page)?.into_response())
}

async fn list(
    State(state): State<AppState>,
    session: Session,
    caller: TenantCaller,
) -> Result<Response, ApiError> {
    page(&state, &session, &caller, None, None).await
}

#[derive(Deserialize)]
struct CreateForm {
    name: String,
    #[serde(default)]
    scopes: Vec<String>,
    password: String,
}

/// The answer holds the new key, the one time it is shown; `Cache-Control: no-store` keeps it out of
/// the browser's cache.
async fn create(
    State(state): State<AppState>,
    session: Session,
    caller: TenantCaller,
    address: ClientAddress,
    Form(form): Form<CreateForm>,
) -> Result<Response, ApiError> {
    let new = NewKey { name: form.name, scopes: form.scopes, expires_at: None };
    let created = async {
        account::confirm_password(&state, address, &session, form.password).await?;
        keys::create(&state, &caller, new).await
    };
    match created.await {
        Ok(created) => {
            let shown = page(&state, &session, &caller, Some(created), None).await?;
            Ok((StatusCode::CREATED, shown).into_response())
        }
        Err(error) => {
            let told = told(error)?;
            let shown = page(&state, &session, &caller, None, Some(told.message)).await?;
            Ok((told.status, shown).into_response())
        }
    }
}

async fn revoke(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(id): Path<KeyId>,
) -> Result<Redirect, ApiError> {
    keys::revoke(&state, &caller, id).await?;
    Ok(Redirect::to("/keys"))
}
