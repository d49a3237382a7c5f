"""The node behind langchain."""

import os
import unittest
from typing import Literal

import openai
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


def model(name=os.environ["MODEL"], key=os.environ["API_KEY"], **more):
    return ChatOpenAI(
        model=name,
        base_url=os.environ["BASE_URL"],
        api_key=key,
        max_retries=0,
        **{"max_tokens": 12, "seed": 7, **more},
    )


raises = unittest.TestCase().assertRaises
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


@tool
def get_weather(city: Literal["Graz", "Linz"]) -> str:
    """The weather in a city now."""
    return f"sunny in {city}"


caller = model(max_tokens=60).bind_tools([get_weather], tool_choice="get_weather")
asked = caller.invoke(ASK)
[call] = asked.tool_calls
assert call["name"] == "get_weather" and call["args"]["city"] in ("Graz", "Linz"), call
gathered = None
for chunk in caller.stream(ASK):
    gathered = chunk if gathered is None else gathered + chunk
assert gathered.tool_calls[0]["args"] == call["args"], gathered
told = get_weather.invoke(call)
answer = model().bind_tools([get_weather]).invoke([HumanMessage(ASK), asked, told])
assert answer.usage_metadata["input_tokens"] > asked.usage_metadata["input_tokens"]
asked = model(use_responses_api=True, seed=None, temperature=0, max_tokens=60)
asked = asked.bind_tools([get_weather], tool_choice="any", strict=True)
assert asked.invoke(ASK).tool_calls[0]["name"] == "get_weather"

raises(openai.NotFoundError, lambda: model("nobody-has-it").invoke(ASK))
raises(openai.AuthenticationError, lambda: model(key="lk_live_wrong").invoke(ASK))
print("ok")
