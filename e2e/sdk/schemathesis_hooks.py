"""What the tester of the management API must not do, and what its generator cannot do."""

import itertools
import os
import unicodedata

import schemathesis

# The tester's own key and the node of the gateway that is tested: they are not revoked.
KEEP = set(os.environ["AID_KEEP"].split(","))
count = itertools.count()


@schemathesis.hook
def before_call(context, case, kwargs):
    for name, value in (case.path_parameters or {}).items():
        if case.method == "DELETE" and value in KEEP:
            case.path_parameters[name] = "kept"
    # The same Idempotency-Key with another request is 422, so each valid request has its own.
    if positive(case) and "Idempotency-Key" in (case.headers or {}):
        case.headers["Idempotency-Key"] = f"tester-{next(count)}"


def positive(case):
    return case.meta is None or case.meta.generation.mode.is_positive


def hidden(value):
    """Whether a text has what names must not have. The generator does not read \\p{C} and \\p{Z}."""
    if isinstance(value, str):
        return any(c != " " and unicodedata.category(c)[0] in "CZ" for c in value)
    if isinstance(value, dict):
        return any(hidden(v) for v in value.values())
    return isinstance(value, list) and any(hidden(v) for v in value)


def fraction(value):
    """Whether an integer is written with a fraction, as 463.0. JSON Schema has it for one; the API takes 463."""
    if isinstance(value, dict):
        return any(fraction(v) for k, v in value.items() if k != "metadata")
    if isinstance(value, list):
        return any(fraction(v) for v in value)
    return isinstance(value, float)


def enormous(value):
    """Whether metadata has a number of more than 64 digits. JSON Schema cannot exclude it."""
    metadata = value.get("metadata") if isinstance(value, dict) else None
    return isinstance(metadata, dict) and any(isinstance(v, (int, float)) and abs(v) >= 1e60 for v in metadata.values())


@schemathesis.hook
def filter_case(context, case):
    return not (positive(case) and (hidden(case.body) or fraction(case.body) or enormous(case.body)))
