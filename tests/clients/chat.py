"""Streams one chat through the official client and prints the answer."""

import os
import sys

import openai

client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"], max_retries=0)
try:
    stream = client.chat.completions.create(
        model=os.environ["MODEL"],
        messages=[{"role": "user", "content": os.environ["PROMPT"]}],
        temperature=0,
        max_tokens=64,
        stream=True,
        stream_options={"include_usage": True},
    )
except openai.NotFoundError as error:
    print(error.status_code, error.body)
    sys.exit(0)

text, usage, finish = "", None, None
for chunk in stream:
    if chunk.usage:
        usage = chunk.usage
    for choice in chunk.choices:
        text += choice.delta.content or ""
        finish = choice.finish_reason or finish
assert usage is not None and usage.completion_tokens > 0, usage
assert finish in ("stop", "length"), finish
print(text)
