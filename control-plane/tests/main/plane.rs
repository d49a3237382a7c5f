//! A control plane's database, and processes that serve its nodes, each on a port of its own.

use crate::nodes::{PATIENCE, authorized, token};
use crate::support;
use lorikeet_contract::link::link_client::LinkClient;
use lorikeet_contract::link::{self, Resource, ResourceKind, UsageAck, UsageBatch};
use lorikeet_contract::manifest::ManifestState;
use lorikeet_contract::{AdapterId, AdapterVersionId, KeyId, NodeId, TenantId};
use lorikeet_control_plane::db::{Acting, Db};
use lorikeet_control_plane::link::{LinkParts, SigningKey, load_or_create_signing_key, serve};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection};
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

/// One database, with as many processes serving its nodes as a test wants.
pub struct Plane {
    pub db: Db,
    pub database: String,
}

impl Plane {
    pub async fn new() -> Self {
        let database = support::database().await;
        let config = support::config(&database, &[]);
        Self { db: Db::connect(&config.database).await.unwrap(), database }
    }

    pub async fn owner(&self) -> PgConnection {
        support::connect("lk_owner", &self.database).await
    }

    pub async fn tenant(&self, name: &str) -> TenantId {
        let id = TenantId::new();
        sqlx::query("insert into tenant (id, name) values ($1, $2)")
            .bind(id.as_uuid())
            .bind(name)
            .execute(&mut self.owner().await)
            .await
            .unwrap();
        id
    }

    pub async fn key(&self, tenant: TenantId) -> KeyId {
        let id = KeyId::new();
        sqlx::query(
            "insert into api_key (id, tenant_id, key_id, secret_hash, name, scopes)
             values ($1, $2, right($3, 8), $4, 'key', '{inference}')",
        )
        .bind(id.as_uuid())
        .bind(tenant.as_uuid())
        .bind(id.to_string())
        .bind([0u8; 32].as_slice())
        .execute(&mut self.owner().await)
        .await
        .unwrap();
        id
    }

    /// An adapter's first version, `verified` and in the manifest.
    pub async fn verified_version(&self, tenant: TenantId, name: &str) -> AdapterVersionId {
        let (adapter, version) = (AdapterId::new(), AdapterVersionId::new());
        let mut tx = self.db.app.write(&Acting::system(tenant)).await.unwrap();
        sqlx::query("insert into adapter (id, tenant_id, name) values ($1, $2, $3)")
            .bind(adapter.as_uuid())
            .bind(tenant.as_uuid())
            .bind(name)
            .execute(&mut *tx)
            .await
            .unwrap();
        sqlx::query(
            "insert into adapter_version (id, tenant_id, adapter_id, version, state)
             values ($1, $2, $3, 1, 'verified')",
        )
        .bind(version.as_uuid())
        .bind(tenant.as_uuid())
        .bind(adapter.as_uuid())
        .execute(&mut *tx)
        .await
        .unwrap();
        let mut tx = tx.audit("adapter_version.verify", version, json!({})).await.unwrap();
        let resource = link::AdapterResource { id: version.to_string(), ..Default::default() };
        let revision = tx.publish(ResourceKind::Adapter, version, &resource).await.unwrap();
        sqlx::query("update adapter_version set manifest_revision = $2 where id = $1")
            .bind(version.as_uuid())
            .bind(revision)
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        version
    }

    /// Puts a resource with an arbitrary payload into the manifest, or takes it out.
    pub async fn put(&self, tenant: TenantId, kind: ResourceKind, id: &str, name: Option<&str>) {
        let tx = self.db.app.write(&Acting::system(tenant)).await.unwrap();
        let mut tx = tx.audit("test.put", id, json!({})).await.unwrap();
        match name {
            Some(name) => {
                let resource = link::TenantResource { name: name.into(), ..Default::default() };
                tx.publish(kind, id, &resource).await.unwrap()
            }
            None => tx.publish_tombstone(kind, id).await.unwrap(),
        };
        tx.commit().await.unwrap();
    }

