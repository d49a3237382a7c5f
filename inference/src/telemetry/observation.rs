//! One HTTP request from its arrival to the last byte of its answer.

use super::course::Ended;
use super::trace::RequestSpan;
use super::{Telemetry, access};
use axum::http::Method;
use lorikeet_contract::{RequestId, TenantId};
use lorikeet_metrics::method_label;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The code of the error that a response tells; in its extensions.
#[derive(Debug, Clone, Copy)]
pub struct ErrorCode(pub &'static str);

/// Handlers add what they find out; when the answer has ended it is counted, logged and traced.
pub struct Observation {
    telemetry: Arc<Telemetry>,
    id: RequestId,
    method: &'static str,
    route: String,
    began: Instant,
    began_at: SystemTime,
    facts: Mutex<Facts>,
}

#[derive(Default)]
struct Facts {
    tenant: Option<TenantId>,
    error: Option<&'static str>,
    generations: Vec<Ended>,
    span: Option<RequestSpan>,
}

/// What is known of a request at its end.
pub struct Summary {
    pub id: RequestId,
    pub method: &'static str,
    pub route: String,
    /// 499 when the client was gone before there was an answer, as nginx has it.
    pub status: u16,
    pub tenant: Option<TenantId>,
    pub error: Option<&'static str>,
    pub began: Instant,
    pub began_at: SystemTime,
    pub duration: Duration,
    pub generations: Vec<Ended>,
    pub trace_id: Option<String>,
}

impl Observation {
    pub(super) fn new(
        telemetry: Arc<Telemetry>,
        id: RequestId,
        method: &Method,
        route: &str,
        span: RequestSpan,
    ) -> Self {
        Self {
            telemetry,
            id,
            method: method_label(method.as_str()),
            route: route.to_owned(),
            began: Instant::now(),
            began_at: SystemTime::now(),
            facts: Mutex::new(Facts { span: Some(span), ..Facts::default() }),
        }
    }

    pub(super) fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    /// When the request arrived.
    pub fn began(&self) -> Instant {
        self.began
    }

    pub fn identified(&self, tenant: TenantId) {
        self.facts(|facts| facts.tenant = Some(tenant));
    }

    pub(super) fn failed(&self, code: ErrorCode) {
        self.facts(|facts| facts.error = Some(code.0));
    }

    pub(super) fn generated(&self, ended: Ended) {
        self.facts(|facts| facts.generations.push(ended));
    }

    /// The answer, or the client, is gone.
    pub(super) fn end(&self, status: u16) {
        let (tenant, error, generations, span) = self.facts(|facts| {
            let generations = std::mem::take(&mut facts.generations);
            (facts.tenant, facts.error, generations, facts.span.take())
        });
        let Some(span) = span else { return };
        let summary = Summary {
            id: self.id,
            method: self.method,
            route: self.route.clone(),
            status,
            tenant,
            error,
            began: self.began,
            began_at: self.began_at,
            duration: self.began.elapsed(),
            generations,
            trace_id: span.trace_id(),
        };
        self.count(&summary);
        access::log(&summary);
        span.end(&summary);
    }

    fn count(&self, summary: &Summary) {
        let metrics = &self.telemetry.requests;
        metrics.http.increment((summary.method, summary.route.clone(), summary.status));
        if summary.is_probe() {
            return;
        }
        metrics.duration.observe_duration(summary.duration);
        // What was refused before it became a generation, which counts its own end.
        if let Some(code) = summary.error.filter(|_| summary.generations.is_empty()) {
            metrics.outcomes.increment(code);
            if let Some(tenant) = summary.tenant {
                metrics.tenants.update(tenant, 0, Instant::now(), |uses| uses.refused += 1);
            }
        }
    }

    fn facts<T>(&self, with: impl FnOnce(&mut Facts) -> T) -> T {
        with(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Summary {
    /// Asked every few seconds by whoever watches the node.
    pub fn is_probe(&self) -> bool {
        matches!(self.route.as_str(), "/health" | "/ready")
    }

    /// Why it ended as it did, by the last generation that says so.
    pub fn outcome(&self) -> Option<&'static str> {
        self.error.or_else(|| self.generations.last().map(|ended| ended.outcome))
    }
}
