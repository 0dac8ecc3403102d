"""The output of provider/translate, checked by the providers' own SDKs.

Reads provider/translate/testdata (chat, embeddings, answers) and checks

  requests          against the request types of anthropic, google-genai, cohere and
                    mistralai. Unknown fields are errors at every depth. The order of turns
                    must be the one that Anthropic's and Gemini's servers require.
  responses         against openai's ChatCompletion, ChatCompletionChunk, CreateEmbeddingResponse
                    and ErrorObject, strictly, and again through the SDK's own stream
                    reader and the helper that joins deltas
  inputs            of the vectors: OpenAI's SDK could send them, and the providers' SDKs
                    accept them, so the tests use realistic data

Run by TestTranslationByTheSDKs, and by TestTranslated on what a provider got through the
gateway (e2e/translated_test.go); provider.py checks live requests with it. By hand:
python validate_translation.py [TESTDATA]. It exits with 1 and prints a line for each error.
"""

import functools
import inspect
import json
import pathlib
import re
import sys
import types as pytypes
import typing

import httpx
import openai
import pydantic
import typing_extensions

import anthropic.types as at
import cohere
from google import genai
import google.genai.types as gt
import mistralai.client.models as mm
from anthropic.types.message_create_params import (
    MessageCreateParamsNonStreaming as AnthropicWhole,
    MessageCreateParamsStreaming as AnthropicStreamed,
)
from cohere.v2.client import V2Client
from openai.types import CreateEmbeddingResponse, EmbeddingCreateParams
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming as OpenAIWhole,
    CompletionCreateParamsStreaming as OpenAIStreamed,
)

HERE = pathlib.Path(__file__).resolve().parent
TESTDATA = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else HERE / "../../provider/translate/testdata")

# What answers carry beside OpenAI's own fields, on purpose (provider/translate, package comment).
BESIDE = {"reasoning_content", "thinking_blocks", "extra_content"}
# What vectors say that OpenAI's SDK does not, on purpose: extensions and fields that must be refused.
EXTENSIONS = BESIDE | {"cache_control", "input_type", "of_next_year", "mood", "unknown", "random_seed", "safe_prompt", "prefix"}
# Requests in Mistral's format, which OpenAI's SDK does not send.
FOREIGN = {"chat/mistral_format"}

faults = []
checked = {}


def fault(where, what):
    faults.append(f"{where}: {what}")


def counted(what):
    checked[what] = checked.get(what, 0) + 1


