"""The official openai SDK for Python with models of other providers: only the model's name differs.

Run by TestTranslated (e2e/translated_test.go), which starts everything and sets the environment:
AID_GATEWAY, AID_KEY, AID_TRANSLATED_MODELS (kind=model, separated by commas).
"""

import asyncio
import os

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from test_openai import BASE, HELLO, WEATHER

MODELS = dict(pair.split("=") for pair in os.environ["AID_TRANSLATED_MODELS"].split(","))
QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "what is the weather in Lisbon"}]
each = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def client():
    return OpenAI(base_url=BASE, api_key=os.environ["AID_KEY"], max_retries=0)


@each
def test_chat(model):
    answer = client().chat.completions.create(model=model, messages=HELLO, temperature=0.2, max_completion_tokens=100, stop=["END"])
    assert answer.object == "chat.completion" and answer.model
    assert answer.choices[0].message.content == "Hello! How can I help you today?"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (11, 9, 20)


@each
def test_stream(model):
    text, finish, usage, ids = "", None, None, set()
    for chunk in client().chat.completions.create(model=model, messages=HELLO, stream=True, stream_options={"include_usage": True}):
        ids.add(chunk.id)
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        usage = chunk.usage or usage
    assert text == "Hello! How can I help you today?"
    assert finish == "stop" and len(ids) == 1
    if model != MODELS["mistral"]:  # Mistral says usage unasked; the stand-in does not
        assert usage.total_tokens == 20


@each
def test_async_stream(model):
    async def ask():
        async with AsyncOpenAI(base_url=BASE, api_key=os.environ["AID_KEY"], max_retries=0) as c:
            stream = await c.chat.completions.create(model=model, messages=HELLO, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    assert asyncio.run(ask()) == "Hello! How can I help you today?"


@each
def test_tools_round_trip(model):
    first = client().chat.completions.create(model=model, messages=QUESTION, tools=[WEATHER], tool_choice="auto")
    assert first.choices[0].finish_reason == "tool_calls"
    call = first.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and "Lisbon" in call.function.arguments
    messages = QUESTION + [
        first.choices[0].message.model_dump(exclude_none=True),  # as the SDK's users send it back
        {"role": "tool", "tool_call_id": call.id, "content": "21 C"},
    ]
    second = client().chat.completions.create(model=model, messages=messages, tools=[WEATHER])
    assert second.choices[0].message.content == "It is 21 degrees in Lisbon."


@each
def test_tools_streamed(model):
    with client().chat.completions.stream(model=model, messages=QUESTION, tools=[WEATHER]) as stream:
        final = stream.get_final_completion()
    call = final.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and "Lisbon" in call.function.arguments
    assert final.choices[0].finish_reason == "tool_calls"


@each
def test_429_of_the_provider(model):
    with pytest.raises(openai.RateLimitError) as e:
        client().chat.completions.create(model=model, messages=[{"role": "user", "content": "the provider is busy"}])
    assert "Rate limit reached" in e.value.message


@each
def test_500_of_the_provider(model):
    with pytest.raises(openai.InternalServerError):
        client().chat.completions.create(model=model, messages=[{"role": "user", "content": "the provider fails"}], stream=True)


@each
def test_what_cannot_be_carried(model):
    with pytest.raises(openai.UnprocessableEntityError) as e:
        client().chat.completions.create(model=model, messages=HELLO, logit_bias={"50256": -100})
    assert e.value.param == "logit_bias" and e.value.code == "unsupported_by_provider"


@each
def test_what_is_left_out_is_said(model):
    raw = client().chat.completions.with_raw_response.create(model=model + "-lenient", messages=HELLO, logit_bias={"50256": -100})
    assert raw.headers["x-aid-dropped"] == "logit_bias"
    assert raw.parse().choices[0].message.content == "Hello! How can I help you today?"


# The stand-in has no batchEmbedContents: Gemini's are in TestTranslatedAnswers.
@pytest.mark.parametrize("kind", ["cohere", "mistral"])
@pytest.mark.parametrize("form", ["float", "base64", None])  # None: the SDK asks for base64, and decodes it
def test_embeddings(kind, form):
    more = {"encoding_format": form} if form else {}
    answer = client().embeddings.create(model=f"embed-{kind}", input=["hello", "goodbye"], dimensions=8, **more)
    assert [d.index for d in answer.data] == [0, 1]
    if form != "base64":
        assert all(isinstance(x, float) for d in answer.data for x in d.embedding)
    assert answer.data[0].embedding != answer.data[1].embedding
