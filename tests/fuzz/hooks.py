"""What schemathesis cannot know of a running service: which things exist, and who may see them. Counts
what comes of it."""

import atexit
import collections
import json
import os

import schemathesis

counts = collections.Counter()

if os.environ["FUZZ_OPERATOR"]:
    import control_plane as service
else:
    import node as service


@schemathesis.hook
def before_call(context, case, kwargs):
    service.prepare(case)


@schemathesis.hook
def after_call(context, case, response):
    service.learn(case, response)
    counts["cases"] += 1
    counts[str(response.status_code)] += 1
    sent = getattr(response.request, "headers", {})
    identified = "Authorization" in sent or "Cookie" in sent
    if identified and 200 <= response.status_code < 300:
        counts["authenticated and 2xx"] += 1


@atexit.register
def report():
    with open(os.environ["FUZZ_REPORT"], "w") as file:
        json.dump(counts, file)
