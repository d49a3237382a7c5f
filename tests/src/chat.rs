//! A streaming chat over plain HTTP, token by token, for tests that must act in its midst.

use anyhow::{Context, Result, bail};
use futures::{Stream, StreamExt};
use serde_json::{Value, json};
use std::pin::Pin;

/// One chat in progress.
pub struct Chat {
    bytes: Pin<Box<dyn Stream<Item = reqwest::Result<Vec<u8>>> + Send>>,
    buffer: Vec<u8>,
    /// Answer so far.
    pub text: String,
    pub request_id: String,
    pub finish_reason: Option<String>,
    pub usage: Option<Value>,
}

impl Chat {
    /// Sends the request and waits for the head of the answer.
    pub async fn start(base: &str, key: &str, model: &str, prompt: &str, max: u32) -> Result<Self> {
        let response = reqwest::Client::new()
            .post(format!("{base}/chat/completions"))
            .bearer_auth(key)
            .json(&json!({
                "model": model,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": max,
                "temperature": 0,
                "stream": true,
                "stream_options": {"include_usage": true},
            }))
            .send()
            .await?;
        let status = response.status();
        if !status.is_success() {
            bail!("{status}: {}", response.text().await?);
        }
        let id = response.headers().get("x-request-id").context("x-request-id")?;
        Ok(Self {
            request_id: id.to_str()?.to_owned(),
            bytes: Box::pin(response.bytes_stream().map(|b| b.map(|b| b.to_vec()))),
            buffer: Vec::new(),
            text: String::new(),
            finish_reason: None,
            usage: None,
        })
    }

    /// The next chunk's text; `None` after `[DONE]`. A stream that breaks off is an error.
    pub async fn next(&mut self) -> Result<Option<String>> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|w| w == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let event = String::from_utf8(event).context("a broken character")?;
                let Some(data) = event.trim().strip_prefix("data: ") else { continue };
                if data == "[DONE]" {
                    return Ok(None);
                }
                let chunk: Value = serde_json::from_str(data)?;
                if let Some(error) = chunk.get("error") {
                    bail!("the stream reported {error}");
                }
                if let Some(usage) = chunk.get("usage").filter(|u| !u.is_null()) {
                    self.usage = Some(usage.clone());
                }
                let choice = &chunk["choices"][0];
                if let Some(reason) = choice["finish_reason"].as_str() {
                    self.finish_reason = Some(reason.to_owned());
                }
                if let Some(text) = choice["delta"]["content"].as_str().filter(|t| !t.is_empty()) {
                    self.text.push_str(text);
                    return Ok(Some(text.to_owned()));
                }
            }
            let Some(bytes) = self.bytes.next().await else { bail!("the stream broke off") };
            self.buffer.extend(bytes?);
        }
    }

    /// Reads `count` chunks.
    pub async fn chunks(&mut self, count: usize) -> Result<()> {
        for i in 0..count {
            self.next().await?.with_context(|| format!("the answer ended after {i} chunks"))?;
        }
        Ok(())
    }

    /// Reads to the end and returns the answer.
    pub async fn finish(mut self) -> Result<Self> {
        while self.next().await?.is_some() {}
        Ok(self)
    }
}
