"""Runs schemathesis against the server in GLIMPSE_URL until enough cases were tried: python test-api.py WORK PICTURE CASES.

First by the document as it is: most requests are then wrong in some way, and for models that are not served. Then by a copy that
knows the served models and a picture, so that right requests reach the models."""

import base64
import json
import os
import pathlib
import subprocess
import sys
import urllib.request

work, picture, cases = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
url = os.environ["GLIMPSE_URL"]
CHAT, RETRIEVAL = "scenes-llava", "scenes-blip2-itm"
# A 4xx is due for what the document forbids, and 413 is one that schemathesis does not expect; and what two fields say
# together (messages or prompt, not both) is nothing that the document can forbid.
(work / "schemathesis.toml").write_text("""
[checks]
negative_data_rejection.expected-statuses = ["4XX"]
positive_data_acceptance.enabled = false
""")


def narrow(node, model):
    """Gives names of models, URLs of pictures and lengths of answers values that a served model takes."""
    if isinstance(node, list):
        for part in node:
            narrow(part, model)
        return
    if not isinstance(node, dict):
        return
    pictures = {"type": "string", "enum": [
        "data:image/png;base64," + base64.b64encode(pathlib.Path(picture).read_bytes()).decode(), "data:image/png;base64,AAAA", "file:///etc/passwd", "http://127.0.0.1:1/x.png"]}
    for name, field in (node.get("properties") or {}).items():
        if name == "model":
            node["properties"][name] = {"type": "string", "enum": [model]}
        elif name in ("url", "image", "image_url") and "object" not in json.dumps(field) and field.get("format") != "binary":
            node["properties"][name] = pictures
        elif name == "images":
            node["properties"][name] = {"type": "array", "items": pictures, "minItems": 1, "maxItems": 3}
        elif name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            node["properties"][name] = {"type": "integer", "minimum": 1, "maximum": 24}
        else:
            narrow(field, model)
    for name, part in node.items():
        if name != "properties":
            narrow(part, model)


def run(name, document, examples, *more):
    path, report = work / f"{name}.json", work / f"{name}-report.json"
    path.write_text(json.dumps(document))
    code = subprocess.run([pathlib.Path(sys.executable).with_name("schemathesis"), "--no-color", "run", path, "--url", url, "--seed", "9",
                           "--max-examples", str(examples), "--request-timeout", "120", "--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off",
                           "--report", "json", "--report-json-path", report, *more], cwd=work).returncode
    if code:
        sys.exit(f"schemathesis found something, or could not run (exit {code})")
    return report


def statuses(text):
    """How many requests the server's log has, by status."""
    counts = {}
    for line in text.splitlines():
        if "msg=request" in line and " status=" in line:
            status = line.split(" status=")[1].split()[0]
            counts[status] = counts.get(status, 0) + 1
    return counts


document = json.load(urllib.request.urlopen(url + "/openapi.json"))
run("as-it-is", document, 40)
models = {"/v1/score": RETRIEVAL, "/v1/embeddings": RETRIEVAL, "/v1/rerank": RETRIEVAL}
known = json.loads(json.dumps(document))
known["paths"] = {path: item for path, item in known["paths"].items() if "post" in item}
for path, item in known["paths"].items():
    narrow(item["post"]["requestBody"], models.get(path, CHAT))
run("known-models", known, 150, "--mode", "positive", "--phases", "fuzzing", "--checks",
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance")

tried = statuses((work / "serve.log").read_text())
total, broken = sum(tried.values()), sum(n for status, n in tried.items() if status.startswith("5"))
print("requests by status:", dict(sorted(tried.items())))
if broken or total < cases or tried.get("200", 0) < 150:
    sys.exit(f"{total} requests of at least {cases}, {tried.get('200', 0)} answered of at least 150, {broken} ended with 5xx")
print(f"api: {total} requests, no 5xx")
