//! A control plane's link on a port of its own, and nodes that follow the protocol to the letter
//! or, where a test wants it, break it.

use crate::support;
use lorikeet_contract::link::control_message::Message;
use lorikeet_contract::link::link_client::LinkClient;
use lorikeet_contract::link::{
    self, Ack, BaseModel, ControlMessage, Hello, NodeMessage, Rejection, Resource, ResourceKind,
    RevocationAck, UsageAck, UsageBatch, node_message,
};
use lorikeet_contract::manifest::ManifestState;
use lorikeet_contract::rate::RateShare;
use lorikeet_contract::{AdapterId, AdapterVersionId, KeyId, NodeId, TenantId};
use lorikeet_control_plane::db::{Acting, Db};
use lorikeet_control_plane::link::{
    LinkParts, SigningKey, issue_node_token, load_or_create_signing_key, serve,
};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

pub const PATIENCE: Duration = Duration::from_secs(15);

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

pub fn token(node: NodeId) -> String {
    issue_node_token(signing_key(), node, "a node", Duration::from_secs(600)).unwrap()
}

pub fn authorized<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

pub fn base_model() -> BaseModel {
    BaseModel {
        id: "smollm2-135m-instruct".into(),
        weights_digest: vec![7; 32],
        architecture: "llama".into(),
        hidden_size: 576,
        intermediate_size: 1536,
        num_layers: 30,
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        vocab_size: 49152,
        context_length: 8192,
    }
}

/// A node's memory. It survives its streams, as a node's disk does.
pub struct Node {
    pub id: NodeId,
    pub manifest: ManifestState,
    pub revocation_seq: u64,
    /// Resources that it refuses, and why.
    pub refuses: HashMap<String, String>,
    pub snapshots: u32,
    pub rate_share: Option<RateShare>,
    draft: Vec<Resource>,
}

impl Node {
    pub fn new() -> Self {
        Self::with_id(NodeId::new())
    }

    /// A node that has lost its disk, or a second process of it.
    pub fn with_id(id: NodeId) -> Self {
        Self {
            id,
            manifest: ManifestState::default(),
            revocation_seq: 0,
            refuses: HashMap::new(),
            snapshots: 0,
            rate_share: None,
            draft: Vec::new(),
        }
    }

    pub fn hello(&self) -> Hello {
        Hello {
            protocol_version: link::PROTOCOL_VERSION,
            node_id: self.id.to_string(),
            name: "a node".into(),
            cp_epoch: self.manifest.cp_epoch,
            revision: self.manifest.revision,
            state_digest: self.manifest.digest().to_vec(),
            base_model: Some(base_model()),
            api_base_url: "http://127.0.0.1:7710/v1".into(),
            backend: "sim".into(),
            software_version: "test".into(),
            revocation_seq: self.revocation_seq,
        }
    }

    pub async fn attach(self, process: &LinkProcess) -> Attached {
        let hello = self.hello();
        let token = token(self.id);
        let (outbound, inbound) = dial(process, hello, &token).await.expect("attaches");
        Attached { node: self, outbound, inbound }
    }
}

/// Opens a stream that begins with `hello`.
pub async fn dial(
    process: &LinkProcess,
    hello: Hello,
    token: &str,
) -> Result<(mpsc::Sender<NodeMessage>, Streaming<ControlMessage>), Status> {
    let (outbound, messages) = mpsc::channel(64);
    let first = NodeMessage { message: Some(node_message::Message::Hello(hello)) };
    outbound.send(first).await.unwrap();
    let request = authorized(ReceiverStream::new(messages), token);
    let inbound = process.client().await.attach(request).await?.into_inner();
    Ok((outbound, inbound))
}

/// A node with a stream.
pub struct Attached {
    pub node: Node,
    outbound: mpsc::Sender<NodeMessage>,
    inbound: Streaming<ControlMessage>,
}

impl Attached {
    /// The next message but for rate shares, which come when other nodes come and go; `None` when
    /// the stream has ended.
    pub async fn receive(&mut self) -> Option<Message> {
        loop {
            match self.receive_any().await? {
                share @ Message::RateShare(_) => self.apply(share).await,
                other => return Some(other),
            }
        }
    }

    async fn receive_any(&mut self) -> Option<Message> {
        let next = tokio::time::timeout(PATIENCE, self.inbound.message()).await;
        match next.expect("a message or the end within the time a heartbeat takes") {
            Ok(message) => message.and_then(|m| m.message),
            Err(_) => None,
        }
    }

    pub async fn say(&self, message: node_message::Message) {
        self.outbound.send(NodeMessage { message: Some(message) }).await.unwrap();
    }

    /// Applies a message as a node does, and acknowledges it.
    pub async fn apply(&mut self, message: Message) {
        let node = &mut self.node;
        let (touched, resync) = match message {
            Message::Delta(delta) => match node.manifest.applied(&delta) {
                Ok(next) => {
                    node.manifest = next;
                    (delta.upserts, false)
                }
                Err(_) => (vec![], true),
            },
            Message::Snapshot(chunk) => {
                node.draft.extend(chunk.resources);
                if !chunk.last {
                    return;
                }
                node.snapshots += 1;
                let all = std::mem::take(&mut node.draft);
                node.manifest =
                    ManifestState::from_resources(chunk.cp_epoch, chunk.revision, all.clone());
                (all, false)
            }
            Message::Revocations(revocations) => {
                node.revocation_seq = revocations.seq;
                let ack = RevocationAck { seq: revocations.seq };
                return self.say(node_message::Message::RevocationAck(ack)).await;
            }
            Message::RateShare(share) => {
                node.rate_share = RateShare::try_from(&share).ok();
                return;
            }
            Message::Welcome(_) | Message::Heartbeat(_) => return,
        };
        let rejected = touched.iter().filter_map(|r| {
            let reason = node.refuses.get(&r.id)?.clone();
            Some(Rejection { kind: r.kind, id: r.id.clone(), reason })
        });
        let ack = Ack {
            cp_epoch: node.manifest.cp_epoch,
            revision: node.manifest.revision,
            state_digest: node.manifest.digest().to_vec(),
            rejected: rejected.collect(),
            resync,
        };
        self.say(node_message::Message::Ack(ack)).await;
    }

    /// Follows the stream until the node is as wanted.
    pub async fn follow(&mut self, wanted: impl Fn(&Node) -> bool) {
        while !wanted(&self.node) {
            let message = self.receive_any().await.expect("the stream goes on");
            self.apply(message).await;
        }
    }

    pub async fn follow_to(&mut self, revision: u64) {
        self.follow(|node| node.manifest.revision >= revision).await;
    }

    /// Follows the stream in the background until it ends; then gives the node back.
    pub fn live(mut self) -> JoinHandle<Node> {
        tokio::spawn(async move {
            while let Some(message) = self.receive().await {
                self.apply(message).await;
            }
            self.node
        })
    }

    /// Ends the stream from the node's side.
    pub fn hang_up(self) -> Node {
        self.node
    }
}
