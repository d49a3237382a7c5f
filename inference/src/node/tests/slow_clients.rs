//! Clients that send or read slowly, on purpose or not.

use super::control_plane::{ControlPlane, SOON, Seen};
use super::harness::{Customer, Node, chat, node_of_one};
use crate::config::{Config, Device};
use lorikeet_compute::backend::sim::{SimConfig, SimCost};
use lorikeet_contract::link::FinishReason;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

async fn connect(node: &Node) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    // What the kernel holds for a client that does not read is the kernel's; keep it small.
    socket.set_recv_buffer_size(4096).expect("a size");
    socket.connect(node.address).await.expect("a connection")
}

/// A request's bytes.
fn request(customer: &Customer, body: &Value) -> String {
    let body = body.to_string();
    let (key, length) = (customer.key.reveal(), body.len());
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: node\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// Everything that comes until the node closes the connection.
async fn until_closed(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    // A reset is an end, too.
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut text)).await.expect("it is closed");
    String::from_utf8_lossy(&text).into_owned()
}

/// An answer of more than half a megabyte.
fn large() -> Value {
    chat(json!({
        "stream": true, "max_tokens": 400, "ignore_eos": true, "logprobs": true, "top_logprobs": 20,
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_comes_slowly_is_refused() {
    let (_control_plane, node, customer) = node_of_one(|config| {
        config.read_body_within = Duration::from_millis(300);
    })
    .await;
    let whole = request(&customer, &chat(json!({})));

    let mut half_a_body = connect(&node).await;
    half_a_body.write_all(&whole.as_bytes()[..whole.len() - 5]).await.expect("sent");
    let answer = until_closed(&mut half_a_body).await;
    assert!(answer.contains(" 408 ") && answer.contains("request_timeout"), "{answer}");

    node.chat(&customer, json!({})).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_is_cut_off_and_pays_for_what_it_took() {
    let (control_plane, node, customer) = node_of_one(|config| {
        config.patience.reading = Duration::from_millis(500);
    })
    .await;
    let mut stream = connect(&node).await;
    stream.write_all(request(&customer, &large()).as_bytes()).await.expect("sent");
    let seen = control_plane.until("it is cut off", |s| !s.finals().is_empty()).await;
    let cut = &seen.finals()[0];
    assert_eq!(cut.finish_reason(), FinishReason::Cancelled);
    assert!((1..400).contains(&cut.completion_tokens), "{}", cut.completion_tokens);
    node.chat(&customer, json!({})).await;
    node.stop().await;
}

const CROWD: usize = 64;

/// How long small chats took beside a crowd of readers: the 99th percentile. Returns when the crowd is
/// gone: those that read have their answers, those that do not are cut off.
async fn p99_beside_a_crowd(
    control_plane: &ControlPlane,
    node: &Node,
    customer: &Customer,
    slow: bool,
) -> Duration {
    let cancelled = |seen: &Seen| seen.finals_with(FinishReason::Cancelled).len();
    let before = cancelled(&control_plane.seen());
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        let mut stream = connect(node).await;
        stream.write_all(request(customer, &large()).as_bytes()).await.expect("sent");
        crowd.spawn(async move {
            let mut buffer = vec![0; if slow { 1 } else { 1 << 16 }];
            while stream.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {
                if slow {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        });
    }
    let mut took = Vec::new();
    for _ in 0..15 {
        let probes = (0..8).map(|_| async {
            let began = Instant::now();
            node.chat(customer, json!({ "ignore_eos": true })).await;
            began.elapsed()
        });
        took.extend(futures::future::join_all(probes).await);
    }
    if slow {
        let all = before + CROWD;
        control_plane.until("all are cut off", |seen| cancelled(seen) >= all).await;
        crowd.shutdown().await;
    } else {
        let answered = async { while crowd.join_next().await.is_some() {} };
        tokio::time::timeout(SOON, answered).await.expect("all have their answers");
    }
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

/// The same requests beside 64 clients that read all they get, and beside 64 that read a byte a second.
/// Pairs are repeated because a busy machine may slow one half of a pair; what is systematic slows all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_readers_of_a_byte_a_second_slow_nobody_and_are_cut_off() {
    let customer = Customer::new();
    let control_plane = ControlPlane::start(customer.resources());
    let steady = |config: &mut Config| {
        let cost = SimCost { step: Duration::from_millis(10), ..SimCost::FREE };
        config.device = Device::Sim(SimConfig { cost, ..SimConfig::default() });
        config.max_requests = 4 * CROWD;
        config.scheduler.max_num_seqs = 4 * CROWD;
        config.patience.reading = Duration::from_secs(1);
    };
    let node = Node::ready(&control_plane, steady).await;
    let mut ratios = Vec::new();
    while ratios.last().is_none_or(|ratio| *ratio > 1.10) && ratios.len() < 4 {
        let [quick, slow] = [false, true];
        let beside_quick = p99_beside_a_crowd(&control_plane, &node, &customer, quick).await;
        let beside_slow = p99_beside_a_crowd(&control_plane, &node, &customer, slow).await;
        ratios.push(beside_slow.as_secs_f64() / beside_quick.as_secs_f64());
    }
    println!("p99 beside slow readers over p99 beside quick ones, by pair: {ratios:.3?}");
    assert!(ratios.last().is_some_and(|ratio| *ratio <= 1.10), "{ratios:?}");
    let page = reqwest::get(format!("http://{}/metrics", node.metrics)).await.expect("an answer");
    let page = page.text().await.expect("a body");
    let cut_off = format!("\nlorikeet_slow_readers_total {}\n", CROWD * ratios.len());
    assert!(page.contains(&cut_off), "every one is counted, once");
    node.stop().await;
}
