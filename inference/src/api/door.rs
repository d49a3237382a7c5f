//! What is answered while the node is being put together: that the process lives, and why it does not
//! serve yet. A big model takes minutes to load.

use super::error::{self, ApiError};
use super::health;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use lorikeet_compute::model::LoadProgress;
use lorikeet_contract::RequestId;
use serde_json::json;
use std::sync::{Arc, OnceLock};
use tower::ServiceExt;

/// Closed until the API behind it is there.
#[derive(Clone, Default)]
pub struct Door {
    api: Arc<OnceLock<Router>>,
    /// Of the model, whose loading is what a closed door waits for.
    progress: Arc<LoadProgress>,
}

impl Door {
    pub fn progress(&self) -> Arc<LoadProgress> {
        self.progress.clone()
    }

    /// Opens it for good, to the first API that it is given.
    pub fn open(&self, api: Router) {
        self.api.get_or_init(|| api);
    }

    /// Answers for itself while the door is closed, and then with what is behind it.
    pub fn router(&self) -> Router {
        let door = self.clone();
        Router::new().fallback(move |request: Request| {
            let door = door.clone();
            async move {
                match door.api.get() {
                    Some(api) => api.clone().oneshot(request).await.into_response(),
                    None => door.refuse(request.uri().path()).await,
                }
            }
        })
    }

    async fn refuse(&self, path: &str) -> Response {
        match path {
            "/health" => health::health().await.into_response(),
            "/ready" => {
                // To the hundredth: what is behind that says nothing.
                let progress = (self.progress.part() * 100.0).floor() / 100.0;
                let reason = "the model is being loaded";
                let body = json!({ "ready": false, "reason": reason, "progress": progress });
                (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
            }
            _ => error::with_body(ApiError::Stopped.into_response(), RequestId::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, to_bytes};
    use axum::routing::get;

    async fn ask(router: &Router, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let response = router.clone().oneshot(request).await.expect("it cannot fail");
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1000).await.expect("a body");
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn a_closed_door_says_how_far_loading_has_come_and_an_open_one_nothing() {
        let door = Door::default();
        let router = door.router();
        assert_eq!(ask(&router, "/health").await.0, 200);
        let (status, body) = ask(&router, "/ready").await;
        assert_eq!(status, 503);
        assert!(body.contains("the model is being loaded"), "{body}");
        assert!(body.contains(r#""progress":0.0"#), "{body}");
        let (status, body) = ask(&router, "/v1/models").await;
        assert_eq!(status, 503);
        assert!(body.contains("node_stopped"), "{body}");

        door.open(Router::new().route("/v1/models", get(async || "models")));
        assert_eq!(ask(&router, "/v1/models").await, (200, "models".into()));
        assert_eq!(ask(&router, "/nothing").await.0, 404);
    }
}