    pub async fn revoke(&self, tenant: TenantId, key: KeyId) {
        let tx = self.db.app.write(&Acting::system(tenant)).await.unwrap();
        let mut tx = tx.audit("api_key.revoke", key, json!({})).await.unwrap();
        tx.revoke_key(key).await.unwrap();
        tx.commit().await.unwrap();
    }

    pub async fn manifest(&self) -> ManifestState {
        let mut owner = self.owner().await;
        let (cp_epoch, revision): (i64, i64) =
            sqlx::query_as("select cp_epoch, revision from manifest_counter")
                .fetch_one(&mut owner)
                .await
                .unwrap();
        let rows: Vec<(i32, String, Vec<u8>)> = sqlx::query_as(
            "select kind, id, payload from manifest_change where payload is not null",
        )
        .fetch_all(&mut owner)
        .await
        .unwrap();
        let resources = rows.into_iter().map(|(kind, id, payload)| Resource { kind, id, payload });
        ManifestState::from_resources(cp_epoch as u64, revision as u64, resources)
    }

    /// As when PostgreSQL dies: connections break and no new ones are accepted, until
    /// [`Self::restore_database`].
    pub async fn lose_database(&self) {
        self.administer(format!("alter database {} allow_connections false", self.database)).await;
        let connected = format!("from pg_stat_activity where datname = '{}'", self.database);
        self.administer(format!("select pg_terminate_backend(pid) {connected}")).await;
    }

    pub async fn restore_database(&self) {
        self.administer(format!("alter database {} allow_connections true", self.database)).await;
    }

    async fn administer(&self, sql: String) {
        let mut admin = support::connect("postgres", "postgres").await;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut admin).await.unwrap();
    }

    /// One value of the first row of a query, as the owner sees it.
    pub async fn look<T>(&self, sql: &'static str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        sqlx::query_scalar(sql).fetch_one(&mut self.owner().await).await.unwrap()
    }

    /// Looks until the answer is `wanted`.
    pub async fn see<T>(&self, sql: &'static str, wanted: T)
    where
        T: PartialEq + std::fmt::Debug + Send + Unpin,
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        let mut owner = self.owner().await;
        let mut last = None;
        let seen = tokio::time::timeout(PATIENCE, async {
            loop {
                let row = sqlx::query_scalar(sql).fetch_optional(&mut owner).await.unwrap();
                let value: Option<T> = row.flatten();
                if value.as_ref() == Some(&wanted) {
                    return;
                }
                last = value;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if seen.await.is_err() {
            panic!("{sql} is {last:?}, not {wanted:?}");
        }
    }
}

/// The key that signs the tokens of this test process's nodes.
pub fn signing_key() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        load_or_create_signing_key(&dir.path().join("node.pem")).unwrap()
    })
}

/// A process that serves nodes.
pub struct LinkProcess {
    pub address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl LinkProcess {
    pub async fn start(plane: &Plane) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (pool, key) = (plane.db.ingest.clone(), signing_key().clone());
        let parts = LinkParts { pool, key, tls: None, metrics: Default::default() };
        let stop = CancellationToken::new();
        let server = serve(listener, parts, stop.clone());
        let task = tokio::spawn(async move { server.await.unwrap() });
        Self { address, stop, task }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("it stops").unwrap();
    }

    /// As `kill -9` does it: nothing is said to anyone.
    pub fn kill(self) {
        self.task.abort();
    }

    pub async fn client(&self) -> LinkClient<Channel> {
        LinkClient::connect(format!("http://{}", self.address)).await.unwrap()
    }

    pub async fn ship(&self, node: NodeId, batch: UsageBatch) -> Result<UsageAck, Status> {
        let request = authorized(batch, &token(node));
        Ok(self.client().await.ship_usage(request).await?.into_inner())
    }
}
