use super::harness::*;
use crate::adapters::LocalStore;
use crate::adapters::loader::AdapterSource;
use crate::engine::{
    EngineError, EngineHandle, EngineState, FinishReason, RequestError, Revocation, SubmitError,
    spawn,
};
use lorikeet_compute::backend::BackendError;
use lorikeet_compute::backend::sim::{SimBackend, SimClock};
use std::sync::Arc;
use std::thread::JoinHandle;

const PROMPT: [u32; 6] = [1, 2, 4, 5, 6, 7];

type Thread = JoinHandle<Result<(), EngineError>>;

fn start(setup: &Setup, directory: &std::path::Path) -> (EngineHandle, Thread) {
    let source = AdapterSource {
        store: Arc::new(LocalStore::new(directory.join("store"))),
        directory: directory.join("cache"),
        runtime: tokio::runtime::Handle::current(),
    };
    let sim = setup.sim(SimClock::simulated());
    spawn(setup.config(), source, move || Ok(Box::new(SimBackend::new(sim)))).unwrap()
}

async fn end_of(mut reader: Reader) -> Reader {
    while reader.end.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        reader.read();
    }
    reader
}

#[test]
fn cancelling_ends_a_request_and_frees_what_it_held() {
    let mut rig = Rig::new(&Setup::default());
    let mut cancelled = rig.submit(1, None, &PROMPT, 100);
    rig.steps(5);
    rig.handle.cancel(cancelled.id);
    rig.step();
    cancelled.read();
    assert_eq!(cancelled.reason(), Some(FinishReason::Cancelled));
    assert_eq!(cancelled.tokens.len(), 5);
    rig.engine.assert_idle();
}

#[test]
fn a_reader_that_goes_away_cancels_its_request_also_while_that_waits() {
    let mut setup = Setup::default();
    setup.scheduler.max_num_seqs = 1;
    let mut rig = Rig::new(&setup);
    let running = rig.submit(1, None, &PROMPT, 100);
    let waiting = rig.submit(1, None, &PROMPT, 100);
    rig.steps(3);
    drop(waiting);
    rig.step();
    assert_eq!(rig.handle.stats().waiting, 0);
    drop(running);
    rig.steps(2);
    rig.engine.assert_idle();
}

#[tokio::test]
async fn revoking_a_key_ends_its_requests_and_no_others() {
    let mut rig = Rig::new(&Setup::default());
    let mut revoked = rig.submit(1, None, &PROMPT, 100);
    let mut other = rig.submit(2, None, &PROMPT, 20);
    rig.steps(3);
    let mut waiting = rig.submit(1, None, &PROMPT, 100);
    rig.handle.revoke(Revocation::Key(key_id(1))).await;
    rig.finish(&mut [&mut revoked, &mut waiting, &mut other]);
    assert_eq!(revoked.error(), Some(&RequestError::Revoked));
    assert_eq!(waiting.error(), Some(&RequestError::Revoked));
    assert_eq!(revoked.tokens.len(), 3);
    assert_eq!(other.reason(), Some(FinishReason::Length));
}

#[tokio::test]
async fn the_engine_on_its_thread_answers_and_shuts_down() {
    let directory = tempfile::tempdir().unwrap();
    let (handle, thread) = start(&Setup::default(), directory.path());
    let (request, reader) = request(1, None, &PROMPT, 20);
    handle.try_submit(request).unwrap();
    let reader = end_of(reader).await;
    assert_eq!(reader.tokens, Rig::alone(None, &PROMPT, 20));
    handle.shutdown().await;
    thread.join().unwrap().unwrap();
    let refused = handle.try_submit(self::request(1, None, &PROMPT, 20).0);
    assert_eq!(refused, Err(SubmitError::Stopped));
}

#[tokio::test]
async fn an_engine_that_nobody_can_reach_finishes_what_it_has_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    let (handle, thread) = start(&Setup::default(), directory.path());
    let (request, reader) = request(1, None, &PROMPT, 100);
    handle.try_submit(request).unwrap();
    drop(handle);
    let reader = end_of(reader).await;
    assert_eq!(reader.reason(), Some(FinishReason::Length));
    thread.join().unwrap().unwrap();
}

#[tokio::test]
async fn draining_lets_requests_end_and_accepts_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let (handle, thread) = start(&Setup::default(), directory.path());
    let (request, reader) = request(1, None, &PROMPT, 150);
    handle.try_submit(request).unwrap();
    while handle.stats().running == 0 && handle.stats().last_step.step == 0 {
        tokio::task::yield_now().await;
    }
    handle.drain().await;
    let reader = end_of(reader).await;
    assert_eq!(reader.reason(), Some(FinishReason::Length));
    let refused = handle.try_submit(self::request(1, None, &PROMPT, 20).0);
    assert_eq!(refused, Err(SubmitError::Stopped));
    handle.shutdown().await;
    thread.join().unwrap().unwrap();
}

#[tokio::test]
async fn a_panic_ends_every_request_and_says_that_the_engine_has_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let mut setup = Setup::default();
    setup.sim.faults.panic_at_step = Some(10);
    let (handle, thread) = start(&setup, directory.path());
    let mut readers = Vec::new();
    for _ in 0..5 {
        let (request, reader) = request(1, None, &PROMPT, 100);
        handle.try_submit(request).unwrap();
        readers.push(reader);
    }
    for reader in readers {
        let reader = end_of(reader).await;
        let told = reader.error().expect("it failed");
        assert!(matches!(told, RequestError::Engine(_)));
        assert!(!told.to_string().contains("injected"), "a panic's message may quote a prompt");
    }
    let ended = thread.join().unwrap().expect_err("a panic");
    assert!(matches!(ended, EngineError::Panic));
    assert!(matches!(handle.stats().state, EngineState::Stopped(_)));
    let refused = handle.try_submit(request(1, None, &PROMPT, 20).0);
    assert_eq!(refused, Err(SubmitError::Stopped));
}

#[tokio::test]
async fn a_device_error_ends_every_request_and_their_usage_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut setup = Setup::default();
    setup.sim.faults.error_at_step = Some(10);
    let (handle, thread) = start(&setup, directory.path());
    let (request, reader) = request(1, None, &PROMPT, 100);
    handle.try_submit(request).unwrap();
    let reader = end_of(reader).await;
    assert!(matches!(reader.error(), Some(RequestError::Engine(_))));
    assert_eq!(reader.usage().completion_tokens, 9);
    assert!(matches!(thread.join().unwrap(), Err(EngineError::Backend(BackendError::Device(_)))));
}

#[tokio::test]
async fn a_backend_that_does_not_start_ends_those_who_waited_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let source = AdapterSource {
        store: Arc::new(LocalStore::new(directory.path().join("store"))),
        directory: directory.path().join("cache"),
        runtime: tokio::runtime::Handle::current(),
    };
    let (proceed, wait) = std::sync::mpsc::sync_channel::<()>(1);
    let backend = move || {
        wait.recv().unwrap();
        Err(BackendError::Device("no such device".into()))
    };
    let (handle, thread) = spawn(Setup::default().config(), source, backend).unwrap();
    let (request, reader) = request(1, None, &PROMPT, 100);
    handle.try_submit(request).unwrap();
    proceed.send(()).unwrap();
    let reader = end_of(reader).await;
    assert!(
        matches!(reader.error(), Some(RequestError::Engine(reason)) if reason.contains("no such device"))
    );
    assert!(thread.join().unwrap().is_err());
}