def sections(path):
    parts = re.split(r"^-- (.+?) --\n", path.read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


# Checking a value against a type, forbidding what the type does not name.
# TypedDicts and pydantic models both let unknown names pass, or drop them, in
# places; so the names are compared by hand and the values by pydantic.


@functools.lru_cache(maxsize=None)
def adapter(tp):
    return pydantic.TypeAdapter(tp)


@functools.lru_cache(maxsize=None)
def hints(tp):
    return typing_extensions.get_type_hints(tp, include_extras=True)


@functools.lru_cache(maxsize=None)
def required(tp):
    """The required names. The SDKs have annotations that are strings, which hide Required and
    NotRequired from typing. So __required_keys__ alone is not enough."""
    marks = {k: typing_extensions.get_origin(h) for k, h in hints(tp).items()}
    return {k for k, m in marks.items() if m in REQUIRED or (k in tp.__required_keys__ and m not in NOT_REQUIRED)}


REQUIRED = (typing.Required, typing_extensions.Required)
NOT_REQUIRED = (typing.NotRequired, typing_extensions.NotRequired)


def strip(tp):
    while True:
        origin = typing_extensions.get_origin(tp)
        if origin in (typing.Annotated, typing_extensions.Annotated):
            tp = typing_extensions.get_args(tp)[0]
        elif origin in (typing_extensions.Required, typing_extensions.NotRequired, typing.Required, typing.NotRequired):
            tp = typing_extensions.get_args(tp)[0]
        elif isinstance(tp, typing_extensions.TypeAliasType):
            tp = tp.__value__
        else:
            return tp


def is_model(tp):
    return isinstance(tp, type) and issubclass(tp, pydantic.BaseModel)


def problems(value, tp, path):
    """Why value is not of type tp: the fewest of a union's reasons."""
    tp = strip(tp)
    origin = typing_extensions.get_origin(tp)
    args = typing_extensions.get_args(tp)
    if tp is typing.Any or tp is object:
        return []
    if origin in (typing.Union, pytypes.UnionType):
        best = None
        for a in args:
            if getattr(strip(a), "__name__", "").startswith("Unknown"):
                continue  # mistralai's catch-all for what it does not know
            got = problems(value, a, path)
            if not got:
                return []
            if best is None or worth(got) > worth(best):
                best = got
        return best
    if origin in (typing.Literal, typing_extensions.Literal):
        return [] if value in args else [f"{path}: {value!r} is not one of {args}"]
    if typing_extensions.is_typeddict(tp):
        if not isinstance(value, dict):
            return [f"{path}: not an object"]
        known = hints(tp)
        config = getattr(tp, "__pydantic_config__", {})
        out = [f"{path}.{k}: missing" for k in required(tp) if k not in value]
        for k, v in value.items():
            if k in known:
                out += problems(v, known[k], f"{path}.{k}")
            elif config.get("extra") != "allow":
                out.append(f"{path}.{k}: not a field of {tp.__name__}")
        return out
    if is_model(tp):
        if not isinstance(value, dict):
            return [f"{path}: not an object"]
        known = {}
        for name, f in tp.model_fields.items():
            known[f.alias or name] = f
        out = [f"{path}.{k}: missing" for k, f in known.items() if f.is_required() and k not in value]
        for k, v in value.items():
            if k in known:
                out += problems(v, known[k].annotation, f"{path}.{k}")
            else:
                out.append(f"{path}.{k}: not a field of {tp.__name__}")
        if out:
            return out
        try:
            tp.model_validate(value)
        except pydantic.ValidationError as e:
            return [f"{path}: {e.errors()[0]}"]
        return []
    if origin in (list, typing.Sequence, typing.Iterable) or getattr(origin, "__name__", "") in ("Iterable", "Sequence", "SequenceNotStr"):
        if not isinstance(value, list):
            return [f"{path}: not an array"]
        out = []
        for i, v in enumerate(value):
            out += problems(v, args[0], f"{path}[{i}]")
        return out
    if origin is dict or tp is dict:
        if not isinstance(value, dict):
            return [f"{path}: not an object"]
        out = []
        if args:
            for k, v in value.items():
                out += problems(v, args[1], f"{path}.{k}")
        return out
    if tp is type(None):
        return [] if value is None else [f"{path}: not null"]
    if tp is float:
        return [] if isinstance(value, (int, float)) and not isinstance(value, bool) else [f"{path}: {value!r} is not a number"]
    if tp in (str, int, bool):
        return [] if type(value) is tp else [f"{path}: {value!r} is not {tp.__name__}"]
    try:
        adapter(tp).validate_python(value)
    except Exception as e:  # noqa: BLE001 whatever the SDK's own validators raise is a fault
        return [f"{path}: {e}"]
    return []


def worth(reasons):
    """Of a union's members the one that the value comes closest to: its type's mark fits."""
    marks = sum(".type: " in r or ".role: " in r or "not an" in r for r in reasons)
    return (-marks, -len(reasons))


def check(where, value, tp):
    counted(getattr(tp, "__name__", str(tp)))
    for p in problems(value, tp, "$"):
        fault(where, p)


# Anthropic


def anthropic(where, head, body):
    if not head.startswith("POST /v1/messages\nanthropic-version: 2023-06-01"):
        fault(where, f"head {head!r}")
    # Claude 4.7 and later take no sampling parameters, and the SDK has dropped them
    # from its types; models before take them still.
    known = {k: v for k, v in body.items() if k not in ("temperature", "top_p")}
    check(where, known, AnthropicStreamed if body.get("stream") else AnthropicWhole)
    last, open_calls = None, set()
    for m in body["messages"]:
        if m["role"] == last:
            fault(where, f"two turns of {last} in a row")
        last = m["role"]
        results = {b["tool_use_id"] for b in m["content"] if b["type"] == "tool_result"}
        if open_calls != results:
            fault(where, f"calls {open_calls} are answered by {results}")
        kinds = [b["type"] for b in m["content"]]
        if kinds != sorted(kinds, key=lambda k: k != "tool_result"):
            fault(where, "results do not come first in their turn")
        open_calls = {b["id"] for b in m["content"] if b["type"] == "tool_use"}
        for i in open_calls:
            if not re.fullmatch(r"[a-zA-Z0-9_-]+", i):
                fault(where, f"id {i!r}")
    thinking = body.get("thinking", {})
    if thinking.get("type") == "enabled" and not 1024 <= thinking["budget_tokens"] < body["max_tokens"]:
        fault(where, f"budget {thinking['budget_tokens']} of {body['max_tokens']}")


# Gemini. The SDK has one type for what it sends, GenerateContentConfig, and
# splits it. Names are compared by hand, and then what the SDK itself sends for the
# same thing with what we send.

GENERATION = {"temperature", "topP", "topK", "candidateCount", "maxOutputTokens", "stopSequences", "responseLogprobs", "logprobs",
              "presencePenalty", "frequencyPenalty", "seed", "responseMimeType", "responseSchema", "responseJsonSchema",
              "responseModalities", "mediaResolution", "speechConfig", "thinkingConfig", "imageConfig"}
TOP = {"contents", "systemInstruction", "tools", "toolConfig", "safetySettings", "cachedContent", "labels", "serviceTier", "store", "generationConfig"}


def gemini_sent_by_sdk(body):
    """The bytes that google-genai itself sends for the same request, caught on their way to the network."""
    caught = {}

    def handle(request):
        caught["body"] = json.loads(request.content)
        return httpx.Response(200, json={"candidates": []})

    config = dict(body.get("generationConfig", {}))
    for k in ("systemInstruction", "tools", "toolConfig", "serviceTier"):
        if k in body:
            config[k] = body[k]
    client = genai.Client(api_key="k", http_options=gt.HttpOptions(httpx_client=httpx.Client(transport=httpx.MockTransport(handle))))
    client.models.generate_content(
        model="m", contents=[gt.Content.model_validate(c) for c in body["contents"]], config=gt.GenerateContentConfig.model_validate(config))
    sent = caught["body"]
    if not sent.get("generationConfig"):
        sent.pop("generationConfig", None)
    return sent


def snake(name):
    return re.sub(r"([A-Z])", lambda m: "_" + m[1].lower(), name)


def gemini_value(value, tp, path):
    tp = strip(tp)
    origin, args = typing_extensions.get_origin(tp), typing_extensions.get_args(tp)
    if origin in (typing.Union, pytypes.UnionType):
        best = None
        for a in args:
            got = gemini_value(value, a, path)
            if not got:
                return []
            if best is None or len(got) < len(best):
                best = got
        return best
    if is_model(tp):
        if not isinstance(value, dict):
            return [f"{path}: not an object"]
        out = []
        for k, v in value.items():
            if snake(k) == k and k != k.lower() or snake(k) not in tp.model_fields:
                out.append(f"{path}.{k}: not a field of {tp.__name__}")
            else:
                out += gemini_value(v, tp.model_fields[snake(k)].annotation, f"{path}.{k}")
        return out
    if origin is list:
        if not isinstance(value, list):
            return [f"{path}: not an array"]
        return [p for i, v in enumerate(value) for p in gemini_value(v, args[0], f"{path}[{i}]")]
    if tp is bytes:
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9+/_-]*={0,2}", value):
            return [f"{path}: not base64"]
        return []
    return problems(value, tp, path)


