//! Who calls. Every path under /v1 passes here, those that do not exist too.

use super::Api;
use super::error::ApiError;
use crate::durable::unix_ms;
use crate::limits::{Allowance, Permit};
use crate::link::{Current, Key, TenantLimits};
use crate::telemetry::Observation;
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use lorikeet_contract::key::{ApiKey, Scope};
use lorikeet_contract::{KeyId, TenantId};
use std::sync::Arc;
use std::time::Duration;

/// The caller, and the manifest against which the request was checked.
#[derive(Clone)]
pub struct Caller {
    pub tenant: TenantId,
    pub key: KeyId,
    /// The 8 characters in the key.
    key_id: String,
    pub current: Arc<Current>,
    /// Of a request that generates: held until the last copy is dropped.
    pub permit: Option<Arc<Permit>>,
    /// Of this request.
    pub observation: Arc<Observation>,
}

impl Caller {
    /// None of the tenant's own where the manifest names none.
    pub fn limits(&self) -> TenantLimits {
        self.current.view.tenant(self.tenant).map(|tenant| tenant.limits).unwrap_or_default()
    }

    /// This node's part of the tenant's limits.
    pub fn allowance(&self) -> Allowance {
        Allowance::new(&self.limits(), self.current.rate_share)
    }

    /// True when key or tenant have been taken away since the request was checked.
    pub fn has_lost_access(&self, now: &Current) -> bool {
        let key_gone = now.view.key(&self.key_id).is_none_or(|key| key.id != self.key);
        let suspended = now.view.tenant(self.tenant).is_none_or(|tenant| tenant.suspended);
        key_gone || suspended || now.denied.denies(self.key, self.tenant)
    }
}

pub async fn require_key(
    State(api): State<Arc<Api>>,
    Extension(observation): Extension<Arc<Observation>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let key = bearer(request.headers())?;
    let current = api.manifest.current();
    let known = identify(&key, &current, api.manifest.staleness(), unix_ms())?;
    observation.identified(known.tenant_id);
    request.extensions_mut().insert(Caller {
        tenant: known.tenant_id,
        key: known.id,
        key_id: key.key_id().to_owned(),
        current,
        permit: None,
        observation,
    });
    Ok(next.run(request).await)
}

fn bearer(headers: &HeaderMap) -> Result<ApiKey, ApiError> {
    let text = headers.get(header::AUTHORIZATION).ok_or(ApiError::NoKey)?;
    let text = text.to_str().map_err(|_| ApiError::NoKey)?;
    let (scheme, key) = text.split_once(' ').ok_or(ApiError::NoKey)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(ApiError::NoKey);
    }
    Ok(ApiKey::parse(key.trim())?)
}

/// `staleness` is None when the control plane has not been heard since the start.
fn identify(
    presented: &ApiKey,
    current: &Current,
    staleness: Option<Duration>,
    now_unix_ms: i64,
) -> Result<Key, ApiError> {
    let key = current.view.key(presented.key_id()).ok_or(ApiError::UnknownKey)?;
    if !presented.matches(&key.secret_hash) || current.denied.denies(key.id, key.tenant_id) {
        return Err(ApiError::UnknownKey);
    }
    let tenant = current.view.tenant(key.tenant_id).ok_or(ApiError::UnknownKey)?;
    if key.expires_unix_ms.is_some_and(|at| at <= now_unix_ms) {
        return Err(ApiError::ExpiredKey);
    }
    if tenant.suspended {
        return Err(ApiError::Suspended);
    }
    if !key.scopes.contains(&Scope::Inference) {
        return Err(ApiError::Scope);
    }
    if tenant.max_staleness.is_some_and(|max| staleness.is_none_or(|age| age > max)) {
        return Err(ApiError::Stale);
    }
    Ok(key.clone())
}
