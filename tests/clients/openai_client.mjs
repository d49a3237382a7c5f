// Walks the node's API with the official Node client.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.NODE_MODULES}/`);
const { OpenAI } = require("openai");

const { BASE_URL, API_KEY, MODEL, ADAPTER } = process.env;
const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "Write one sentence about parrots." }];
const body = { model: MODEL, messages, max_tokens: 12, seed: 7 };
const chat = (more = {}) => client.chat.completions.create({ ...body, ...more });

const whole = await chat();
const text = whole.choices[0].message.content;
assert.equal(whole.usage.completion_tokens, 12);
let streamed = "";
let usage;
for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.equal(usage.completion_tokens, 12);
assert.equal((await chat({ n: 3 })).choices.length, 3);
const stop = text.slice(4, 9);
assert.equal((await chat({ stop })).choices[0].message.content, text.split(stop)[0]);
assert.equal((await chat({ logprobs: true, top_logprobs: 2 })).choices[0].logprobs.content.length, 12);
assert.equal((await chat({ model: ADAPTER })).model, `${ADAPTER}@1`);
const response = await client.responses.create({ model: MODEL, input: messages, max_output_tokens: 12 });
assert.ok(response.output_text);

const leaving = await chat({ stream: true, max_tokens: 2000 });
for await (const _ of leaving) break;
leaving.controller.abort();

await assert.rejects(chat({ temperature: 9 }), OpenAI.BadRequestError);
await assert.rejects(chat({ model: "nobody-has-it" }), OpenAI.NotFoundError);
const wrong = new OpenAI({ baseURL: BASE_URL, apiKey: "lk_live_wrong", maxRetries: 0 });
await assert.rejects(wrong.models.list(), OpenAI.AuthenticationError);
console.log("ok");
