"""litellm as a client of the gateway: in OpenAI's format, and in those of Anthropic, Gemini, Cohere and Mistral."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a list from GitHub

import litellm
import pytest
from conftest import GATEWAY, MODELS, QUESTION, RESULT, SCHEMA, TEXT, key

WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "The weather in a city", "parameters": SCHEMA}}
HELLO = [{"role": "user", "content": "hello"}]
OWN = [
    ("anthropic/claude-sonnet-4-20250514", GATEWAY),
    ("gemini/gemini-2.5-pro", GATEWAY + "/v1beta"),
    ("cohere_chat/command-a-03-2025", GATEWAY + "/v2/chat"),
    ("mistral/mistral-large-2512", GATEWAY + "/v1"),
]
# Left out: the provider's own SDK types do not have what litellm 1.110.2 sends back after a tool call.
NOT_THEIRS = {
    "gemini/gemini-2.5-pro": "parts named function_call and function_response, which the API takes and its SDK does not send",
    "cohere_chat/command-a-03-2025": "tool_calls[].index and a tool message's name",
}
EACH = [pytest.param(("openai/" + m, GATEWAY + "/v1"), id="openai/" + m) for m in MODELS] + [pytest.param(m, id=m[0]) for m in OWN]


@pytest.fixture(params=EACH)
def ask(request):
    model, base = request.param
    if model.startswith("cohere_chat/") and "stream" in request.node.originalname:
        pytest.skip("litellm 1.110.2 parses each line of Cohere's v2 stream as JSON, its event: lines too")

    def complete(messages, secret=None, **more):
        return litellm.completion(model=model, api_base=base, api_key=secret or key(), messages=messages, num_retries=0, max_retries=0, **more)

    complete.model = model
    return complete


def test_chat(ask):
    answer = ask(HELLO)
    assert answer.choices[0].message.content == TEXT
    assert answer.usage.total_tokens == 20


def test_stream(ask):
    assert "".join(piece.choices[0].delta.content or "" for piece in ask(HELLO, stream=True)) == TEXT


def test_tools_round_trip(ask):
    if ask.model in NOT_THEIRS:
        pytest.skip(NOT_THEIRS[ask.model])
    messages = [{"role": "user", "content": QUESTION}]
    first = ask(messages, tools=[WEATHER]).choices[0].message
    call = first.tool_calls[0]
    assert call.function.name == "get_weather" and "Lisbon" in call.function.arguments
    messages += [first.model_dump(), {"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": "21 C"}]
    assert ask(messages, tools=[WEATHER]).choices[0].message.content == RESULT


def test_tools_streamed(ask):
    pieces = list(ask([{"role": "user", "content": QUESTION}], tools=[WEATHER], stream=True))
    calls = litellm.stream_chunk_builder(pieces).choices[0].message.tool_calls
    assert len(calls) == 1  # a call that came whole is one call
    assert calls[0].function.name == "get_weather" and "Lisbon" in calls[0].function.arguments


def test_401(ask, dead_key):
    with pytest.raises(litellm.AuthenticationError):
        ask(HELLO, secret=dead_key)
