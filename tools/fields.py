#!/usr/bin/env python3
"""Writes provider/fields.json: the members that the official SDKs' own types give a request body.

    .tools/sdk/bin/python tools/fields.py > provider/fields.json

The SDKs are pinned in e2e/sdk/sdk.txt. A test of package provider runs this and compares, so
that an SDK which gains a member is noticed.

"roots" names, for each endpoint and API, the type of its body. "types" has the members of each
type: "" is a value that is not looked into (a number, a string, a free object such as a JSON schema
or metadata), anything else is another type. A union is one type with the members of all.
"""

import collections.abc
import inspect
import json
import re
import sys
import types as pytypes
import typing

import typing_extensions
import pydantic

UNIONS = (typing.Union, getattr(pytypes, "UnionType", typing.Union))


def classes(t, out):
    """Collects the object types that a value of type t may have; False if it may be any object."""
    if t is typing.Any or t is object:
        return False
    if getattr(t, "__name__", "") == "Unset":
        return True  # Mistral's mark of an absent value
    if isinstance(t, typing_extensions.TypeAliasType):
        return classes(t.__value__, out)
    if isinstance(t, typing.NewType):
        return True
    origin, args = typing.get_origin(t), typing.get_args(t)
    if origin is not None and isinstance(origin, typing_extensions.TypeAliasType):
        return classes(origin.__value__, out)
    if origin in (typing.Annotated, typing_extensions.Required, typing_extensions.NotRequired, typing.Required, typing.NotRequired):
        return classes(args[0], out)
    if origin in UNIONS:
        return all([classes(a, out) for a in args if a is not type(None)])
    if origin is typing.Literal:
        return True
    if origin in (dict, collections.abc.Mapping):
        return False
    if origin is not None and args:
        return all([classes(a, out) for a in args if a is not Ellipsis])
    if t in (dict, list):
        return False
    if isinstance(t, type) and (typing_extensions.is_typeddict(t) or issubclass(t, pydantic.BaseModel)):
        if t not in out:
            out.append(t)
    return True


def members(t, naming):
    if typing_extensions.is_typeddict(t):
        for name, hint in typing_extensions.get_type_hints(t, include_extras=True).items():
            alias = name
            for m in getattr(hint, "__metadata__", ()) or [m for a in typing.get_args(hint) for m in getattr(a, "__metadata__", ())]:
                alias = getattr(m, "alias", None) or alias
            yield alias, hint
        return
    for name, f in t.model_fields.items():
        yield naming(f.serialization_alias or f.alias or name), f.annotation


def literals(t):
    if typing.get_origin(t) is typing.Literal:
        return list(typing.get_args(t))
    return [k for a in typing.get_args(t) for k in literals(a)]


def camel(name):
    return re.sub(r"_([a-z0-9])", lambda m: m.group(1).upper(), name)


class Writer:
    def __init__(self):
        self.types, self.names = {}, {}

    def type(self, api, hints, where, naming, strict=True):
        """The name of the type that is the union of hints, "" if it may be anything or is no object."""
        found = []
        closed = all([classes(h, found) for h in hints])
        if not found or (strict and not closed):
            return ""
        key = (api, frozenset(found))
        if key in self.names:
            return self.names[key]
        self.names[key] = name = api + ":" + where
        fields = {}
        for t in found:
            for member, hint in members(t, naming):
                fields.setdefault(member, []).append(hint)
        self.types[name] = {}
        for member in sorted(fields):
            self.types[name][member] = self.type(api, self.widen(where, member, fields[member]), where + "." + member, naming, strict=self.strict(where, member))
        return name

    echoes = {}

    def widen(self, where, member, hints):
        """Clients send the answer's objects back: the types of answers stand beside those of requests."""
        return hints + self.echoes.get(where + "." + member, [])

    def strict(self, where, member):
        """Members in which anything may stand, by the SDK, although what they are is known."""
        return member not in ("content", "contents", "input", "tools", "tool_choice", "document", "documents", "system", "parts")


def cohere_hints(method):
    hints = {}
    for name, p in inspect.signature(method).parameters.items():
        if name not in ("self", "request_options"):
            hints[name] = p.annotation
    return hints


def gemini_setters(source, function):
    """The members that a converter of the SDK sets in the body, and those in its config object."""
    m = re.search(r"def %s\(.*?\n(?=def |class )" % function, source, re.S)
    root, config = set(), set()
    for target, path in re.findall(r"setv\(\s*(\w+),\s*\[([^\]]*)\]", m.group(0)):
        names = re.findall(r"['\"]([^'\"]+)['\"]", path)
        if not names or names[0] == "_url":
            continue
        (root if target == "parent_object" else config).add(tuple(names))
    return root, config


