//! `lorikeet chat`: talk to a model or an adapter from the terminal.

use crate::client::{Client, Service};
use crate::sse::Events;
use anyhow::{Context, bail};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    lorikeet chat --model pirate \"What is the capital of France?\"\n  \
    lorikeet chat --model pirate          # a conversation; Ctrl-D ends it\n  \
    echo Translate: dog | lorikeet chat --model esperanto")]
pub struct Args {
    /// Say this and print the answer; without it, a conversation is read from standard input
    prompt: Option<String>,
    /// The adapter's name [default: the base model]
    #[arg(long, short)]
    model: Option<String>,
    /// Comes first, and sets the tone
    #[arg(long)]
    system: Option<String>,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 256)]
    max_tokens: u32,
    /// 0 always says the likeliest
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    #[command(flatten)]
    client: crate::client::Args,
}

#[derive(Serialize, Clone)]
struct Message {
    role: &'static str,
    content: String,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Delta,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ApiError,
}

#[derive(Deserialize)]
struct ApiError {
    message: String,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let client = Client::anonymous(&args.client.url)?;
    let Service { api_base_url, base_model } = client.service().await?;
    let model = match (&args.model, base_model) {
        (Some(model), _) => model.clone(),
        (None, Some(base)) => base,
        (None, None) => bail!("no node has connected yet; name an adapter with --model"),
    };
    let conversation = Conversation { http: client.http, url: api_base_url, model, args };
    let system = conversation.args.system.clone();
    let mut messages: Vec<Message> =
        system.map(|content| Message { role: "system", content }).into_iter().collect();
    if let Some(prompt) = conversation.args.prompt.clone() {
        messages.push(Message { role: "user", content: prompt });
        conversation.answer(&messages).await?;
        return Ok(());
    }
    let stdin = std::io::stdin();
    let asks = stdin.is_terminal();
    loop {
        if asks {
            eprint!("> ");
        }
        let mut line = String::new();
        if stdin.lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            continue;
        }
        messages.push(Message { role: "user", content: line.trim().to_owned() });
        let answer = conversation.answer(&messages).await?;
        messages.push(Message { role: "assistant", content: answer });
    }
}

struct Conversation {
    http: reqwest::Client,
    /// Includes `/v1`.
    url: String,
    model: String,
    args: Args,
}

impl Conversation {
    /// Prints the answer as it comes, and returns it.
    async fn answer(&self, messages: &[Message]) -> anyhow::Result<String> {
        let response = self
            .http
            .post(format!("{}/chat/completions", self.url))
            .bearer_auth(&self.args.client.api_key)
            .json(&json!({
                "model": self.model,
                "messages": messages,
                "max_tokens": self.args.max_tokens,
                "temperature": self.args.temperature,
                "stream": true,
            }))
            .send()
            .await
            .with_context(|| format!("no node answers at {}", self.url))?;
        let status = response.status();
        if !status.is_success() {
            let text = response.text().await?;
            match serde_json::from_str::<ErrorBody>(&text) {
                Ok(body) => bail!("{} ({status})", body.error.message),
                Err(_) => bail!("the node answered {status}: {text}"),
            }
        }
        let mut events = Events::default();
        let mut answer = String::new();
        let mut bytes = response.bytes_stream();
        let mut out = std::io::stdout();
        while let Some(piece) = bytes.next().await {
            events.push(&piece.context("the answer broke off")?);
            while let Some(data) = events.pop() {
                if data == "[DONE]" {
                    writeln!(out)?;
                    return Ok(answer);
                }
                let text = text_of(&data)?;
                write!(out, "{text}")?;
                out.flush()?;
                answer.push_str(&text);
            }
        }
        bail!("the answer broke off")
    }
}

fn text_of(data: &str) -> anyhow::Result<String> {
    let chunk: Chunk =
        serde_json::from_str(data).with_context(|| format!("the node sent {data:?}"))?;
    if let Some(error) = chunk.error {
        bail!(error.message);
    }
    Ok(chunk.choices.into_iter().filter_map(|choice| choice.delta.content).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_in_the_middle_of_a_stream_is_reported() {
        let error = text_of(r#"{"error": {"message": "the adapter was deleted"}}"#).unwrap_err();
        assert_eq!(error.to_string(), "the adapter was deleted");
        let text = text_of(r#"{"choices": [{"delta": {"content": "Arr"}}]}"#).unwrap();
        assert_eq!(text, "Arr");
    }
}
