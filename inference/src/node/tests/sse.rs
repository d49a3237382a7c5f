//! A client of server-sent events.

use super::control_plane::SOON;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::Value;

/// The events of one answer, read as they come. Dropping it closes the connection.
pub struct Events {
    bytes: BoxStream<'static, reqwest::Result<axum::body::Bytes>>,
    buffer: String,
    pub done: bool,
}

impl Events {
    pub fn of(response: reqwest::Response) -> Self {
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { bytes: response.bytes_stream().boxed(), buffer: String::new(), done: false }
    }

    /// The next event; None at `[DONE]`, after which nothing may come.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let data = event.strip_prefix("data: ").expect("an event is data").to_owned();
                self.buffer = rest.to_owned();
                if data != "[DONE]" {
                    return Some(serde_json::from_str(&data).expect("JSON"));
                }
                self.done = true;
                assert_eq!(self.buffer, "");
                assert!(self.read().await.is_none(), "the body ends");
                return None;
            }
            let more = self.read().await.expect("the stream ends with [DONE]");
            self.buffer += std::str::from_utf8(&more).expect("whole characters");
        }
    }

    async fn read(&mut self) -> Option<axum::body::Bytes> {
        let next = tokio::time::timeout(SOON, self.bytes.next()).await.expect("soon enough");
        next.map(|bytes| bytes.expect("the connection holds"))
    }

    pub async fn rest(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// The text of chunks.
pub fn text(chunks: &[Value]) -> String {
    let deltas = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str());
    deltas.collect()
}
