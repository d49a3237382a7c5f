//! Against a server whose delays are known.

use super::report::Times;
use super::*;
use clap::Parser;
use serde_json::{Value, json};
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// What the server does with a request.
#[derive(Clone, Copy)]
struct Script {
    status: u16,
    first: Duration,
    gap: Duration,
    tokens: u32,
    breaks_off: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            status: 200,
            first: Duration::ZERO,
            gap: Duration::ZERO,
            tokens: 4,
            breaks_off: false,
        }
    }
}

/// Answers in the way of `/v1/completions`.
struct Server {
    address: SocketAddr,
    /// Key and body of each request, in order of arrival.
    seen: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Server {
    async fn start(script: impl Fn(u64) -> Script + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let script = Arc::new(script);
        let (count, log) = (Arc::new(AtomicU64::new(0)), seen.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, count, log) = (script.clone(), count.clone(), log.clone());
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    while let Ok((key, body)) = read(&mut stream).await {
                        let is_request = !body.is_null();
                        if is_request {
                            log.lock().expect("the log").push((key, body));
                        }
                        let answered = match is_request {
                            true => {
                                let script = script(count.fetch_add(1, Ordering::Relaxed));
                                answer(stream.get_mut(), script).await
                            }
                            false => models(stream.get_mut()).await,
                        };
                        if answered.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, seen }
    }

    async fn measure(&self, arguments: &str) -> Report {
        let base = format!("--base-url=http://{}/v1", self.address);
        let line = ["serve", &base].into_iter().chain(arguments.split_whitespace());
        let Line { args } = Line::try_parse_from(line).expect("arguments");
        measure(&args).await.expect("a report").1
    }

    fn seen(&self) -> Vec<(String, Value)> {
        self.seen.lock().expect("the log").clone()
    }
}

/// The key and the body of the next request; null for a GET.
async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<(String, Value)> {
    let (mut key, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim().split_once(": ") {
            Some(("authorization", value)) => key = value.trim_start_matches("Bearer ").into(),
            Some(("content-length", value)) => length = value.parse().expect("a length"),
            None if line.trim().is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok((key, serde_json::from_slice(&body).unwrap_or_default()))
}

async fn models(stream: &mut TcpStream) -> io::Result<()> {
    let body = json!({ "data": [{ "id": "base" }, { "id": "pirate" }, { "id": "poet" }] });
    plain(stream, 200, &body.to_string()).await
}

async fn plain(stream: &mut TcpStream, status: u16, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Whatever\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).await
}

async fn answer(stream: &mut TcpStream, script: Script) -> io::Result<()> {
    if script.status != 200 {
        let error = json!({ "error": { "code": "queue_full", "message": "come back later" } });
        return plain(stream, script.status, &error.to_string()).await;
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                transfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    sleep(script.first).await;
    for token in 0..script.tokens {
        if token > 0 {
            sleep(script.gap).await;
        }
        event(stream, &json!({ "choices": [{ "text": "Arr" }] }).to_string()).await?;
    }
    if script.breaks_off {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    let usage = json!({ "prompt_tokens": 5, "completion_tokens": script.tokens });
    event(stream, &json!({ "choices": [], "usage": usage }).to_string()).await?;
    event(stream, "[DONE]").await?;
    stream.write_all(b"0\r\n\r\n").await
}

async fn event(stream: &mut TcpStream, data: &str) -> io::Result<()> {
    let event = format!("data: {data}\n\n");
    stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await
}

const MILLISECOND: Duration = Duration::from_millis(1);

#[tokio::test]
async fn the_delays_of_a_server_come_out_in_the_percentiles() {
    // Each eighth request waits long for its first token, each gap is 20 ms.
    let slow = |index: u64| if index % 8 == 7 { 400 } else { 50 };
    let script = move |index| Script {
        first: slow(index) * MILLISECOND,
        gap: 20 * MILLISECOND,
        tokens: 5,
        ..Script::default()
    };
    let server = Server::start(script).await;
    let report = server.measure("--model base --requests 40 --concurrency 8 --warm-up 0").await;
    assert_eq!((report.requests, report.failed), (40, 0), "{report}");
    let Times { ttft, tpot, itl, latency } = &report.times;
    // What a busy machine adds: less than lies between the two delays.
    let near = |value: f64, wanted: f64| (wanted - 0.5..wanted + 150.0).contains(&value);
    assert!(near(ttft.p50, 50.0) && near(ttft.p99, 400.0), "{report}");
    assert!(near(tpot.p50, 20.0) && near(itl.p50, 20.0), "{report}");
    assert!(near(latency.p50, 130.0) && near(latency.p99, 480.0), "{report}");
    // 200 tokens; five rounds of eight, of which each has a slow one.
    let tokens = report.output_tokens_per_second * report.seconds;
    assert!((tokens - 200.0).abs() < 1e-6, "{report}");
    assert!((report.total_tokens_per_second * report.seconds - 400.0).abs() < 1e-6, "{report}");
}

#[tokio::test]
async fn failures_are_counted_by_what_they_are_and_do_not_spoil_the_times() {
    let script = |index: u64| match index % 4 {
        0 => Script { status: 429, ..Script::default() },
        1 => Script { breaks_off: true, ..Script::default() },
        2 => Script { tokens: 2, ..Script::default() },
        _ => Script::default(),
    };
    let server = Server::start(script).await;
    let arguments = "--model base --requests 40 --concurrency 4 --warm-up 0 --output-tokens 4 \
                     --ignore-eos --slo latency:60000";
    let report = server.measure(arguments).await;
    let errors: Vec<(&str, usize)> = report.errors.iter().map(|(e, n)| (e.as_str(), *n)).collect();
    let wanted =
        [("broken off", 10), ("fewer tokens than asked for", 10), ("status 429 queue_full", 10)];
    assert_eq!(errors, wanted, "{report}");
    assert_eq!((report.requests, report.failed), (40, 30));
    let goodput = report.goodput.as_ref().expect("objectives were given");
    assert_eq!(goodput.share, 0.25, "{report}");
    assert!(report.times.ttft.p50.is_finite(), "{report}");
}

#[tokio::test]
async fn nobody_listening_is_an_error_of_each_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let server =
        Server { address: listener.local_addr().expect("an address"), seen: Arc::default() };
    drop(listener);
    let report = server.measure("--model base --requests 3 --concurrency 1 --warm-up 0").await;
    assert_eq!(report.errors, [("no connection".to_owned(), 3)].into(), "{report}");
}

#[tokio::test]
async fn a_seed_sends_the_same_requests_in_the_same_order() {
    let arguments = "--requests 30 --request-rate 400 --warm-up 0 --pick zipf \
                     --prompt-tokens 4..16 --output-tokens 1..8 --without base \
                     --api-key first,second --key-weights 2,1";
    let mut runs = Vec::new();
    for seed in [9, 9, 10] {
        let server = Server::start(|_| Script::default()).await;
        server.measure(&format!("{arguments} --seed {seed}")).await;
        // Neighbours may overtake one another on their way.
        let mut seen: Vec<String> =
            server.seen().iter().map(|(key, body)| format!("{key} {body}")).collect();
        seen.sort();
        runs.push(seen);
    }
    assert_eq!(runs[0].len(), 30);
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
    assert_eq!(runs[0].iter().filter(|line| line.starts_with("first ")).count(), 20);
    assert!(runs[0].iter().all(|line| !line.contains("\"base\"")), "it was to be left out");
}

#[tokio::test]
async fn an_open_loop_keeps_its_rate_while_the_server_is_slow_and_bounds_what_is_under_way() {
    let script = |_| Script { first: 600 * MILLISECOND, ..Script::default() };
    let server = Server::start(script).await;
    // 100 a second for 0.4 s, of which 30 may be under way: none ends before the last has come.
    let arguments = "--model base --duration 0.4 --request-rate 100 --burstiness inf --warm-up 0 \
                     --max-in-flight 30";
    let report = server.measure(arguments).await;
    assert_eq!(report.requests, 40, "{report}");
    assert_eq!(report.errors, [("not sent: too many in flight".to_owned(), 10)].into());
    assert!(report.times.ttft.p50 >= 599.5, "{report}");
}

#[tokio::test]
async fn a_warm_up_is_not_counted() {
    let server = Server::start(|_| Script { first: 20 * MILLISECOND, ..Script::default() }).await;
    let report = server.measure("--model base --requests 4 --concurrency 2 --warm-up 0.3").await;
    assert_eq!(report.requests, 4);
    assert!(server.seen().len() > 8, "{} were sent", server.seen().len());
}
