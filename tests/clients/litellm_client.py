"""The node behind litellm."""

import json
import os
import unittest

import litellm

MODEL = os.environ["MODEL"]
ASK = [{"role": "user", "content": "Write one sentence about parrots."}]


def chat(model=MODEL, key=os.environ["API_KEY"], **more):
    return litellm.completion(
        model=f"openai/{model}",
        api_base=os.environ["BASE_URL"],
        api_key=key,
        num_retries=0,
        **{"messages": ASK, "max_tokens": 12, "seed": 7, **more},
    )


raises = unittest.TestCase().assertRaises
whole = chat()
text = whole.choices[0].message.content
assert whole.usage.completion_tokens == 12, whole.usage
chunks = list(chat(stream=True, stream_options={"include_usage": True}))
assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
usages = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
assert usages[-1].completion_tokens == 12, usages
assert len(chat(n=3).choices) == 3
assert chat(stop=[text[4:9]]).choices[0].message.content == text.split(text[4:9])[0]
assert chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
parameters = {
    "type": "object",
    "properties": {"city": {"enum": ["Graz", "Linz"]}},
    "required": ["city"],
    "additionalProperties": False,
}
tools = [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]
forced = {"type": "function", "function": {"name": "get_weather"}}
asked = chat(tools=tools, tool_choice=forced, max_tokens=60)
[call] = asked.choices[0].message.tool_calls
assert json.loads(call.function.arguments)["city"] in ("Graz", "Linz"), call
chunks = list(chat(tools=tools, tool_choice=forced, max_tokens=60, stream=True))
built = litellm.stream_chunk_builder(chunks)
assert built.choices[0].message.tool_calls[0].function.arguments == call.function.arguments
told = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
answer = chat(tools=tools, messages=[*ASK, asked.choices[0].message.model_dump(), told])
assert answer.usage.prompt_tokens > asked.usage.prompt_tokens
raises(litellm.NotFoundError, lambda: chat(model="nobody-has-it"))
raises(litellm.AuthenticationError, lambda: chat(key="lk_live_wrong"))
raises(litellm.BadRequestError, lambda: chat(temperature=9))
print("ok")
