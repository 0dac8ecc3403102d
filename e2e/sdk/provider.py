"""Providers that check each request before they respond to it.

    python provider.py MOCK CREDENTIAL     prints its port, then serves until it is ended

Each kind of provider has a folder: /openai, /anthropic, /gemini, /cohere, /mistral. A
request there must have CREDENTIAL in the provider's own form, and no other secret. The
provider's own SDK must be able to send its body: the SDK's types decide, and unknown
fields are errors at every depth. validate_translation.py checks this, and the vectors of
provider/translate in the same way. A wrong request gets 422 and is stored: GET /checked
returns the requests and their errors.

MOCK, an independent aimock, responds to valid requests. RECORDED below has the responses
that aimock does not have. They follow the provider's reference, and are checked at the
start against the SDK's type of the response.
"""

import http.client
import http.server
import json
import re
import sys
import threading

import anthropic.types
import anthropic.types.beta.message_create_params as beta_params
import cohere
import google.genai.types as gt
import mistralai.client.models as mm
import openai.types
import openai.types.chat.completion_create_params as chat_params
import openai.types.responses.response_create_params as responses_params

import validate_translation as types

# What aimock has no answer for: (kind, end of the path) → (answer, its type).
RECORDED = {
    # https://docs.anthropic.com/en/api/messages-count-tokens
    ("anthropic", "/v1/messages/count_tokens"): ({"input_tokens": 11}, anthropic.types.MessageTokensCount),
    # https://ai.google.dev/api/tokens#method:-models.counttokens
    ("gemini", ":countTokens"): ({"totalTokens": 11}, gt.CountTokensResponse),
    # https://ai.google.dev/api/embeddings#method:-models.batchembedcontents
    ("gemini", ":batchEmbedContents"): ({"embeddings": [{"values": [0.25, -0.5]}, {"values": [0.5, 0.125]}]}, gt.EmbedContentResponse),
    # https://docs.cohere.com/reference/rerank; aimock knows scores from fixtures only
    ("cohere", "/v2/rerank"): (
        {
            "id": "07734bd2-2473-4f07-94e1-0d9f0e6843cf", "results": [{"index": 0, "relevance_score": 0.999071}],
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        },
        cohere.V2RerankResponse,
    ),
    # https://docs.mistral.ai/api/endpoint/fim
    ("mistral", "/v1/fim/completions"): (
        {
            "id": "447e3e0d457e42e98248b5d2ef52a2a3", "object": "chat.completion", "created": 1759496862, "model": "codestral-2508",
            "usage": {"prompt_tokens": 11, "completion_tokens": 9, "total_tokens": 20},
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "return a + b", "tool_calls": None, "prefix": False}}],
        },
        mm.FIMCompletionResponse,
    ),
    # https://docs.mistral.ai/api/endpoint/embeddings; aimock's answer has no id
    ("mistral", "/v1/embeddings"): (
        {
            "id": "aad6fc62b17349b192ef09225058bc45", "object": "list", "model": "mistral-embed",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}, {"object": "embedding", "index": 1, "embedding": [0.5, 0.125]}],
            "usage": {"prompt_tokens": 11, "completion_tokens": 0, "total_tokens": 11},
        },
        mm.EmbeddingResponse,
    ),
    # https://docs.mistral.ai/api/endpoint/ocr
    ("mistral", "/v1/ocr"): (
        {
            "pages": [{"index": 0, "markdown": "# Invoice", "images": [], "dimensions": {"dpi": 200, "height": 2200, "width": 1700}}],
            "model": "mistral-ocr-2505-completion", "document_annotation": None, "usage_info": {"pages_processed": 1, "doc_size_bytes": 3002},
        },
        mm.OCRResponse,
    ),
}
STREAMED = {
    # https://docs.mistral.ai/api/endpoint/fim, with stream
    ("mistral", "/v1/fim/completions"): (
        [
            {"id": "4", "object": "chat.completion.chunk", "created": 1759496862, "model": "codestral-2508",
             "choices": [{"index": 0, "delta": {"role": "assistant", "content": "return a"}, "finish_reason": None}]},
            {"id": "4", "object": "chat.completion.chunk", "created": 1759496862, "model": "codestral-2508",
             "choices": [{"index": 0, "delta": {"content": " + b"}, "finish_reason": "stop"}],
             "usage": {"prompt_tokens": 11, "completion_tokens": 9, "total_tokens": 20}},
        ],
        mm.CompletionChunk,
    ),
}
# Mistral streams a call in one piece (https://docs.mistral.ai/capabilities/function_calling), aimock as OpenAI does.
MISTRAL_CALL = [
    {"id": "c", "object": "chat.completion.chunk", "created": 1759496862, "model": "mistral-large-2512",
     "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    {"id": "c", "object": "chat.completion.chunk", "created": 1759496862, "model": "mistral-large-2512",
     "choices": [{"index": 0, "finish_reason": "tool_calls", "delta": {"content": "", "tool_calls": [
         {"id": "weather01", "function": {"name": "get_weather", "arguments": '{"city": "Lisbon"}'}, "index": 0}]}}],
     "usage": {"prompt_tokens": 11, "completion_tokens": 9, "total_tokens": 20}},
]

