"""Verify DSSE envelopes with securesystemslib, for the tests in Go.

Each line of stdin is a case in JSON: envelope, pem and keyid. Each line of stdout is true if the
library accepts the signature, and false if it rejects it.
"""
import json
import sys

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

for line in sys.stdin:
    case = json.loads(line)
    key = SSlibKey(case["keyid"], "ecdsa", "ecdsa-sha2-nistp256", {"public": case["pem"]})
    try:
        Envelope.from_dict(case["envelope"]).verify([key], 1)
        print("true", flush=True)
    except VerificationError:
        print("false", flush=True)
