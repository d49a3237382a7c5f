//! What every handler can reach.

use crate::auth::Passwords;
use crate::config::Config;
use crate::db::Db;
use crate::metrics::Metrics;
use crate::objects::Objects;
use std::sync::Arc;

#[derive(Clone)]
pub struct AppState {
    pub config: Arc<Config>,
    pub db: Db,
    pub objects: Objects,
    pub passwords: Passwords,
    pub metrics: Arc<Metrics>,
}

impl AppState {
    pub fn new(config: Config, db: Db) -> Self {
        let objects = Objects::new(&config.objects);
        Self {
            config: Arc::new(config),
            db,
            objects,
            passwords: Passwords::default(),
            metrics: Arc::default(),
        }
    }
}
