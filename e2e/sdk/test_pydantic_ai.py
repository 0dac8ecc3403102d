"""pydantic-ai against the gateway, with OpenAI's and Anthropic's models of it; only the base URL and key changed."""

import pytest
from conftest import GATEWAY, MODELS, QUESTION, RESULT, TEXT, key
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


def openai_provider(secret=None):
    return OpenAIProvider(base_url=GATEWAY + "/v1", api_key=secret or key())


MAKE = {m: (lambda secret=None, m=m: OpenAIChatModel(m, provider=openai_provider(secret))) for m in MODELS}
MAKE["responses"] = lambda secret=None: OpenAIResponsesModel("gpt-4o", provider=openai_provider(secret))
MAKE["anthropic"] = lambda secret=None: AnthropicModel("claude-sonnet-4-20250514", provider=AnthropicProvider(base_url=GATEWAY, api_key=secret or key()))


@pytest.fixture(params=MAKE)
def make(request):
    return MAKE[request.param]


def test_run(make):
    answer = Agent(make()).run_sync("hello")
    assert answer.output == TEXT


def test_stream(make):
    answer = Agent(make()).run_stream_sync("hello")
    assert list(answer.stream_text())[-1] == TEXT


def test_tools(make):
    agent = Agent(make(), instructions="Be brief.")
    called = []

    @agent.tool_plain
    def get_weather(city: str, unit: str = "celsius") -> str:
        """The weather in a city."""
        called.append(city)
        return f"21 C in {city}"

    assert agent.run_sync(QUESTION).output == RESULT
    assert called == ["Lisbon"]


def test_401(make, dead_key):
    with pytest.raises(ModelHTTPError) as e:
        Agent(make(dead_key)).run_sync("hello")
    assert e.value.status_code == 401
