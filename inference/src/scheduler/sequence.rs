//! One generation, from its arrival to its end.

use super::plan::PlannedSequence;
use super::price::Cost;
use super::tenants::Account;
use crate::adapters::residency::{AdapterDemand, AdapterLease};
use crate::adapters::{AdapterKey, AdapterManifest};
use crate::kv::{BlockPool, BlockTable, PrefixScope};
use crate::share::TenantShare;
use lorikeet_compute::backend::batch::SequenceId;
use lorikeet_compute::sampling::{LogitEdit, LogitEditor, LogitRules, SamplingParams, TokenMask};
use lorikeet_contract::TenantId;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a sequence starts from.
#[derive(Debug, Clone)]
pub struct NewSequence {
    pub id: SequenceId,
    pub tenant: TenantId,
    pub share: TenantShare,
    pub adapter: Option<Arc<AdapterManifest>>,
    /// Not empty.
    pub prompt: Vec<u32>,
    pub params: SamplingParams,
    pub rules: LogitRules,
    /// The tokens of the first draw; [`Scheduler::allow`](super::Scheduler::allow) gives those of each
    /// later one. None: any token, always.
    pub allowed: Option<Arc<TokenMask>>,
    pub logprobs: Option<u8>,
    /// The prompt's tokens are scored, too, beside as many of the most likely.
    pub scores_prompt: bool,
    /// Tokens, prompt included, at which it ends; earlier when the whole cache holds fewer.
    pub max_len: usize,
    /// Each ends it when drawn.
    pub stop_tokens: Vec<u32>,
    pub deadline: Option<Instant>,
    pub submitted: Instant,
}

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    Stop,
    Length,
    Deadline,
    /// It had no row in time.
    QueueTimeout {
        seconds: u64,
    },
    AdapterLoad(String),
    TooLarge {
        needed: u32,
        available: u32,
    },
}

/// What the next draw may take.
#[derive(Debug)]
enum Choice {
    Any,
    Only(Arc<TokenMask>),
    /// Not known yet: a grammar has to take up the token before it.
    Unknown,
}

/// Tokens of the prompt to be scored: from `first` on, the last of them `next`, unless that is known to be
/// none of the prompt's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Score {
    pub first: usize,
    pub next: Option<u32>,
    pub top: u8,
}

#[derive(Debug)]
pub struct Sequence {
    pub id: SequenceId,
    pub(super) scope: PrefixScope,
    pub(super) account: Account,
    /// Keeps the adapter wanted until the sequence is dropped.
    pub(super) adapter: Option<(AdapterKey, AdapterDemand)>,
    /// Of the adapter; 0 without one.
    pub(super) adapter_bytes: u64,
    /// Prompt and answer, as far as collected steps have drawn it.
    pub(super) tokens: Vec<u32>,
    prompt_len: usize,
    max_len: usize,
    stop_tokens: Vec<u32>,
    params: SamplingParams,
    /// None: nothing to edit.
    editor: Option<LogitEditor>,
    choice: Choice,
    logprobs: Option<u8>,
    /// Tokens of the prompt that collected steps have scored, the first one included, which has no
    /// score. None: none are wanted.
    scored: Option<usize>,
    pub(super) deadline: Option<Instant>,
    queue_deadline: Option<Instant>,
    submitted: Instant,

    /// Empty while it waits.
    pub(super) table: BlockTable,
    /// Positions whose keys and values submitted steps have written, or found in the cache.
    pub(super) computed: usize,
    /// Tokens that submitted steps are drawing.
    pub(super) pending: usize,
    pub(super) admissions: u32,
    /// Positions that the tenant has been charged for, or that the cache had at first.
    charged: usize,

    cached_tokens: u32,
    queue: Option<Duration>,
    adapter_load: Duration,
}

impl Sequence {
    pub(super) fn new(
        new: NewSequence,
        account: Account,
        queue_deadline: Option<Instant>,
        kv: &BlockPool,
    ) -> Self {
        let adapter = new.adapter.as_ref().map(|manifest| manifest.key.digest);
        let adapter_bytes = new.adapter.as_ref().map_or(0, |manifest| manifest.bytes);
        Self {
            id: new.id,
            scope: PrefixScope { tenant: new.tenant, adapter },
            account,
            adapter: None,
            editor: LogitEditor::new(new.rules, &new.prompt, &new.stop_tokens),
            adapter_bytes,
            choice: new.allowed.map_or(Choice::Any, Choice::Only),
            prompt_len: new.prompt.len(),
            tokens: new.prompt,
            max_len: new.max_len.min(kv.max_tokens()),
            stop_tokens: new.stop_tokens,
            params: new.params,
            logprobs: new.logprobs,
            scored: new.scores_prompt.then_some(1),
            deadline: new.deadline,
            queue_deadline,
            submitted: new.submitted,
            table: BlockTable::default(),
            computed: 0,
            pending: 0,
            admissions: 0,
            charged: 0,
            cached_tokens: 0,
            queue: None,
            adapter_load: Duration::ZERO,
        }
    }

