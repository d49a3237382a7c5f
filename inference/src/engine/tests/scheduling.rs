use super::harness::*;
use crate::engine::{FinishReason, RequestError, SubmitError};
use std::time::Duration;

fn prompt(len: u32) -> Vec<u32> {
    (10..10 + len).collect()
}

#[test]
fn a_request_gets_its_tokens_in_order_and_then_its_end() {
    let mut rig = Rig::new(&Setup::default());
    let mut reader = rig.submit(1, None, &prompt(5), 7);
    rig.finish(&mut [&mut reader]);
    assert_eq!(reader.tokens.len(), 7);
    assert_eq!(reader.reason(), Some(FinishReason::Length));
    assert_eq!(reader.usage().prompt_tokens, 5);
    rig.engine.assert_idle();
}

#[test]
fn an_end_token_ends_the_answer_and_is_counted() {
    let ends = |prompt: &Vec<u32>| {
        let long = Rig::alone(None, prompt, 100);
        let at = long.iter().position(|token| *token == EOS)?;
        Some((prompt.clone(), long[..=at].to_vec()))
    };
    let (prompt, expected) = (2..20).map(prompt).find_map(|p| ends(&p)).unwrap();
    let mut rig = Rig::new(&Setup::default());
    let (mut request, mut reader) = request(1, None, &prompt, 100);
    request.ignore_eos = false;
    rig.try_submit(request).unwrap();
    rig.finish(&mut [&mut reader]);
    assert_eq!(reader.reason(), Some(FinishReason::Stop));
    assert_eq!(reader.tokens, expected);
}

#[test]
fn sequences_run_together_in_one_step_and_get_what_they_get_alone() {
    let mut rig = Rig::new(&Setup::default());
    let adapters: Vec<_> = (1..=8).map(|id| adapter(1, id, 10)).collect();
    let mut readers: Vec<_> =
        adapters.iter().map(|a| rig.submit(1, Some(a), &prompt(6), 60)).collect();
    readers.push(rig.submit(2, None, &prompt(6), 60));
    let mut widest = 0;
    while readers.iter().any(|r| r.end.is_none()) {
        rig.step();
        let step = rig.handle.stats().last_step;
        widest = widest.max(step.adapters.len() + step.base_sequences as usize);
        readers.iter_mut().for_each(Reader::read);
    }
    assert_eq!(widest, 9, "eight adapters and the base in one pass");
    for (i, reader) in readers.iter().enumerate() {
        assert_eq!(reader.tokens, Rig::alone(adapters.get(i), &prompt(6), 60));
    }
    let distinct: std::collections::HashSet<_> = readers.iter().map(|r| &r.tokens).collect();
    assert_eq!(distinct.len(), 9, "each adapter answers in its own way");
}

#[test]
fn a_long_prompt_is_cut_into_chunks_and_delays_no_decode() {
    let mut setup = Setup::default();
    setup.scheduler.max_num_batched_tokens = 8;
    let mut rig = Rig::new(&setup);
    let mut short = rig.submit(1, None, &prompt(4), 50);
    rig.steps(2);
    let mut long = rig.submit(1, None, &prompt(100), 5);
    for _ in 0..10 {
        short.read();
        let before = short.tokens.len();
        rig.step();
        short.read();
        assert_eq!(short.tokens.len(), before + 1);
        let step = rig.handle.stats().last_step;
        assert_eq!((step.decode_rows, step.prefill_rows), (1, 7));
    }
    rig.finish(&mut [&mut short, &mut long]);
    assert_eq!(long.tokens, Rig::alone(None, &prompt(100), 5));
}

#[test]
fn a_prompt_seen_before_is_taken_from_the_cache_of_the_same_tenant_only() {
    let mut rig = Rig::new(&Setup::default());
    let mut first = rig.submit(1, None, &prompt(9), 3);
    rig.finish(&mut [&mut first]);
    let mut same = rig.submit(1, None, &prompt(9), 3);
    let mut other = rig.submit(2, None, &prompt(9), 3);
    rig.finish(&mut [&mut same, &mut other]);
    assert_eq!(first.usage().cached_tokens, 0);
    assert_eq!(same.usage().cached_tokens, 8);
    assert_eq!(other.usage().cached_tokens, 0);
    assert_eq!(same.tokens, first.tokens);
}

#[test]
fn tenants_take_turns_however_many_requests_one_of_them_sends() {
    let mut setup = Setup::default();
    setup.scheduler.max_num_seqs = 1;
    let mut rig = Rig::new(&setup);
    let mut busy: Vec<_> = (0..6).map(|_| rig.submit(1, None, &prompt(4), 4)).collect();
    let mut quiet = rig.submit(2, None, &prompt(4), 4);
    rig.finish(&mut [&mut quiet]);
    busy.iter_mut().for_each(Reader::read);
    assert!(busy.iter().filter(|r| r.end.is_some()).count() <= 2);
    rig.finish(&mut busy.iter_mut().collect::<Vec<_>>());
}

#[test]
fn a_prompt_that_can_never_fit_is_refused_and_an_answer_ends_where_the_cache_does() {
    let mut setup = Setup::default();
    setup.capacity.num_blocks = 3;
    let mut rig = Rig::new(&setup);
    let mut refused = rig.submit(1, None, &prompt(13), 5);
    let mut cut = rig.submit(1, None, &prompt(9), 50);
    rig.finish(&mut [&mut refused, &mut cut]);
    assert_eq!(refused.error(), Some(&RequestError::TooLarge { needed: 4, available: 3 }));
    assert_eq!((cut.reason(), cut.tokens.len()), (Some(FinishReason::Length), 3));
}

