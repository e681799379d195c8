"""What OpenAI's Python client makes of a served model: python test-clients.py PICTURE, with the server's address in GLIMPSE_URL."""

import base64
import json
import math
import os
import sys

import openai

client = openai.OpenAI(base_url=os.environ["GLIMPSE_URL"] + "/v1", api_key="unused", max_retries=0, timeout=60)
CHAT, RETRIEVAL = "scenes-llava", "scenes-blip2-itm"
picture = "data:image/png;base64," + base64.b64encode(open(sys.argv[1], "rb").read()).decode()
ASK = "Describe the image."


def messages(text, *pictures):
    parts = [{"type": "image_url", "image_url": {"url": p}} for p in pictures]
    return [{"role": "user", "content": parts + [{"type": "text", "text": text}]}]


def check(what, holds, got):
    if not holds:
        sys.exit(f"python: {what}: {got!r}")


def counted(usage):
    """Without what came out of caches, which another request may have filled."""
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.prompt_tokens_details.image_tokens


def text():
    got = client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "hello"}], max_tokens=5)
    check("text", got.choices[0].message.role == "assistant" and got.usage.completion_tokens <= 5, got)
    check("model", got.model == CHAT and got.object == "chat.completion", got)


def picture_and_stream():
    whole = client.chat.completions.create(model=CHAT, messages=messages(ASK, picture), max_tokens=40)
    caption = whole.choices[0].message.content
    check("caption", "circle" in caption, caption)
    check("image tokens", whole.usage.prompt_tokens > 64, whole.usage)
    stream = client.chat.completions.create(
        model=CHAT, messages=messages(ASK, picture), max_tokens=40, stream=True, stream_options={"include_usage": True},
        logprobs=True, top_logprobs=3)
    pieces, usage, reason, tops = [], None, None, 0
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            reason = choice.finish_reason or reason
            for token in (choice.logprobs.content if choice.logprobs else []) or []:
                tops += len(token.top_logprobs)
    check("stream", "".join(pieces) == caption and len(pieces) > 2, pieces)
    check("end of the stream", reason == whole.choices[0].finish_reason and counted(usage) == counted(whole.usage), (reason, usage, whole.usage))
    check("logprobs", tops >= 3 * 5, tops)
    return caption


def choices_and_seed():
    def ask(seed):
        # of a picture the model is too sure for chance to have a say
        got = client.chat.completions.create(model=CHAT, messages=messages("hello"), max_tokens=12, n=3, temperature=2, seed=seed)
        return [c.message.content for c in got.choices]
    first = ask(7)
    check("the same seed", ask(7) == first, first)
    check("another seed", ask(8) != first and len(set(first)) > 1, first)
    stopped = client.chat.completions.create(model=CHAT, messages=messages(ASK, picture), max_tokens=40, stop=["circle"])
    check("stop", "circle" not in stopped.choices[0].message.content and stopped.choices[0].finish_reason == "stop", stopped)


SCHEMA = {"type": "object", "properties": {"shape": {"enum": ["circle", "square"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
          "required": ["shape", "count"], "additionalProperties": False}


def json_schema():
    got = client.chat.completions.create(
        model=CHAT, messages=messages(ASK, picture), max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "scene", "schema": SCHEMA, "strict": True}})
    value = json.loads(got.choices[0].message.content)
    check("json_schema", set(value) == {"shape", "count"} and value["shape"] in ("circle", "square") and 0 <= value["count"] <= 9, value)


def tools():
    described = [{"type": "function", "function": {"name": "report", "description": "Reports a shape", "parameters": SCHEMA, "strict": True}}]
    asked = messages(ASK, picture)
    got = client.chat.completions.create(model=CHAT, messages=asked, tools=described, tool_choice="required", max_tokens=200)
    call = got.choices[0].message.tool_calls[0]
    value = json.loads(call.function.arguments)
    check("tool call", call.function.name == "report" and value["shape"] in ("circle", "square") and got.choices[0].finish_reason == "tool_calls", got)
    parts = []
    for chunk in client.chat.completions.create(model=CHAT, messages=asked, tools=described, stream=True, max_tokens=200,
                                                tool_choice={"type": "function", "function": {"name": "report"}}):
        for choice in chunk.choices:
            parts += choice.delta.tool_calls or []
    check("streamed tool call", json.loads("".join(p.function.arguments or "" for p in parts)) == value and parts[0].function.name == "report", parts)
    after = client.chat.completions.create(model=CHAT, max_tokens=5, tools=described, messages=asked + [
        got.choices[0].message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "noted"}])
    check("after the tool", after.usage.prompt_tokens > got.usage.prompt_tokens, after)


def responses(caption):
    asked = [{"role": "user", "content": [{"type": "input_image", "image_url": picture, "detail": "auto"}, {"type": "input_text", "text": ASK}]}]
    got = client.responses.create(model=CHAT, input=asked, max_output_tokens=40, store=False)
    check("responses", got.output_text == caption and got.status == "completed", got)
    kinds, pieces = [], []
    with client.responses.create(model=CHAT, input=asked, max_output_tokens=40, stream=True, store=False) as stream:
        for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                pieces.append(event.delta)
    check("responses stream", "".join(pieces) == caption and kinds[0] == "response.created" and kinds[-1] == "response.completed", kinds)


def embeddings():
    floats = client.embeddings.create(model=RETRIEVAL, input=["a red circle", "a blue square"], encoding_format="float")
    packed = client.embeddings.create(model=RETRIEVAL, input=["a red circle", "a blue square"])  # the client asks for base64
    for a, b in zip(floats.data, packed.data, strict=True):
        check("length of an embedding", abs(math.fsum(x * x for x in a.embedding) - 1) < 1e-4, a.index)
        check("base64", max(abs(x - y) for x, y in zip(a.embedding, b.embedding, strict=True)) < 1e-6, a.index)


def models_and_errors():
    check("models", {m.id for m in client.models.list()} == {CHAT, RETRIEVAL}, [m.id for m in client.models.list()])
    check("a model", client.models.retrieve(CHAT).id == CHAT, CHAT)
    for kind, ask in {
        openai.NotFoundError: lambda: client.chat.completions.create(model="none", messages=[{"role": "user", "content": "x"}]),
        openai.BadRequestError: lambda: client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "x"}], temperature=9),
    }.items():
        try:
            got = ask()
        except kind as error:
            check("error", error.message and error.code, error)
        else:
            check("no error", False, got)


text()
caption = picture_and_stream()
choices_and_seed()
json_schema()
tools()
responses(caption)
embeddings()
models_and_errors()
print(f"python, openai {openai.__version__}: text, picture, stream, choices, seed, stop, json_schema, tools, responses, embeddings, models, errors")
