//! Transactions. What a transaction may see follows from its type: a tenant's rows need
//! [`TenantTx`] or [`TenantRead`], a user's sessions [`UserTx`], a look across tenants
//! [`OperatorTx`]. Outside of them row-level security shows no tenant-owned row at all.
//!
//! A tenant's transaction cannot commit without its audit row: only [`TenantTx::audit`] leads to
//! the type that commits, and only that type publishes, so that the manifest counter's lock is
//! taken last and held shortly.

use super::Db;
use lorikeet_contract::link::ResourceKind;
use lorikeet_contract::{KeyId, NodeId, TenantId, UserId};
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use std::fmt;
use std::ops::{Deref, DerefMut};
use uuid::Uuid;

/// Who does something, as the audit log names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    User(UserId),
    Key(KeyId),
    Node(NodeId),
    System,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(f, "user {id}"),
            Self::Key(id) => write!(f, "key {id}"),
            Self::Node(id) => write!(f, "node {id}"),
            Self::System => f.write_str("system"),
        }
    }
}

/// For which tenant a transaction runs, and who is behind it.
#[derive(Debug, Clone)]
pub struct Acting {
    pub tenant: TenantId,
    pub actor: Actor,
    /// Of the HTTP request, for the audit row.
    pub request_id: Option<String>,
}

impl Acting {
    /// Background work on behalf of a tenant.
    pub fn system(tenant: TenantId) -> Self {
        Self { tenant, actor: Actor::System, request_id: None }
    }

    fn user(&self) -> Option<UserId> {
        match self.actor {
            Actor::User(user) => Some(user),
            _ => None,
        }
    }
}

/// A pool of `lk_app` connections.
#[derive(Clone)]
pub struct TenantPool(PgPool);

impl TenantPool {
    pub(super) fn new(pool: PgPool) -> Self {
        Self(pool)
    }

    pub async fn read(&self, acting: &Acting) -> Result<TenantRead, sqlx::Error> {
        let mut tx = self.0.begin_with("begin read only").await?;
        set_identity(&mut tx, Some(acting.tenant), acting.user()).await?;
        Ok(TenantRead(tx))
    }

    pub async fn write(&self, acting: &Acting) -> Result<TenantTx, sqlx::Error> {
        let mut tx = self.0.begin().await?;
        set_identity(&mut tx, Some(acting.tenant), acting.user()).await?;
        Ok(TenantTx { tx, acting: acting.clone() })
    }

    /// For one user's own row and sessions.
    pub async fn user(&self, user: UserId) -> Result<UserTx, sqlx::Error> {
        let mut tx = self.0.begin().await?;
        set_identity(&mut tx, None, Some(user)).await?;
        Ok(UserTx(tx))
    }

    /// For what belongs to no tenant: jobs, login counters, nodes, the look-ups that precede a
    /// tenant. Tenant-owned tables appear empty through it.
    pub fn untenanted(&self) -> &PgPool {
        &self.0
    }

    pub(super) async fn close(&self) {
        self.0.close().await;
    }
}

async fn set_identity(
    tx: &mut PgConnection,
    tenant: Option<TenantId>,
    user: Option<UserId>,
) -> Result<(), sqlx::Error> {
    let text = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
    sqlx::query("select set_config('app.tenant', $1, true), set_config('app.user', $2, true)")
        .bind(text(tenant.map(|t| t.as_uuid())))
        .bind(text(user.map(|u| u.as_uuid())))
        .execute(tx)
        .await?;
    Ok(())
}

macro_rules! runs_queries {
    ($name:ident, $($field:tt)+) => {
        impl Deref for $name {
            type Target = PgConnection;
            fn deref(&self) -> &PgConnection {
                &self.$($field)+
            }
        }
        impl DerefMut for $name {
            fn deref_mut(&mut self) -> &mut PgConnection {
                &mut self.$($field)+
            }
        }
    };
}

