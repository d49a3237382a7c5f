//! Keeps the manifest: in memory, where requests read it, and on the disk.

use super::denied::DenySet;
use super::manifest::{Current, Manifest};
use super::store::ManifestStore;
use super::view::ManifestView;
use crate::durable;
use crate::engine::EngineHandle;
use lorikeet_contract::WeightsDigest;
use lorikeet_contract::link::{self, Ack, Delta, Rejection, Revocations};
use lorikeet_contract::manifest::ManifestState;
use lorikeet_contract::rate::RateShare;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub struct Keeper {
    state: ManifestState,
    base: WeightsDigest,
    shared: Arc<Manifest>,
    engine: EngineHandle,
    store: Arc<Mutex<ManifestStore>>,
    denied_path: PathBuf,
    rate_share_path: PathBuf,
}

impl Keeper {
    /// Reads what `dir` keeps and serves it at once. Blocks on the disk.
    pub fn open(
        dir: &Path,
        base: WeightsDigest,
        shared: Arc<Manifest>,
        engine: EngineHandle,
    ) -> io::Result<Self> {
        let (store, state) = ManifestStore::open(dir)?;
        let denied_path = dir.join("denied.json");
        let denied = DenySet::load(&denied_path)?;
        let view = ManifestView::new(&state, base);
        let applied = state.cp_epoch != 0;
        if applied {
            tracing::info!(
                revision = state.revision,
                resources = state.len(),
                "serving from the manifest kept on disk"
            );
        }
        let rate_share_path = dir.join("rate_share.json");
        let rate_share = load_rate_share(&rate_share_path)?;
        let (view, denied) = (Arc::new(view), Arc::new(denied));
        shared.swap(Current { view, denied, applied, revision: state.revision, rate_share });
        let store = Arc::new(Mutex::new(store));
        Ok(Self { state, base, shared, engine, store, denied_path, rate_share_path })
    }

    /// Tells the engine what there is in the manifest kept on disk, if there is one.
    pub async fn announce(&self) {
        let Current { view, applied, .. } = &*self.shared.current();
        if *applied {
            self.engine.retain(view.servable()).await;
            self.engine.pin(view.pins()).await;
        }
    }

    pub fn state(&self) -> &ManifestState {
        &self.state
    }

    pub fn revocation_seq(&self) -> u64 {
        self.shared.current().denied.seq
    }

    /// Takes over a whole state; the answer rejects whatever in it this node cannot use.
    pub async fn replace(&mut self, next: ManifestState) -> Ack {
        let view = self.serve(&next).await;
        self.state = next;
        let state = self.state.clone();
        self.save(move |store| store.replace(&state)).await;
        self.ack(view.rejected().to_vec())
    }

    /// Follows a change, or asks for the whole state when it does not follow from the one held. The
    /// answer rejects what of the change this node cannot use.
    pub async fn apply(&mut self, delta: Delta) -> Ack {
        let next = match self.state.applied(&delta) {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "asking the control plane for the whole manifest");
                return self.resync();
            }
        };
        let view = self.serve(&next).await;
        self.state = next;
        let rejected = view
            .rejected()
            .iter()
            .filter(|r| delta.upserts.iter().any(|u| u.kind == r.kind && u.id == r.id))
            .cloned()
            .collect();
        let state = self.state.clone();
        self.save(move |store| store.append(&delta, &state)).await;
        self.ack(rejected)
    }

    /// Refuses the revoked from now on, ends what runs on their account, and keeps it on the disk.
    pub async fn revoke(&mut self, revocations: &Revocations) {
        let current = self.shared.current();
        let mut denied = DenySet::clone(&current.denied);
        let added = denied.add(revocations);
        self.swap_denied(&current, denied).await;
        for revocation in added {
            self.engine.revoke(revocation).await;
        }
    }

    /// Takes over this node's part of the rate limits, which it keeps to while the control plane is away.
    pub async fn share_rates(&mut self, share: &link::RateShare) {
        let rate_share = match RateShare::try_from(share) {
            Ok(rate_share) => rate_share,
            Err(error) => {
                tracing::error!(%error, "the part of the rate limits does not read and is not followed");
                return;
            }
        };
        let current = self.shared.current();
        self.shared.swap(Current { rate_share, ..Current::clone(&current) });
        tracing::info!(nodes = rate_share.nodes(), "connected nodes share the rate limits");
        let path = self.rate_share_path.clone();
        self.save(move |_| durable::replace(&path, &serde_json::to_vec(&rate_share)?)).await;
    }

    pub fn resync(&self) -> Ack {
        Ack { resync: true, ..self.ack(Vec::new()) }
    }

    fn ack(&self, rejected: Vec<Rejection>) -> Ack {
        Ack {
            cp_epoch: self.state.cp_epoch,
            revision: self.state.revision,
            state_digest: self.state.digest().to_vec(),
            rejected,
            resync: false,
        }
    }

    /// Puts a view of `next` before requests, and ends what it takes away.
    async fn serve(&self, next: &ManifestState) -> Arc<ManifestView> {
        let before = self.shared.current();
        let view = Arc::new(ManifestView::new(next, self.base));
        let mut denied = DenySet::clone(&before.denied);
        let settled = denied.settle(&before.view, &view);
        self.shared.swap(Current {
            view: view.clone(),
            applied: true,
            revision: next.revision,
            ..Current::clone(&before)
        });
        if settled {
            self.swap_denied(&self.shared.current(), denied).await;
        }
        let withdrawn = view.withdrawn_since(&before.view);
        for revocation in withdrawn.access {
            self.engine.revoke(revocation).await;
        }
        for adapter in withdrawn.adapters {
            self.engine.forget(adapter).await;
        }
        if !before.applied {
            self.engine.retain(view.servable()).await;
        }
        let pins = view.pins();
        if pins != before.view.pins() {
            self.engine.pin(pins).await;
        }
        view
    }

    async fn swap_denied(&self, current: &Current, denied: DenySet) {
        let denied = Arc::new(denied);
        self.shared.swap(Current { denied: denied.clone(), ..Current::clone(current) });
        let path = self.denied_path.clone();
        self.save(move |_| denied.save(&path)).await;
    }

    /// What cannot be saved is served all the same: the next start then asks for it again.
    async fn save(
        &self,
        write: impl FnOnce(&mut ManifestStore) -> io::Result<()> + Send + 'static,
    ) {
        let store = self.store.clone();
        let written = tokio::task::spawn_blocking(move || {
            write(&mut store.lock().unwrap_or_else(PoisonError::into_inner))
        });
        if let Err(error) = written.await.map_err(io::Error::other).flatten() {
            tracing::error!(%error, "the manifest could not be kept on disk");
        }
    }
}

/// A node that has never heard of others takes itself for the only one.
fn load_rate_share(path: &Path) -> io::Result<RateShare> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::error!(%error, "the kept part of the rate limits does not read: taking the whole");
            RateShare::ALONE
        })),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(RateShare::ALONE),
        Err(e) => Err(e),
    }
}
