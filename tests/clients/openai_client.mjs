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

// A round with a tool, whole and in a stream.
const parameters = {
  type: "object",
  properties: { city: { enum: ["Graz", "Linz"] } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const forced = { tools, tool_choice: { type: "function", function: { name: "get_weather" } }, max_tokens: 60 };
const asked = await chat(forced);
assert.equal(asked.choices[0].finish_reason, "tool_calls");
const [call] = asked.choices[0].message.tool_calls;
assert.ok(["Graz", "Linz"].includes(JSON.parse(call.function.arguments).city));
const runner = client.chat.completions.stream({ ...body, ...forced });
const gathered = await runner.finalMessage();
assert.equal(gathered.tool_calls[0].function.arguments, call.function.arguments);
const told = { role: "tool", tool_call_id: call.id, content: "sunny" };
const answer = await chat({ tools, messages: [...messages, asked.choices[0].message, told] });
assert.ok(answer.usage.prompt_tokens > asked.usage.prompt_tokens);

const ask = {
  model: MODEL,
  tools: [{ type: "function", name: "get_weather", parameters, strict: true }],
  max_output_tokens: 60,
};
const choice = { type: "function", name: "get_weather" };
const calling = await client.responses.create({ ...ask, input: messages, tool_choice: choice });
assert.equal(calling.output[0].type, "function_call");
let pieces = "";
for await (const event of await client.responses.create({ ...ask, input: messages, tool_choice: choice, stream: true })) {
  if (event.type === "response.function_call_arguments.delta") pieces += event.delta;
  if (event.type === "response.function_call_arguments.done") assert.equal(event.arguments, pieces);
}
assert.ok(JSON.parse(pieces).city);
const output = { type: "function_call_output", call_id: calling.output[0].call_id, output: "sunny" };
const went = await client.responses.create({ ...ask, input: [...messages, calling.output[0], output] });
assert.ok(went.usage.input_tokens > calling.usage.input_tokens);

const leaving = await chat({ stream: true, max_tokens: 2000 });
for await (const _ of leaving) break;
leaving.controller.abort();

await assert.rejects(chat({ temperature: 9 }), OpenAI.BadRequestError);
await assert.rejects(chat({ model: "nobody-has-it" }), OpenAI.NotFoundError);
const wrong = new OpenAI({ baseURL: BASE_URL, apiKey: "lk_live_wrong", maxRetries: 0 });
await assert.rejects(wrong.models.list(), OpenAI.AuthenticationError);
console.log("ok");
