//! Every route with its description, which is how none goes undescribed.

use super::Api;
use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, on};
use lorikeet_reference::{Operation, Reference};
use std::sync::Arc;

/// Routes under one prefix, written into the reference as they are added.
pub struct Routes<'a> {
    prefix: &'static str,
    router: Router<Arc<Api>>,
    reference: &'a mut Reference,
}

impl<'a> Routes<'a> {
    pub fn under(prefix: &'static str, reference: &'a mut Reference) -> Self {
        Self { prefix, router: Router::new(), reference }
    }

    pub fn get<H, T>(self, path: &'static str, handler: H, operation: Operation) -> Self
    where
        H: Handler<T, Arc<Api>>,
        T: 'static,
    {
        self.add("get", MethodFilter::GET, path, handler, operation)
    }

    pub fn post<H, T>(self, path: &'static str, handler: H, operation: Operation) -> Self
    where
        H: Handler<T, Arc<Api>>,
        T: 'static,
    {
        self.add("post", MethodFilter::POST, path, handler, operation)
    }

    fn add<H, T>(
        mut self,
        method: &str,
        filter: MethodFilter,
        path: &'static str,
        handler: H,
        operation: Operation,
    ) -> Self
    where
        H: Handler<T, Arc<Api>>,
        T: 'static,
    {
        self.reference.add(method, &format!("{}{path}", self.prefix), &operation);
        self.router = self.router.route(path, on(filter, handler));
        self
    }

    pub fn finish(self) -> Router<Arc<Api>> {
        self.router
    }
}
