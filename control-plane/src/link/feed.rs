//! Keeps a [`World`] equal to the database: `LISTEN` wakes it, a poll every 250 ms makes sure. Any
//! number of control-plane processes do this side by side; none of them is special.

use super::state::{Change, Position, World};
use lorikeet_contract::link::{Revocation, revocation::Target};
use lorikeet_contract::{KeyId, NodeId, TenantId};
use sqlx::postgres::PgListener;
use sqlx::{PgConnection, PgPool, Row};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const CHANNEL: &str = "lorikeet_manifest";
const POLL: Duration = Duration::from_millis(250);

/// Cheap to clone; all clones share one world.
#[derive(Clone)]
pub struct Feed {
    inner: Arc<Inner>,
}

struct Inner {
    pool: PgPool,
    world: RwLock<World>,
    moved: watch::Sender<Position>,
    /// One refresh at a time, so that positions only go forward within a lineage.
    refreshing: Mutex<()>,
}

impl Feed {
    /// An empty world; [`Feed::refresh`] or [`Feed::run`] fills it.
    pub fn new(pool: PgPool) -> Self {
        let inner = Inner {
            pool,
            world: RwLock::default(),
            moved: watch::Sender::new(Position::default()),
            refreshing: Mutex::new(()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Held briefly, never across an await.
    pub fn world(&self) -> RwLockReadGuard<'_, World> {
        // A panic while writing would poison it; what follows re-reads from the database anyway.
        self.inner.world.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told of every position after this call.
    pub fn subscribe(&self) -> watch::Receiver<Position> {
        self.inner.moved.subscribe()
    }

    /// Brings the world to what the database holds now.
    pub async fn refresh(&self) -> Result<(), sqlx::Error> {
        let _one = self.inner.refreshing.lock().await;
        let at = self.world().position();
        let counter = Counter::read(&mut *self.inner.pool.acquire().await?).await?;
        self.note_connected(&counter.connected);
        if counter.is(at) {
            return Ok(());
        }
        // One snapshot of the database, or a change could slip in between counter and changes.
        let mut tx =
            self.inner.pool.begin_with("begin isolation level repeatable read read only").await?;
        let counter = Counter::read(&mut tx).await?;
        let restart = counter.precedes(at);
        let from = if restart { Position::default() } else { at };
        let changes = changes_after(&mut tx, from.revision).await?;
        let revocations = revocations_after(&mut tx, from.revocation_seq).await?;
        tx.commit().await?;

        let mut world = self.inner.world.write().unwrap_or_else(PoisonError::into_inner);
        if restart {
            world.restart(counter.cp_epoch);
        }
        world.advance(counter.revision, changes);
        world.revoke(counter.revocation_seq, revocations);
        self.inner.moved.send_replace(world.position());
        Ok(())
    }

    /// Another set of connected nodes shares the rate limits anew.
    fn note_connected(&self, connected: &[NodeId]) {
        if self.world().connected() == connected {
            return;
        }
        let mut world = self.inner.world.write().unwrap_or_else(PoisonError::into_inner);
        world.set_connected(connected.to_vec());
        self.inner.moved.send_replace(world.position());
    }

    /// Refreshes until `shutdown`. While Postgres is away the world stays as it is, nodes are
    /// served from it, and it is tried again at every poll.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut listener = None;
        let mut failing = false;
        loop {
            match self.refresh().await {
                Ok(()) if failing => {
                    failing = false;
                    tracing::info!("the manifest is read from the database again");
                }
                Ok(()) => {}
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "the manifest cannot be read, nodes keep what they have");
                    }
                    failing = true;
                    listener = None;
                }
            }
            if listener.is_none() && !failing {
                listener = self.listen().await;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(POLL) => {}
                lost = woken(&mut listener) => if lost { listener = None },
            }
        }
    }

    /// Without a listener the poll alone carries the changes, 250 ms later.
    async fn listen(&self) -> Option<PgListener> {
        let mut listener = PgListener::connect_with(&self.inner.pool).await.ok()?;
        listener.listen(CHANNEL).await.ok()?;
        Some(listener)
    }
}

/// Returns at a notification (false) or when the connection is lost (true); never without one.
async fn woken(listener: &mut Option<PgListener>) -> bool {
    let Some(listener) = listener else { return std::future::pending().await };
    let lost = !matches!(listener.try_recv().await, Ok(Some(_)));
    // A burst of notifications asks for one refresh.
    while listener.next_buffered().is_some() {}
    lost
}

struct Counter {
    cp_epoch: u64,
    revision: u64,
    revocation_seq: u64,
    /// Nodes, in the order of their ids.
    connected: Vec<NodeId>,
}

impl Counter {
    async fn read(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let row = sqlx::query(
            "select cp_epoch, revision, revocation_seq,
               array(select id from node where connected and disabled_at is null order by id)
                 as connected
             from manifest_counter",
        )
        .fetch_one(connection)
        .await?;
        let connected: Vec<Uuid> = row.try_get("connected")?;
        Ok(Self {
            cp_epoch: number(row.try_get("cp_epoch")?)?,
            revision: number(row.try_get("revision")?)?,
            revocation_seq: number(row.try_get("revocation_seq")?)?,
            connected: connected.into_iter().map(NodeId::from_uuid).collect(),
        })
    }

    fn is(&self, at: Position) -> bool {
        self.cp_epoch == at.cp_epoch
            && self.revision == at.revision
            && self.revocation_seq == at.revocation_seq
    }

    /// True when the database is not a continuation of what was read before.
    fn precedes(&self, at: Position) -> bool {
        self.cp_epoch != at.cp_epoch
            || self.revision < at.revision
            || self.revocation_seq < at.revocation_seq
    }
}

async fn changes_after(tx: &mut PgConnection, revision: u64) -> Result<Vec<Change>, sqlx::Error> {
    sqlx::query(
        "select kind, id, revision, payload from manifest_change
         where revision > $1 order by revision",
    )
    .bind(i64::try_from(revision).unwrap_or(i64::MAX))
    .fetch_all(tx)
    .await?
    .iter()
    .map(|row| {
        Ok(Change {
            kind: row.try_get("kind")?,
            id: row.try_get("id")?,
            revision: number(row.try_get("revision")?)?,
            payload: row.try_get("payload")?,
        })
    })
    .collect()
}

async fn revocations_after(
    tx: &mut PgConnection,
    seq: u64,
) -> Result<Vec<Revocation>, sqlx::Error> {
    sqlx::query("select seq, key_id, tenant_id from revocation where seq > $1 order by seq")
        .bind(i64::try_from(seq).unwrap_or(i64::MAX))
        .fetch_all(tx)
        .await?
        .iter()
        .map(|row| {
            let target = match row.try_get("key_id")? {
                Some(key) => Target::KeyId(KeyId::from_uuid(key).to_string()),
                None => {
                    let tenant = TenantId::from_uuid(row.try_get("tenant_id")?);
                    Target::TenantId(tenant.to_string())
                }
            };
            Ok(Revocation { seq: number(row.try_get("seq")?)?, target: Some(target) })
        })
        .collect()
}

/// Counters in the database are never negative.
fn number(value: i64) -> Result<u64, sqlx::Error> {
    u64::try_from(value).map_err(|e| sqlx::Error::Decode(e.into()))
}
