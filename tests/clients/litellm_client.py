"""The node behind litellm."""

import os

import litellm

MODEL = os.environ["MODEL"]
ASK = [{"role": "user", "content": "Write one sentence about parrots."}]


def chat(model=MODEL, key=os.environ["API_KEY"], **more):
    return litellm.completion(
        model=f"openai/{model}",
        api_base=os.environ["BASE_URL"],
        api_key=key,
        messages=ASK,
        num_retries=0,
        **{"max_tokens": 12, "seed": 7, **more},
    )


def raises(kind, call):
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


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
raises(litellm.NotFoundError, lambda: chat(model="nobody-has-it"))
raises(litellm.AuthenticationError, lambda: chat(key="lk_live_wrong"))
raises(litellm.BadRequestError, lambda: chat(temperature=9))
print("ok")
