"""The node behind langchain."""

import os

import openai
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI


def model(name=os.environ["MODEL"], key=os.environ["API_KEY"], **more):
    return ChatOpenAI(
        model=name,
        base_url=os.environ["BASE_URL"],
        api_key=key,
        max_retries=0,
        **{"max_tokens": 12, "seed": 7, **more},
    )


def raises(kind, call):
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


ASK = "Write one sentence about parrots."
whole = model().invoke(ASK)
assert whole.content and whole.usage_metadata["output_tokens"] == 12, whole
gathered = None
for chunk in model(stream_usage=True).stream(ASK):
    gathered = chunk if gathered is None else gathered + chunk
assert gathered.content == whole.content, gathered
assert gathered.usage_metadata["output_tokens"] == 12, gathered.usage_metadata
stop = whole.content[4:9]
assert model().invoke(ASK, stop=[stop]).content == whole.content.split(stop)[0]
assert model(logprobs=True).invoke(ASK).response_metadata["logprobs"]["content"]
assert len(model(n=3).generate([[HumanMessage(ASK)]]).generations[0]) == 3
assert model(use_responses_api=True, seed=None).invoke(ASK).text
raises(openai.NotFoundError, lambda: model("nobody-has-it").invoke(ASK))
raises(openai.AuthenticationError, lambda: model(key="lk_live_wrong").invoke(ASK))
print("ok")
