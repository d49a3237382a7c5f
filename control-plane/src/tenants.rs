//! Tenants as nodes know them, and the limits that operators set on them.

use crate::auth::OperatorCaller;
use crate::db::{Acting, Actor, Db};
use crate::error::ApiError;
use lorikeet_contract::TenantId;
use lorikeet_contract::link::{Limits, ResourceKind, TenantResource};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{FromRow, PgConnection};

/// What a tenant may use of the nodes. `None`: no limit of the tenant's own; zero allows nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, FromRow)]
#[serde(default, deny_unknown_fields)]
pub struct TenantLimits {
    /// Requests at once, on each node.
    pub max_concurrency: Option<i64>,
    /// Over all nodes.
    pub requests_per_minute: Option<i64>,
    /// Prompt and completion, over all nodes.
    pub tokens_per_minute: Option<i64>,
    /// Against the other tenants' weights where they compete; 100 unless set.
    pub weight: Option<i64>,
    /// Of the tenant's adapters in a node's host memory.
    pub adapter_host_bytes: Option<i64>,
    /// Of the tenant's adapters on a node's device.
    pub adapter_device_bytes: Option<i64>,
}

const MAX_CONCURRENCY: i64 = 1_000_000;
const MAX_REQUESTS_PER_MINUTE: i64 = 1_000_000_000;
const MAX_TOKENS_PER_MINUTE: i64 = 1_000_000_000_000;
const MAX_WEIGHT: i64 = 10_000;

impl TenantLimits {
    /// Names the first field that cannot be a limit.
    fn check(&self) -> Result<(), ApiError> {
        let fields = [
            ("max_concurrency", self.max_concurrency, 0, MAX_CONCURRENCY),
            ("requests_per_minute", self.requests_per_minute, 0, MAX_REQUESTS_PER_MINUTE),
            ("tokens_per_minute", self.tokens_per_minute, 0, MAX_TOKENS_PER_MINUTE),
            ("weight", self.weight, 1, MAX_WEIGHT),
            ("adapter_host_bytes", self.adapter_host_bytes, 0, i64::MAX),
            ("adapter_device_bytes", self.adapter_device_bytes, 0, i64::MAX),
        ];
        for (param, value, least, most) in fields {
            if value.is_some_and(|value| !(least..=most).contains(&value)) {
                let message = format!("{param} must be from {least} to {most}, or none");
                return Err(ApiError::invalid(param, message));
            }
        }
        Ok(())
    }

    /// As nodes are told.
    fn to_proto(self) -> Option<Limits> {
        if self == Self::default() {
            return None;
        }
        // In range: checked here and by the table.
        let narrow = |value: Option<i64>| value.map(|v| u32::try_from(v).unwrap_or(u32::MAX));
        let wide = |value: Option<i64>| value.map(i64::unsigned_abs);
        Some(Limits {
            max_concurrency: narrow(self.max_concurrency),
            requests_per_minute: wide(self.requests_per_minute),
            tokens_per_minute: wide(self.tokens_per_minute),
            weight: narrow(self.weight),
            adapter_host_bytes: wide(self.adapter_host_bytes),
            adapter_device_bytes: wide(self.adapter_device_bytes),
        })
    }
}

/// A tenant as the manifest has it.
pub fn resource(id: TenantId, name: &str, suspended: bool, limits: TenantLimits) -> TenantResource {
    TenantResource {
        id: id.to_string(),
        name: name.to_owned(),
        suspended,
        limits: limits.to_proto(),
        max_staleness_s: None,
    }
}

#[derive(FromRow)]
pub struct TenantWithLimits {
    pub name: String,
    pub suspended: bool,
    #[sqlx(flatten)]
    pub limits: TenantLimits,
}

/// What the transaction may see of one tenant: its own, or any as an operator.
pub async fn find(tx: &mut PgConnection, id: TenantId) -> Result<TenantWithLimits, sqlx::Error> {
    sqlx::query_as(
        "select name, suspended_at is not null as suspended, max_concurrency, requests_per_minute,
           tokens_per_minute, weight, adapter_host_bytes, adapter_device_bytes
         from tenant where id = $1 and deleted_at is null",
    )
    .bind(id.as_uuid())
    .fetch_one(tx)
    .await
}

/// Replaces all limits of a tenant and tells the nodes, in one transaction.
pub async fn set_limits(
    db: &Db,
    operator: &OperatorCaller,
    id: TenantId,
    limits: TenantLimits,
) -> Result<(), ApiError> {
    limits.check()?;
    let actor = Actor::User(operator.user);
    let acting = Acting { tenant: id, actor, request_id: operator.request_id.clone() };
    let mut tx = db.operate(&acting).await?;
    // The row's lock orders this against another change of the same tenant.
    let (name, suspended): (String, bool) = sqlx::query_as(
        "update tenant set max_concurrency = $2, requests_per_minute = $3, tokens_per_minute = $4,
           weight = $5, adapter_host_bytes = $6, adapter_device_bytes = $7
         where id = $1 and deleted_at is null
         returning name, suspended_at is not null",
    )
    .bind(id.as_uuid())
    .bind(limits.max_concurrency)
    .bind(limits.requests_per_minute)
    .bind(limits.tokens_per_minute)
    .bind(limits.weight)
    .bind(limits.adapter_host_bytes)
    .bind(limits.adapter_device_bytes)
    .fetch_one(&mut *tx)
    .await?;
    let mut tx = tx.audit("tenant.set_limits", id, json!(limits)).await?;
    tx.publish(ResourceKind::Tenant, id, &resource(id, &name, suspended, limits)).await?;
    tx.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_out_of_range_is_named_and_none_or_zero_is_fine() {
        assert!(TenantLimits::default().check().is_ok());
        let zero = TenantLimits { max_concurrency: Some(0), ..TenantLimits::default() };
        assert!(zero.check().is_ok());
        let cases = [
            (TenantLimits { weight: Some(0), ..TenantLimits::default() }, "weight"),
            (
                TenantLimits { tokens_per_minute: Some(-1), ..TenantLimits::default() },
                "tokens_per_minute",
            ),
            (
                TenantLimits { max_concurrency: Some(i64::MAX), ..TenantLimits::default() },
                "max_concurrency",
            ),
        ];
        for (limits, named) in cases {
            let Err(ApiError::Invalid { param, .. }) = limits.check() else { panic!("{named}") };
            assert_eq!(param, named);
        }
    }
}
