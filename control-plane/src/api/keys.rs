//! `/keys`.

use super::description::list_of;
use super::extract::{Json, Path};
use crate::access::{Access, Registry};
use crate::auth::{Caller, ClientAddress, TenantCaller, account};
use crate::error::ApiError;
use crate::keys::{self, CreatedKey, KeyInfo, NewKey};
use crate::state::AppState;
use axum::extract::State;
use axum::http::StatusCode;
use lorikeet_contract::KeyId;
use lorikeet_contract::key::Scope;
use lorikeet_reference::{Operation, named};
use serde::{Deserialize, Serialize};

pub(super) fn routes(registry: Registry) -> Registry {
    registry
        .get("/api/v1/keys", Access::Tenant(Scope::Read), list)
        .described(Operation::new("List keys").answers(200, "Newest first", list_of("keys", "Key")))
        .post("/api/v1/keys", Access::Tenant(Scope::Manage), create)
        .described(
            Operation::new("Make a key")
                .body(named("NewKey"))
                .answers(201, "The key, shown this once", named("Key"))
                .fails(401, "`unauthenticated`, `invalid_api_key`, `wrong_credentials`")
                .fails(429, "`too_many_attempts`"),
        )
        .delete("/api/v1/keys/{key_id}", Access::Tenant(Scope::Manage), revoke)
        .described(Operation::new("Revoke a key").answers_nothing(204, "It stops at once"))
}

#[derive(Serialize)]
struct Keys {
    keys: Vec<KeyInfo>,
}

async fn list(
    State(state): State<AppState>,
    caller: TenantCaller,
) -> Result<axum::Json<Keys>, ApiError> {
    Ok(axum::Json(Keys { keys: keys::list(&state, &caller).await? }))
}

#[derive(Deserialize)]
struct CreateKey {
    #[serde(flatten)]
    new: NewKey,
    /// Needed from a session whose log-in is more than ten minutes ago; checked wherever given.
    password: Option<String>,
}

async fn create(
    State(state): State<AppState>,
    caller: TenantCaller,
    who: Caller,
    address: ClientAddress,
    Json(body): Json<CreateKey>,
) -> Result<(StatusCode, axum::Json<CreatedKey>), ApiError> {
    if let Caller::Session(session) = &who {
        match body.password {
            Some(password) => {
                account::confirm_password(&state, address, session, password).await?;
            }
            None if session.is_fresh() => {}
            None => return Err(ApiError::PasswordRequired),
        }
    }
    let created = keys::create(&state, &caller, body.new).await?;
    Ok((StatusCode::CREATED, axum::Json(created)))
}

async fn revoke(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(id): Path<KeyId>,
) -> Result<StatusCode, ApiError> {
    keys::revoke(&state, &caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
