"""The official google-genai SDK for Python against the gateway, only its base URL and key changed."""

import pytest
from conftest import GATEWAY, QUESTION, RESULT, SCHEMA, TEXT, key
from google import genai
from google.genai import errors, types

MODEL = "gemini-2.5-pro"
TOOL = types.Tool(function_declarations=[types.FunctionDeclaration(name="get_weather", description="The weather in a city", parameters_json_schema=SCHEMA)])


kept = []


def client(name="AID_KEY", secret=None):
    # A client that nothing refers to is closed, with its connection.
    kept.append(genai.Client(api_key=secret or key(name), http_options=types.HttpOptions(base_url=GATEWAY)))
    return kept[-1]


def test_generate():
    answer = client().models.generate_content(
        model=MODEL, contents="hello", config=types.GenerateContentConfig(system_instruction="Be short.", max_output_tokens=100, temperature=0.5)
    )
    assert answer.text == TEXT
    assert (answer.usage_metadata.prompt_token_count, answer.usage_metadata.candidates_token_count) == (11, 9)
    assert answer.sdk_http_response.headers["x-request-id"]


def test_stream():
    chunks = list(client().models.generate_content_stream(model=MODEL, contents="hello"))
    assert "".join(c.text or "" for c in chunks) == TEXT
    assert chunks[-1].usage_metadata.total_token_count == 20


def test_chat():
    chat = client().chats.create(model=MODEL)
    assert chat.send_message("hello").text == TEXT
    assert chat.send_message("hello again").text == TEXT


def test_tools_round_trip():
    config = types.GenerateContentConfig(tools=[TOOL])
    contents = [types.UserContent(QUESTION)]
    first = client().models.generate_content(model=MODEL, contents=contents, config=config)
    call = first.function_calls[0]
    assert (call.name, call.args["city"]) == ("get_weather", "Lisbon")
    contents += [first.candidates[0].content, types.UserContent(types.Part.from_function_response(name=call.name, response={"result": "21 C"}))]
    assert client().models.generate_content(model=MODEL, contents=contents, config=config).text == RESULT


def test_tools_streamed():
    calls = []
    for chunk in client().models.generate_content_stream(model=MODEL, contents=QUESTION, config=types.GenerateContentConfig(tools=[TOOL])):
        calls += chunk.function_calls or []
    assert [(c.name, c.args["city"]) for c in calls] == [("get_weather", "Lisbon")]


def test_automatic_function_calling():
    def get_weather(city: str, unit: str = "celsius") -> str:
        """The weather in a city"""
        return f"21 C in {city}"

    assert client().models.generate_content(model=MODEL, contents=QUESTION, config=types.GenerateContentConfig(tools=[get_weather])).text == RESULT


def test_embed():
    answer = client().models.embed_content(model="gemini-embedding-001", contents=["hello", "goodbye"])
    assert len(answer.embeddings) == 2 and answer.embeddings[0].values


def test_count_tokens():
    assert client().models.count_tokens(model=MODEL, contents="hello").total_tokens == 11


def test_models():
    names = [m.name for m in client().models.list()]
    assert "models/" + MODEL in names
    assert client().models.get(model=MODEL).name == "models/" + MODEL


def test_401(dead_key):
    with pytest.raises(errors.ClientError) as e:
        client(secret=dead_key).models.generate_content(model=MODEL, contents="hello")
    assert (e.value.code, e.value.status) == (401, "UNAUTHENTICATED")


def test_403_model_not_allowed():
    with pytest.raises(errors.ClientError) as e:
        client().models.generate_content(model="gemini-forbidden", contents="hello")
    assert (e.value.code, e.value.status) == (403, "PERMISSION_DENIED")
    assert "gemini-forbidden" in e.value.message


def test_413_too_large():
    with pytest.raises(errors.ClientError) as e:
        client().models.generate_content(model=MODEL, contents="x" * 11_000_000)
    assert e.value.code == 413


def test_429_over_the_keys_rate():
    one = client("AID_ONE_RPM_KEY")
    one.models.generate_content(model=MODEL, contents="hello")
    with pytest.raises(errors.ClientError) as e:
        one.models.generate_content(model=MODEL, contents="hello")
    assert (e.value.code, e.value.status) == (429, "RESOURCE_EXHAUSTED")


def test_429_of_the_provider_is_passed_on():
    with pytest.raises(errors.ClientError) as e:
        client().models.generate_content(model=MODEL, contents="the provider is busy")
    assert e.value.code == 429 and "Rate limit reached" in e.value.message


def test_503_provider_unreachable():
    with pytest.raises(errors.ServerError) as e:
        client().models.generate_content(model="unreachable-gemini", contents="hello")
    assert (e.value.code, e.value.status) == (503, "UNAVAILABLE")
