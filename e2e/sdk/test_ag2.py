"""ag2 against the gateway, only its config's base URL and key changed."""

import asyncio

import openai
import pytest
from ag2 import Agent, tool
from ag2.config import OpenAIConfig, OpenAIResponsesConfig
from conftest import GATEWAY, MODELS, QUESTION, RESULT, TEXT, key


@tool
def get_weather(city: str, unit: str = "celsius") -> str:
    """The weather in a city"""
    return f"21 C in {city}"


def ask(text, model="gpt-4o", api=OpenAIConfig, secret=None, tools=(), **more):
    config = api(model=model, base_url=GATEWAY + "/v1", api_key=secret or key(), max_retries=0, **more)

    async def run():
        return await Agent("assistant", "Be short.", config=config, tools=tools).ask(text)

    return asyncio.run(run()).body


APIS = [pytest.param("gpt-4o", OpenAIResponsesConfig, id="responses")] + [pytest.param(m, OpenAIConfig, id=m) for m in MODELS]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("model", "api"), APIS)
def test_ask(model, api, streaming):
    assert ask("hello", model, api, streaming=streaming) == TEXT


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("model", "api"), APIS)
def test_tool(model, api, streaming):
    assert ask(QUESTION, model, api, streaming=streaming, tools=[get_weather]) == RESULT


def test_401(dead_key):
    with pytest.raises(openai.AuthenticationError):
        ask("hello", secret=dead_key)


def test_403_model_not_allowed():
    with pytest.raises(openai.PermissionDeniedError):
        ask("hello", "gpt-4-forbidden")


def test_429_over_the_keys_rate():
    ask("hello", secret=key("AID_ONE_RPM_KEY"))
    with pytest.raises(openai.RateLimitError):
        ask("hello", secret=key("AID_ONE_RPM_KEY"))
