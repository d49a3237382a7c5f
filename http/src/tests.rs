use super::*;
use axum::body::{Body, Bytes};
use axum::routing::get;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

const SOON: Duration = Duration::from_secs(20);

async fn start(router: Router, patience: Patience) -> (HttpServer, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    (HttpServer::start(listener, router, patience, Arc::default()), address)
}

async fn send(address: SocketAddr, text: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    // What the kernel holds for a client that does not read is the kernel's; keep it small.
    socket.set_recv_buffer_size(4096).expect("a size");
    let mut stream = socket.connect(address).await.expect("a connection");
    // Whoever is refused early may be reset while it still sends.
    let _ = stream.write_all(text.as_bytes()).await;
    stream
}

/// Everything that comes until the server closes the connection.
async fn until_closed(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    // A reset is an end, too.
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut text)).await.expect("it is closed");
    String::from_utf8_lossy(&text).into_owned()
}

fn hello() -> Router {
    Router::new()
        .route("/", get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string()))
}

const HELLO: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn a_head_must_come_in_time_and_an_idle_connection_is_closed() {
    let head = Duration::from_millis(300);
    let (server, address) = start(hello(), Patience { head, ..Patience::default() }).await;
    assert_eq!(until_closed(send(address, "").await).await, "");
    let half = until_closed(send(address, &HELLO[..20]).await).await;
    assert!(!half.contains(" 200 "), "{half}");
    let stream = send(address, HELLO).await;
    let client = stream.local_addr().expect("an address").to_string();
    let answer = until_closed(stream).await;
    assert!(answer.contains(" 200 ") && answer.ends_with(&client), "{answer}");
    assert!(server.close(SOON).await);
}

#[tokio::test]
async fn a_head_of_too_many_lines_or_bytes_is_refused() {
    let (server, address) = start(hello(), Patience::default()).await;
    let lines: String = (0..200).map(|i| format!("x-{i}: 1\r\n")).collect();
    let bytes = format!("x: {}\r\n", "1".repeat(100_000));
    for headers in [lines, bytes] {
        let request = format!("GET / HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        let answer = until_closed(send(address, &request).await).await;
        assert!(answer.contains(" 431 "), "{answer}");
    }
    assert!(server.close(SOON).await);
}

#[tokio::test]
async fn further_connections_wait_until_one_is_free() {
    let head = Duration::from_secs(1);
    let (server, address) =
        start(hello(), Patience { max_connections: 1, head, ..Patience::default() }).await;
    let idle = send(address, "").await;
    let began = Instant::now();
    let answer = until_closed(send(address, HELLO).await).await;
    assert!(answer.contains(" 200 "), "{answer}");
    assert!(began.elapsed() > Duration::from_millis(500), "it did not wait");
    drop(idle);
    assert!(server.close(SOON).await);
}

/// Says when it has been dropped.
struct Held(Arc<AtomicBool>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn an_answer_that_nobody_reads_ends_and_lets_go_of_what_it_held() {
    let dropped = Arc::new(AtomicBool::new(false));
    let held = dropped.clone();
    let endless = async move || {
        let held = Held(held.clone());
        let pieces = futures::stream::repeat_with(move || {
            let _held = &held;
            Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 4096]))
        });
        Body::from_stream(pieces)
    };
    let router = Router::new().route("/", get(endless));
    let reading = Duration::from_millis(500);
    let (server, address) = start(router, Patience { reading, ..Patience::default() }).await;
    let cut_off = server.connections.cut_off.clone();
    let mut stream = send(address, HELLO).await;
    stream.read_u8().await.expect("it begins");
    let ended = async {
        while !dropped.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, ended).await.expect("it is cut off");
    assert_eq!(cut_off.get(), 1);
    assert!(server.close(SOON).await);
}
