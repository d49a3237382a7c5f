//! From a grammar to what sequences walk through, off every thread that others wait for.

use super::cache::Cache;
use super::turns::Turns;
use super::{Grammar, Guide, Next, Walker, schema, vocabulary};
use llguidance::{ParserFactory, TokenParser};
use lorikeet_compute::model::Tokenizer;
use lorikeet_compute::sampling::TokenMask;
use lorikeet_contract::TenantId;
use serde_json::Value;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// Grammars that are compiled at once, each of another tenant; more wait, as long as they may take.
const AT_ONCE: usize = 2;
/// What a grammar may take until it is compiled, waiting included. One that takes longer is given up,
/// and keeps its place until its thread has ended.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Parsers recurse, and what they read is a customer's.
const STACK: usize = 64 << 20;

/// Why a grammar is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// Tells the customer what to change.
    #[error("{0}")]
    Invalid(String),
    /// A schema or a part of one. `at` is where it stands in what the customer wrote, as `.properties.a`.
    #[error("{why}")]
    Part { at: String, why: String },
    #[error("compiling it took longer than {} s: make it simpler", TIMEOUT.as_secs())]
    TooSlow,
    /// Others are being compiled.
    #[error("too many grammars are being compiled")]
    Busy,
    #[error("it could not be compiled")]
    Internal,
}

/// A grammar at its beginning.
pub struct Compiled {
    walker: Mutex<Walker>,
    first: Arc<TokenMask>,
    /// What keeping it takes.
    pub(super) bytes: usize,
}

impl Compiled {
    /// For one more sequence.
    pub fn guide(&self, parameter: &'static str) -> Guide {
        let walker = self.walker.lock().unwrap_or_else(PoisonError::into_inner).fork();
        Guide { walker, first: self.first.clone(), parameter }
    }
}

/// Compiles grammars over one base model's vocabulary.
pub struct Guidance {
    tokenizer: Arc<Tokenizer>,
    vocab_size: u32,
    eos_tokens: Vec<u32>,
    /// Made with the first grammar. None: this vocabulary cannot be guided.
    factory: OnceLock<Option<ParserFactory>>,
    places: Arc<Semaphore>,
    turns: Turns,
    cache: Mutex<Cache>,
}

impl Guidance {
    pub fn new(tokenizer: Arc<Tokenizer>, vocab_size: u32, eos_tokens: Vec<u32>) -> Self {
        Self {
            tokenizer,
            vocab_size,
            eos_tokens,
            factory: OnceLock::new(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
            turns: Turns::default(),
            cache: Mutex::default(),
        }
    }

    pub async fn compile(
        self: &Arc<Self>,
        tenant: TenantId,
        grammar: &Grammar,
    ) -> Result<Arc<Compiled>, CompileError> {
        grammar.check()?;
        let key = (tenant, grammar.digest());
        if let Some(compiled) = self.cache().get(&key) {
            return Ok(compiled);
        }
        let waiting = async {
            let turn = self.turns.of(tenant).await;
            (turn, self.places.clone().acquire_owned().await)
        };
        let (turn, place) =
            tokio::time::timeout(TIMEOUT, waiting).await.map_err(|_| CompileError::Busy)?;
        let place = place.map_err(|_| CompileError::Internal)?;
        // A request of the same tenant may have asked for it, too.
        if let Some(compiled) = self.cache().get(&key) {
            return Ok(compiled);
        }
        let (reply, compiled) = oneshot::channel();
        let (guidance, grammar) = (self.clone(), grammar.clone());
        let work = move || {
            let compiled = guidance.compile_now(&grammar);
            drop((place, turn));
            // Whoever gave it up reads no more.
            let _ = reply.send(compiled);
        };
        let thread = std::thread::Builder::new().name("lk-grammar".into()).stack_size(STACK);
        thread.spawn(work).map_err(|_| CompileError::Busy)?;
        let compiled = tokio::time::timeout(TIMEOUT, compiled).await;
        let compiled = compiled.map_err(|_| CompileError::TooSlow)?;
        let compiled = Arc::new(compiled.map_err(|_| CompileError::Internal)??);
        self.cache().insert(key, compiled.clone());
        Ok(compiled)
    }

    fn compile_now(&self, grammar: &Grammar) -> Result<Compiled, CompileError> {
        let factory = self.factory.get_or_init(|| {
            vocabulary::factory(&self.tokenizer, self.vocab_size, &self.eos_tokens)
                .inspect_err(|error| tracing::error!(%error, "no answer can follow a grammar"))
                .ok()
        });
        let factory = factory.as_ref().ok_or(CompileError::Internal)?;
        let mut walker = Walker::new(parser(factory, grammar)?);
        match walker.next() {
            Ok(Next::Allowed(first)) => {
                let bytes = walker.bytes() + grammar.bytes();
                Ok(Compiled { walker: Mutex::new(walker), first, bytes })
            }
            Ok(Next::Complete) => Err(CompileError::Invalid("only the empty text matches".into())),
            Err(error) => Err(CompileError::Invalid(error.to_string())),
        }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn cached(&self) -> usize {
        self.cache().len()
    }
}

fn parser(factory: &ParserFactory, grammar: &Grammar) -> Result<TokenParser, CompileError> {
    let parse = |grammar: &Grammar| factory.create_parser(grammar.to_llguidance());
    let error = match parse(grammar) {
        Ok(parser) => return Ok(parser),
        Err(error) => reason(&error).ok_or(CompileError::Internal)?,
    };
    let refusal = |schema: &Value| {
        parse(&Grammar::Json(schema.clone())).err().and_then(|error| reason(&error))
    };
    for (place, whole) in grammar.schemas() {
        let Some(why) = refusal(whole) else { continue };
        let at = format!("{place}{}", schema::locate(whole, &why, refusal).replace('/', "."));
        return Err(CompileError::Part { at, why });
    }
    Err(CompileError::Invalid(error))
}

/// In one line. None for a panic: its text has a backtrace behind it and helps no customer.
fn reason(error: &anyhow::Error) -> Option<String> {
    let text = error.root_cause().to_string();
    let is_panic = text.starts_with("panic:");
    (!is_panic).then(|| text.trim_end_matches('.').to_owned())
}
