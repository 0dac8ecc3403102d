"""The official mistralai SDK for Python against the gateway, only its server URL and key changed.

Each test runs in OpenAI's format (the plain URL) and in Mistral's own (the URL with /mistral)."""

import pytest
from conftest import GATEWAY, QUESTION, RESULT, SCHEMA, TEXT, key
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

MODEL = "mistral-large-2512"
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather in a city", "parameters": SCHEMA}}


base = GATEWAY


@pytest.fixture(params=["", "/mistral"], autouse=True)
def form(request):
    global base
    base = GATEWAY + request.param
    return request.param


def client(name="AID_KEY", secret=None):
    return Mistral(server_url=base, api_key=secret or key(name))


def ask(client, model=MODEL, messages=HELLO, **more):
    return client.chat.complete(model=model, messages=messages, **more)


def test_chat():
    answer = ask(client(), max_tokens=100, temperature=0.5)
    assert answer.choices[0].message.content == TEXT
    assert answer.usage.total_tokens == 20


def test_stream():
    with client().chat.stream(model=MODEL, messages=HELLO) as stream:
        assert "".join(e.data.choices[0].delta.content or "" for e in stream if e.data.choices) == TEXT


def test_tools_round_trip():
    messages = [{"role": "user", "content": QUESTION}]
    first = ask(client(), messages=messages, tools=[TOOL], tool_choice="auto")
    call = first.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and "Lisbon" in call.function.arguments
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": "21 C"}]
    assert ask(client(), messages=messages, tools=[TOOL]).choices[0].message.content == RESULT


def test_tools_streamed():
    arguments = ""
    with client().chat.stream(model=MODEL, messages=[{"role": "user", "content": QUESTION}], tools=[TOOL]) as stream:
        for e in stream:
            for call in (e.data.choices[0].delta.tool_calls or []) if e.data.choices else []:
                arguments += call.function.arguments
    assert "Lisbon" in arguments


def test_fill_in_the_middle():
    answer = client().fim.complete(model="codestral-2508", prompt="def add(a, b):\n    ", suffix="\n")
    assert answer.choices[0].message.content == "return a + b"


def test_fill_in_the_middle_streamed():
    with client().fim.stream(model="codestral-2508", prompt="def add(a, b):\n    ", suffix="\n") as stream:
        assert "".join(e.data.choices[0].delta.content for e in stream) == "return a + b"


def test_embeddings():
    answer = client().embeddings.create(model="mistral-embed", inputs=["hello", "goodbye"])
    assert len(answer.data) == 2


def test_ocr():
    answer = client().ocr.process(model="mistral-ocr-2505", document={"type": "image_url", "image_url": "data:image/png;base64,aGVsbG8="})
    assert answer.pages[0].markdown == "# Invoice"


def test_moderations():
    assert client().classifiers.moderate(model="mistral-moderation-2411", inputs=["hello"]).results


def test_models():
    assert MODEL in [m.id for m in client().models.list().data]
    assert client().models.retrieve(model_id=MODEL).id == MODEL


def test_401(dead_key):
    with pytest.raises(SDKError) as e:
        ask(client(secret=dead_key))
    assert e.value.status_code == 401


def test_403_model_not_allowed():
    with pytest.raises(SDKError) as e:
        ask(client(), model="mistral-forbidden")
    assert e.value.status_code == 403 and "mistral-forbidden" in e.value.body


def test_413_too_large():
    with pytest.raises(SDKError) as e:
        ask(client(), messages=[{"role": "user", "content": "x" * 11_000_000}])
    assert e.value.status_code == 413


def test_429_over_the_keys_rate(form):
    one = client("AID_OTHER_ONE_RPM_KEY" if form else "AID_ONE_RPM_KEY")
    ask(one)
    with pytest.raises(SDKError) as e:
        ask(one)
    assert e.value.status_code == 429 and int(e.value.headers["retry-after"]) > 0


def test_429_of_the_provider_is_passed_on():
    with pytest.raises(SDKError) as e:
        ask(client(), messages=[{"role": "user", "content": "the provider is busy"}])
    assert e.value.status_code == 429 and "Rate limit reached" in e.value.body


def test_503_provider_unreachable():
    with pytest.raises(SDKError) as e:
        ask(client(), model="unreachable-mistral")
    assert e.value.status_code == 503
