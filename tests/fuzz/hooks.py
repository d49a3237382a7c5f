"""What schemathesis cannot know of a running service: which things exist. Counts what comes of it."""

import atexit
import collections
import json
import os

import schemathesis

EXISTING = json.loads(os.environ["FUZZ_EXISTING"])
counts = collections.Counter()


@schemathesis.hook
def map_body(context, body):
    """The model that is served, and answers of a few tokens; what is out of bounds stays so."""
    if isinstance(body, dict):
        if isinstance(body.get("model"), str) and "model" in EXISTING:
            body["model"] = EXISTING["model"]
            body.pop("logit_bias", None)
            body.pop("min_tokens", None)
        for limit in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(body.get(limit), int) and body[limit] > 8:
                body[limit] = 8
        if isinstance(body.get("n"), int) and body["n"] > 4:
            body["n"] = 4
        if body.get("echo") and "logprobs" in body:
            del body["logprobs"]
        if isinstance(body.get("input"), (str, list)):
            body.pop("n", None)
            if body.get("max_output_tokens") is None:
                body["max_output_tokens"] = 8
        elif isinstance(body.get("messages"), list):
            if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
                body["max_tokens"] = 8
        if isinstance(body.get("version"), int) and "version" in EXISTING:
            body["version"] = EXISTING["version"]
    return body


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """What there is, in place of most of what there is not; but for deletion, which works once."""
    if context.operation.method.lower() == "delete":
        return path_parameters
    for name, value in (path_parameters or {}).items():
        if name in EXISTING and hash(str(value)) % 4:
            path_parameters[name] = EXISTING[name]
    return path_parameters


@schemathesis.hook
def after_call(context, case, response):
    counts["cases"] += 1
    counts[str(response.status_code)] += 1
    sent = getattr(response.request, "headers", {})
    if "Authorization" in sent and 200 <= response.status_code < 300:
        counts["authenticated and 2xx"] += 1


@atexit.register
def report():
    with open(os.environ["FUZZ_REPORT"], "w") as file:
        json.dump(counts, file)
