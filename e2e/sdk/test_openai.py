"""The official openai SDK for Python against the gateway, only its base URL and key changed:
OpenAI's own models, and those of other providers in OpenAI's format."""

import openai
import pytest
from conftest import GATEWAY, MODELS, QUESTION, RESULT, SCHEMA, TEXT, key
from openai import OpenAI

BASE = GATEWAY + "/v1"
HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "The weather in a city", "parameters": SCHEMA}}


def client(name="AID_KEY"):
    # No retries: a retried 429 or 503 would hide what the first answer was.
    return OpenAI(base_url=BASE, api_key=key(name), max_retries=0)


@pytest.fixture(params=MODELS)
def model(request):
    return request.param


def test_chat(model):
    answer = client().chat.completions.create(model=model, messages=HELLO, max_tokens=100, temperature=0.5)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 9)


def test_headers_of_an_answer():
    raw = client().chat.completions.with_raw_response.create(model="gpt-4o", messages=HELLO)
    assert raw.headers["x-request-id"]
    assert raw.headers["x-aid-decision"] == "allow"
    writer, seq, leaf, signature = raw.headers["x-aid-receipt"].split("/")
    assert writer.startswith("w_") and int(seq) > 0 and len(leaf) == 64 and len(signature) == 86


def test_stream_with_usage(model):
    text, usage = "", None
    for chunk in client().chat.completions.create(model=model, messages=HELLO, stream=True, stream_options={"include_usage": True}):
        if chunk.choices and chunk.choices[0].delta.content:
            text += chunk.choices[0].delta.content
        usage = chunk.usage or usage
    assert text == TEXT
    assert usage.total_tokens == 20


def test_stream_helper(model):
    with client().chat.completions.stream(model=model, messages=[{"role": "system", "content": "Be short."}, *HELLO]) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == TEXT


def test_tools_round_trip(model):
    messages = [{"role": "user", "content": QUESTION}]
    first = client().chat.completions.create(model=model, messages=messages, tools=[WEATHER], tool_choice="auto")
    assert first.choices[0].finish_reason == "tool_calls"
    call = first.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert "Lisbon" in call.function.arguments
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "21 C"}]
    second = client().chat.completions.create(model=model, messages=messages, tools=[WEATHER])
    assert second.choices[0].message.content == RESULT


def test_tools_streamed(model):
    name, arguments = "", ""
    for chunk in client().chat.completions.create(model=model, messages=[{"role": "user", "content": QUESTION}], tools=[WEATHER], stream=True):
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert name == "get_weather"
    assert "Lisbon" in arguments


def test_embeddings():
    answer = client().embeddings.create(model="text-embedding-3-small", input=["hello", "goodbye"], dimensions=8)
    assert [len(d.embedding) for d in answer.data] == [8, 8]


@pytest.mark.parametrize("model", ["gemini-embedding-001", "embed-v4.0", "mistral-embed"])
def test_embeddings_of_others(model):
    answer = client().embeddings.create(model=model, input=["hello", "goodbye"])
    assert len(answer.data) == 2 and answer.data[0].embedding


def test_responses():
    answer = client().responses.create(model="gpt-4o", input="hello")
    assert answer.output_text == "Hello! How can I help you today?"
    assert answer.usage.input_tokens == 11


def test_responses_streamed():
    events = [event.type for event in client().responses.create(model="gpt-4o", input="hello", stream=True)]
    assert events[0] == "response.created"
    assert events[-1] == "response.completed"


def test_responses_are_for_openais_own_models():
    with pytest.raises(openai.BadRequestError) as e:
        client().responses.create(model=MODELS[1], input="hello")
    assert e.value.code == "unsupported_endpoint"


def test_moderations():
    assert client().moderations.create(model="omni-moderation-latest", input="hello").results[0].flagged is False


def test_models():
    ids = {model.id for model in client().models.list()}
    assert "gpt-4o" in ids
    assert client().models.retrieve("gpt-4o").id == "gpt-4o"


def test_large_prompt():
    answer = client().chat.completions.create(
        model="gpt-4o", messages=[{"role": "system", "content": "x" * 2_000_000}, *HELLO]
    )
    assert answer.choices[0].message.content


def test_401(dead_key):
    with pytest.raises(openai.AuthenticationError) as e:
        OpenAI(base_url=BASE, api_key=dead_key, max_retries=0).chat.completions.create(model="gpt-4o", messages=HELLO)
    assert e.value.request_id


def test_403_model_not_allowed():
    with pytest.raises(openai.PermissionDeniedError) as e:
        client().chat.completions.create(model="gpt-4-forbidden", messages=HELLO)
    assert e.value.code == "model_not_allowed"
    assert "gpt-4-forbidden" in e.value.message
    assert e.value.request_id in e.value.message or e.value.response.headers["x-request-id"] == e.value.request_id


def test_413_too_large():
    with pytest.raises(openai.APIStatusError) as e:
        client().chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x" * 11_000_000}])
    assert e.value.status_code == 413
    assert e.value.response.json()["error"]["message"]


def test_429_over_the_keys_rate():
    one = client("AID_ONE_RPM_KEY")
    one.chat.completions.create(model="gpt-4o", messages=HELLO)
    with pytest.raises(openai.RateLimitError) as e:
        one.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert int(e.value.response.headers["retry-after"]) > 0
    assert e.value.response.headers["x-ratelimit-limit-requests"] == "1"


@pytest.mark.parametrize("stream", [False, True])
def test_429_of_the_provider_is_passed_on(model, stream):
    with pytest.raises(openai.RateLimitError) as e:
        client().chat.completions.create(stream=stream, model=model, messages=[{"role": "user", "content": "the provider is busy"}])
    assert "Rate limit reached" in e.value.message


@pytest.mark.parametrize("kind", ["openai", "anthropic", "gemini", "cohere", "mistral"])
def test_503_provider_unreachable(kind):
    with pytest.raises(openai.InternalServerError) as e:
        client().chat.completions.create(model=f"unreachable-{kind}", messages=HELLO)
    assert e.value.status_code == 503
    assert e.value.response.json()["error"]["message"]
