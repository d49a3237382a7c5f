"""What exists on a control plane, and what has to be made anew because a call uses it up.

Most calls get these ids; some keep what was generated, so that what does not exist is asked for too.
"""

import itertools
import os
import random

import requests

URL = os.environ["FUZZ_URL"]
ADAPTER = {"name": os.environ["FUZZ_ADAPTER"], "version": 1, "alias": "stable"}
FILES = ["adapter_config.json", "adapter_model.safetensors"]

random.seed(int(os.environ["FUZZ_SEED"]))
numbers = itertools.count(1)
# Made by calls, and not revoked: the account may have only so many.
keys = []

KEY = {"Authorization": "Bearer " + os.environ["FUZZ_KEY"]}
tenant = requests.Session()
tenant.headers.update(KEY)
TENANT = tenant.get(URL + "/api/v1/me").json()["tenant"]["id"]


def log_in():
    """A session of the operator, as headers."""
    form = {"email": os.environ["FUZZ_OPERATOR"], "password": os.environ["FUZZ_PASSWORD"]}
    answer = requests.post(URL + "/api/v1/login", json=form)
    answer.raise_for_status()
    cookie = "; ".join(f"{name}={value}" for name, value in answer.cookies.items())
    return {"Cookie": cookie, "x-csrf-token": answer.json()["csrf_token"], "Origin": URL}


OPERATOR = log_in()


def forget(name):
    """Whatever is called so: the account may have only so much."""
    tenant.delete(f"{URL}/api/v1/adapters/{name}")


def start_upload(name):
    forget(name)
    files = [{"name": file, "bytes": 9} for file in FILES]
    answer = tenant.post(f"{URL}/api/v1/adapters/{name}/versions", json={"files": files})
    answer.raise_for_status()
    return answer.json()


def sent_upload(name):
    """An upload whose parts are in the object store, and are no adapter."""
    upload = start_upload(name)
    parts = []
    for file in upload["files"]:
        for part in file["parts"]:
            sent = requests.put(part["url"], data=b"123456789"[: part["bytes"]])
            sent.raise_for_status()
            parts.append(
                {
                    "file": file["name"],
                    "number": part["number"],
                    "etag": sent.headers["ETag"],
                    "bytes": part["bytes"],
                }
            )
    answer = tenant.put(f"{URL}/api/v1/uploads/{upload['upload_id']}/parts", json={"parts": parts})
    answer.raise_for_status()
    return upload["upload_id"]


OPEN = start_upload("open")["upload_id"]


def new_key():
    if keys:
        return keys.pop()
    body = {"name": f"fuzzed {next(numbers)}", "scopes": ["read"]}
    answer = tenant.post(URL + "/api/v1/keys", json=body)
    answer.raise_for_status()
    return answer.json()["id"]


def new_adapter():
    start_upload("short-lived")
    return "short-lived"


def new_alias():
    path = f"{URL}/api/v1/adapters/{ADAPTER['name']}/aliases/short-lived"
    tenant.put(path, json={"version": ADAPTER["version"]}).raise_for_status()
    return "short-lived"


MADE_ANEW = {
    ("DELETE", "/api/v1/keys/{key_id}"): lambda: {"key_id": new_key()},
    ("DELETE", "/api/v1/adapters/{name}"): lambda: {"name": new_adapter()},
    ("POST", "/api/v1/adapters/{name}/disable"): lambda: {"name": new_adapter()},
    ("DELETE", "/api/v1/adapters/{name}/aliases/{alias}"): lambda: {"alias": new_alias()},
    ("DELETE", "/api/v1/uploads/{upload}"): lambda: {
        "upload": start_upload("given-up")["upload_id"]
    },
    ("POST", "/api/v1/uploads/{upload}/complete"): lambda: {"upload": sent_upload("completed")},
}


def prepare(case):
    path, method = case.operation.path, case.method.upper()
    if path == "/api/v1/logout":
        case.headers.update(log_in())
    elif path.startswith("/api/v1/operator/"):
        case.headers.update(OPERATOR)
    else:
        case.headers.update(KEY)
    if random.random() < 0.25:
        return
    known = {**ADAPTER, "tenant": TENANT, "upload": OPEN}
    if path == "/api/v1/keys" and method == "POST" and len(keys) > 20:
        tenant.delete(f"{URL}/api/v1/keys/{keys.pop()}")
    if path.endswith("/versions") and method == "POST":
        known["name"] = "begun"
        forget("begun")
    known.update(MADE_ANEW.get((method, path), dict)())
    for name in case.path_parameters or {}:
        if name in known:
            case.path_parameters[name] = known[name]
    body = case.body
    if not isinstance(body, dict):
        return
    if path.endswith("/aliases/{alias}"):
        body["version"] = ADAPTER["version"]
    if path.endswith("/versions") and isinstance(body.get("files"), list):
        body["files"] = [{"name": name, "bytes": 9} for name in FILES]
        body.pop("config", None)
        body.pop("header", None)
    if path.endswith("/parts") and isinstance(body.get("parts"), list):
        body["parts"] = [
            {"file": name, "number": 1, "etag": '"e"', "bytes": 9} for name in FILES
        ]


def learn(case, response):
    if case.operation.path == "/api/v1/keys" and response.status_code == 201:
        keys.append(response.json()["id"])
