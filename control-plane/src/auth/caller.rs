//! Who calls, as handlers take it. The route's access rule has put it there: a handler that asks
//! for more than its rule grants answers 500, never lets through.

use super::Visitor;
use super::session::Session;
use crate::db::{Acting, Actor};
use crate::error::ApiError;
use crate::state::AppState;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use lorikeet_contract::key::{ApiKey, Scope};
use lorikeet_contract::{KeyId, TenantId, UserId};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use time::OffsetDateTime;
use uuid::Uuid;

#[derive(Debug, Clone)]
pub enum Caller {
    Session(Session),
    Key(KeyCaller),
}

/// An API key that has been checked.
#[derive(Debug, Clone)]
pub struct KeyCaller {
    pub id: KeyId,
    pub tenant: TenantId,
    pub tenant_name: String,
    pub scopes: Vec<Scope>,
    pub suspended: bool,
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    id: Uuid,
    tenant_id: Uuid,
    tenant_name: String,
    secret_hash: Vec<u8>,
    scopes: Vec<String>,
    expires_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
    suspended_at: Option<OffsetDateTime>,
}

impl KeyCaller {
    /// Junk is refused by its checksum, without a look-up.
    pub async fn authenticate(state: &AppState, header: &HeaderValue) -> Result<Self, ApiError> {
        let key = header
            .to_str()
            .ok()
            .and_then(|text| text.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .and_then(|(_, token)| ApiKey::parse(token.trim()).ok())
            .ok_or(ApiError::InvalidApiKey)?;
        let row: Option<KeyRow> = sqlx::query_as("select * from auth_key($1)")
            .bind(key.key_id())
            .fetch_optional(state.db.app.untenanted())
            .await?;
        let now = OffsetDateTime::now_utc();
        row.filter(|row| key.matches(&row.secret_hash))
            .filter(|row| row.revoked_at.is_none() && row.expires_at.is_none_or(|at| at > now))
            .map(Self::from)
            .ok_or(ApiError::InvalidApiKey)
    }
}

impl From<KeyRow> for KeyCaller {
    fn from(row: KeyRow) -> Self {
        Self {
            id: KeyId::from_uuid(row.id),
            tenant: TenantId::from_uuid(row.tenant_id),
            tenant_name: row.tenant_name,
            scopes: row.scopes.iter().filter_map(|s| Scope::parse(s)).collect(),
            suspended: row.suspended_at.is_some(),
        }
    }
}

/// Someone who acts for a tenant, by key or by session. Of a route with `Access::Tenant`.
#[derive(Debug, Clone)]
pub struct TenantCaller {
    pub tenant: TenantId,
    pub tenant_name: String,
    pub actor: Actor,
    pub suspended: bool,
    scopes: Vec<Scope>,
    request_id: Option<String>,
}

impl TenantCaller {
    pub(crate) fn of_session(session: &Session) -> Option<Self> {
        let tenant = session.tenant.as_ref()?;
        let scopes = match tenant.role.as_str() {
            "viewer" => vec![Scope::Read],
            _ => vec![Scope::Manage, Scope::Read],
        };
        Some(Self {
            tenant: tenant.id,
            tenant_name: tenant.name.clone(),
            actor: Actor::User(session.user),
            suspended: tenant.suspended,
            scopes,
            request_id: None,
        })
    }

    /// `Manage` includes `Read`.
    pub fn may(&self, needs: Scope) -> bool {
        self.scopes.contains(&needs)
            || (needs == Scope::Read && self.scopes.contains(&Scope::Manage))
    }

    /// What a transaction takes.
    pub fn acting(&self) -> Acting {
        Acting { tenant: self.tenant, actor: self.actor, request_id: self.request_id.clone() }
    }
}

impl From<&KeyCaller> for TenantCaller {
    fn from(key: &KeyCaller) -> Self {
        Self {
            tenant: key.tenant,
            tenant_name: key.tenant_name.clone(),
            actor: Actor::Key(key.id),
            suspended: key.suspended,
            scopes: key.scopes.clone(),
            request_id: None,
        }
    }
}

/// Of a route with `Access::Operator`.
#[derive(Debug, Clone)]
pub struct OperatorCaller {
    pub user: UserId,
    pub email: String,
    pub request_id: Option<String>,
}

/// Minted for each request; in the response, the log and the audit rows.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        granted(parts)
    }
}

impl<S: Sync> FromRequestParts<S> for TenantCaller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let caller: Self = granted(parts)?;
        Ok(Self { request_id: request_id(parts), ..caller })
    }
}

impl<S: Sync> FromRequestParts<S> for Session {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match granted(parts)? {
            Caller::Session(session) => Ok(session),
            Caller::Key(_) => Err(ApiError::SessionOnly),
        }
    }
}

/// A session where there is one: for public routes.
impl<S: Sync> axum::extract::OptionalFromRequestParts<S> for Session {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        match parts.extensions.get::<Caller>() {
            Some(Caller::Session(session)) => Ok(Some(session.clone())),
            _ => Ok(None),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for OperatorCaller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match granted(parts)? {
            Caller::Session(session) if session.is_operator => {
                Ok(Self { user: session.user, email: session.email, request_id: request_id(parts) })
            }
            _ => Err(ApiError::OperatorOnly),
        }
    }
}

fn granted<T: Clone + Send + Sync + 'static>(parts: &Parts) -> Result<T, ApiError> {
    parts.extensions.get::<T>().cloned().ok_or_else(|| {
        ApiError::Internal(anyhow::anyhow!(
            "the access rule of {} {} grants no {}",
            parts.method,
            parts.uri.path(),
            std::any::type_name::<T>()
        ))
    })
}

fn request_id(parts: &Parts) -> Option<String> {
    parts.extensions.get::<RequestId>().map(|id| id.0.clone())
}

/// The client's address, for login limits. Without trusted proxies it is the connection's; with `n`
/// of them it is the `n`-th last of `X-Forwarded-For`, which they have appended: whatever stands
/// before it came from the client and is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

impl FromRequestParts<AppState> for ClientAddress {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        let peer = match parts.extensions.get::<ConnectInfo<SocketAddr>>() {
            Some(ConnectInfo(peer)) => peer.ip(),
            None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        let forwarded: Vec<&str> = parts
            .headers
            .get_all("x-forwarded-for")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .collect();
        Ok(Self(client_address(peer, &forwarded, state.config.trusted_proxies)))
    }
}

impl FromRequestParts<AppState> for Visitor {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        let user_agent = parts.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok());
        Ok(Self {
            user_agent: user_agent.unwrap_or_default().to_owned(),
            request_id: request_id(parts),
            address: ClientAddress::from_request_parts(parts, state).await?,
        })
    }
}

fn client_address(peer: IpAddr, forwarded: &[&str], trusted_proxies: usize) -> IpAddr {
    if trusted_proxies == 0 {
        return peer;
    }
    forwarded
        .len()
        .checked_sub(trusted_proxies)
        .and_then(|i| forwarded[i].trim().parse().ok())
        .unwrap_or(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_trusted_proxies_appended_names_the_client() {
        let peer: IpAddr = "10.0.0.9".parse().unwrap();
        let forged = ["1.2.3.4", " 203.0.113.7"];
        assert_eq!(client_address(peer, &forged, 0), peer);
        assert_eq!(client_address(peer, &forged, 1).to_string(), "203.0.113.7");
        assert_eq!(client_address(peer, &[], 1), peer);
        assert_eq!(client_address(peer, &["junk"], 1), peer);
        assert_eq!(client_address(peer, &forged, 3), peer);
    }
}