def gemini(where, head, body):
    if not re.match(r"POST /v1(beta)?/models/[\w.-]+:(generateContent|streamGenerateContent\?alt=sse)(\n|$)", head):
        fault(where, f"head {head!r}")
    counted("GenerateContentParameters")
    for k in body:
        if k not in TOP:
            fault(where, f"{k}: not a field of GenerateContentRequest")
    for k, v in body.get("generationConfig", {}).items():
        if k not in GENERATION:
            fault(where, f"generationConfig.{k}: not a field")
            continue
        for p in gemini_value(v, gt.GenerateContentConfig.model_fields[snake(k)].annotation, f"$.generationConfig.{k}"):
            fault(where, p)
    for k, tp in (("contents", typing.List[gt.Content]), ("systemInstruction", gt.Content), ("tools", typing.List[gt.Tool]), ("toolConfig", gt.ToolConfig), ("serviceTier", gt.ServiceTier)):
        if k in body:
            for p in gemini_value(body[k], tp, f"$.{k}"):
                fault(where, p)
    last = None
    for c in body["contents"]:
        if c["role"] == last or c["role"] not in ("user", "model"):
            fault(where, f"turn of {c['role']} after {last}")
        last = c["role"]
        for p in c["parts"]:
            if len({"text", "inlineData", "fileData", "functionCall", "functionResponse"} & p.keys()) != 1:
                fault(where, f"a part with {sorted(p)}")
    if not where.endswith("want gemini") or faults_of(where):
        return
    mine, theirs = settle(body), settle(gemini_sent_by_sdk(body))
    if mine != theirs:
        fault(where, f"the SDK would send\n  {json.dumps(theirs, sort_keys=True)}\nnot\n  {json.dumps(mine, sort_keys=True)}")


