"""ag2 as autogen (0.14 and before) against the gateway, only its config's base URL and key changed."""

import openai
import pytest
from autogen import AssistantAgent, ConversableAgent, UserProxyAgent
from conftest import GATEWAY, MODELS, NAMED_MODELS, QUESTION, RESULT, TEXT, key


def config(model="gpt-4o", secret=None, **more):
    return {"config_list": [{"model": model, "base_url": GATEWAY + "/v1", "api_key": secret or key(), "max_retries": 0, "price": [0, 0], **more}], "cache_seed": None}


def chat(text, turns=1, **more):
    assistant = AssistantAgent(name="assistant", llm_config=config(**more))
    user = UserProxyAgent(name="user", human_input_mode="NEVER", code_execution_config=False)
    return user.initiate_chat(assistant, message=text, max_turns=turns).chat_history[-1]["content"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", NAMED_MODELS)
def test_chat(model, stream):
    assert chat("hello", model=model, stream=stream) == TEXT


@pytest.mark.parametrize("model", NAMED_MODELS)
def test_chat_of_two_turns(model):
    # The second request carries the first answer, and the names of both.
    assistant = AssistantAgent(name="assistant", llm_config=config(model))
    other = ConversableAgent(name="other", llm_config=config(model))
    assert len(other.initiate_chat(assistant, message="hello", max_turns=2).chat_history) == 4


@pytest.mark.parametrize("model", NAMED_MODELS)
def test_tool(model):
    assistant = AssistantAgent(name="assistant", llm_config=config(model))
    user = UserProxyAgent(name="user", human_input_mode="NEVER", code_execution_config=False)

    @user.register_for_execution()
    @assistant.register_for_llm(description="The weather in a city")
    def get_weather(city: str, unit: str = "celsius") -> str:
        return f"21 C in {city}"

    assert user.initiate_chat(assistant, message=QUESTION, max_turns=2).chat_history[-1]["content"] == RESULT


def test_names_are_not_dropped_in_silence():
    with pytest.raises(openai.UnprocessableEntityError) as e:
        chat("hello", model=MODELS[1])
    assert (e.value.code, e.value.param) == ("unsupported_by_provider", "messages[1].name")


def test_401(dead_key):
    with pytest.raises(openai.AuthenticationError):
        chat("hello", secret=dead_key)


def test_403_model_not_allowed():
    with pytest.raises(openai.PermissionDeniedError):
        chat("hello", model="gpt-4-forbidden")


def test_429_over_the_keys_rate():
    chat("hello", secret=key("AID_ONE_RPM_KEY"))
    with pytest.raises(openai.RateLimitError):
        chat("hello", secret=key("AID_ONE_RPM_KEY"))
