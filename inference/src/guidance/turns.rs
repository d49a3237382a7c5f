//! One grammar of a tenant is compiled at a time, so that none fills all the places.

use lorikeet_contract::TenantId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Has an entry for each tenant that waits or has its turn, and lazily those of the last ones.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<TenantId, Arc<AsyncMutex<()>>>>);

impl Turns {
    /// The tenant's next turn; it ends when the guard is dropped.
    pub async fn of(&self, tenant: TenantId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(tenant).or_default().clone()
        };
        turn.lock_owned().await
    }
}