def main():
    from openai.types import completion_create_params, embedding_create_params, moderation_create_params
    from openai.types.chat import completion_create_params as chat, ChatCompletionMessage
    from openai.types.responses import response_create_params, ResponseInputItemParam, ResponseOutputItem
    from anthropic.types import message_create_params, message_count_tokens_params, ContentBlock
    from anthropic.types.beta import message_create_params as beta_create, message_count_tokens_params as beta_count, BetaContentBlock
    from cohere.types import AssistantMessageResponse
    from cohere.v2.client import V2Client
    from google.genai import models as genai, types as gt
    from mistralai.client import models as mistral

    w = Writer()
    w.echoes = {"/v1/chat/completions.messages": [ChatCompletionMessage], "/v1/responses.input": [ResponseOutputItem],
                "/v1/messages.messages.content": [ContentBlock, BetaContentBlock], "/v2/chat.messages": [AssistantMessageResponse]}
    roots = {}

    def root(path, api, hints, naming=lambda n: n):
        echoes, w.echoes = w.echoes, (w.echoes if api != "mistral" else {})
        roots.setdefault(path, {})[api] = w.type(api, hints, path, naming)
        w.echoes = echoes

    root("/v1/chat/completions", "openai", [chat.CompletionCreateParamsBase, chat.CompletionCreateParamsStreaming, chat.CompletionCreateParamsNonStreaming])
    root("/v1/completions", "openai", [completion_create_params.CompletionCreateParamsBase, completion_create_params.CompletionCreateParamsStreaming])
    root("/v1/embeddings", "openai", [embedding_create_params.EmbeddingCreateParams])
    root("/v1/moderations", "openai", [moderation_create_params.ModerationCreateParams])
    root("/v1/responses", "openai", [response_create_params.ResponseCreateParamsBase, response_create_params.ResponseCreateParamsStreaming])
    root("/v1/messages", "anthropic", [message_create_params.MessageCreateParamsBase, message_create_params.MessageCreateParamsStreaming,
                                       beta_create.MessageCreateParamsBase, beta_create.MessageCreateParamsStreaming])
    root("/v1/messages/count_tokens", "anthropic", [message_count_tokens_params.MessageCountTokensParams, beta_count.MessageCountTokensParams])
    for path, names in {"/v1/chat/completions": ["ChatCompletionRequest", "ChatCompletionStreamRequest"], "/v1/embeddings": ["EmbeddingRequest"],
                        "/v1/moderations": ["ClassificationRequest"], "/v1/fim/completions": ["FIMCompletionRequest", "FIMCompletionStreamRequest"], "/v1/ocr": ["OCRRequest"]}.items():
        root(path, "mistral", [getattr(mistral, n) for n in names])
    for path, method in {"/v2/chat": V2Client.chat_stream, "/v2/embed": V2Client.embed, "/v2/rerank": V2Client.rerank}.items():
        roots[path] = {"cohere": "cohere:" + path}
        w.types["cohere:" + path] = {n: w.type("cohere", w.widen(path, n, [h]), path + "." + n, lambda n: n, strict=w.strict(path, n))
                                     for n, h in sorted(cohere_hints(method).items())}
        w.types["cohere:" + path]["stream"] = ""

    # google-genai has no types of the wire: what its converters set is what may be there.
    source = inspect.getsource(genai).replace("requests[]", "requests")
    config = dict(gt.GenerateContentConfig.model_fields)
    fields = {camel(n): f.annotation for n, f in config.items()}
    known = {camel(n): f.annotation for n, f in gt.GenerationConfig.model_fields.items()}

    def gemini(name, names, where):
        w.types[name] = {n: w.type("gemini", [h] if h else [], where + "." + n, camel, strict=w.strict(where, n)) for n, h in sorted(names.items())}

    base = "/{version}/models/{model}:"
    parent, to = gemini_setters(source, "_GenerateContentConfig_to_mldev")
    generation = {n[0]: fields.get(n[0]) for n in to} | {n: h for n, h in known.items()}
    generate = {n[0]: fields.get(n[0]) for n in parent} | {"contents": gt.Content, "model": None}
    generate |= {"systemInstruction": gt.Content, "tools": gt.Tool}
    gemini("gemini:generationConfig", generation, base + "generateContent.generationConfig")
    gemini("gemini:" + base + "generateContent", generate, base + "generateContent")
    w.types["gemini:" + base + "generateContent"]["generationConfig"] = "gemini:generationConfig"
    for op in ("generateContent", "streamGenerateContent"):
        roots[base + op] = {"gemini": "gemini:" + base + "generateContent"}
    parent, _ = gemini_setters(source, "_EmbedContentConfig_to_mldev")
    embed = {n[-1]: None for n in parent} | {"content": gt.Content, "model": None}
    gemini("gemini:" + base + "embedContent", embed, base + "embedContent")
    roots[base + "embedContent"] = {"gemini": "gemini:" + base + "embedContent"}
    w.types["gemini:" + base + "batchEmbedContents"] = {"model": "", "requests": "gemini:" + base + "embedContent"}
    roots[base + "batchEmbedContents"] = {"gemini": "gemini:" + base + "batchEmbedContents"}
    gemini("gemini:" + base + "countTokens", {"contents": gt.Content, "model": None}, base + "countTokens")
    w.types["gemini:" + base + "countTokens"]["generateContentRequest"] = "gemini:" + base + "generateContent"
    roots[base + "countTokens"] = {"gemini": "gemini:" + base + "countTokens"}

    # The kinds of item that a Responses body may have: each must say what makes it whole.
    items = []
    classes(ResponseInputItemParam, items), classes(ResponseOutputItem, items)
    kinds = {k for t in items for n, h in members(t, str) if n == "type" for k in literals(h)}

    json.dump({"items": sorted(kinds), "roots": roots, "types": dict(sorted(w.types.items()))}, sys.stdout, indent=1, sort_keys=True)
    print()


main()
