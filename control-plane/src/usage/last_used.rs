//! When keys were last used: gathered as usage arrives, written in batches, never a part of the
//! manifest and never in the way of the ingest.

use super::record::Event;
use sqlx::PgPool;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use time::OffsetDateTime;
use uuid::Uuid;

/// What is yet to be written; bounded by the number of keys.
#[derive(Debug, Default)]
pub struct LastUsed {
    by_key: Mutex<HashMap<Uuid, OffsetDateTime>>,
}

impl LastUsed {
    pub fn note(&self, events: &[Event]) {
        let mut by_key = self.by_key();
        for event in events {
            if let Some(key) = event.key_id {
                keep_later(&mut by_key, key, event.ended_at);
            }
        }
    }

    /// Writes all keys at once, locked in one order, so that two writers never wait for each other
    /// in a ring. What fails to be written is kept for the next time.
    pub async fn write(&self, pool: &PgPool) -> Result<(), sqlx::Error> {
        let taken = std::mem::take(&mut *self.by_key());
        if taken.is_empty() {
            return Ok(());
        }
        let (keys, times): (Vec<_>, Vec<_>) = taken.iter().map(|(k, t)| (*k, *t)).unzip();
        let written = sqlx::query(
            "with used as (select * from unnest($1::uuid[], $2::timestamptz[]) as u (id, at)),
             locked as (
               select k.id from api_key k join used using (id) order by k.id
               for no key update of k
             )
             update api_key k set last_used_at = greatest(k.last_used_at, used.at)
             from used join locked using (id) where k.id = used.id",
        )
        .bind(keys)
        .bind(times)
        .execute(pool)
        .await;
        if let Err(error) = written {
            let mut by_key = self.by_key();
            for (key, at) in taken {
                keep_later(&mut by_key, key, at);
            }
            return Err(error);
        }
        Ok(())
    }

    fn by_key(&self) -> MutexGuard<'_, HashMap<Uuid, OffsetDateTime>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keep_later(by_key: &mut HashMap<Uuid, OffsetDateTime>, key: Uuid, at: OffsetDateTime) {
    let kept = by_key.entry(key).or_insert(at);
    *kept = at.max(*kept);
}
