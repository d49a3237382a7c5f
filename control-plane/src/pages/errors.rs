//! Errors as people see them. Handlers of pages return the same [`ApiError`]s as the API's; this layer
//! shows them as a page, or sends a visitor who is not logged in to do so.

use super::render;
use crate::auth::RequestId;
use crate::error::ErrorBody;
use askama::Template;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage {
    title: &'static str,
    message: String,
    request_id: Option<String>,
}

/// Leaves answers to programs as they are: those under `/api/`, and to whoever does not ask for HTML.
pub(crate) async fn as_page(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let is_fragment = headers.contains_key("hx-request");
    let wants_page = !request.uri().path().starts_with("/api/")
        && (is_fragment || accepts_html(headers.get(header::ACCEPT)));
    let is_get = request.method() == Method::GET;
    let id = request.extensions().get::<RequestId>().map(|id| id.0.clone());
    let response = next.run(request).await;
    let Some(error) = response.extensions().get::<ErrorBody>().filter(|_| wants_page).cloned()
    else {
        return response;
    };
    if error.status == StatusCode::UNAUTHORIZED && is_fragment {
        // htmx follows this; a redirect's page would land inside the fragment.
        return [("hx-redirect", "/login")].into_response();
    }
    if error.status == StatusCode::UNAUTHORIZED && is_get {
        return Redirect::to("/login").into_response();
    }
    let page = ErrorPage { title: title(error.status), message: error.message, request_id: id };
    match render(&page) {
        Ok(html) => (error.status, html).into_response(),
        Err(error) => error.into_response(),
    }
}

fn accepts_html(accept: Option<&HeaderValue>) -> bool {
    accept.and_then(|value| value.to_str().ok()).is_some_and(|text| text.contains("text/html"))
}

fn title(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => "Nothing here",
        StatusCode::FORBIDDEN => "Not yours to open",
        StatusCode::TOO_MANY_REQUESTS => "Too many attempts",
        StatusCode::SERVICE_UNAVAILABLE => "One moment",
        status if status.is_server_error() => "Our mistake",
        _ => "That did not work",
    }
}
