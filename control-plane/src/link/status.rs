//! What pages show of the nodes: to operators who is where, to a tenant how far a revocation is.

use lorikeet_contract::{KeyId, NodeId, TenantId};
use serde::Serialize;
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use std::collections::HashMap;
use time::OffsetDateTime;
use time::serde::rfc3339;
use uuid::Uuid;

/// A resource that a node refuses to use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeRejection {
    /// `tenant`, `key`, `adapter` or `alias`.
    pub kind: &'static str,
    pub resource_id: String,
    pub reason: String,
    #[serde(with = "rfc3339")]
    pub at: OffsetDateTime,
}

/// Adapters and bytes of one tier of a node, as it reported them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct TierStatus {
    pub adapters: u64,
    pub used_bytes: u64,
    pub capacity_bytes: u64,
}

/// An adapter's place on a node, as the node reported it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResidentAdapter {
    pub tenant_id: String,
    pub digest: String,
    /// Empty when its tenant or version is not known any more.
    pub tenant: String,
    /// `name@version`, the newest of that content.
    pub adapter: String,
    /// `device`, `host`, `disk`, `fetching`, `failed` or `absent`.
    pub tier: String,
    /// That it occupies in the tier.
    pub bytes: u64,
    /// Why it failed to load; else empty.
    pub error: String,
    pub pinned: bool,
    /// Why the node does not keep it although it is pinned; else empty.
    pub pin_refusal: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    pub id: NodeId,
    pub name: String,
    pub connected: bool,
    pub disabled: bool,
    pub acked_revision: i64,
    /// Revisions that it has yet to acknowledge; all of them when it holds another epoch's.
    pub behind: i64,
    /// Revocations that it has not acknowledged. While it is away it may still accept those keys.
    pub may_still_accept: i64,
    /// Public name of the model it serves.
    pub base_model: String,
    pub backend: String,
    pub api_base_url: String,
    pub software_version: String,
    pub device: TierStatus,
    pub host: TierStatus,
    pub disk: TierStatus,
    /// What of its adapters it has told, pinned and failed ones first; at most as many as are kept.
    pub adapters: Vec<ResidentAdapter>,
    pub adapters_total: u64,
    pub rejections: Vec<NodeRejection>,
    #[serde(with = "rfc3339")]
    pub first_seen_at: OffsetDateTime,
    #[serde(with = "rfc3339")]
    pub last_seen_at: OffsetDateTime,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodesStatus {
    /// Of the manifest.
    pub revision: i64,
    pub nodes: Vec<NodeStatus>,
}

/// All nodes, by name; needs an operator's transaction.
pub async fn nodes(tx: &mut PgConnection) -> Result<NodesStatus, sqlx::Error> {
    let revision =
        sqlx::query_scalar("select revision from manifest_counter").fetch_one(&mut *tx).await?;
    let mut rejections = rejections(tx).await?;
    let rows = sqlx::query(
        "select n.id, n.name, n.connected, n.disabled_at is not null as disabled,
           n.acked_revision,
           case when n.cp_epoch = c.cp_epoch then greatest(c.revision - n.acked_revision, 0)
                else c.revision end as behind,
           (select count(*) from revocation r where n.cp_epoch <> c.cp_epoch
              or r.seq > n.revocation_seq) as may_still_accept,
           coalesce(n.base_model ->> 'id', '') as base_model, n.backend, n.api_base_url,
           n.software_version, n.residency, n.first_seen_at, n.last_seen_at
         from node n, manifest_counter c order by n.name, n.id",
    )
    .fetch_all(&mut *tx)
    .await?;
    let names = Names::read(tx, &rows).await?;
    let nodes = rows
        .iter()
        .map(|row| {
            let id: Uuid = row.try_get("id")?;
            let residency: Value = row.try_get("residency")?;
            Ok(NodeStatus {
                id: NodeId::from_uuid(id),
                name: row.try_get("name")?,
                connected: row.try_get("connected")?,
                disabled: row.try_get("disabled")?,
                acked_revision: row.try_get("acked_revision")?,
                behind: row.try_get("behind")?,
                may_still_accept: row.try_get("may_still_accept")?,
                base_model: row.try_get("base_model")?,
                backend: row.try_get("backend")?,
                api_base_url: row.try_get("api_base_url")?,
                software_version: row.try_get("software_version")?,
                device: tier(&residency, "device"),
                host: tier(&residency, "host"),
                disk: tier(&residency, "disk"),
                adapters: list(&residency, "adapters").iter().map(|a| names.resident(a)).collect(),
                adapters_total: residency["adapters_total"].as_u64().unwrap_or_default(),
                rejections: rejections.remove(&id).unwrap_or_default(),
                first_seen_at: row.try_get("first_seen_at")?,
                last_seen_at: row.try_get("last_seen_at")?,
            })
        })
        .collect::<Result<_, sqlx::Error>>()?;
    Ok(NodesStatus { revision, nodes })
}