# OpenAI's usage has details in each answer (https://platform.openai.com/docs/api-reference/responses/object), aimock's has not.
RESPONSES_USAGE = re.compile(rb'"usage":\{"input_tokens":(\d+),"output_tokens":(\d+),"total_tokens":(\d+)\}')
RESPONSES_DETAILS = (rb'"usage":{"input_tokens":\1,"input_tokens_details":{"cached_tokens":0},'
                     rb'"output_tokens":\2,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":\3}')

# Where each provider wants its credential.
CREDENTIALS = {
    "openai": ("authorization", "Bearer "), "anthropic": ("x-api-key", ""), "gemini": ("x-goog-api-key", ""),
    "cohere": ("authorization", "Bearer "), "mistral": ("authorization", "Bearer "),
}

VERSIONS = ("2023-06-01", "2026-10-21")  # of Anthropic's API: what we send, and what its SDKs do

lock = threading.Lock()
seen, faults = {}, []


def body_faults(kind, path, headers, body):
    """Why this provider's SDK would not have sent the body. types has one list of faults, hence the lock."""
    streamed = body.get("stream")
    path, _, query = path.partition("?")
    with lock:
        types.faults.clear()
        if kind == "anthropic":
            if headers["anthropic-version"] not in VERSIONS:
                types.fault("", f"anthropic-version {headers['anthropic-version']}")
            if path.endswith("/count_tokens"):
                types.check("", body, anthropic.types.MessageCountTokensParams)
            elif query == "beta=true":
                types.check("", body, beta_params.MessageCreateParamsStreaming if streamed else beta_params.MessageCreateParamsNonStreaming)
            elif query:
                types.fault("", f"query {query}")
            else:
                body = {**body, "messages": [{**m, "content": blocks(m["content"])} for m in body["messages"]]}
                types.anthropic("", f"POST {path}\nanthropic-version: {VERSIONS[0]}", body)
        elif kind == "gemini" and path.endswith((":generateContent", ":streamGenerateContent")):
            types.gemini("", f"POST {path}" + (f"?{query}" if query else ""), body)
        elif kind == "gemini" and path.endswith(":countTokens"):
            gemini_contents(body, {"contents"}, body["contents"])
        elif kind == "gemini" and path.endswith(":embedContent"):
            gemini_contents(body, {"model", "content", "taskType", "outputDimensionality"}, [body["content"]])
        elif kind == "gemini":
            types.embeddings("", kind, f"POST {path}".replace("/v1/", "/v1beta/"), body)
        elif kind == "cohere" and path.endswith("/rerank"):
            known = {"model": str, "query": str, "documents": list, "top_n": int}
            for k, v in body.items():
                if k not in known or not isinstance(v, known[k]):
                    types.fault("", f"$.{k}: {v!r}")
        elif kind == "cohere":
            types.cohere_body("", f"POST {path}", body, path, types.COHERE_EMBED if path.endswith("/embed") else types.COHERE_CHAT)
        elif kind == "mistral" and path.endswith("/chat/completions"):
            types.mistral("", f"POST {path}", body)
        else:
            if (kind, path) == ("openai", "/v1/chat/completions"):
                # OpenAI takes a name on a tool's message, as CrewAI sends it; its SDK's types have lost it.
                body = {**body, "messages": [{k: v for k, v in m.items() if (m["role"], k) != ("tool", "name")} for m in body["messages"]]}
            if (kind, path) == ("openai", "/v1/responses"):
                # Its types require "strict" of a function and its server does not: LangChain and ag2 leave it out.
                body = {**body, **({"tools": [{"strict": None, **t} if t["type"] == "function" else t for t in body["tools"]]} if "tools" in body else {})}
            types.check("", body, {
                ("mistral", "/v1/embeddings"): mm.EmbeddingRequest,
                ("mistral", "/v1/moderations"): mm.ClassificationRequest,
                ("mistral", "/v1/ocr"): mm.OCRRequest,
                ("mistral", "/v1/fim/completions"): mm.FIMCompletionStreamRequest if streamed else mm.FIMCompletionRequest,
                ("openai", "/v1/chat/completions"): chat_params.CompletionCreateParamsStreaming if streamed else chat_params.CompletionCreateParamsNonStreaming,
                ("openai", "/v1/responses"): responses_params.ResponseCreateParamsStreaming if streamed else responses_params.ResponseCreateParamsNonStreaming,
                ("openai", "/v1/embeddings"): openai.types.EmbeddingCreateParams,
                ("openai", "/v1/moderations"): openai.types.ModerationCreateParams,
            }[kind, path])
        return list(types.faults)


