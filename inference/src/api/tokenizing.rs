//! Templates and tokenizing, on threads where a long text holds nobody up.

use super::error::ApiError;
use std::sync::Arc;
use tokio::sync::{Semaphore, TryAcquireError};

/// Shared by all requests. At most as many texts at a time as there are cores.
pub struct Tokenizing {
    /// Texts in hand, being tokenized or waiting for that. One more is refused: its request would wait
    /// in a queue that nobody orders.
    texts: Arc<Semaphore>,
    cores: Arc<Semaphore>,
}

impl Tokenizing {
    /// `most` texts in hand: as many as the node holds requests, so that all of them may come at once.
    pub fn new(most: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let texts = most.min(Semaphore::MAX_PERMITS);
        Self { texts: Arc::new(Semaphore::new(texts)), cores: Arc::new(Semaphore::new(cores)) }
    }

    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = match Arc::clone(&self.texts).try_acquire_owned() {
            Ok(place) => place,
            Err(TryAcquireError::NoPermits) => return Err(ApiError::Busy),
            Err(TryAcquireError::Closed) => return Err(ApiError::Internal),
        };
        let Ok(core) = Arc::clone(&self.cores).acquire_owned().await else {
            return Err(ApiError::Internal);
        };
        // Also when the request is given up: the thread goes on, and counts until it has ended.
        let held = (place, core);
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(held);
            done
        });
        done.await.map_err(|_| ApiError::Internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[tokio::test]
    async fn texts_wait_for_a_core_and_one_too_many_is_refused() {
        let tokenizing = Arc::new(Tokenizing {
            texts: Arc::new(Semaphore::new(2)),
            cores: Arc::new(Semaphore::new(1)),
        });
        let (go_on, wait) = sync_channel::<()>(0);
        let first = tokio::spawn({
            let tokenizing = tokenizing.clone();
            async move { tokenizing.run(move || wait.recv().is_ok()).await }
        });
        let second = tokio::spawn({
            let tokenizing = tokenizing.clone();
            async move { tokenizing.run(|| 2).await }
        });
        while tokenizing.texts.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(tokenizing.run(|| 3).await, Err(ApiError::Busy)));
        assert!(!second.is_finished());
        go_on.send(()).unwrap();
        assert!(first.await.unwrap().unwrap());
        assert_eq!(second.await.unwrap().unwrap(), 2);
    }
}
