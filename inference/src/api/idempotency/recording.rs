//! A claim on a key, and the answer that grows under it.

use super::super::Api;
use super::store::Answer;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use lorikeet_contract::TenantId;
use std::sync::Arc;
use std::time::Instant;

/// A key whose request runs. Dropped without an answer, it lets the key be used again.
pub struct Claim {
    api: Arc<Api>,
    tenant: TenantId,
    key: String,
    settled: bool,
}

impl Claim {
    pub fn new(api: Arc<Api>, tenant: TenantId, key: String) -> Self {
        Self { api, tenant, key, settled: false }
    }

    fn grow(&self, bytes: usize) -> bool {
        self.api.idempotency.answers().grow(self.tenant, &self.key, bytes)
    }

    fn keep(mut self, answer: Option<Answer>, now: Instant) {
        self.api.idempotency.answers().keep(self.tenant, &self.key, answer, now);
        self.settled = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.settled {
            self.api.idempotency.answers().forget(self.tenant, &self.key);
        }
    }
}

pub struct Recording {
    claim: Claim,
    status: StatusCode,
    headers: HeaderMap,
    /// None: there is no room for it.
    body: Option<Vec<u8>>,
}

impl Recording {
    pub fn new(claim: Claim, status: StatusCode, headers: HeaderMap) -> Self {
        Self { claim, status, headers, body: Some(Vec::new()) }
    }

    pub fn push(&mut self, piece: &[u8]) {
        if let Some(body) = &mut self.body
            && self.claim.grow(piece.len())
        {
            body.extend_from_slice(piece);
        } else {
            self.body = None;
        }
    }

    pub fn finish(self, now: Instant) {
        let Self { claim, status, headers, body } = self;
        // Boxed, it has no spare room.
        let body = body.map(|body| Bytes::from(body.into_boxed_slice()));
        claim.keep(body.map(|body| Answer { status, headers, body }), now);
    }
}
