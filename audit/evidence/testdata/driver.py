"""Run the Python verifier on many cases in one interpreter, for the tests in Go.

Each line of stdin is a case in JSON, and each line of stdout is its verdict.
"""
import base64
import io
import json
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "cli"))
import ai_identity_verify as v  # noqa: E402

v.HAVE_CRYPTOGRAPHY = v.HAVE_CRYPTOGRAPHY and not os.environ.get("AID_PURE")


def signature(key, message, sig):
    """Return whether a signature is valid, by the code of the file and by what it would use."""
    if len(key) == 65:
        x, y = int.from_bytes(key[1:33], "big"), int.from_bytes(key[33:], "big")
        return [v.p256_verify_pure(x, y, message, sig), v.p256_verify(x, y, message, sig)]
    return [v.ed25519_verify_pure(key, message, sig), v.ed25519_verify(key, message, sig)]


for line in sys.stdin:
    case = json.loads(line)
    command = case["command"]
    if command == "signature":
        print(json.dumps(signature(*(bytes.fromhex(h) for h in case["signature"]))), flush=True)
        continue
    try:
        keys = v.parse_jwks(case["jwks"].encode()).pin(case["pins"] or [])
    except v.Invalid:
        keys = v.KeySet()
    data = base64.b64decode(case["data"] or "")
    held = [tuple(h) for h in case["held"] or []]
    if command == "chain":
        macs = {0: bytes.fromhex(case["mac"])} if case["mac"] else {}
        verdict = v.verify_chain(io.BytesIO(data), keys, held, macs)
    elif command == "checkpoint":
        verdict = v.verify_checkpoints(held, keys, data or None)
    elif command == "receipt":
        verdict = v.verify_receipt(case["receipt"], data, keys)
    else:
        verdict = {"report": v.verify_report, "attestation": v.verify_attestation, "bundle": v.verify_bundle}[command](data, keys)
    print(json.dumps(verdict), flush=True)
