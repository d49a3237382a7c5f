//! Applies a route's rule: finds out who calls, then whether they may.

use super::Access;
use crate::auth::{Caller, KeyCaller, Session, TenantCaller, origin};
use crate::error::ApiError;
use crate::state::AppState;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use lorikeet_contract::key::Scope;

#[derive(Clone)]
pub(super) struct Gate {
    pub state: AppState,
    pub access: Access,
}

pub(super) async fn authorize(
    State(gate): State<Gate>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let caller = match gate.access {
        Access::Public => session(&gate.state, request.headers()).await?,
        _ => identify(&gate.state, request.headers()).await?,
    };
    if !request.method().is_safe() {
        request = refuse_forged_change(&gate, request, caller.as_ref()).await?;
    }
    match (gate.access, &caller) {
        (Access::Public, _) | (Access::Authenticated, Some(_)) => {}
        (_, None) => return Err(ApiError::Unauthenticated),
        (Access::Session, Some(Caller::Session(_))) => {}
        (Access::Session, Some(Caller::Key(_))) => return Err(ApiError::SessionOnly),
        (Access::Operator, Some(Caller::Session(session))) if session.is_operator => {}
        (Access::Operator, Some(_)) => return Err(ApiError::OperatorOnly),
        (Access::Tenant(needs), Some(caller)) => {
            let tenant = tenant_caller(caller, needs)?;
            request.extensions_mut().insert(tenant);
        }
    }
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    Ok(next.run(request).await)
}

/// Browsers add cookies to requests that other sites make; nobody adds a key unknowingly. A public
/// route has no session to take a token from (and logging someone in is a forgery too).
async fn refuse_forged_change(
    gate: &Gate,
    request: Request,
    caller: Option<&Caller>,
) -> Result<Request, ApiError> {
    if matches!(caller, Some(Caller::Key(_))) {
        return Ok(request);
    }
    origin::require_own_origin(request.headers(), &gate.state.config.public_url)?;
    match caller {
        Some(Caller::Session(session)) if gate.access != Access::Public => {
            origin::require_csrf_token(request, session).await
        }
        _ => Ok(request),
    }
}

/// A key, if one is presented, else the session. A bad key never falls back to the session.
async fn identify(state: &AppState, headers: &HeaderMap) -> Result<Option<Caller>, ApiError> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let key = KeyCaller::authenticate(state, value).await?;
        return Ok(Some(Caller::Key(key)));
    }
    session(state, headers).await
}

async fn session(state: &AppState, headers: &HeaderMap) -> Result<Option<Caller>, ApiError> {
    Ok(Session::authenticate(state, headers).await?.map(Caller::Session))
}

fn tenant_caller(caller: &Caller, needs: Scope) -> Result<TenantCaller, ApiError> {
    let tenant = match caller {
        Caller::Key(key) => TenantCaller::from(key),
        Caller::Session(session) => TenantCaller::of_session(session).ok_or(ApiError::NoTenant)?,
    };
    if !tenant.may(needs) {
        return Err(ApiError::InsufficientScope { needs: needs.as_str() });
    }
    // A suspended tenant's people may still look; nothing may change.
    if tenant.suspended && (needs != Scope::Read || matches!(caller, Caller::Key(_))) {
        return Err(ApiError::TenantSuspended);
    }
    Ok(tenant)
}
