"""The official anthropic SDK for Python against the gateway, only its base URL and key changed."""

import anthropic
import pytest
from conftest import GATEWAY, QUESTION, RESULT, SCHEMA, TEXT, key

MODEL = "claude-sonnet-4-20250514"
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"name": "get_weather", "description": "The weather in a city", "input_schema": SCHEMA}


def client(name="AID_KEY"):
    # No retries: a retried 429 or 503 would hide what the first answer was.
    return anthropic.Anthropic(base_url=GATEWAY, api_key=key(name), max_retries=0)


def ask(client, **more):
    return client.messages.create(**{"model": MODEL, "max_tokens": 100, "messages": HELLO, **more})


def test_message():
    answer = ask(client(), system="Be short.", metadata={"user_id": "u1"})
    assert answer.content[0].text == TEXT
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (11, 9)
    assert answer.stop_reason == "end_turn"
    assert answer._request_id


def test_bearer_token():
    # ANTHROPIC_AUTH_TOKEN: the other header that the SDK knows.
    assert ask(anthropic.Anthropic(base_url=GATEWAY, auth_token=key(), api_key=None, max_retries=0)).content[0].text == TEXT


def test_stream():
    with client().messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == TEXT
        final = stream.get_final_message()
    assert final.usage.output_tokens == 9


def test_stream_of_events():
    events = [e.type for e in ask(client(), stream=True)]
    assert events[0] == "message_start" and events[-1] == "message_stop"


def test_tools_round_trip():
    messages = [{"role": "user", "content": QUESTION}]
    first = ask(client(), messages=messages, tools=[TOOL], tool_choice={"type": "auto"})
    assert first.stop_reason == "tool_use"
    call = next(b for b in first.content if b.type == "tool_use")
    assert (call.name, call.input["city"]) == ("get_weather", "Lisbon")
    messages += [
        {"role": "assistant", "content": [b.model_dump(include={"type", "id", "name", "input", "text"}) for b in first.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "21 C"}]},
    ]
    assert ask(client(), messages=messages, tools=[TOOL]).content[0].text == RESULT


def test_tools_streamed():
    with client().messages.stream(model=MODEL, max_tokens=100, messages=[{"role": "user", "content": QUESTION}], tools=[TOOL]) as stream:
        final = stream.get_final_message()
    assert next(b for b in final.content if b.type == "tool_use").input["city"] == "Lisbon"


def test_tool_runner():
    @anthropic.beta_tool
    def get_weather(city: str, unit: str = "celsius") -> str:
        """The weather in a city"""
        return f"21 C in {city}"

    runner = client().beta.messages.tool_runner(model=MODEL, max_tokens=100, messages=[{"role": "user", "content": QUESTION}], tools=[get_weather])
    assert runner.until_done().content[0].text == RESULT


def test_count_tokens():
    assert client().messages.count_tokens(model=MODEL, messages=HELLO, system="Be short.").input_tokens == 11


def test_models():
    ids = [m.id for m in client().models.list()]
    assert MODEL in ids
    assert client().models.retrieve(MODEL).id == MODEL


def test_401(dead_key):
    with pytest.raises(anthropic.AuthenticationError) as e:
        ask(anthropic.Anthropic(base_url=GATEWAY, api_key=dead_key, max_retries=0))
    assert e.value.request_id
    assert e.value.body["error"]["type"] == "authentication_error"


def test_403_model_not_allowed():
    with pytest.raises(anthropic.PermissionDeniedError) as e:
        ask(client(), model="claude-forbidden")
    assert "claude-forbidden" in str(e.value)


def test_413_too_large():
    with pytest.raises(anthropic.RequestTooLargeError):
        ask(client(), messages=[{"role": "user", "content": "x" * 11_000_000}])


def test_429_over_the_keys_rate():
    one = client("AID_ONE_RPM_KEY")
    ask(one)
    with pytest.raises(anthropic.RateLimitError) as e:
        ask(one)
    assert int(e.value.response.headers["retry-after"]) > 0


def test_429_of_the_provider_is_passed_on():
    with pytest.raises(anthropic.RateLimitError) as e:
        ask(client(), messages=[{"role": "user", "content": "the provider is busy"}])
    assert "Rate limit reached" in str(e.value)


def test_503_provider_unreachable():
    with pytest.raises(anthropic.ServiceUnavailableError):
        ask(client(), model="unreachable-anthropic")


def test_404_batches_are_not_served():
    with pytest.raises(anthropic.NotFoundError) as e:
        client().messages.batches.list()
    assert "Batches are not available here" in str(e.value)
