//! The pools, one per purpose and role, so that a burst in one place starves no other.
//!
//! None of the roles may bypass row-level security: [`Db::connect`] refuses one that could, because
//! every tenant's isolation would then rest on nothing.

pub mod migrate;
mod tx;

pub use tx::{Acting, Actor, AuditedTx, OperatorTx, TenantPool, TenantRead, TenantTx, UserTx};

use crate::config::DatabaseConfig;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgPool, Postgres};
use std::time::Duration;

#[derive(Clone)]
pub struct Db {
    /// Pages and API, as `lk_app`.
    pub app: TenantPool,
    /// Background jobs, as `lk_app`, with time for longer statements.
    pub jobs: TenantPool,
    /// The nodes' side, as `lk_ingest`.
    pub ingest: PgPool,
    /// Operators' pages, as `lk_operator`; use [`Db::operator`].
    operator: PgPool,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("PostgreSQL does not accept the login of {role}: {source}")]
    Unreachable { role: String, source: sqlx::Error },
    #[error(
        "{role} could bypass row-level security (it is a superuser, has BYPASSRLS or may become \
         lk_owner): log in as lk_app, lk_ingest and lk_operator"
    )]
    BypassesIsolation { role: String },
}

impl Db {
    pub async fn connect(config: &DatabaseConfig) -> Result<Self, ConnectError> {
        let pools = [
            pool("lorikeet-app", &config.app, 16, "15s"),
            pool("lorikeet-jobs", &config.app, 4, "120s"),
            pool("lorikeet-ingest", &config.ingest, 8, "30s"),
            pool("lorikeet-operator", &config.operator, 4, "15s"),
        ];
        for (pool, options) in
            pools.iter().zip([&config.app, &config.app, &config.ingest, &config.operator])
        {
            refuse_bypass(pool, options.get_username()).await?;
        }
        let [app, jobs, ingest, operator] = pools;
        Ok(Self { app: TenantPool::new(app), jobs: TenantPool::new(jobs), ingest, operator })
    }

    /// Counts of what there is, for metrics, as `lk_operator`. No customer's data is looked at, so that
    /// no audit row is left.
    pub(crate) async fn statistics(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        self.operator.acquire().await
    }

    pub async fn close(&self) {
        tokio::join!(
            self.app.close(),
            self.jobs.close(),
            self.ingest.close(),
            self.operator.close()
        );
    }
}

/// Callers wait up to five seconds for a connection; then the request is answered 503.
fn pool(
    name: &str,
    options: &PgConnectOptions,
    max_connections: u32,
    statement_timeout: &str,
) -> PgPool {
    let options = options.clone().application_name(name).options([
        ("statement_timeout", statement_timeout),
        ("idle_in_transaction_session_timeout", "15s"),
        ("lock_timeout", "5s"),
    ]);
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(Duration::from_secs(5))
        .connect_lazy_with(options)
}

async fn refuse_bypass(pool: &PgPool, role: &str) -> Result<(), ConnectError> {
    let bypasses: bool = sqlx::query_scalar(
        "select bool_or(rolsuper or rolbypassrls or pg_has_role(rolname, 'lk_owner', 'member'))
         from pg_roles where rolname in (current_user, session_user)",
    )
    .fetch_one(pool)
    .await
    .map_err(|source| ConnectError::Unreachable { role: role.to_owned(), source })?;
    if bypasses {
        return Err(ConnectError::BypassesIsolation { role: role.to_owned() });
    }
    Ok(())
}
