//! Traces: one span for each request, with children for what it waited for and what it did. They are made
//! when the request has ended, from times that were taken anyway.

use super::course::Ended;
use super::observation::Summary;
use anyhow::Context as _;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use lorikeet_metrics::method_label;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Span, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span as SdkSpan};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

/// Answers `traceparent` (W3C Trace Context, level 2): the caller learns which span served it.
pub const TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

#[derive(Debug, Clone, PartialEq)]
pub struct TraceConfig {
    /// The collector's gRPC address. None: nothing is exported.
    pub endpoint: Option<String>,
    /// The CA (PEM) that issued an https collector's certificate.
    pub ca: Option<PathBuf>,
    /// Of the requests whose caller has not decided, the part that is traced. 0 to 1.
    pub sampled: f64,
}

pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

impl Traces {
    /// Does not dial yet: a collector that is away costs its spans, not the start. Needs a tokio runtime.
    pub fn new(config: &TraceConfig, node: &str) -> anyhow::Result<Self> {
        let resource = Resource::builder()
            .with_service_name("lorikeet-node")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", node.to_owned()))
            .build();
        let provider = SdkTracerProvider::builder().with_resource(resource);
        let provider = match &config.endpoint {
            // Ids are still made, for the access log, and none of the rest.
            None => provider.with_sampler(Sampler::AlwaysOff),
            Some(endpoint) => {
                let sampler = Sampler::TraceIdRatioBased(config.sampled);
                provider
                    .with_sampler(Sampler::ParentBased(Box::new(sampler)))
                    .with_batch_exporter(exporter(endpoint, config.ca.as_ref())?)
            }
        };
        let provider = provider.build();
        let tracer = provider.tracer("lorikeet");
        Ok(Self { provider, tracer, propagator: TraceContextPropagator::new() })
    }

    /// Begins a request's span, inside the caller's where it names one.
    pub(super) fn begin(&self, headers: &HeaderMap, method: &Method, route: &str) -> RequestSpan {
        let caller = self.propagator.extract_with_context(&Context::new(), &Headers(headers));
        let name = format!("{} {route}", method_label(method.as_str()));
        let builder = self.tracer.span_builder(name).with_kind(SpanKind::Server);
        let span = self.tracer.build_with_context(builder, &caller);
        RequestSpan { span, tracer: self.tracer.clone() }
    }

    /// Sends what is left, for 5 s at most. Blocks.
    pub fn flush(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(Duration::from_secs(5)) {
            tracing::debug!(%error, "the last spans were not exported");
        }
    }
}

fn exporter(endpoint: &str, ca: Option<&PathBuf>) -> anyhow::Result<SpanExporter> {
    let mut builder = SpanExporter::builder().with_tonic().with_endpoint(endpoint);
    if let Some(path) = ca {
        let pem = std::fs::read(path)
            .with_context(|| format!("OTEL_EXPORTER_OTLP_CERTIFICATE: {}", path.display()))?;
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        builder = builder.with_tls_config(tls);
    }
    builder.build().with_context(|| format!("OTEL_EXPORTER_OTLP_ENDPOINT: `{endpoint}`"))
}

pub struct RequestSpan {
    span: SdkSpan,
    tracer: SdkTracer,
}

impl RequestSpan {
    pub fn trace_id(&self) -> Option<String> {
        let context = self.span.span_context();
        context.is_valid().then(|| context.trace_id().to_string())
    }

    pub fn answer_header(&self) -> Option<HeaderValue> {
        let context = self.span.span_context();
        let (trace, span) = (context.trace_id(), context.span_id());
        let flags = context.trace_flags().to_u8();
        HeaderValue::try_from(format!("00-{trace}-{span}-{flags:02x}"))
            .ok()
            .filter(|_| context.is_valid())
    }

    pub fn end(mut self, summary: &Summary) {
        if !self.span.is_recording() {
            return;
        }
        let clock = Clock { began: summary.began, began_at: summary.began_at };
        for generation in &summary.generations {
            let parent = self.span.span_context().clone();
            Children { tracer: &self.tracer, parent, clock }.of(generation);
        }
        self.span.set_attributes(attributes(summary));
        if summary.status >= 500 {
            self.span.set_status(Status::error(summary.outcome().unwrap_or_default()));
        }
        self.span.end_with_timestamp(summary.began_at + summary.duration);
    }
}

fn attributes(summary: &Summary) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("http.request.method", summary.method),
        KeyValue::new("http.route", summary.route.clone()),
        KeyValue::new("http.response.status_code", i64::from(summary.status)),
        KeyValue::new("lorikeet.request.id", summary.id.to_string()),
    ];
    attributes.extend(summary.tenant.map(|id| KeyValue::new("lorikeet.tenant.id", id.to_string())));
    attributes.extend(summary.error.map(|code| KeyValue::new("error.type", code)));
    attributes
}

/// Turns moments of this process into the wall's time.
#[derive(Clone, Copy)]
struct Clock {
    began: Instant,
    began_at: SystemTime,
}

impl Clock {
    fn at(self, moment: Instant) -> SystemTime {
        self.began_at + moment.saturating_duration_since(self.began)
    }
}

struct Children<'a> {
    tracer: &'a SdkTracer,
    parent: SpanContext,
    clock: Clock,
}

impl Children<'_> {
    fn of(&self, ended: &Ended) {
        let begun = ended.submitted;
        let Some((queue, adapter_load)) = ended.queue else { return };
        let scheduled = begun + queue;
        self.span("queue", begun, scheduled, Vec::new());
        if ended.served.adapter.is_some() {
            self.span("adapter_load", begun, begun + adapter_load, Vec::new());
        }
        let (Some(first), Some(last)) = (ended.first_token, ended.last_token) else { return };
        self.span("prefill", scheduled, first, prefill(ended));
        self.span("decode", first, last, decode(ended));
    }

    fn span(&self, name: &'static str, from: Instant, to: Instant, about: Vec<KeyValue>) {
        let parent = Context::new().with_remote_span_context(self.parent.clone());
        let builder = SpanBuilder::from_name(name).with_start_time(self.clock.at(from));
        let mut span = self.tracer.build_with_context(builder.with_attributes(about), &parent);
        span.end_with_timestamp(self.clock.at(to));
    }
}

/// Names of OpenTelemetry's conventions for generative AI where they have one.
fn prefill(ended: &Ended) -> Vec<KeyValue> {
    let mut about = vec![
        KeyValue::new("gen_ai.request.model", ended.served.model.clone()),
        KeyValue::new("gen_ai.usage.input_tokens", i64::from(ended.prompt_tokens)),
        KeyValue::new("lorikeet.cached_tokens", i64::from(ended.cached_tokens)),
    ];
    let adapter = ended.served.adapter;
    about.extend(adapter.map(|id| KeyValue::new("lorikeet.adapter_version.id", id.to_string())));
    about
}

fn decode(ended: &Ended) -> Vec<KeyValue> {
    vec![
        KeyValue::new("gen_ai.usage.output_tokens", i64::from(ended.completion_tokens)),
        KeyValue::new("gen_ai.response.finish_reasons", ended.outcome),
    ]
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}
