//! Runs due jobs, a few at a time.

use super::queue::{self, Claimed, End, LEASE};
use super::{Job, JobContext, Outcome};
use crate::db::Acting;
use sqlx::PgPool;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

/// Jobs at once in one process; others wait in the table. A verification needs disk for twice the
/// adapter's size.
const CONCURRENCY: usize = 4;
/// How soon a new job is noticed.
const POLL: Duration = Duration::from_millis(300);
const LONGEST_BACKOFF: Duration = Duration::from_secs(600);

/// Until `shutdown`; jobs in progress are then given back at once.
pub async fn run(context: JobContext, shutdown: CancellationToken) {
    let mut running = JoinSet::new();
    while !shutdown.is_cancelled() {
        while running.len() < CONCURRENCY {
            let Some(claimed) = claim(context.db.jobs.untenanted()).await else { break };
            running.spawn(run_one(context.clone(), claimed, shutdown.clone()));
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = sleep(POLL) => {}
            Some(ended) = running.join_next() => log_panic(ended),
        }
    }
    while let Some(ended) = running.join_next().await {
        log_panic(ended);
    }
}

async fn claim(pool: &PgPool) -> Option<Claimed> {
    queue::claim(pool).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "jobs cannot be claimed");
        None
    })
}

/// A panicked job's lease runs out, and the attempt counts.
fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a job panicked");
    }
}

async fn run_one(context: JobContext, mut claimed: Claimed, shutdown: CancellationToken) {
    let pool = context.db.jobs.untenanted().clone();
    let job = match claimed.job() {
        Ok(job) => job,
        // A newer process may know it.
        Err(error) => {
            let end = End::Retry { after: LONGEST_BACKOFF, error: &error.to_string() };
            return log_end(queue::end(&pool, &claimed, end).await, &claimed);
        }
    };
    let result = if claimed.attempts > claimed.max_attempts {
        // The attempts before took the whole process with them, or could not be recorded.
        Err(anyhow::anyhow!("its last attempt never ended"))
    } else {
        let acting = Acting::system(claimed.tenant());
        let mut work = std::pin::pin!(job.run(&context, &acting));
        let mut renewals = interval(LEASE / 3);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                result = &mut work => break result,
                () = shutdown.cancelled() => break Ok(Outcome::Later(Duration::ZERO)),
                _ = renewals.tick() => match queue::renew(&pool, &mut claimed).await {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::warn!(job = %claimed.id, kind = claimed.kind, "lost the lease of a job");
                        return;
                    }
                    Err(error) => tracing::warn!(%error, "cannot renew the lease of a job"),
                },
            }
        }
    };
    finish(&context, &claimed, &job, result).await;
}

async fn finish(
    context: &JobContext,
    claimed: &Claimed,
    job: &Job,
    result: anyhow::Result<Outcome>,
) {
    let pool = context.db.jobs.untenanted();
    let error = match result {
        Ok(Outcome::Done) => {
            return log_end(queue::end(pool, claimed, End::Finished).await, claimed);
        }
        Ok(Outcome::Later(after)) => {
            return log_end(queue::end(pool, claimed, End::Postponed(after)).await, claimed);
        }
        Err(error) => format!("{error:#}"),
    };
    let last = claimed.attempts >= claimed.max_attempts;
    tracing::warn!(job = %claimed.id, kind = claimed.kind, attempt = claimed.attempts, last, error, "a job failed");
    if !last {
        let end = End::Retry { after: backoff(claimed.attempts), error: &error };
        return log_end(queue::end(pool, claimed, end).await, claimed);
    }
    // Told first: were the order the other way, a crash between would leave someone waiting.
    match job.give_up(context, claimed.tenant()).await {
        Ok(()) => {
            log_end(queue::end(pool, claimed, End::GivenUp { error: &error }).await, claimed);
        }
        Err(e) => {
            let end = End::Retry { after: LONGEST_BACKOFF, error: &format!("{e:#}") };
            log_end(queue::end(pool, claimed, end).await, claimed);
        }
    }
}

/// 1 s after the first attempt, doubling.
fn backoff(attempts: i32) -> Duration {
    let doublings = attempts.saturating_sub(1).clamp(0, 16) as u32;
    Duration::from_secs(1 << doublings).min(LONGEST_BACKOFF)
}

/// The lease then runs out by itself.
fn log_end(result: Result<(), sqlx::Error>, claimed: &Claimed) {
    if let Err(error) = result {
        tracing::warn!(%error, job = %claimed.id, "the end of a job could not be recorded");
    }
}
