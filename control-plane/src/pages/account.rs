//! The way in and out.

use super::{format, render};
use crate::access::{Access, Registry};
use crate::api::extract::Form;
use crate::auth::{LogIn, LoggedIn, RequestId, Session, SignUp, Visitor, account, removal_cookie};
use crate::error::ApiError;
use crate::state::AppState;
use askama::Template;
use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum_extra::extract::CookieJar;

pub(super) fn routes(registry: Registry) -> Registry {
    registry
        .get("/", Access::Public, start)
        .get("/login", Access::Public, log_in_page)
        .post("/login", Access::Public, log_in)
        .get("/signup", Access::Public, sign_up_page)
        .post("/signup", Access::Public, sign_up)
        .post("/logout", Access::Session, log_out)
}

#[derive(Template)]
#[template(path = "login.html")]
struct LogInPage {
    email: String,
    error: Option<String>,
}

#[derive(Template)]
#[template(path = "signup.html")]
struct SignUpPage {
    tenant_name: String,
    email: String,
    error: Option<String>,
}

/// To the first page that has something to show.
async fn start(session: Option<Session>) -> Redirect {
    Redirect::to(session.as_ref().map_or("/login", home))
}

fn home(session: &Session) -> &'static str {
    if session.tenant.is_some() { "/adapters" } else { "/operator/usage" }
}

async fn log_in_page(session: Option<Session>) -> Result<Response, ApiError> {
    if session.is_some() {
        return Ok(Redirect::to("/").into_response());
    }
    Ok(render(&LogInPage { email: String::new(), error: None })?.into_response())
}

async fn sign_up_page(session: Option<Session>) -> Result<Response, ApiError> {
    if session.is_some() {
        return Ok(Redirect::to("/").into_response());
    }
    let page = SignUpPage { tenant_name: String::new(), email: String::new(), error: None };
    Ok(render(&page)?.into_response())
}

async fn log_in(
    State(state): State<AppState>,
    visitor: Visitor,
    old_session: Option<Session>,
    jar: CookieJar,
    Form(form): Form<LogIn>,
) -> Result<Response, ApiError> {
    let email = form.email.clone();
    match account::log_in(&state, &visitor, old_session, form).await {
        Ok(new) => Ok(welcome(&state, jar, &new)),
        Err(error) => {
            let told = told(error)?;
            let page = LogInPage { email, error: Some(told.message) };
            Ok((told.status, render(&page)?).into_response())
        }
    }
}

async fn sign_up(
    State(state): State<AppState>,
    visitor: Visitor,
    jar: CookieJar,
    Form(form): Form<SignUp>,
) -> Result<Response, ApiError> {
    let (tenant_name, email) = (form.tenant_name.clone(), form.email.clone());
    match account::sign_up(&state, &visitor, form).await {
        Ok(new) => Ok(welcome(&state, jar, &new)),
        Err(error) => {
            let told = told(error)?;
            let page = SignUpPage { tenant_name, email, error: Some(told.message) };
            Ok((told.status, render(&page)?).into_response())
        }
    }
}

fn welcome(state: &AppState, jar: CookieJar, new: &LoggedIn) -> Response {
    (jar.add(new.session.cookie(&state.config)), Redirect::to("/")).into_response()
}

async fn log_out(
    State(state): State<AppState>,
    Extension(request_id): Extension<RequestId>,
    session: Session,
    jar: CookieJar,
) -> Result<(CookieJar, Redirect), ApiError> {
    session.end(&state, Some(request_id.0)).await?;
    Ok((jar.add(removal_cookie(&state.config)), Redirect::to("/login")))
}

/// What a form shows above its fields.
pub(super) struct Told {
    pub status: StatusCode,
    pub message: String,
}

/// An error that the visitor can mend stays with the form; any other is a page of its own.
pub(super) fn told(error: ApiError) -> Result<Told, ApiError> {
    let status = error.status();
    if status.is_server_error() {
        return Err(error);
    }
    Ok(Told { status, message: format::sentence(&error.to_string()) })
}