async fn rejections(
    tx: &mut PgConnection,
) -> Result<HashMap<Uuid, Vec<NodeRejection>>, sqlx::Error> {
    let rows = sqlx::query(
        "select node_id, kind, resource_id, reason, at from node_rejection
         order by node_id, at desc, kind, resource_id",
    )
    .fetch_all(tx)
    .await?;
    let mut by_node: HashMap<Uuid, Vec<NodeRejection>> = HashMap::new();
    for row in rows {
        by_node.entry(row.try_get("node_id")?).or_default().push(NodeRejection {
            kind: kind_name(row.try_get("kind")?),
            resource_id: row.try_get("resource_id")?,
            reason: row.try_get("reason")?,
            at: row.try_get("at")?,
        });
    }
    Ok(by_node)
}

fn kind_name(kind: i32) -> &'static str {
    use lorikeet_contract::link::ResourceKind;
    match ResourceKind::try_from(kind) {
        Ok(ResourceKind::Tenant) => "tenant",
        Ok(ResourceKind::Key) => "key",
        Ok(ResourceKind::Adapter) => "adapter",
        Ok(ResourceKind::Alias) => "alias",
        Ok(ResourceKind::Unspecified) | Err(_) => "unknown",
    }
}

/// Reads what `Residency` stored.
fn list<'a>(residency: &'a Value, name: &str) -> &'a [Value] {
    residency[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn tier(residency: &Value, name: &str) -> TierStatus {
    let mut status = TierStatus::default();
    for usage in list(residency, "tiers").iter().filter(|usage| usage["tier"] == name) {
        status.adapters += usage["adapters"].as_u64().unwrap_or_default();
        status.used_bytes += usage["used_bytes"].as_u64().unwrap_or_default();
        status.capacity_bytes += usage["capacity_bytes"].as_u64().unwrap_or_default();
    }
    status
}

/// What people call the content that nodes report.
struct Names(HashMap<(Uuid, String), (String, String)>);

impl Names {
    /// Of what the rows' residency lists.
    async fn read(tx: &mut PgConnection, rows: &[PgRow]) -> Result<Self, sqlx::Error> {
        let mut digests = Vec::new();
        for row in rows {
            let residency: Value = row.try_get("residency")?;
            let listed = list(&residency, "adapters").iter();
            digests.extend(listed.filter_map(|a| hex::decode(a["digest"].as_str()?).ok()));
        }
        digests.sort_unstable();
        digests.dedup();
        let named = sqlx::query(
            "select distinct on (v.tenant_id, v.digest) v.tenant_id, v.digest, t.name as tenant,
               a.name || '@' || v.version as adapter
             from adapter_version v
             join adapter a on a.id = v.adapter_id
             join tenant t on t.id = v.tenant_id
             where v.digest = any($1)
             order by v.tenant_id, v.digest, a.deleted_at is not null, v.created_at desc",
        )
        .bind(digests)
        .fetch_all(tx)
        .await?;
        let mut names = HashMap::new();
        for row in named {
            let digest: Vec<u8> = row.try_get("digest")?;
            let key = (row.try_get("tenant_id")?, hex::encode(digest));
            names.insert(key, (row.try_get("tenant")?, row.try_get("adapter")?));
        }
        Ok(Self(names))
    }

    fn resident(&self, stored: &Value) -> ResidentAdapter {
        let text = |field: &str| stored[field].as_str().unwrap_or_default().to_owned();
        let (tenant_id, digest) = (text("tenant_id"), text("digest"));
        let id = tenant_id.parse().map(|id: TenantId| id.as_uuid());
        let named = id.ok().and_then(|id| self.0.get(&(id, digest.clone())));
        let (tenant, adapter) = named.cloned().unwrap_or_default();
        ResidentAdapter {
            tenant_id,
            digest,
            tenant,
            adapter,
            tier: text("tier"),
            bytes: stored["bytes"].as_u64().unwrap_or_default(),
            error: text("error"),
            pinned: stored["pinned"].as_bool().unwrap_or_default(),
            pin_refusal: text("pin_refusal"),
        }
    }
}

/// How far the revocation of a key has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RevocationReach {
    /// Connected nodes that refuse the key now.
    pub acknowledged: i64,
    pub connected: i64,
    /// Nodes that are away and had not heard of it: they may still accept the key.
    pub away: i64,
}

/// `None` when the transaction's tenant has not revoked this key.
pub async fn revocation_reach(
    tx: &mut PgConnection,
    key: KeyId,
) -> Result<Option<RevocationReach>, sqlx::Error> {
    let row = sqlx::query(
        "select count(*) filter (where n.connected and n.revocation_seq >= r.seq) as acknowledged,
           count(*) filter (where n.connected) as connected,
           count(*) filter (where not n.connected and n.revocation_seq < r.seq) as away
         from (select max(seq) as seq from revocation where key_id = $1 having count(*) > 0) r
         left join node n on n.disabled_at is null
         group by r.seq",
    )
    .bind(key.as_uuid())
    .fetch_optional(tx)
    .await?;
    row.map(|row| {
        Ok(RevocationReach {
            acknowledged: row.try_get("acknowledged")?,
            connected: row.try_get("connected")?,
            away: row.try_get("away")?,
        })
    })
    .transpose()
}