#[test]
fn the_context_length_ends_an_answer() {
    let setup = Setup { context_length: 10, ..Setup::default() };
    let mut rig = Rig::new(&setup);
    let mut cut = rig.submit(1, None, &prompt(7), 50);
    let mut full = rig.submit(1, None, &prompt(10), 50);
    rig.finish(&mut [&mut cut, &mut full]);
    assert_eq!((cut.reason(), cut.tokens.len()), (Some(FinishReason::Length), 3));
    assert_eq!((full.reason(), full.tokens.len()), (Some(FinishReason::Length), 0));
}

#[test]
fn a_deadline_ends_a_request_whether_it_runs_or_waits() {
    let mut setup = Setup::default();
    setup.scheduler.max_num_seqs = 1;
    let mut rig = Rig::new(&setup);
    let mut late = [(); 2].map(|()| {
        let (mut request, reader) = request(1, None, &prompt(4), 100);
        request.deadline = Some(rig.clock.now() + Duration::from_millis(10));
        rig.try_submit(request).unwrap();
        reader
    });
    let mut other = rig.submit(1, None, &prompt(4), 20);
    let [a, b] = &mut late;
    rig.finish(&mut [a, b, &mut other]);
    assert!(late.iter().all(|r| r.error() == Some(&RequestError::Deadline)));
    assert_eq!(late[0].tokens.len(), 10);
    assert_eq!(other.reason(), Some(FinishReason::Length));
}

#[test]
fn a_request_that_does_not_begin_in_time_fails_and_one_that_has_begun_takes_its_time() {
    let mut setup = Setup::default();
    setup.scheduler.max_num_seqs = 1;
    setup.scheduler.queue_timeout = Duration::from_secs(2);
    setup.cost.step = Duration::from_millis(100);
    let mut rig = Rig::new(&setup);
    let adapter = adapter(1, 1, 10);
    let mut long = rig.submit(1, None, &prompt(4), 30);
    let mut late =
        [rig.submit(1, None, &prompt(4), 1), rig.submit(1, Some(&adapter), &prompt(4), 1)];
    let [base, adapted] = &mut late;
    rig.finish(&mut [&mut long, base, adapted]);
    assert_eq!((long.reason(), long.tokens.len()), (Some(FinishReason::Length), 30));
    for reader in &late {
        assert_eq!(reader.error(), Some(&RequestError::QueueTimeout { seconds: 2 }));
        assert!(reader.usage().queue >= Duration::from_secs(2));
    }
    rig.engine.assert_idle();
}

#[test]
fn the_queue_is_bounded_and_a_place_is_free_again_when_a_request_has_ended() {
    let setup = Setup { max_requests: 2, ..Setup::default() };
    let mut rig = Rig::new(&setup);
    let mut first = rig.submit(1, None, &prompt(4), 5);
    let mut second = rig.submit(1, None, &prompt(4), 5);
    let refused = rig.try_submit(request(1, None, &prompt(4), 5).0);
    assert_eq!(refused, Err(SubmitError::QueueFull));
    rig.finish(&mut [&mut first, &mut second]);
    let mut third = rig.submit(1, None, &prompt(4), 5);
    rig.finish(&mut [&mut third]);
}

#[test]
fn running_one_step_ahead_gives_the_same_tokens() {
    let mut setup = Setup::default();
    setup.capacity.pipeline_depth = 2;
    setup.capacity.num_blocks = 30;
    let mut rig = Rig::new(&setup);
    let prompts: Vec<Vec<u32>> = (0..6).map(|i| (i..i + 9).collect()).collect();
    let mut readers: Vec<_> = prompts
        .iter()
        .map(|p| {
            let (mut request, reader) = request(1, None, p, 40);
            request.ignore_eos = false;
            rig.try_submit(request).unwrap();
            reader
        })
        .collect();
    rig.finish(&mut readers.iter_mut().collect::<Vec<_>>());
    for (reader, prompt) in readers.iter().zip(&prompts) {
        let mut expected = Rig::alone(None, prompt, 40);
        if let Some(at) = expected.iter().position(|t| *t == EOS) {
            expected.truncate(at + 1);
        }
        assert_eq!(reader.tokens, expected);
    }
    rig.engine.assert_idle();
}

#[test]
fn a_tenant_of_three_times_the_weight_gets_three_times_as_much() {
    let mut setup = Setup::default();
    setup.scheduler.max_num_seqs = 4;
    let mut rig = Rig::new(&setup);
    let mut readers = Vec::new();
    for n in 0..60 {
        let (mut request, reader) = request(1 + n % 2, None, &prompt(6), 10);
        request.share.weight = if n % 2 == 0 { 300 } else { 100 };
        rig.try_submit(request).unwrap();
        readers.push(reader);
    }
    rig.steps(80);
    readers.iter_mut().for_each(Reader::read);
    let tokens =
        |of: usize| readers.iter().skip(of).step_by(2).map(|r| r.tokens.len()).sum::<usize>();
    let ratio = tokens(0) as f64 / tokens(1) as f64;
    assert!((2.5..3.5).contains(&ratio), "{ratio}");
    rig.finish(&mut readers.iter_mut().collect::<Vec<_>>());
}
