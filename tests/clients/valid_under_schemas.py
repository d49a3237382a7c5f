"""Checks answers against their schemas: lines of `{"schema", "text"}`, as an independent validator sees them."""

import json
import sys

import jsonschema


def number(text):
    raise AssertionError(f"{text} is no number of JSON")


wrong = 0
for line in sys.stdin:
    answer = json.loads(line)
    try:
        value = json.loads(answer["text"], parse_constant=number)
        # Surrogates come in pairs, or this fails.
        json.dumps(value, ensure_ascii=False).encode()
        validator = jsonschema.Draft202012Validator(
            answer["schema"], format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )
        validator.validate(value)
    except (AssertionError, ValueError, jsonschema.ValidationError) as error:
        wrong += 1
        print(f"{line}{type(error).__name__}: {error}\n")
sys.exit(wrong > 0)
