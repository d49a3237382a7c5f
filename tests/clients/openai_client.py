"""Walks the node's API with the official Python client."""

import json
import os
import re
import time
import urllib.request

import openai

BASE, MODEL, ADAPTER = os.environ["BASE_URL"], os.environ["MODEL"], os.environ["ADAPTER"]
client = openai.OpenAI(base_url=BASE, api_key=os.environ["API_KEY"], max_retries=0)
ASK = [{"role": "user", "content": "Write one sentence about parrots."}]


def chat(**more):
    more = {"model": MODEL, "messages": ASK, "max_tokens": 12, "seed": 7, **more}
    return client.chat.completions.create(**more)


def text_of(answer, choice=0):
    return answer.choices[choice].message.content


def raises(kind, call, status, code=None):
    try:
        call()
    except kind as error:
        assert error.status_code == status, (kind, error.status_code)
        assert code is None or error.code == code, error.code
        assert error.request_id.startswith("req_")
        assert error.body["request_id"] == error.request_id
        return
    raise AssertionError(f"no {kind.__name__}")


def metric(name):
    page = urllib.request.urlopen(os.environ["METRICS_URL"]).read().decode()
    return int(float(re.search(rf"^{name}(?:{{.*}})? (\S+)$", page, re.M)[1]))


def running():
    """Requests that hold memory in the engine."""
    return metric("lorikeet_requests_running")


# Whole and streamed, the same seed and the same text; the usage closes the stream.
whole = chat()
assert whole.model == MODEL and whole.usage.completion_tokens == 12
streamed, usage = "", None
for chunk in chat(stream=True, stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        streamed += choice.delta.content or ""
assert streamed == text_of(whole), (streamed, text_of(whole))
assert usage.total_tokens == whole.usage.total_tokens
assert text_of(chat()) == text_of(whole) != text_of(chat(seed=8))

three = chat(n=3)
assert text_of(three) == text_of(whole)
assert len({text_of(three, i) for i in range(3)}) > 1
assert three.usage.prompt_tokens == whole.usage.prompt_tokens
assert three.usage.completion_tokens == 36

entries = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
assert "".join(entry.token for entry in entries) == text_of(whole)
assert all(len(entry.top_logprobs) == 3 for entry in entries)

stop = text_of(whole)[4:9]
stopped = chat(stop=[stop, "never in there"])
assert text_of(stopped) == text_of(whole).split(stop)[0]
assert stopped.choices[0].finish_reason == "stop"

adapted = chat(model=ADAPTER, temperature=0)
assert adapted.model == f"{ADAPTER}@1", adapted.model
assert adapted.system_fingerprint != whole.system_fingerprint
models = {model.id for model in client.models.list()}
assert {MODEL, ADAPTER} <= models, models
assert client.models.retrieve(ADAPTER).owned_by.startswith("ten_")

completed = client.completions.create(
    model=MODEL, prompt=["Parrots are", "Lorikeets are"], max_tokens=5, logprobs=1, seed=7
)
assert len(completed.choices) == 2 and completed.usage.completion_tokens == 10
assert "".join(completed.choices[0].logprobs.tokens) == completed.choices[0].text

response = client.responses.create(model=MODEL, input=ASK, temperature=0, max_output_tokens=4)
assert response.status == "incomplete" and response.output_text
kinds = []
with client.responses.stream(model=MODEL, input=ASK, temperature=0, max_output_tokens=4) as stream:
    for event in stream:
        kinds.append(event.type)
assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete", kinds

# A round with a tool: the model must call it, whole and in a stream, and goes on from what came of it.
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Graz", "Linz"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "The weather now.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": {**FUNCTION, "strict": True}}]
FORCED = {"type": "function", "function": {"name": "get_weather"}}

asked = chat(tools=TOOLS, tool_choice=FORCED, max_tokens=60)
assert asked.choices[0].finish_reason == "tool_calls", asked
[call] = asked.choices[0].message.tool_calls
assert call.function.name == "get_weather"
assert json.loads(call.function.arguments)["city"] in ("Graz", "Linz")
pieces, name = "", None
for chunk in chat(tools=TOOLS, tool_choice=FORCED, max_tokens=60, stream=True):
    for delta in chunk.choices[0].delta.tool_calls or []:
        assert delta.index == 0
        name = delta.function.name or name
        pieces += delta.function.arguments
assert (name, pieces) == ("get_weather", call.function.arguments), (name, pieces)
required = chat(tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=60)
assert len(required.choices[0].message.tool_calls) == 1
told = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
answer = chat(messages=[*ASK, asked.choices[0].message, told], tools=TOOLS)
assert answer.usage.prompt_tokens > asked.usage.prompt_tokens

RESPONSE_TOOLS = [{"type": "function", "strict": True, **FUNCTION}]
ask = {"model": MODEL, "tools": RESPONSE_TOOLS, "max_output_tokens": 60}
asked = client.responses.create(input=ASK, tool_choice={"type": "function", "name": "get_weather"}, **ask)
[call] = asked.output
assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed"), call
assert json.loads(call.arguments)["city"] in ("Graz", "Linz")
with client.responses.stream(input=ASK, tool_choice="required", **ask) as stream:
    events = list(stream)
    final = stream.get_final_response()
deltas = [e for e in events if e.type == "response.function_call_arguments.delta"]
assert "".join(e.delta for e in deltas if e.output_index == 0) == final.output[0].arguments
assert any(e.type == "response.function_call_arguments.done" for e in events)
told = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
answer = client.responses.create(input=[*ASK, call, told], **ask)
assert answer.usage.input_tokens > asked.usage.input_tokens

# Left in its midst: the connection closes, and the engine lets go of the sequence with the step after it
# hears of that. Some steps more are the machine's, which may be busy; the answer would take 4,000.
with chat(stream=True, max_tokens=4000, extra_body={"ignore_eos": True}) as leaving:
    next(iter(leaving))
    assert running() == 1
left = metric("lorikeet_step_seconds_count")
deadline = time.monotonic() + 20
while running() > 0:
    assert time.monotonic() < deadline, "the sequence still runs"
took = metric("lorikeet_step_seconds_count") - left
assert took < 20, f"it ran for {took} steps more"

raises(openai.BadRequestError, lambda: chat(temperature=9), 400)
raises(openai.BadRequestError, lambda: chat(max_tokens=10**6), 400, "context_length_exceeded")
raises(openai.NotFoundError, lambda: chat(model="nobody-has-it"), 404, "model_not_found")
wrong = openai.OpenAI(base_url=BASE, api_key="lk_live_wrong", max_retries=0)
raises(openai.AuthenticationError, lambda: wrong.models.list(), 401, "invalid_api_key")
manager = openai.OpenAI(base_url=BASE, api_key=os.environ["MANAGE_KEY"], max_retries=0)
raises(openai.PermissionDeniedError, lambda: manager.models.list(), 403, "insufficient_scope")
print("ok")