def gemini_contents(body, known, contents):
    for k in body.keys() - known:
        types.fault("", f"$.{k}: not a field")
    for c in contents:
        for p in types.gemini_value(c, gt.Content, "$.contents"):
            types.fault("", p)


def calls(body):
    """Whether the next turn of a chat with tools is a call and not its result."""
    return bool(body.get("tools")) and body["messages"][-1]["role"] == "user"


def blocks(content):
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Provider(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body, content_type="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        with lock:
            self.reply(200, json.dumps({"seen": seen, "faults": faults}).encode())

    def do_POST(self):
        kind, path = self.path[1:].split("/", 1)
        path = "/" + path
        raw = self.rfile.read(int(self.headers["content-length"]))
        wrong = []
        try:
            name, prefix = CREDENTIALS[kind]
            if self.headers.get_all(name) != [prefix + CREDENTIAL]:
                wrong.append(f"{name} does not carry the credential, once")
            for secret in ("authorization", "x-api-key", "api-key", "x-goog-api-key"):
                if secret != name and secret in self.headers:
                    wrong.append(f"{secret} is there too")
            if b"aid_sk_" in raw or "aid_sk_" in self.path + str(self.headers):
                wrong.append("a key of ours is in it")
            body = json.loads(raw)
            wrong += body_faults(kind, path, self.headers, body)
        except Exception as e:  # noqa: BLE001 whatever it is, it is not what was expected
            wrong.append(repr(e))
        with lock:
            # The mock's path for one operation, whatever the model's name is.
            what = f"{kind} {path.partition('?')[0].rpartition(':')[2]}" + (" streamed" if b'"stream":true' in raw.replace(b" ", b"") else "")
            seen[what] = seen.get(what, 0) + 1
            faults.extend(f"{self.path}: {w}" for w in wrong)
        if wrong:
            print(f"{self.path}: {wrong}\n{raw[:2000]}", file=sys.stderr, flush=True)
            return self.reply(422, json.dumps({"error": {"message": str(wrong), "type": "checked", "code": "checked"}, "message": str(wrong)}).encode())
        operation = path.partition("?")[0]
        for (k, end), (answer, _) in RECORDED.items():
            if k == kind and operation.endswith(end) and not body.get("stream"):
                return self.reply(200, json.dumps(answer).encode())
        streamed = {**STREAMED, ("mistral", "/v1/chat/completions"): (MISTRAL_CALL, mm.CompletionChunk)} if kind == "mistral" and calls(body) else STREAMED
        for (k, end), (events, _) in streamed.items():
            if k == kind and operation.endswith(end) and body.get("stream"):
                text = "".join(f"data: {json.dumps(e)}\n\n" for e in events) + "data: [DONE]\n\n"
                return self.reply(200, text.encode(), "text/event-stream")
        if kind == "mistral" and body.get("stream"):
            # Mistral says usage at the end of every stream, and the mock where it is asked to, as OpenAI does.
            raw = json.dumps({**body, "stream_options": {"include_usage": True}}).encode()
        self.ask_mock(path, raw)

    def ask_mock(self, path, raw):
        """Passes the mock's answer on as it comes."""
        mock = http.client.HTTPConnection(MOCK, timeout=30)
        if path.startswith("/v1/models/"):
            path = path.replace("v1", "v1beta", 1)  # google-genai has gone on to v1, and aimock has not
        try:
            mock.request("POST", path, raw, {"Content-Type": "application/json", "Authorization": "Bearer mock"})
            answer = mock.getresponse()
        except OSError as e:
            return self.reply(502, json.dumps({"error": {"message": f"no mock: {e}"}}).encode())
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length", "keep-alive"):
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            # A line at a time where usage has to be found in one piece.
            while piece := answer.readline() if path == "/v1/responses" else answer.read1(1 << 16):
                piece = RESPONSES_USAGE.sub(RESPONSES_DETAILS, piece)
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True  # the client has gone
        mock.close()


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


if __name__ == "__main__":
    MOCK, CREDENTIAL = sys.argv[1:]
    for where, (answer, tp) in list(RECORDED.items()) + [(w, (e, tp)) for w, (es, tp) in STREAMED.items() for e in es] + [(("mistral", ""), (e, mm.CompletionChunk)) for e in MISTRAL_CALL]:
        wrong = types.gemini_value(answer, tp, "$") if where[0] == "gemini" else types.problems(answer, tp, "$")
        if wrong:
            sys.exit(f"recorded answer of {where}: {wrong}")
    server = Server(("127.0.0.1", 0), Provider)
    print(server.server_port, flush=True)
    server.serve_forever()