def faults_of(where):
    return [f for f in faults if f.startswith(where + ":")]


def settle(v):
    """A form in which two values are equal if Google's server reads them alike.

    The server accepts a field's name in both spellings, and the SDK writes some names
    differently from the reference (mime_type). It accepts both alphabets of base64, with
    and without padding.
    """
    if isinstance(v, dict):
        out = {}
        for k, x in v.items():
            k = re.sub(r"_([a-z])", lambda m: m[1].upper(), k)
            if k in ("args", "response", "parametersJsonSchema", "responseJsonSchema"):
                out[k] = plain(x)  # not Google's names
            elif k in ("data", "thoughtSignature"):
                out[k] = x.rstrip("=").replace("-", "+").replace("_", "/")
            else:
                out[k] = settle(x)
        return out
    if isinstance(v, list):
        return [settle(x) for x in v]
    return plain(v)


def plain(v):
    """JSON's numbers have one kind; and the SDK leaves null out."""
    if isinstance(v, dict):
        return {k: plain(x) for k, x in v.items() if x is not None}
    if isinstance(v, list):
        return [plain(x) for x in v]
    if isinstance(v, float) and v.is_integer():
        return int(v)
    return v


# Cohere: its types let anything pass (UncheckedBaseModel), so names are compared
# by hand, and the body's against what the client's own method takes.

COHERE_CHAT = set(inspect.signature(V2Client.chat).parameters) - {"self", "request_options"} | {"stream"}
COHERE_EMBED = set(inspect.signature(V2Client.embed).parameters) - {"self", "request_options"}
COHERE = {"messages": cohere.ChatMessages, "tools": typing.List[cohere.ToolV2], "response_format": cohere.types.ResponseFormatV2, "thinking": cohere.types.Thinking,
          "temperature": float, "p": float, "max_tokens": int, "seed": int, "frequency_penalty": float, "presence_penalty": float, "stop_sequences": typing.List[str],
          "logprobs": bool, "strict_tools": bool, "stream": bool, "model": str, "tool_choice": typing.Literal["REQUIRED", "NONE"],
          "texts": typing.List[str], "input_type": typing.Literal["search_document", "search_query", "classification", "clustering"], "output_dimension": int,
          "embedding_types": typing.List[typing.Literal["float", "base64"]]}


def cohere_body(where, head, body, path, known):
    if head.split("\n")[0] != f"POST {path}":
        fault(where, f"head {head!r}")
    counted("cohere " + path)
    for k, v in body.items():
        if k not in known:
            fault(where, f"$.{k}: not an argument of the SDK")
        elif k not in COHERE:
            fault(where, f"$.{k}: has no check")
        else:
            for p in problems(v, COHERE[k], f"$.{k}"):
                fault(where, p)


# Mistral


def mistral(where, head, body):
    if head.split("\n")[0] != "POST /v1/chat/completions":
        fault(where, f"head {head!r}")
    check(where, body, mm.ChatCompletionStreamRequest if body.get("stream") else mm.ChatCompletionRequest)
    for m in body["messages"]:
        for i in [c["id"] for c in m.get("tool_calls", [])] + ([m["tool_call_id"]] if "tool_call_id" in m else []):
            if not re.fullmatch(r"[a-zA-Z0-9]{9}", i):
                fault(where, f"id {i!r} is not nine letters and digits")


def sent(where, kind, text):
    if text.startswith(("400 ", "422 ")):
        counted("refusals")
        return
    head, _, body = text.partition("\n\n")
    body = json.loads(body)
    head = "\n".join(line for line in head.split("\n") if not line.startswith("dropped "))
    if "embeddings" in where:
        embeddings(where, kind, head, body)
    elif kind == "anthropic":
        anthropic(where, head, body)
    elif kind == "gemini":
        gemini(where, head, body)
    elif kind == "cohere":
        cohere_body(where, head, body, "/v2/chat", COHERE_CHAT)
    else:
        mistral(where, head, body)


