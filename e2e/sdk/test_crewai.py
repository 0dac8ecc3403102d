"""CrewAI against the gateway, only its LLM's base URL and key changed."""

import openai
import pytest
from conftest import GATEWAY, MODELS, QUESTION, RESULT, TEXT, key
from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool


@tool("get_weather")
def get_weather(city: str, unit: str = "celsius") -> str:
    """The weather in a city"""
    return f"21 C in {city}"


def llm(model="gpt-4o", secret=None, **more):
    # The provider is named, because a name like claude-… would make it ask Anthropic in its own format.
    return LLM(model=model, provider="openai", base_url=GATEWAY + "/v1", api_key=secret or key(), max_retries=0, **more)


def run(text, model, tools=()):
    agent = Agent(role="Reporter", goal="Answer", backstory="You are brief.", llm=model, tools=list(tools), max_retry_limit=0, max_iter=3)
    task = Task(description=text, expected_output="one sentence", agent=agent)
    return Crew(agents=[agent], tasks=[task]).kickoff().raw


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_crew(model, stream):
    assert run("Say hello", llm(model, stream=stream)) == TEXT


@pytest.mark.parametrize("model", MODELS)
def test_crew_with_a_tool(model):
    assert run(QUESTION, llm(model), [get_weather]) == RESULT


@pytest.mark.parametrize("model", MODELS)
def test_call(model):
    assert llm(model).call("hello") == TEXT


def test_401(dead_key):
    with pytest.raises(openai.AuthenticationError):
        llm(secret=dead_key).call("hello")


def test_403_model_not_allowed():
    with pytest.raises(openai.PermissionDeniedError):
        llm("gpt-4-forbidden").call("hello")


def test_429_over_the_keys_rate():
    llm(secret=key("AID_ONE_RPM_KEY")).call("hello")
    with pytest.raises(openai.RateLimitError):
        llm(secret=key("AID_ONE_RPM_KEY")).call("hello")
