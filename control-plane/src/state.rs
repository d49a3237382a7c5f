//! What every handler can reach.

use crate::auth::Passwords;
use crate::config::Config;
use crate::db::Db;
use std::sync::Arc;

#[derive(Clone)]
pub struct AppState {
    pub config: Arc<Config>,
    pub db: Db,
    pub passwords: Passwords,
}

impl AppState {
    pub fn new(config: Config, db: Db) -> Self {
        Self { config: Arc::new(config), db, passwords: Passwords::default() }
    }
}
