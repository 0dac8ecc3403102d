"""autogen-agentchat with autogen-ext's OpenAI client against the gateway, only its base URL and key changed."""

import asyncio

import openai
import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core.models import ModelFamily, ModelInfo
from autogen_ext.models.openai import OpenAIChatCompletionClient
from conftest import GATEWAY, MODELS, NAMED_MODELS, QUESTION, RESULT, TEXT, key


async def get_weather(city: str, unit: str = "celsius") -> str:
    """The weather in a city"""
    return f"21 C in {city}"


def client(model="gpt-4o", secret=None, **more):
    info = None
    if not model.startswith("gpt-"):  # what it knows of OpenAI's models it has to be told of others
        info = ModelInfo(vision=False, function_calling=True, json_output=False, structured_output=False, family=ModelFamily.UNKNOWN)
    return OpenAIChatCompletionClient(
        model=model, base_url=GATEWAY + "/v1", api_key=secret or key(), max_retries=0, **({"model_info": info} if info else {}), **more)


def last(task, *agents, **more):
    """The last message of a run. The agents' names go along as the messages' names."""

    async def run():
        runner = agents[0] if len(agents) == 1 else RoundRobinGroupChat(list(agents), termination_condition=MaxMessageTermination(len(agents) + 1))
        return (await runner.run(task=task)).messages[-1]

    return asyncio.run(run()).content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", NAMED_MODELS)
def test_agent(model, stream):
    assert last("hello", AssistantAgent("assistant", client(model), model_client_stream=stream)) == TEXT


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", NAMED_MODELS)
def test_tool(model, stream):
    assert last(QUESTION, AssistantAgent("assistant", client(model), tools=[get_weather], reflect_on_tool_use=True, model_client_stream=stream)) == RESULT


@pytest.mark.parametrize("model", NAMED_MODELS)
def test_team(model):
    assert last("hello", AssistantAgent("writer", client(model)), AssistantAgent("critic", client(model)))


@pytest.mark.parametrize("model", MODELS)
def test_agent_without_names(model):
    assert last("hello", AssistantAgent("assistant", client(model, include_name_in_message=False))) == TEXT


def test_401(dead_key):
    with pytest.raises(openai.AuthenticationError):
        last("hello", AssistantAgent("assistant", client(secret=dead_key)))


def test_403_model_not_allowed():
    with pytest.raises(openai.PermissionDeniedError):
        last("hello", AssistantAgent("assistant", client("gpt-4-32k")))


def test_429_over_the_keys_rate():
    last("hello", AssistantAgent("assistant", client(secret=key("AID_ONE_RPM_KEY"))))
    with pytest.raises(openai.RateLimitError):
        last("hello", AssistantAgent("assistant", client(secret=key("AID_ONE_RPM_KEY"))))
