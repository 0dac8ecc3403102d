"""langchain-openai against the gateway, only its base URL and key changed."""

import openai
import pytest
from conftest import GATEWAY, MODELS, QUESTION, RESULT, TEXT, key
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


@tool
def get_weather(city: str, unit: str = "celsius") -> str:
    """The weather in a city"""
    return f"21 C in {city}"


def llm(model="gpt-4o", secret=None, **more):
    return ChatOpenAI(model=model, base_url=GATEWAY + "/v1", api_key=secret or key(), max_retries=0, **more)


# One for each API that it speaks to OpenAI, and each model.
APIS = [pytest.param(("gpt-4o", {"use_responses_api": True}), id="responses")] + [pytest.param((m, {}), id=m) for m in MODELS]


@pytest.fixture(params=APIS)
def model(request):
    name, more = request.param
    return llm(name, **more)


def test_invoke(model):
    answer = model.invoke("hello")
    assert answer.text == TEXT
    assert answer.usage_metadata["total_tokens"] == 20


def test_stream(model):
    assert "".join(piece.text for piece in model.stream("hello")) == TEXT


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_round_trip(model, streamed):
    model = model.bind_tools([get_weather])

    def ask(messages):
        if not streamed:
            return model.invoke(messages)
        whole = None
        for piece in model.stream(messages):
            whole = piece if whole is None else whole + piece
        return whole

    messages = [HumanMessage(QUESTION)]
    first = ask(messages)
    call = first.tool_calls[0]
    assert (call["name"], call["args"]["city"]) == ("get_weather", "Lisbon")
    answer = ask([*messages, first, get_weather.invoke(call)])
    assert isinstance(get_weather.invoke(call), ToolMessage)
    assert answer.text == RESULT


def test_embeddings():
    # check_embedding_ctx_length fetches a tokenizer's table from the network.
    embeddings = OpenAIEmbeddings(model="text-embedding-3-small", base_url=GATEWAY + "/v1", api_key=key(), check_embedding_ctx_length=False)
    assert len(embeddings.embed_documents(["hello", "goodbye"])) == 2


def test_401(dead_key):
    with pytest.raises(openai.AuthenticationError):
        llm(secret=dead_key).invoke("hello")


def test_403_model_not_allowed():
    with pytest.raises(openai.PermissionDeniedError):
        llm("gpt-4-forbidden").invoke("hello")


def test_429_over_the_keys_rate():
    one = llm(secret=key("AID_ONE_RPM_KEY"))
    one.invoke("hello")
    with pytest.raises(openai.RateLimitError):
        one.invoke("hello")