    pub fn adapter(&self) -> Option<AdapterKey> {
        self.adapter.as_ref().map(|(key, _)| *key)
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub fn table(&self) -> &BlockTable {
        &self.table
    }

    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// For the next draw.
    pub fn edits(&self) -> &[LogitEdit] {
        self.editor.as_ref().map_or(&[], LogitEditor::edits)
    }

    /// In the next draw. None: any token.
    pub fn allowed(&self) -> Option<&Arc<TokenMask>> {
        match &self.choice {
            Choice::Only(mask) => Some(mask),
            Choice::Any | Choice::Unknown => None,
        }
    }

    pub(super) fn allow(&mut self, mask: Arc<TokenMask>) {
        self.choice = Choice::Only(mask);
    }

    /// Its next draw cannot be planned.
    pub(super) fn awaits_mask(&self) -> bool {
        matches!(self.choice, Choice::Unknown)
    }

    pub fn logprobs(&self) -> Option<u8> {
        self.logprobs
    }

    /// Tokens at its beginning that may be found in the cache: rows that score are computed.
    pub(super) fn reusable(&self) -> usize {
        match self.scored {
            Some(scored) if scored < self.prompt_len => scored - 1,
            _ => self.tokens.len(),
        }
    }

    /// What is wanted of the logits of planned rows. None: nothing.
    pub fn score(&self, planned: &PlannedSequence) -> Option<Score> {
        self.scored?;
        let end = planned.position + planned.rows;
        let next = self.tokens[..self.prompt_len].get(end).copied();
        let first = planned.position + 1;
        (first < self.prompt_len).then(|| Score { first, next, top: self.logprobs.unwrap_or(0) })
    }

    pub fn prompt_tokens(&self) -> usize {
        self.prompt_len
    }

    pub fn completion_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Of the prompt, found in the prefix cache when it was first admitted.
    pub fn cached_tokens(&self) -> u32 {
        self.cached_tokens
    }

    /// From its submission to its first scheduled row; to `now` when there was none.
    pub fn queue(&self, now: Instant) -> Duration {
        self.queue.unwrap_or_else(|| now.saturating_duration_since(self.submitted))
    }

    /// Of the queue time, until its adapter was on the device.
    pub fn adapter_load(&self) -> Duration {
        self.adapter_load
    }

    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        [self.deadline, self.queue_deadline()].into_iter().flatten()
    }

    /// Of its first row; None once it has had that.
    pub(super) fn queue_deadline(&self) -> Option<Instant> {
        self.queue_deadline.filter(|_| self.admissions == 0)
    }

    /// Why it can never run.
    pub(super) fn refusal(&self, kv: &BlockPool) -> Option<Ending> {
        let (needed, available) = (kv.blocks_for(self.prompt_len), kv.num_blocks());
        if needed > available {
            return Some(Ending::TooLarge { needed, available });
        }
        (self.prompt_len >= self.max_len).then_some(Ending::Length)
    }

    /// Tokens that the next step can feed in. The last token of all is drawn, never fed. A token
    /// that is still being drawn cannot be fed where the draw after it depends on it.
    pub(super) fn remaining(&self) -> usize {
        let waits = match self.choice {
            Choice::Unknown => return 0,
            Choice::Only(_) => true,
            Choice::Any => self.editor.as_ref().is_some_and(LogitEditor::depends_on_last_token),
        };
        let pending = if waits { 0 } else { self.pending };
        (self.tokens.len() + pending).min(self.max_len - 1) - self.computed
    }

    pub(super) fn admitted(&mut self, cached: u32, lease: Option<&AdapterLease>, now: Instant) {
        self.computed = cached as usize;
        self.admissions += 1;
        if self.queue.is_none() {
            let queue = now.saturating_duration_since(self.submitted);
            self.queue = Some(queue);
            self.cached_tokens = cached;
            self.charged = cached as usize;
            let load = lease.map(|l| l.since().saturating_duration_since(self.submitted));
            self.adapter_load = load.unwrap_or_default().min(queue);
        }
    }

    /// Of what is known and not charged yet.
    pub(super) fn unpaid_cost(&self) -> Cost {
        self.cost(self.charged, self.tokens.len())
    }

    /// Of what it holds in its blocks.
    pub(super) fn computed_cost(&self) -> Cost {
        self.cost(0, self.computed)
    }

    fn cost(&self, from: usize, to: usize) -> Cost {
        let prompt = to.min(self.prompt_len).saturating_sub(from);
        let output = to.saturating_sub(from.max(self.prompt_len));
        Cost::prompt(prompt) + Cost::output(output)
    }

    /// The next rows, and what they cost.
    pub(super) fn plan(
        &mut self,
        rows: usize,
        lease: Option<AdapterLease>,
    ) -> (PlannedSequence, Cost) {
        let position = self.computed;
        self.computed += rows;
        let cost = self.cost(self.charged, self.computed);
        self.charged = self.charged.max(self.computed);
        let samples = self.computed == self.tokens.len() + self.pending;
        let follows_pending = position == self.tokens.len();
        self.pending += usize::from(samples);
        let planned = PlannedSequence {
            sequence: self.id,
            position,
            rows,
            is_first: self.admissions == 1 && position == self.cached_tokens as usize,
            samples,
            is_decode: rows == 1 && position >= self.prompt_len,
            follows_pending,
            lease,
            admission: self.admissions,
        };
        (planned, cost)
    }

    pub(super) fn commit(
        &mut self,
        planned: &PlannedSequence,
        sampled: Option<u32>,
    ) -> Option<Ending> {
        self.pending -= usize::from(planned.samples);
        if let Some(scored) = &mut self.scored {
            let behind = planned.position + planned.rows + 1;
            *scored = (*scored).max(behind.min(self.prompt_len));
        }
        let token = sampled?;
        self.tokens.push(token);
        if let Some(editor) = &mut self.editor {
            editor.drew(token);
        }
        if matches!(self.choice, Choice::Only(_)) {
            self.choice = Choice::Unknown;
        }
        if self.stop_tokens.contains(&token) {
            return Some(Ending::Stop);
        }
        (self.tokens.len() == self.max_len).then_some(Ending::Length)
    }
}
