"""The official cohere SDK for Python against the gateway, only its base URL and key changed."""

import cohere
import pytest
from cohere.core.api_error import ApiError
from conftest import GATEWAY, QUESTION, RESULT, SCHEMA, TEXT, key

MODEL = "command-a-03-2025"
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather in a city", "parameters": SCHEMA}}
ONCE = {"max_retries": 0}  # a retried 429 or 503 would hide what the first answer was


def client(name="AID_KEY", secret=None):
    return cohere.ClientV2(base_url=GATEWAY, api_key=secret or key(name))


def ask(client, model=MODEL, messages=HELLO, **more):
    return client.chat(model=model, messages=messages, request_options=ONCE, **more)


def test_chat():
    answer = ask(client(), max_tokens=100, temperature=0.5)
    assert answer.message.content[0].text == TEXT
    assert (answer.usage.tokens.input_tokens, answer.usage.tokens.output_tokens) == (11, 9)


def test_stream():
    events = list(client().chat_stream(model=MODEL, messages=HELLO, request_options=ONCE))
    assert (events[0].type, events[-1].type) == ("message-start", "message-end")
    assert "".join(e.delta.message.content.text for e in events if e.type == "content-delta") == TEXT


def test_tools_round_trip():
    messages = [{"role": "user", "content": QUESTION}]
    first = ask(client(), messages=messages, tools=[TOOL])
    call = first.message.tool_calls[0]
    assert call.function.name == "get_weather" and "Lisbon" in call.function.arguments
    messages += [
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "21 C"},
    ]
    assert ask(client(), messages=messages, tools=[TOOL]).message.content[0].text == RESULT


def test_tools_streamed():
    name = arguments = ""
    for e in client().chat_stream(model=MODEL, messages=[{"role": "user", "content": QUESTION}], tools=[TOOL], request_options=ONCE):
        if e.type == "tool-call-start":
            name += e.delta.message.tool_calls.function.name
        if e.type == "tool-call-delta":
            arguments += e.delta.message.tool_calls.function.arguments
    assert name == "get_weather" and "Lisbon" in arguments


def test_embed():
    answer = client().embed(model="embed-v4.0", texts=["hello", "goodbye"], input_type="search_document", embedding_types=["float"], request_options=ONCE)
    assert len(answer.embeddings.float_) == 2


def test_rerank():
    answer = client().rerank(model="rerank-v3.5", query="capital", documents=["Lisbon", "a fish"], top_n=1, request_options=ONCE)
    assert (answer.results[0].index, answer.meta.billed_units.search_units) == (0, 1)


def test_models():
    assert MODEL in [m.name for m in client().models.list(request_options=ONCE).models]
    assert client().models.get(MODEL, request_options=ONCE).name == MODEL


def test_401(dead_key):
    with pytest.raises(cohere.UnauthorizedError):
        ask(client(secret=dead_key))


def test_403_model_not_allowed():
    with pytest.raises(cohere.ForbiddenError) as e:
        ask(client(), model="command-forbidden")
    assert "command-forbidden" in str(e.value.body)


def test_413_too_large():
    with pytest.raises(ApiError) as e:
        ask(client(), messages=[{"role": "user", "content": "x" * 11_000_000}])
    assert e.value.status_code == 413 and e.value.body["message"]


def test_429_over_the_keys_rate():
    one = client("AID_ONE_RPM_KEY")
    ask(one)
    with pytest.raises(cohere.TooManyRequestsError) as e:
        ask(one)
    assert int(e.value.headers["retry-after"]) > 0


def test_429_of_the_provider_is_passed_on():
    with pytest.raises(cohere.TooManyRequestsError) as e:
        ask(client(), messages=[{"role": "user", "content": "the provider is busy"}])
    assert "Rate limit reached" in str(e.value.body)


def test_503_provider_unreachable():
    with pytest.raises(cohere.ServiceUnavailableError) as e:
        ask(client(), model="unreachable-cohere")
    assert e.value.body["message"]


def test_404_what_is_not_served():
    with pytest.raises(cohere.NotFoundError) as e:
        client().datasets.list(request_options=ONCE)
    assert "Files are not available here" in str(e.value.body)
