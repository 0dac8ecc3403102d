"""Shared code of the Python clients' suites. TestSDKs (e2e/sdk_test.go) runs them. It starts
everything and sets AID_GATEWAY, AID_KEY (with all permissions), AID_REVOKED_KEY,
AID_ONE_RPM_KEY (for one request per minute), AID_CHAT_MODELS
and AID_NAMED_MODELS."""

import os

import pytest

# test_translated.py is run without these.
GATEWAY = os.environ.get("AID_GATEWAY", "")
MODELS = os.environ.get("AID_CHAT_MODELS", "").split(",")  # of OpenAI's format: one of each kind of provider
NAMED_MODELS = os.environ.get("AID_NAMED_MODELS", "").split(",")  # the same, where the names of messages are left out
TEXT = "Hello! How can I help you today?"
QUESTION = "what is the weather in Lisbon"
RESULT = "It is 21 degrees in Lisbon."
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    "required": ["city"],
}


def key(name="AID_KEY"):
    return os.environ[name]


@pytest.fixture(params=["aid_sk_not_a_key", "AID_REVOKED_KEY"], ids=["unknown", "revoked"])
def dead_key(request):
    return os.environ.get(request.param, request.param)
