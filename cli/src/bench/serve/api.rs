//! What goes over the wire: bodies of requests, and what an event of the answer says.

use super::schedule::Random;
use reqwest::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use std::borrow::Cow;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Api {
    /// POST {base}/completions, the prompt as token ids
    Completions,
    /// POST {base}/chat/completions, the prompt as words
    Chat,
    /// llama-server's POST {base}/completion: adapters by number, or `base`
    LlamaServer,
}

/// What a body says beside model and prompt.
#[derive(Debug, Clone, Copy)]
pub struct BodyOptions {
    pub temperature: f32,
    pub ignore_eos: bool,
}

/// Ids that every vocabulary has, and none of which is likely to be special.
const FIRST_TOKEN: u32 = 1000;
const TOKENS: u64 = 29_000;

/// One token each in the usual vocabularies, with the space before.
const WORDS: [&str; 32] = [
    "time", "people", "water", "house", "music", "light", "river", "story", "table", "paper",
    "green", "north", "world", "night", "stone", "money", "voice", "field", "horse", "plant",
    "small", "large", "early", "clear", "heavy", "quick", "round", "sharp", "brown", "young",
    "after", "under",
];

impl Api {
    /// After the base address.
    pub fn path(self) -> &'static str {
        match self {
            Api::Completions => "/completions",
            Api::Chat => "/chat/completions",
            Api::LlamaServer => "/completion",
        }
    }

    pub fn body(
        self,
        model: &str,
        prompt: Prompt,
        output_tokens: u32,
        options: BodyOptions,
    ) -> Result<Vec<u8>, serde_json::Error> {
        let mut body = match self {
            Api::Completions => json!({
                "model": model,
                "prompt": prompt.ids(),
                "max_tokens": output_tokens,
                "stream_options": { "include_usage": true },
            }),
            Api::Chat => json!({
                "model": model,
                "messages": [{ "role": "user", "content": prompt.words() }],
                "max_tokens": output_tokens,
                "stream_options": { "include_usage": true },
            }),
            Api::LlamaServer => json!({
                "prompt": prompt.ids(),
                "n_predict": output_tokens,
                // Without the field it applies all of its adapters.
                "lora": [match model.parse::<u32>() {
                    Ok(id) => json!({ "id": id, "scale": 1.0 }),
                    Err(_) => json!({ "id": 0, "scale": 0.0 }),
                }],
                "cache_prompt": false,
            }),
        };
        body["stream"] = true.into();
        body["temperature"] = options.temperature.into();
        if options.ignore_eos {
            body["ignore_eos"] = true.into();
        }
        serde_json::to_vec(&body)
    }

    /// Names that a server offers.
    pub async fn models(
        self,
        http: &Client,
        base_url: &str,
        key: Option<&str>,
    ) -> reqwest::Result<Vec<String>> {
        let (path, list, name) = match self {
            Api::LlamaServer => ("/lora-adapters", "", "/id"),
            Api::Completions | Api::Chat => ("/models", "/data", "/id"),
        };
        let mut request = http.get(format!("{base_url}{path}"));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let answer: Value = request.send().await?.error_for_status()?.json().await?;
        let entries = answer.pointer(list).and_then(Value::as_array);
        let names =
            entries.into_iter().flatten().filter_map(|entry| match entry.pointer(name)? {
                Value::String(name) => Some(name.clone()),
                number => number.as_u64().map(|id| id.to_string()),
            });
        Ok(names.collect())
    }
}

/// So many tokens drawn from a seed.
#[derive(Debug, Clone, Copy)]
pub struct Prompt {
    pub seed: u64,
    pub tokens: u32,
}

impl Prompt {
    pub fn ids(self) -> Vec<u32> {
        let mut random = Random::new(self.seed);
        (0..self.tokens).map(|_| FIRST_TOKEN + random.below(TOKENS) as u32).collect()
    }

    /// About as many tokens: the template around it is the server's.
    fn words(self) -> String {
        let mut random = Random::new(self.seed);
        let word = |_| WORDS[random.below(WORDS.len() as u64) as usize];
        (0..self.tokens).map(word).collect::<Vec<_>>().join(" ")
    }
}

/// What one event of an answer says to a stopwatch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    pub has_text: bool,
    /// No text follows.
    pub is_last: bool,
    pub usage: Option<Usage>,
    /// The answer ends with this error.
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
}

