//! `GET /service`: where everything is, for clients that know one address only.

use crate::access::{Access, Registry};
use crate::error::ApiError;
use crate::state::AppState;
use axum::Json;
use axum::extract::State;
use lorikeet_reference::{Operation, named};
use serde::Serialize;

pub(super) fn routes(registry: Registry) -> Registry {
    registry.get("/api/v1/service", Access::Public, service).described(
        Operation::new("Where everything is").answers(200, "Addresses", named("Service")),
    )
}

#[derive(Serialize)]
struct Service {
    api_base_url: String,
    dashboard_url: String,
    /// Of the node seen last; null before the first node has connected.
    base_model: Option<String>,
    version: &'static str,
}

async fn service(State(state): State<AppState>) -> Result<Json<Service>, ApiError> {
    let base_model =
        sqlx::query_scalar("select id from base_model order by last_seen_at desc limit 1")
            .fetch_optional(state.db.app.untenanted())
            .await?;
    Ok(Json(Service {
        api_base_url: state.config.api_base_url.clone(),
        dashboard_url: state.config.public_url.as_str().trim_end_matches('/').to_owned(),
        base_model,
        version: env!("CARGO_PKG_VERSION"),
    }))
}