def embeddings(where, kind, head, body):
    if kind == "gemini":
        counted("batchEmbedContents")
        if not re.match(r"POST /v1beta/models/[\w.-]+:batchEmbedContents$", head):
            fault(where, f"head {head!r}")
        for i, r in enumerate(body["requests"]):
            extra = set(r) - {"model", "content", "taskType", "title", "outputDimensionality"}
            if extra:
                fault(where, f"requests[{i}]: {extra}")
            for p in gemini_value(r["content"], gt.Content, f"$.requests[{i}].content"):
                fault(where, p)
            if not r["model"].startswith("models/"):
                fault(where, f"model {r['model']!r}")
    elif kind == "cohere":
        cohere_body(where, head, body, "/v2/embed", COHERE_EMBED)
    else:
        check(where, body, mm.EmbeddingRequest)


# What OpenAI's SDK would send.


def without(v, names):
    if isinstance(v, dict):
        return {k: without(x, names) for k, x in v.items() if k not in names}
    if isinstance(v, list):
        return [without(x, names) for x in v]
    return v


def asked(where, text):
    body = json.loads(text, object_pairs_hook=lambda ps: dict(ps))
    if "invalid" in where or where.removesuffix(" request") in FOREIGN:
        return
    body = without(body, EXTENSIONS)
    body = {k: v for k, v in body.items() if v is not None}
    if "input" in body:
        check(where, body, EmbeddingCreateParams)
        return
    # The SDK's types want content on messages of the tool role that its server does not.
    for m in body["messages"]:
        if m["role"] == "tool" and m.get("content") is None:
            m["content"] = ""
        m.pop("name", None) if m["role"] == "tool" else None
    tp = OpenAIStreamed if body.get("stream") else OpenAIWhole
    check(where, body, tp)


# What we answer.


def strictly(where, value, tp):
    counted(tp.__name__)
    try:
        tp.model_validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as e:
        fault(where, str(e))
        return
    for p in problems(value, tp, "$"):
        if not any(f".{b}: not a field" in p for b in BESIDE):
            fault(where, p)


def error(where, e):
    counted("errors")
    if set(e) != {"error"} or set(e["error"]) != {"message", "type", "param", "code"} or not e["error"]["message"] or not e["error"]["type"]:
        fault(where, f"error {e}")


def through_sdk(where, status, content_type, body, stream):
    """The answer as the official client reads it, over a transport that is not the network."""

    def handle(request):
        return httpx.Response(status, headers={"content-type": content_type}, content=body)

    client = openai.OpenAI(api_key="k", base_url="http://gateway/v1", max_retries=0, http_client=httpx.Client(transport=httpx.MockTransport(handle)))
    counted("read by the SDK")
    try:
        if stream:
            with client.chat.completions.stream(model="m", messages=[], stream_options={"include_usage": True}) as s:
                for _ in s:
                    pass
                final = s.get_final_completion()
        else:
            final = client.chat.completions.create(model="m", messages=[])
    except openai.LengthFinishReasonError:
        return None
    except openai.ContentFilterFinishReasonError:
        return None
    except openai.APIStatusError as e:
        return e
    except openai.APIError as e:
        return e
    except Exception as e:  # noqa: BLE001 what the SDK cannot read is a fault, whatever it raises
        fault(where, f"the SDK raised {e!r}")
        return None
    for c in final.choices:
        for call in c.message.tool_calls or []:
            try:
                json.loads(call.function.arguments)
            except ValueError:
                fault(where, f"arguments {call.function.arguments!r}")
    return final