/// All three kinds of event in one: each field belongs to some of them.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    usage: Option<Usage>,
    error: Option<ErrorBody>,
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(default)]
    stop: bool,
    tokens_evaluated: Option<u32>,
    tokens_predicted: Option<u32>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
pub struct ErrorBody {
    code: Option<Value>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl ErrorBody {
    /// The code, or what kind of error it is: a short name without anything of the request.
    pub fn name(self) -> String {
        match self.code {
            Some(Value::String(code)) => code,
            Some(Value::Number(code)) => code.to_string(),
            _ => self.kind.unwrap_or_else(|| "unnamed".into()),
        }
    }
}

impl Event {
    /// Reads one event's data; `[DONE]` is not one.
    pub fn read(data: &str) -> Result<Self, serde_json::Error> {
        let chunk: Chunk = serde_json::from_str(data)?;
        let text = |text: &Option<Cow<str>>| text.as_ref().is_some_and(|text| !text.is_empty());
        let has_text = text(&chunk.content)
            || chunk.choices.iter().any(|choice| {
                text(&choice.text) || choice.delta.as_ref().is_some_and(|d| text(&d.content))
            });
        let counts = chunk.tokens_evaluated.zip(chunk.tokens_predicted).filter(|_| chunk.stop);
        let counts = counts
            .map(|(prompt_tokens, completion_tokens)| Usage { prompt_tokens, completion_tokens });
        Ok(Self {
            has_text,
            is_last: chunk.stop || chunk.choices.iter().any(|choice| text(&choice.finish_reason)),
            usage: chunk.usage.or(counts),
            error: chunk.error.map(ErrorBody::name),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: BodyOptions = BodyOptions { temperature: 0.0, ignore_eos: true };

    fn body(api: Api, model: &str) -> Value {
        let prompt = Prompt { seed: 3, tokens: 5 };
        let body = api.body(model, prompt, 9, OPTIONS).expect("JSON");
        serde_json::from_slice(&body).expect("JSON")
    }

    #[test]
    fn the_base_of_a_llama_server_is_an_explicit_zero_since_none_means_all() {
        assert_eq!(body(Api::LlamaServer, "base")["lora"], json!([{ "id": 0, "scale": 0.0 }]));
        assert_eq!(body(Api::LlamaServer, "3")["lora"], json!([{ "id": 3, "scale": 1.0 }]));
    }

    #[test]
    fn a_prompt_is_as_long_as_it_should_be_and_the_same_for_the_same_seed() {
        let (first, second) = (body(Api::Completions, "pirate"), body(Api::Completions, "pirate"));
        assert_eq!(first, second);
        assert_eq!(first["prompt"].as_array().map(Vec::len), Some(5));
        let chat = body(Api::Chat, "pirate");
        let words = chat["messages"][0]["content"].as_str().expect("words");
        assert_eq!(words.split(' ').count(), 5);
    }

    #[test]
    fn events_of_each_kind_are_understood() {
        let read = |value: Value| Event::read(&value.to_string()).expect("an event");
        let text = Event { has_text: true, ..Event::default() };
        assert_eq!(read(json!({ "choices": [{ "delta": { "content": "Arr" } }] })), text);
        assert_eq!(read(json!({ "choices": [{ "text": "Arr", "finish_reason": null }] })), text);
        assert_eq!(read(json!({ "content": "Arr", "stop": false })), text);
        let opening = json!({ "choices": [{ "delta": { "role": "assistant", "content": "" } }] });
        assert_eq!(read(opening), Event::default());

        let usage = Some(Usage { prompt_tokens: 7, completion_tokens: 9 });
        let counts = json!({ "prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16 });
        assert_eq!(
            read(json!({ "choices": [], "usage": counts })),
            Event { usage, ..Event::default() }
        );
        let last = Event { is_last: true, usage, ..Event::default() };
        let llama = json!({
            "content": "", "stop": true, "tokens_evaluated": 7, "tokens_predicted": 9,
        });
        assert_eq!(read(llama), last);
        let failed = read(json!({ "error": { "code": "engine_stopped", "message": "secret" } }));
        assert_eq!(failed.error.as_deref(), Some("engine_stopped"));
    }
}