/// One tenant's rows, read only; ends when dropped.
pub struct TenantRead(Transaction<'static, Postgres>);
runs_queries!(TenantRead, 0);

/// One tenant's rows, as `lk_app` or, from [`Db::operate`], as `lk_operator`. Rolls back unless it goes through [`audit`](Self::audit) and commits.
pub struct TenantTx {
    tx: Transaction<'static, Postgres>,
    acting: Acting,
}
runs_queries!(TenantTx, tx);

impl TenantTx {
    /// Writes the audit row. `action` is `noun.verb`; `detail` holds no secret.
    pub async fn audit(
        mut self,
        action: &'static str,
        subject: impl fmt::Display,
        detail: serde_json::Value,
    ) -> Result<AuditedTx, sqlx::Error> {
        sqlx::query(
            "insert into audit (id, tenant_id, actor, action, subject, detail, request_id)
             values ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(Uuid::now_v7())
        .bind(self.acting.tenant.as_uuid())
        .bind(self.acting.actor.to_string())
        .bind(action)
        .bind(subject.to_string())
        .bind(detail)
        .bind(self.acting.request_id)
        .execute(&mut *self.tx)
        .await?;
        Ok(AuditedTx(self.tx))
    }
}

/// A tenant's transaction at its end: publishes to the nodes, then commits.
pub struct AuditedTx(Transaction<'static, Postgres>);
runs_queries!(AuditedTx, 0);

impl AuditedTx {
    /// Puts a resource into the manifest and returns its revision. From here on every other
    /// publisher waits for this transaction: commit next.
    pub async fn publish(
        &mut self,
        kind: ResourceKind,
        id: impl fmt::Display,
        resource: &impl prost::Message,
    ) -> Result<i64, sqlx::Error> {
        self.put(kind, id, Some(resource.encode_to_vec())).await
    }

    /// Takes a resource out of the manifest. Only this deletes at the nodes.
    pub async fn publish_tombstone(
        &mut self,
        kind: ResourceKind,
        id: impl fmt::Display,
    ) -> Result<i64, sqlx::Error> {
        self.put(kind, id, None).await
    }

    async fn put(
        &mut self,
        kind: ResourceKind,
        id: impl fmt::Display,
        payload: Option<Vec<u8>>,
    ) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("select manifest_put($1, $2, $3)")
            .bind(kind as i32)
            .bind(id.to_string())
            .bind(payload)
            .fetch_one(&mut *self.0)
            .await
    }

    /// Adds the key to the nodes' deny-set, ahead of the manifest; running requests are cancelled.
    pub async fn revoke_key(&mut self, key: KeyId) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("select revoke_now($1)")
            .bind(key.as_uuid())
            .fetch_one(&mut *self.0)
            .await
    }

    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.0.commit().await
    }
}

/// One user's own row and sessions.
pub struct UserTx(Transaction<'static, Postgres>);
runs_queries!(UserTx, 0);

impl UserTx {
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.0.commit().await
    }
}

/// Reads across tenants, as `lk_operator`, read only; ends when dropped.
pub struct OperatorTx(Transaction<'static, Postgres>);
runs_queries!(OperatorTx, 0);

impl Db {
    /// What an operator changes for one tenant, as `lk_operator`: only what that role may.
    pub async fn operate(&self, acting: &Acting) -> Result<TenantTx, sqlx::Error> {
        let mut tx = self.operator.begin().await?;
        set_identity(&mut tx, Some(acting.tenant), acting.user()).await?;
        Ok(TenantTx { tx, acting: acting.clone() })
    }

    /// The audit row is committed before the first read, so that no look goes unrecorded.
    pub async fn operator(
        &self,
        user: UserId,
        action: &'static str,
        request_id: Option<&str>,
    ) -> Result<OperatorTx, sqlx::Error> {
        sqlx::query(
            "insert into audit (id, actor, action, subject, request_id) values ($1, $2, $3, '', $4)",
        )
        .bind(Uuid::now_v7())
        .bind(Actor::User(user).to_string())
        .bind(action)
        .bind(request_id)
        .execute(&self.operator)
        .await?;
        Ok(OperatorTx(self.operator.begin_with("begin read only").await?))
    }
}
