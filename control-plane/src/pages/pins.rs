//! Buttons that pin an adapter, on operators' pages.

use crate::access::{Access, Registry};
use crate::adapters;
use crate::api::extract::{Form, Path};
use crate::auth::OperatorCaller;
use crate::error::ApiError;
use crate::state::AppState;
use axum::extract::State;
use axum::response::Redirect;
use lorikeet_contract::TenantId;
use serde::Deserialize;

pub(super) fn routes(registry: Registry) -> Registry {
    registry.post("/operator/tenants/{tenant}/adapters/{name}/pin", Access::Operator, pin).post(
        "/operator/tenants/{tenant}/adapters/{name}/unpin",
        Access::Operator,
        unpin,
    )
}

#[derive(Deserialize)]
struct Button {
    #[serde(default)]
    on: ButtonPage,
}

/// The page to go back to.
#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ButtonPage {
    Nodes,
    #[default]
    Tenant,
}

async fn pin(
    State(state): State<AppState>,
    caller: OperatorCaller,
    Path((tenant, name)): Path<(TenantId, String)>,
    Form(button): Form<Button>,
) -> Result<Redirect, ApiError> {
    adapters::set_pinned(&state.db, &caller, tenant, &name, true).await?;
    Ok(button.on.back(tenant))
}

async fn unpin(
    State(state): State<AppState>,
    caller: OperatorCaller,
    Path((tenant, name)): Path<(TenantId, String)>,
    Form(button): Form<Button>,
) -> Result<Redirect, ApiError> {
    adapters::set_pinned(&state.db, &caller, tenant, &name, false).await?;
    Ok(button.on.back(tenant))
}

impl ButtonPage {
    fn back(&self, tenant: TenantId) -> Redirect {
        match self {
            Self::Nodes => Redirect::to("/operator/nodes"),
            Self::Tenant => Redirect::to(&format!("/operator/tenants/{tenant}")),
        }
    }
}
