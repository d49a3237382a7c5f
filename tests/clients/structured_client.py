"""Asks for answers of a given form with the official client: parsed by pydantic, and with vLLM's fields."""

import enum
import json
import os
import re

import openai
from pydantic import BaseModel, ConfigDict, Field

client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"], max_retries=0)
MODEL = os.environ["MODEL"]
ASK = [{"role": "user", "content": "Describe a lorikeet."}]


class Colour(str, enum.Enum):
    RED = "red"
    GREEN = "green"
    BLUE = "blue"


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid")

    country: str = Field(max_length=12)
    altitude_m: int = Field(ge=0, le=4000)


class Bird(BaseModel):
    """A bird that a customer has seen."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=16)
    colours: list[Colour] = Field(min_length=1, max_length=3)
    can_fly: bool
    seen_at: Place | None


def is_a_bird(bird):
    assert isinstance(bird, Bird), bird
    assert 1 <= len(bird.colours) <= 3 and len(bird.name) <= 16, bird


chat = {"model": MODEL, "messages": ASK, "max_tokens": 200, "seed": 3}
answer = client.chat.completions.parse(**chat, response_format=Bird)
is_a_bird(answer.choices[0].message.parsed)
with client.chat.completions.stream(**chat, response_format=Bird) as stream:
    for event in stream:
        pass
    is_a_bird(stream.get_final_completion().choices[0].message.parsed)

respond = {"model": MODEL, "input": ASK, "max_output_tokens": 200}
response = client.responses.parse(**respond, text_format=Bird)
is_a_bird(response.output_parsed)
assert response.text.format.type == "json_schema" and response.status == "completed", response
with client.responses.stream(**respond, text_format=Bird) as stream:
    for event in stream:
        pass
    is_a_bird(stream.get_final_response().output_parsed)


def texts(**form):
    """What a chat, a completion and a response answer."""
    yield client.chat.completions.create(**chat, extra_body=form).choices[0].message.content
    asked = {"model": MODEL, "prompt": "A lorikeet is", "max_tokens": 200}
    yield client.completions.create(**asked, extra_body=form).choices[0].text
    yield client.responses.create(**respond, extra_body=form).output_text


sides = ["left", "right"]
digits = "start: /[0-9]{3}/ (\"-\" /[0-9]{2}/)?"
for form, is_followed in [
    ({"guided_choice": sides}, lambda text: text in sides),
    ({"structured_outputs": {"choice": sides}}, lambda text: text in sides),
    ({"guided_regex": "20[0-9]{2}-[01][0-9]"}, re.compile("20[0-9]{2}-[01][0-9]").fullmatch),
    ({"guided_grammar": digits}, re.compile("[0-9]{3}(-[0-9]{2})?").fullmatch),
    ({"guided_json": Bird.model_json_schema()}, Bird.model_validate_json),
]:
    for text in texts(**form):
        assert is_followed(text), (form, text)

refused = {"type": "object", "properties": {"a": {"not": {"type": "null"}}}}
for param, ask in {
    "response_format.json_schema.schema.properties.a": lambda: client.chat.completions.create(
        **chat,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": refused}},
    ),
    "text.format.schema.properties.a": lambda: client.responses.create(
        **respond, text={"format": {"type": "json_schema", "name": "x", "schema": refused}}
    ),
    "guided_json.properties.a": lambda: next(texts(guided_json=refused)),
}.items():
    try:
        ask()
    except openai.BadRequestError as error:
        assert error.param == param and f"`{param}`" in error.message, json.dumps(error.body)
    else:
        raise AssertionError(f"{param} was not refused")
print("ok")
