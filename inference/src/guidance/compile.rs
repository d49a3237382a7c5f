//! From a grammar to what sequences walk through, off every thread that others wait for.

use super::cache::Cache;
use super::{Grammar, Guide, Next, Walker, vocabulary};
use llguidance::{Matcher, ParserFactory};
use lorikeet_compute::model::Tokenizer;
use lorikeet_compute::sampling::TokenMask;
use lorikeet_contract::TenantId;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// Grammars that are compiled at once; more wait, as long as they may take.
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
    matcher: Mutex<Matcher>,
    first: Arc<TokenMask>,
}

impl Compiled {
    /// For one more sequence. It shares no state with others, so that none can use up what another needs.
    pub fn guide(&self, parameter: &'static str) -> Guide {
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        Guide { walker: Walker::new(matcher), first: self.first.clone(), parameter }
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
        let places = self.places.clone();
        let place = tokio::time::timeout(TIMEOUT, places.acquire_owned()).await;
        let place = place.map_err(|_| CompileError::Busy)?.map_err(|_| CompileError::Internal)?;
        let (reply, compiled) = oneshot::channel();
        let (guidance, grammar) = (self.clone(), grammar.clone());
        let work = move || {
            let compiled = guidance.compile_now(&grammar);
            drop(place);
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
        let parser = factory.create_parser(grammar.to_llguidance()).map_err(|e| reason(&e))?;
        let mut walker = Walker::new(Matcher::new(Ok(parser)));
        match walker.next() {
            Ok(Next::Allowed(first)) => {
                Ok(Compiled { matcher: Mutex::new(walker.into_matcher()), first })
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

/// A panic's text has a backtrace behind it and helps no customer.
fn reason(error: &anyhow::Error) -> CompileError {
    let text = format!("{error:#}");
    if text.starts_with("panic:") {
        return CompileError::Internal;
    }
    CompileError::Invalid(text.trim_end_matches('.').to_owned())
}
