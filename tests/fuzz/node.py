"""The model that a node serves, and answers of a few tokens; what is out of bounds stays so."""

import itertools
import os

MODEL = os.environ["FUZZ_MODEL"]

numbers = itertools.count(1)


def prepare(case):
    case.headers["Authorization"] = "Bearer " + os.environ["FUZZ_KEY"]
    # Some are repeated under one key: with the same body, or with another.
    number = next(numbers)
    if case.method.upper() == "POST" and number % 4 == 0:
        case.headers["Idempotency-Key"] = f"fuzzed {number // 12}"
    elif "Idempotency-Key" in case.headers:
        # What was generated is of one case: another body under it would only be refused.
        case.headers["Idempotency-Key"] = f"{number}{case.headers['Idempotency-Key']}"[:255]
    for name in case.path_parameters or {}:
        if name == "model" and number % 4:
            case.path_parameters[name] = MODEL
    if isinstance(case.body, dict):
        shorten(case.body)


def shorten(body):
    if isinstance(body.get("model"), str):
        body["model"] = MODEL
        body.pop("logit_bias", None)
        body.pop("min_tokens", None)
    for limit in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(body.get(limit), int) and body[limit] > 8:
            body[limit] = 8
    if isinstance(body.get("n"), int) and body["n"] > 4:
        body["n"] = 4
    if isinstance(body.get("input"), (str, list)):
        body.pop("n", None)
        if body.get("max_output_tokens") is None:
            body["max_output_tokens"] = 8
    elif isinstance(body.get("messages"), list):
        if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
            body["max_tokens"] = 8


def learn(case, response):
    """Nothing that a node answers is there for later calls."""
