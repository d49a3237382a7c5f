//! A loader that does as a test tells it.

use crate::adapters::loader::{AdapterLoader, LoadEvent};
use crate::adapters::residency::{FetchFailure, LoadAction, ReadFailure};
use crate::adapters::{AdapterKey, AdapterManifest};
use lorikeet_compute::backend::sim::SimClock;
use lorikeet_compute::backend::{HostAdapter, HostData};
use lorikeet_contract::adapter::{ArtifactHeader, Dtype, ModuleEntry, TensorRef};
use lorikeet_contract::{AdapterDigest, Linear, WeightsDigest};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Loads that take a while and sometimes fail.
#[derive(Clone)]
pub struct LoaderScript {
    pub delay: Duration,
    pub failing: HashSet<AdapterDigest>,
}

pub struct ScriptedLoader {
    script: LoaderScript,
    clock: SimClock,
    pending: Vec<(Instant, LoadAction)>,
    cancelled: Vec<AdapterKey>,
}

impl ScriptedLoader {
    pub fn new(script: LoaderScript, clock: SimClock) -> Self {
        Self { script, clock, pending: Vec::new(), cancelled: Vec::new() }
    }
}

impl AdapterLoader for ScriptedLoader {
    fn start(&mut self, action: LoadAction) {
        self.pending.push((self.clock.now() + self.script.delay, action));
    }

    /// It ends at once.
    fn cancel_fetch(&mut self, key: AdapterKey) {
        let now = self.clock.now();
        let is_it = |action: &LoadAction| matches!(action, LoadAction::Fetch(m) if m.key == key);
        for (at, _) in self.pending.iter_mut().filter(|(_, action)| is_it(action)) {
            *at = now;
            self.cancelled.push(key);
        }
    }

    fn poll(&mut self, events: &mut Vec<LoadEvent>) {
        let now = self.clock.now();
        let (ended, pending) = self.pending.drain(..).partition(|(at, _)| *at <= now);
        self.pending = pending;
        let ended: Vec<_> = ended;
        for (_, action) in ended {
            events.push(match action {
                LoadAction::Fetch(m) if self.cancelled.contains(&m.key) => {
                    self.cancelled.retain(|key| *key != m.key);
                    LoadEvent::Fetched { key: m.key, result: Err(FetchFailure::Cancelled) }
                }
                LoadAction::Fetch(m) => {
                    let fails = self.script.failing.contains(&m.key.digest);
                    let failure = || FetchFailure::Failed("no such object".into());
                    let result = if fails { Err(failure()) } else { Ok(()) };
                    LoadEvent::Fetched { key: m.key, result }
                }
                LoadAction::Read(m) => {
                    let result: Result<_, ReadFailure> = Ok(host_adapter(&m));
                    LoadEvent::Read { key: m.key, result }
                }
                LoadAction::DropFile(file) => LoadEvent::Dropped { key: file.key },
            });
        }
    }
}

fn host_adapter(manifest: &AdapterManifest) -> HostAdapter {
    let tensor = |bytes| TensorRef { dtype: Dtype::F32, offset: 0, bytes };
    let module = ModuleEntry {
        layer: 0,
        linear: Linear::QProj,
        rank: 8,
        in_features: 1,
        out_features: 1,
        scale: 1.0,
        a: tensor(manifest.bytes),
        b: tensor(0),
        magnitude: None,
    };
    let header = ArtifactHeader {
        layout_version: 1,
        adapter_digest: manifest.key.digest,
        base_weights_digest: WeightsDigest([0; 32]),
        modules: vec![module],
    };
    HostAdapter { key: manifest.key, header, data: HostData::File(Box::new(Vec::new())) }
}
