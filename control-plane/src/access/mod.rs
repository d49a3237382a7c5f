//! Who may call what. A route exists only with an [`Access`] rule: [`Registry`] is the one way to
//! add a route, it takes the rule, and it keeps a list that a test walks.

mod authorize;

use crate::state::AppState;
use axum::Router;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, on};
use lorikeet_contract::key::Scope;
use lorikeet_reference::Operation;

/// The rule of one route, checked before its handler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone. A valid session is available to the handler all the same.
    Public,
    /// A session, or a key of any scope.
    Authenticated,
    /// A logged-in user, with or without a tenant.
    Session,
    /// A key or session of a tenant that may do this. `Manage` includes `Read`.
    Tenant(Scope),
    /// A session of an operator.
    Operator,
}

#[derive(Debug, Clone)]
pub struct Route {
    pub method: Method,
    /// With `{parameters}`, as axum writes them.
    pub path: &'static str,
    pub access: Access,
    /// What the API's description says of it; pages have none.
    pub operation: Option<Operation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
    Put,
    Delete,
}

impl Method {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }

    fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Put => MethodFilter::PUT,
            Self::Delete => MethodFilter::DELETE,
        }
    }
}

/// Collects routes and builds the router.
pub struct Registry {
    state: AppState,
    router: Router<AppState>,
    routes: Vec<Route>,
}

macro_rules! method {
    ($name:ident, $method:ident) => {
        pub fn $name<H, T>(self, path: &'static str, access: Access, handler: H) -> Self
        where
            H: Handler<T, AppState>,
            T: 'static,
        {
            self.add(Route { method: Method::$method, path, access, operation: None }, handler)
        }
    };
}

impl Registry {
    pub fn new(state: AppState) -> Self {
        Self { state, router: Router::new(), routes: Vec::new() }
    }

    method!(get, Get);
    method!(post, Post);
    method!(put, Put);
    method!(delete, Delete);

    fn add<H, T>(mut self, route: Route, handler: H) -> Self
    where
        H: Handler<T, AppState>,
        T: 'static,
    {
        let gate = authorize::Gate { state: self.state.clone(), access: route.access };
        let guarded = on(route.method.filter(), handler)
            .layer(from_fn_with_state(gate, authorize::authorize));
        self.router = self.router.route(route.path, guarded);
        self.routes.push(route);
        self
    }

    /// Describes the route that was added last.
    pub fn described(mut self, operation: Operation) -> Self {
        if let Some(route) = self.routes.last_mut() {
            route.operation = Some(operation);
        }
        self
    }

    /// What has been added so far.
    pub(crate) fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The router, without the layers that surround every response, and what it answers.
    pub(crate) fn finish(self) -> (Router, Vec<Route>) {
        (self.router.with_state(self.state), self.routes)
    }
}
