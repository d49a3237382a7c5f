//! The dashboard: HTML for people, from the same functions that `/api/v1` uses. Templates and static
//! files lie in `web/`; one file here per subject.

mod account;
mod adapters;
mod assets;
mod chart;
mod errors;
mod format;
mod keys;
mod operator;
mod pins;
mod tenants;
mod usage;

pub(crate) use errors::as_page;

use crate::access::Registry;
use crate::auth::Session;
use crate::error::ApiError;
use askama::Template;
use axum::response::Html;

pub(crate) fn routes(registry: Registry) -> Registry {
    let registry = assets::routes(registry);
    let registry = account::routes(registry);
    let registry = adapters::routes(registry);
    let registry = keys::routes(registry);
    let registry = usage::routes(registry);
    let registry = operator::routes(registry);
    let registry = pins::routes(registry);
    tenants::routes(registry)
}

/// What the frame around every page shows.
struct Page {
    /// Which entry of the navigation is current.
    section: &'static str,
    csrf: String,
    email: String,
    /// The tenant's name; an operator may have none.
    tenant: Option<String>,
    is_operator: bool,
}

impl Page {
    fn new(session: &Session, section: &'static str) -> Self {
        Self {
            section,
            csrf: session.csrf_token.clone(),
            email: session.email.clone(),
            tenant: session.tenant.as_ref().map(|t| t.name.clone()),
            is_operator: session.is_operator,
        }
    }
}

fn render(template: &impl Template) -> Result<Html<String>, ApiError> {
    template.render().map(Html).map_err(ApiError::internal)
}