def answered(where, s):
    told = s["want told"].split("\n")[0]
    status, content_type = told.split(" ", 1)
    status, out = int(status), s["want"]
    if content_type == "text/event-stream":
        events = [e for e in out.split("\n\n") if e.strip()]
        failed = events[-1].startswith('data: {"error":')
        if failed == (events[-1] == "data: [DONE]") or out.count("data: [DONE]") != int(not failed):
            fault(where, "neither [DONE] nor an error is said once, at the end")
        failed = False
        for e in events[: -1 if events[-1] == "data: [DONE]" else None]:
            if e.startswith(":"):
                continue
            v = json.loads(e.removeprefix("data: "))
            if "error" in v:
                error(where, v)
                failed = True
            else:
                strictly(where, v, ChatCompletionChunk)
        got = through_sdk(where, 200, content_type, out, True)
        if failed != isinstance(got, openai.APIError):
            fault(where, f"the SDK read {got!r}")
        return
    v = json.loads(out)
    if "error" in v:
        error(where, v)
        if status < 400:
            fault(where, f"an error with status {status}")
        got = through_sdk(where, status, content_type, out, False)
        if not isinstance(got, openai.APIStatusError):
            fault(where, f"the SDK read {got!r}")
    elif v["object"] == "list":
        counted("CreateEmbeddingResponse")
        if isinstance(v["data"][0]["embedding"], list):
            # A provider that does not say what it counted leaves usage out: unknown is not 0.
            strictly(where, v if "usage" in v else v | {"usage": {"prompt_tokens": 0, "total_tokens": 0}}, CreateEmbeddingResponse)
        else:
            import base64
            import struct

            for d in v["data"]:
                b = base64.b64decode(d["embedding"], validate=True)
                struct.unpack(f"<{len(b) // 4}f", b)
    else:
        strictly(where, v, ChatCompletion)
        got = through_sdk(where, status, content_type, out, False)
        if got is not None and not isinstance(got, ChatCompletion):
            fault(where, f"the SDK read {got!r}")


# What the vectors say that providers answer.

ANSWERS = {
    "anthropic": (at.Message, at.RawMessageStreamEvent),
    "cohere": (cohere.V2ChatResponse, None),
    "mistral": (mm.ChatCompletionResponse, mm.CompletionChunk),
}


def given(where, kind, text):
    head, _, body = text.partition("\n\n")
    status = int(head.split(" ")[0])
    if status >= 300 or "embeddings" in where or "unreadable" in where:
        return
    if "event-stream" not in head:
        v = json.loads(body)
        counted(f"answers of {kind}")
        try:
            if kind == "gemini":
                gt.GenerateContentResponse.model_validate(v)
                for p in gemini_value(v, gt.GenerateContentResponse, "$"):
                    fault(where, p)
            else:
                adapter(ANSWERS[kind][0]).validate_python(v)
        except pydantic.ValidationError as e:
            fault(where, str(e))
        return
    for event in re.split(r"\n\n", body):
        data = "\n".join(line[5:].removeprefix(" ") for line in event.split("\n") if line.startswith("data:"))
        if not data or data == "[DONE]":
            continue
        try:
            v = json.loads(data)
        except ValueError:
            if "ends_early" not in where:
                fault(where, f"event {data!r}")
            continue
        if "error" in v or v.get("object") == "error" or v.get("type") == "ping":
            continue
        counted(f"events of {kind}")
        try:
            if kind == "gemini":
                gt.GenerateContentResponse.model_validate(v)
                for p in gemini_value(v, gt.GenerateContentResponse, "$"):
                    fault(where, p)
            elif kind == "cohere":
                cohere_event(where, v)
            else:
                adapter(ANSWERS[kind][1]).validate_python(v)
        except pydantic.ValidationError as e:
            fault(where, str(e))


def cohere_event(where, v):
    from cohere.v2.types.v2chat_stream_response import V2ChatStreamResponse

    members = typing.get_args(typing.get_args(V2ChatStreamResponse)[0]) or typing.get_args(strip(V2ChatStreamResponse))
    for m in members:
        if m.model_fields["type"].default == v.get("type"):
            for p in problems(v, m, "$"):
                # Their server says more at the start of a message than their types do.
                if "message-start" not in str(v.get("type")):
                    fault(where, p)
            return
    fault(where, f"no event {v.get('type')!r}")


def main():
    folder = TESTDATA.resolve()
    for path in sorted(folder.glob("chat/*.txt")) + sorted(folder.glob("embeddings/*.txt")):
        s = sections(path)
        where = f"{path.parent.name}/{path.stem}"
        asked(where + " request", s["request"])
        for kind in ("anthropic", "gemini", "cohere", "mistral"):
            sent(f"{where} want {kind}", kind, s[f"want {kind}"])
    for path in sorted(folder.glob("answers/*/*.txt")):
        s = sections(path)
        where = f"answers/{path.parent.name}/{path.stem}"
        if "request" in s:
            asked(where + " request", s["request"])
        given(where + " answer", path.parent.name, s["answer"])
        answered(where, s)
    for k, n in sorted(checked.items()):
        print(f"{n:5} {k}")
    for f in faults:
        print("FAULT", f)
    print(f"{len(faults)} faults")
    return 1 if faults or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
