#!/usr/bin/env python3
"""Verify evidence of AI Identity offline: no database, no network, no trust in a server.

One file, Python 3.9 or newer, standard library only. If the package cryptography is installed,
it checks the signatures; otherwise the code in this file does. docs/evidence.md of the project
describes the formats, and docs/auditor.md says what each command proves.

Exit codes: 0 intact, 1 tampered, 2 incomplete or no key, 3 wrong usage.
"""
import argparse
import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import struct
import sys
import threading
from datetime import datetime, timedelta

try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    HAVE_CRYPTOGRAPHY = True
except ImportError:
    HAVE_CRYPTOGRAPHY = False

INTACT, TAMPERED, INCOMPLETE, USAGE = 0, 1, 2, 3
MAX64 = (1 << 63) - 1
MAX_SIZE = 1 << 61
MAX_LINE = 8 << 20
MAX_NOTE = 64 << 10
MAX_JWKS = 1 << 20
MAX_DOCUMENT = 64 << 20
MAX_SIGNATURES = 64


class Fault(Exception):
    """Something contradicts itself or its signature."""

    def __init__(self, where, problem, proof=()):
        super().__init__(problem)
        self.where, self.problem, self.proof = where, problem, list(proof)


class Unknown(Exception):
    """No key of the JWKS made the signature."""


class Invalid(Exception):
    """A value does not have its form."""


class Deep(Exception):
    """JSON has more levels than this Python can read."""


class Usage(Exception):
    """The command cannot be run like this."""


# Signatures. P-256: FIPS 186-5 and SEC 1. Ed25519: RFC 8032.

P = 2**256 - 2**224 + 2**192 + 2**96 - 1
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
GX = 0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296
GY = 0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5


def on_p256(x, y):
    return 0 <= x < P and 0 <= y < P and (y * y - (x * x * x - 3 * x + B)) % P == 0


def _double(p):
    x, y, z = p
    if not z or not y:
        return (0, 1, 0)
    delta, gamma = z * z % P, y * y % P
    beta = x * gamma % P
    alpha = 3 * (x - delta) * (x + delta) % P
    x3 = (alpha * alpha - 8 * beta) % P
    z3 = ((y + z) * (y + z) - gamma - delta) % P
    return (x3, (alpha * (4 * beta - x3) - 8 * gamma * gamma) % P, z3)


def _add(p, q):
    if not p[2]:
        return q
    if not q[2]:
        return p
    z1, z2 = p[2] * p[2] % P, q[2] * q[2] % P
    u1, u2 = p[0] * z2 % P, q[0] * z1 % P
    s1, s2 = p[1] * q[2] * z2 % P, q[1] * p[2] * z1 % P
    if u1 == u2:
        return _double(p) if s1 == s2 else (0, 1, 0)
    h, r = (u2 - u1) % P, (s2 - s1) % P
    h2 = h * h % P
    h3, v = h * h2 % P, u1 * h2 % P
    x3 = (r * r - h3 - 2 * v) % P
    return (x3, (r * (v - x3) - s1 * h3) % P, h * p[2] * q[2] % P)


def der_integers(sig):
    """Return r and s of a signature in DER, or raise Invalid. Only the shortest form is valid."""
    if len(sig) < 8 or len(sig) > 72 or sig[0] != 0x30 or sig[1] != len(sig) - 2:
        raise Invalid("the signature is not DER")
    out, at = [], 2
    for _ in range(2):
        if at + 2 > len(sig) or sig[at] != 2:
            raise Invalid("the signature is not DER")
        n = sig[at + 1]
        body = sig[at + 2 : at + 2 + n]
        if n == 0 or n > 33 or len(body) != n or body[0] & 0x80 or n > 1 and body[0] == 0 and not body[1] & 0x80:
            raise Invalid("the signature is not DER")
        out.append(int.from_bytes(body, "big"))
        at += 2 + n
    if at != len(sig):
        raise Invalid("the signature is not DER")
    return out


def p256_verify_pure(x, y, message, sig):
    try:
        r, s = der_integers(sig)
    except Invalid:
        return False
    if not (on_p256(x, y) and 0 < r < N and 0 < s < N):
        return False
    e = int.from_bytes(hashlib.sha256(message).digest(), "big")
    w = pow(s, -1, N)
    a, b = e * w % N, r * w % N
    g, q = (GX, GY, 1), (x, y, 1)
    both, total = _add(g, q), (0, 1, 0)
    for i in range(255, -1, -1):
        total = _double(total)
        bits = (a >> i & 1) | (b >> i & 1) << 1
        if bits:
            total = _add(total, (None, g, q, both)[bits])
    if not total[2]:
        return False
    return total[0] * pow(total[2], -2, P) % P % N == r


def p256_verify(x, y, message, sig):
    """Report whether sig is the DER signature of the SHA-256 of message by the key (x, y)."""
    if not HAVE_CRYPTOGRAPHY:
        return p256_verify_pure(x, y, message, sig)
    try:
        der_integers(sig)
        key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        key.verify(sig, message, ec.ECDSA(hashes.SHA256()))
        return True
    except (Invalid, InvalidSignature, ValueError):
        return False


Q = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, Q) % Q
I = pow(2, (Q - 1) // 4, Q)
SMALL_ORDER = {
    0,
    1,
    Q - 1,
    int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
    int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
}


def _ed_point(b):
    """Return the point that 32 bytes encode, or None."""
    n = int.from_bytes(b, "little")
    sign, y = n >> 255, n & (1 << 255) - 1
    if y >= Q:
        return None
    u, v = (y * y - 1) % Q, (D * y * y + 1) % Q
    x = u * pow(v, 3, Q) * pow(u * pow(v, 7, Q), (Q - 5) // 8, Q) % Q
    if v * x * x % Q != u:
        x = x * I % Q
        if v * x * x % Q != u:
            return None
    if x == 0 and sign:
        return None
    if x & 1 != sign:
        x = Q - x
    return (x, y, 1, x * y % Q)


def _ed_add(p, q):
    a = (p[1] - p[0]) * (q[1] - q[0]) % Q
    b = (p[1] + p[0]) * (q[1] + q[0]) % Q
    c = 2 * p[3] * q[3] * D % Q
    d = 2 * p[2] * q[2] % Q
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % Q, g * h % Q, f * g % Q, e * h % Q)


def _ed_mul(k, p):
    out = (0, 1, 1, 0)
    while k:
        if k & 1:
            out = _ed_add(out, p)
        p = _ed_add(p, p)
        k >>= 1
    return out


ED_BASE = _ed_point(bytes.fromhex("58" + "66" * 31))


def ed25519_verify_pure(key, message, sig):
    if len(key) != 32 or len(sig) != 64:
        return False
    a = _ed_point(key)
    s = int.from_bytes(sig[32:], "little")
    if a is None or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(sig[:32] + key + message).digest(), "little") % L
    minus = (Q - a[0], a[1], a[2], Q - a[3])
    x, y, z, _ = _ed_add(_ed_mul(s, ED_BASE), _ed_mul(k, minus))
    inverse = pow(z, -1, Q)
    x, y = x * inverse % Q, y * inverse % Q
    return (y | (x & 1) << 255).to_bytes(32, "little") == sig[:32]


def ed25519_verify(key, message, sig):
    if not HAVE_CRYPTOGRAPHY:
        return ed25519_verify_pure(key, message, sig)
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(sig, message)
        return True
    except (InvalidSignature, ValueError):
        return False


# JSON and base64, strictly: one text for one value.


def unbase64(s):
    try:
        b = base64.b64decode(s, validate=True)
    except (binascii.Error, ValueError) as e:
        raise Invalid("it is not base64") from e
    if base64.b64encode(b).decode() != s:
        raise Invalid("the base64 is not canonical")
    return b


def unbase64url(s):
    b = unbase64(s.replace("-", "+").replace("_", "/") + "=" * (-len(s) % 4))
    if base64.urlsafe_b64encode(b).rstrip(b"=").decode() != s:
        raise Invalid("the base64url is not canonical")
    return b


def _no_duplicates(pairs):
    out = dict(pairs)
    if len(out) != len(pairs):
        raise Invalid("a name is there twice")
    return out


class Number:
    """A number that is no integer of 64 bits. It has no other type, so no field accepts it."""


NUMBER = Number()
MAX_DEPTH = 10000
HALF_PAIR = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL)
ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def _small(text):
    if len(text) > 20:
        return NUMBER
    n = int(text)
    return n if -MAX64 - 1 <= n <= MAX64 else NUMBER


def _number(_):
    return NUMBER


def _no_constant(_):
    raise Invalid("NaN and Infinity are no JSON")


def too_deep(text):
    """Report whether JSON has more levels than a verifier reads."""
    if len(text) <= MAX_DEPTH or text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for c in re.findall(r"[\[\]{}]", STRING.sub("", text)):
        depth += 1 if c in "[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def decode(decoder, text):
    """Decode JSON with up to MAX_DEPTH levels. Raise Deep if this Python cannot."""
    if too_deep(text):
        raise Invalid("it has more than %d levels" % MAX_DEPTH)
    if "\\" in text and ESCAPED_HALF.search(text) and any(m[1] for m in HALF_PAIR.finditer(text)):
        raise Invalid("it has half of a surrogate pair")
    try:
        return decoder.decode(text)
    except RecursionError:
        return decode_deep(decoder, text)


def decode_deep(decoder, text):
    """Decode in a thread with a large stack."""
    out, limit = [], sys.getrecursionlimit()

    def run():
        try:
            out.append(decoder.decode(text))
        except (RecursionError, MemoryError):
            out.append(Deep("JSON here has more levels than this Python can read: use `aid audit verify --offline`"))
        except Exception as e:
            out.append(e)

    try:
        size = threading.stack_size(256 << 20)
        try:
            sys.setrecursionlimit(max(limit, 4 * MAX_DEPTH))
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            thread.join()
        finally:
            threading.stack_size(size)
            sys.setrecursionlimit(limit)
    except (ValueError, RuntimeError) as e:
        raise Deep("JSON here has too many levels, and this system has no stack for them: use `aid audit verify --offline`") from e
    if isinstance(out[0], Exception):
        raise out[0]
    return out[0]


JSON_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_int=_small, parse_float=_number, parse_constant=_no_constant)


def parse_json(b):
    try:
        return decode(JSON_DECODER, b.decode("utf-8"))
    except ValueError as e:
        raise Invalid("it is not valid JSON") from e


def _no_json(_):
    raise Invalid("a number is not an integer of 64 bits")


def dump(value):
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_no_json).encode("utf-8")
    except RecursionError as e:
        raise Invalid("it has too many levels") from e


def fields(value, form, what):
    """Check that value is an object with exactly the members of form, each of its type."""
    if not isinstance(value, dict) or set(value) != set(form):
        raise Invalid(what + " has not exactly the members " + ", ".join(form))
    for name, kind in form.items():
        if type(value[name]) is not kind:
            raise Invalid(what + ": " + name + " has another type")
        if name in ("left", "proof", "checkpoints", "agents", "models", "policies", "detail") and any(type(x) is not str for x in value[name]):
            raise Invalid(what + ": " + name + " is not a list of strings")
    return value


LENGTH = struct.Struct(">Q")


def part(b):
    """Return b after its length in 8 bytes."""
    return LENGTH.pack(len(b)) + b


# Keys.

ENVELOPE = {"payloadType": str, "payload": str, "signatures": list}
SIGNATURE = {"keyid": str, "sig": str}


class Key:
    def __init__(self, jwk):
        form = {"kty": str, "crv": str, "x": str, "kid": str, "alg": str, "use": str, "aid_from": int}
        if isinstance(jwk, dict):
            if "y" in jwk:
                form["y"] = str
            if "aid_to" in jwk:
                form["aid_to"] = int
        fields(jwk, form, "a key")
        x = unbase64url(jwk["x"])
        if len(x) != 32 or jwk["use"] != "sig":
            raise Invalid("a key is not for signatures, or its x has not 32 bytes")
        kind = (jwk["kty"], jwk["crv"], jwk["alg"])
        if kind == ("EC", "P-256", "ES256") and "y" in jwk:
            y = unbase64url(jwk["y"])
            self.point = (int.from_bytes(x, "big"), int.from_bytes(y, "big"))
            if len(y) != 32 or not on_p256(*self.point):
                raise Invalid("a key is not a point of P-256")
            self.p256 = True
            text = '{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}' % (jwk["x"], jwk["y"])
            prefix = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
            self.spki_id = hashlib.sha256(prefix + x + y).digest()[:4]
        elif kind == ("OKP", "Ed25519", "EdDSA") and "y" not in jwk:
            self.p256, self.raw = False, x
            y = int.from_bytes(x, "little") & (1 << 255) - 1
            if y >= Q or y in SMALL_ORDER:
                raise Invalid("a key is not a usable point of Ed25519")
            text = '{"crv":"Ed25519","kty":"OKP","x":"%s"}' % jwk["x"]
        else:
            raise Invalid("a key is neither P-256 with ES256 nor Ed25519 with EdDSA")
        self.kid = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        if self.kid != jwk["kid"]:
            raise Invalid("the kid of a key is not its thumbprint")
        self.role = "p256" if self.p256 else "ed25519"
        self.first, self.to = jwk["aid_from"], jwk.get("aid_to", 0)
        if self.first < 0 or "aid_to" in jwk and self.to <= self.first:
            raise Invalid("aid_from and aid_to of a key are not a range of sizes")

    def note_id(self, name):
        return self.spki_id if self.p256 else hashlib.sha256(name.encode() + b"\n\x01" + self.raw).digest()[:4]

    def verify(self, message, sig):
        if self.p256:
            return p256_verify(self.point[0], self.point[1], message, sig)
        return ed25519_verify(self.raw, message, sig)


CHANGE = {"origin": str, "role": str, "old": str, "new": str, "size": int, "old_signature": str, "new_signature": str}


class Change:
    """A key takes the place of another one in one log. Both have signed this."""

    def __init__(self, value, by_kid):
        fields(value, CHANGE, "a key change")
        self.origin, self.role, self.old, self.new, self.size = (value[n] for n in ("origin", "role", "old", "new", "size"))
        old, new = by_kid.get(self.old), by_kid.get(self.new)
        if old is None or new is None:
            raise Invalid("the JWKS lacks a key of a key change")
        if not valid_name(self.origin) or self.size < 1:
            raise Invalid("the origin or the size of a key change is invalid")
        if self.old == self.new or old.role != self.role or new.role != self.role:
            raise Invalid("the keys of a key change are not two keys of its role")
        parts = [x.encode() for x in ("aid key change v1", self.origin, self.role, self.old, self.new)] + [LENGTH.pack(self.size)]
        message = b"".join(part(x) for x in parts)
        for key, name in ((old, "old_signature"), (new, "new_signature")):
            if not key.verify(message, unbase64(value[name])):
                raise Invalid("a signature of a key change is wrong")
        self.what = (self.origin, self.role, self.old, self.new, self.size)


def is_directory(origin):
    return origin.endswith("/directory")


class KeySet:
    """The keys of a JWKS and the changes between them. It is iterable: those whose signatures count."""

    def __init__(self, keys=(), changes=()):
        self.keys, self.changes, self.believed = list(keys), list(changes), None
        self.directory = next((c.origin for c in self.changes if is_directory(c.origin)), "")

    def __iter__(self):
        return (k for k in self.keys if self.believed is None or k.kid in self.believed)

    def of(self, origin, role):
        return sorted((c for c in self.changes if c.origin == origin and c.role == role), key=lambda c: c.size)

    def line(self, role):
        """Return the ids of a role's keys, each after the one that it replaced, or [] if nothing connects them."""
        own = [k.kid for k in self.keys if k.role == role]
        changes = self.of(self.directory, role)
        if not changes and len(own) == 1:
            return own
        if not changes or len(changes) != len(own) - 1:
            return []
        out = [changes[0].old]
        for c in changes:
            if c.old != out[-1] or c.new in out:
                return []
            out.append(c.new)
        return out

    def check(self):
        begins = {}
        for c in self.changes:
            if is_directory(c.origin) and c.origin != self.directory:
                raise Invalid("a key change is of the directory of another installation")
            if not is_directory(c.origin) and not (self.directory and c.origin.startswith(self.directory[: -len("directory")] + "org/")):
                raise Invalid("a key change is of a log of another installation, or the directory's is missing")
        for role in ROLES:
            line = self.line(role)
            if not line and any(k.role == role for k in self.keys):
                raise Invalid("nothing connects the keys with the role %s: each key but the first needs the directory's key change" % role)
            for origin in {c.origin for c in self.changes if c.role == role}:
                changes, last = self.of(origin, role), 0
                at = line.index(changes[0].old) if changes[0].old in line else -1
                for i, c in enumerate(changes):
                    if at < 0 or at + i + 1 >= len(line) or [c.old, c.new] != line[at + i : at + i + 2] or c.size <= last:
                        raise Invalid("the key changes of %s are not in the order of the keys" % origin)
                    last = c.size
                    if origin == self.directory:
                        begins[c.new] = c.size
        for k in self.keys:
            if k.first != begins.get(k.kid, 0):
                raise Invalid("a key begins with another size than the directory's key change says")
            if k.to and not any(c.old == k.kid and is_directory(c.origin) and c.size <= k.to for c in self.changes):
                raise Invalid("a key ends, and no key has taken its place by then")
        return self

    def pin(self, kids):
        """Believe the pinned keys, and those that have replaced them."""
        if kids:
            self.believed = set()
        for kid in kids:
            for role in ROLES:
                line = self.line(role)
                if kid in line:
                    self.believed.update(line[line.index(kid) :])
        return self

    def signer(self, origin, role, size):
        """Return (the key that must sign a checkpoint, whether the set says so, whether it has changes of the log)."""
        line, changes = self.line(role), self.of(origin, role)
        if not line:
            return "", False, False
        if not changes:
            return line[-1], True, False
        kid = changes[0].old
        for c in changes:
            if size >= c.size:
                kid = c.new
        return kid, changes[-1].new == line[-1], True

    def replaced(self, origin, kid, size, opened):
        """Report whether a key was replaced in a log at a size or before it. opened: the set opens a checkpoint of that size."""
        role = next((k.role for k in self.keys if k.kid == kid), "")
        if not role or not opened and not self.of(origin, role):
            return False
        line, want = self.line(role), self.signer(origin, role, size)[0]
        return kid in line and want in line and line.index(kid) < line.index(want)

    def succeeded(self, kid):
        return any(c.old == kid for c in self.changes)


ROLES = {"p256": "a P-256", "ed25519": "an Ed25519"}


def parse_jwks(b):
    if len(b) > MAX_JWKS:
        raise Invalid("the JWKS is too large")
    try:
        value, form = parse_json(b), {"keys": list}
    except Deep as e:
        raise Invalid(str(e)) from e
    if isinstance(value, dict) and "aid_changes" in value:
        form["aid_changes"] = list
    keys = [Key(k) for k in fields(value, form, "the JWKS")["keys"]]
    by_kid = {k.kid: k for k in keys}
    if len(by_kid) != len(keys):
        raise Invalid("a key of the JWKS is there twice")
    if value.get("aid_changes") == []:
        raise Invalid("aid_changes is empty")
    return KeySet(keys, [Change(c, by_kid) for c in value.get("aid_changes", [])]).check()


# Checkpoints: https://c2sp.org/tlog-checkpoint

SPACES = {0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0x2B}
TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)\.(\d{6})Z", re.ASCII)
EPOCH = datetime(1970, 1, 1)
MICRO = timedelta(microseconds=1)


def valid_name(s):
    return s != "" and all(
        c > 0x20 and not 0x7F <= c <= 0xA0 and not 0x2000 <= c <= 0x200A and not 0xD800 <= c <= 0xDFFF and c not in SPACES for c in map(ord, s)
    )


def micros(text):
    """Return the microseconds since 1970 of a time such as 2026-11-27T15:00:00.000000Z."""
    m = TIME.fullmatch(text)
    if not m:
        raise Invalid("it is not a time")
    try:
        return (datetime(*map(int, m.groups())) - EPOCH) // MICRO
    except ValueError as e:
        raise Invalid("it is not a time") from e


SECONDS = {}
YEAR_0, YEAR_1, CYCLE = -62167219200, -62135596800, 146097 * 86400


def time_text(at):
    """Return the text of a time in microseconds since 1970, or None if it is not in the years 0 to 9999."""
    second, rest = divmod(at, 1000000)
    text = SECONDS.get(second)
    if text is None:
        if len(SECONDS) > 10000:
            SECONDS.clear()
        try:
            if YEAR_0 <= second < YEAR_1:  # datetime begins with year 1; the calendar repeats after 400 years
                text = "0000" + (EPOCH + timedelta(seconds=second + CYCLE)).isoformat()[4:]
            else:
                text = (EPOCH + timedelta(seconds=second)).isoformat()
        except OverflowError:
            return None
        SECONDS[second] = text
    return "%s.%06dZ" % (text, rest)


class Checkpoint:
    def __init__(self, text):
        line = text.split("\n")
        if len(line) != 5 or line[4] != "":
            raise Invalid("it has not the four lines origin, size, root and time")
        self.origin = line[0]
        if not valid_name(self.origin):
            raise Invalid("its origin is not valid")
        if not re.fullmatch(r"0|[1-9][0-9]{0,18}", line[1], re.ASCII) or int(line[1]) > MAX_SIZE:
            raise Invalid("its size is not a number from 0 to %d" % MAX_SIZE)
        self.size = int(line[1])
        self.root = unbase64(line[2])
        if len(self.root) != 32 or not line[3].startswith("time "):
            raise Invalid("its root has not 32 bytes, or its time is missing")
        self.text_time = line[3][5:]
        self.time = micros(self.text_time)
        if self.time < 0:
            raise Invalid("its time is before 1970")
        self.note, self.source, self.signed = "", "", False


def checkpoint_of(note):
    text, separator, _ = note.partition("\n\n")
    if not separator:
        raise Invalid("it has no signatures")
    return Checkpoint(text + "\n")


def open_note(keys, note, origin):
    """Return the checkpoint of a signed note. It needs a valid signature of each kind of key."""
    if len(note.encode("utf-8", "surrogatepass")) > MAX_NOTE:
        raise Invalid("it is too large")
    text, separator, rest = note.partition("\n\n")
    if not separator:
        raise Invalid("it has no signatures")
    text += "\n"
    c = Checkpoint(text)
    if c.origin != origin:
        raise Invalid("its origin is %s, not %s" % (c.origin, origin))
    if not rest.endswith("\n") or rest.count("\n") > MAX_SIGNATURES:
        raise Invalid("its signature lines are incomplete, or too many")
    message, signed = text.encode(), {}
    for line in rest[:-1].split("\n"):
        name, separator, sig = line[2:].partition(" ")
        if not line.startswith("\u2014 ") or not separator or not valid_name(name):
            raise Invalid("a signature line has not the form of a signed note")
        raw = unbase64(sig)
        if len(raw) < 5:
            raise Invalid("a signature line has not the form of a signed note")
        if name != origin:
            continue
        for k in keys:
            if k.note_id(origin) != raw[:4]:
                continue
            if not k.verify(message, raw[4:]):
                raise Invalid("the signature of key %s is wrong" % k.kid)
            if is_directory(origin) and c.size < k.first:
                continue
            if is_directory(origin) and k.to and c.size >= k.to:
                raise Invalid("key %s signed it, and does not sign from size %d on" % (k.kid, k.to))
            signed[k.kid] = k.role
    for role, kind in ROLES.items():
        what = "%s signature of the checkpoint with size %d of %s" % (kind, c.size, origin)
        others = [kid for kid, r in signed.items() if r == role]
        want, says, known = keys.signer(origin, role, c.size) if others else ("", False, False)
        if not others:
            raise Unknown("no key of the JWKS made " + what)
        if says and want in signed:
            continue
        if says and known and (keys.believed is None or want in keys.believed):
            raise Invalid("key %s made %s, and key %s must: a key was replaced, and a signature is missing" % (others[0], what, want))
        raise Unknown("no key of the JWKS that the key changes of this log name made %s: the key changes are in the organization's JWKS "
                      "(GET /v1/audit/jwks)" % what)
    c.note = note
    return c


# The tree: RFC 6962, section 2.1.


def leaf_hash(data):
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(a, b):
    return hashlib.sha256(b"\1" + a + b).digest()


EMPTY_ROOT = hashlib.sha256(b"").digest()


class Range:
    """A tree that is built leaf by leaf: the roots of its complete subtrees."""

    def __init__(self, size=0, hashes=()):
        if size < 0 or len(hashes) != bin(size).count("1"):
            raise Invalid("the number of hashes does not fit the size of the tree")
        self.size, self.hashes = size, list(hashes)

    def append(self, leaf):
        n, hashes, sha = self.size, self.hashes, hashlib.sha256
        while n & 1:
            leaf = sha(b"\1" + hashes.pop() + leaf).digest()
            n >>= 1
        hashes.append(leaf)
        self.size += 1

    def root(self):
        if not self.hashes:
            return EMPTY_ROOT
        h = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            h = node_hash(left, h)
        return h


def inclusion_root(leaf, index, size, proof):
    """Return the root that an inclusion proof leads to. RFC 9162, section 2.1.3.2."""
    if not 0 <= index < size:
        raise Invalid("the index is not in the tree")
    fn, sn, r = index, size - 1, leaf
    for p in proof:
        if sn == 0:
            raise Invalid("the proof has too many hashes")
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, p)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise Invalid("the proof has too few hashes")
    return r


def consistent(old, old_root, size, root, proof):
    """Report whether a consistency proof is right. RFC 9162, section 2.1.4.2."""
    if old > size:
        return False
    if old == 0:
        return not proof and old_root == EMPTY_ROOT
    if old == size:
        return not proof and old_root == root
    proof = list(proof)
    if old & (old - 1) == 0:
        proof.insert(0, old_root)
    if not proof:
        return False
    fn, sn = old - 1, size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = proof[0]
    for c in proof[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and fr == old_root and sr == root


def hashes_of(values):
    out = [unbase64(v) for v in values]
    if any(len(h) != 32 for h in out):
        raise Invalid("a hash has not 32 bytes")
    return out


# Verdicts.


class Check:
    def __init__(self, what):
        self.what, self.checks, self.notes, self.gaps, self.complete = what, [], [], [], ""

    def ok(self, text):
        self.checks.append(text)

    def note(self, text):
        self.notes.append(text)

    def incomplete(self, text):
        if text not in self.gaps:
            self.gaps.append(text)

    def run(self, verify):
        """Run verify and return the verdict."""
        exit_code, problem, where, proof = INTACT, "", "", []
        try:
            verify(self)
            if self.gaps:
                exit_code, problem = INCOMPLETE, "; ".join(self.gaps)
        except Fault as f:
            exit_code, problem, where, proof, self.complete = TAMPERED, f.problem, f.where, f.proof, ""
        except Deep as e:
            exit_code, problem, self.complete = INCOMPLETE, str(e), ""
        return {
            "verdict": ("intact", "tampered", "incomplete")[exit_code], "exit": exit_code, "what": self.what, "problem": problem, "where": where,
            "complete": self.complete, "checks": self.checks, "notes": self.notes, "proof": proof,
        }


def opened(check, keys, note, origin, where):
    """Return (checkpoint, signed). An unknown key makes the verdict incomplete."""
    try:
        try:
            c = open_note(keys, note, origin)
            c.signed = True
            return c, True
        except Unknown as e:
            check.incomplete("%s: %s" % (where, e))
            return checkpoint_of(note), False
    except Invalid as e:
        raise Fault(where, str(e)) from e


def compare(seen):
    """Look for two checkpoints that one log cannot have."""
    for i, first in enumerate(seen):
        for second in seen[i + 1 :]:
            a, b = first, second
            if a.origin != b.origin:
                continue
            if a.size > b.size or a.size == b.size and a.time > b.time:
                a, b = b, a
            if a.size == b.size and a.root != b.root:
                raise Fault("checkpoint %d" % a.size, "%s and %s have the size %d and two roots: the log has two histories"
                            % (a.source, b.source, a.size), (a.note, b.note))
            if a.size < b.size and a.time > b.time:
                raise Fault("checkpoints %d and %d" % (a.size, b.size), "%s has fewer entries than %s, and a later time: the log was cut or went back"
                            % (a.source, b.source), (a.note, b.note))


# Envelopes: https://github.com/secure-systems-lab/dsse

IN_TOTO = "application/vnd.in-toto+json"
EXPORT = "application/vnd.ai-identity.export+json"
REPORT = "application/vnd.ai-identity.forensics+json"


def open_envelope(keys, e, payload_type):
    """Return (payload, key id). Raise Unknown with the payload if no key of the set signed it."""
    fields(e, ENVELOPE, "the envelope")
    if e["payloadType"] != payload_type:
        raise Invalid("the envelope has another type than " + payload_type)
    payload = unbase64(e["payload"])
    if not 1 <= len(e["signatures"]) <= MAX_SIGNATURES:
        raise Invalid("the envelope has no signatures, or too many")
    sigs = [(fields(s, SIGNATURE, "a signature")["keyid"], unbase64(s["sig"])) for s in e["signatures"]]
    kind = payload_type.encode()
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    signer = ""
    for keyid, sig in sigs:
        for k in keys:
            if k.kid != keyid:
                continue
            if not k.p256 or not k.verify(message, sig):
                raise Invalid("the signature of key %s is wrong" % k.kid)
            line = keys.line("p256")
            if not signer or keyid in line and signer in line and line.index(keyid) > line.index(signer):
                signer = keyid  # the newest of several
    if not signer:
        error = Unknown("no key of the JWKS signed the envelope")
        error.payload = payload
        raise error
    return payload, signer


# Exports.

FORMAT = "aid export v1"
FILTER = {"agent_id": str, "session_id": str, "request_id": str, "kind": str, "since": int, "until": int}
HEADER = {
    "id": str, "org": str, "incarnation": int, "first_seq": int, "filter": dict, "after": str, "first": int, "left": list, "prev_mac": str,
    "before": str, "end": str, "newest": str, "consistency": list,
}
ROW = ("seq", "appended_at", "time", "kind", "agent_id", "session_id", "request_id", "writer", "writer_seq", "prev_writer_seq", "entry_hash",
       "epoch", "mac_version", "mac")
ROWS = {
    ROW: None, ROW + ("entry",): (False, "entry"), ROW + ("entry_base64",): (False, "entry_base64"),
    ROW + ("late", "entry"): (True, "entry"), ROW + ("late", "entry_base64"): (True, "entry_base64"), ROW + ("late",): (True, None),
}
BEGIN, MIDDLE = b'{"format":"' + FORMAT.encode() + b'","header":', b',"rows":[\n'
HASH = re.compile(r"[0-9a-f]{64}")
NUMBERS = struct.Struct(">QqQqQq")
PAIR = struct.Struct(">QqQq")


def _row_fast():
    """Return a pattern of the usual rows: no string but the entry has an escape."""
    number, text, digest = r"(0|-?[1-9][0-9]{0,18})", r'"([^"\\\x00-\x1f]*)"', r'"([0-9a-f]{64})"'
    forms = (number,) * 3 + (text,) * 5 + (number,) * 2 + (digest,) + (number,) * 2 + (digest,)
    members = ",".join('"%s":%s' % (n, f) for n, f in zip(ROW, forms))
    return re.compile(r"\{" + members + r'(?:,"entry":(".*"))?\}', re.ASCII | re.DOTALL)


ROW_DECODER = json.JSONDecoder(object_pairs_hook=list, parse_int=_small, parse_float=_number, parse_constant=_no_constant)
ROW_FAST = _row_fast()
ROW_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_no_json)
ENTRY_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_int=_number, parse_float=_number, parse_constant=_no_constant)


class Export:
    def __init__(self, check, stream, keys, held, mac_keys):
        self.check, self.stream, self.keys, self.mac_keys = check, stream, keys, mac_keys
        self.held_notes, self.held, self.known = held, [], []
        self.sum = hashlib.sha256()
        self.rows = self.entries = self.malformed = self.mac_checked = self.mac_unchecked = 0
        self.agreed, self.lost, self.changes, self.earlier = -1, [], [], []
        self.macs = {}

    def line(self, where):
        b = self.stream.readline(MAX_LINE + 1)
        if not b.endswith(b"\n") or len(b) > MAX_LINE:
            raise Fault(where, "the file ends before the line is complete, or the line has more than %d bytes" % MAX_LINE)
        return b

    def verify(self):
        line = self.line("line 1")
        self.sum.update(line)
        self.header(line)
        self.read_rows()
        line = self.line("the end of the rows")
        if line != b"],\n":
            raise Fault("the end of the rows", "the export has more or fewer rows than its checkpoint has leaves")
        self.sum.update(line)
        self.finish(self.line("the last line"))

    def header(self, line):
        where = "the header"
        if not line.startswith(BEGIN) or not line.endswith(MIDDLE) or len(line) < len(BEGIN) + len(MIDDLE):
            raise Fault(where, 'it is not that of an export in the format "%s"' % FORMAT)
        body = line[len(BEGIN) : -len(MIDDLE)]
        try:
            h = fields(parse_json(body), HEADER, "the header")
            fields(h["filter"], FILTER, "the filter")
            if list(h) != list(HEADER) or list(h["filter"]) != list(FILTER) or dump(h) != body:
                raise Invalid("it is not in canonical form")
            rest = dict(h, id="")
            if h["id"] != "exp_" + hashlib.sha256(FORMAT.encode() + b"\n" + dump(rest)).hexdigest()[:32]:
                raise Invalid("its id is not that of its content")
            limit = MAX64 // 4
            if h["incarnation"] < 1 or not 1 <= h["first_seq"] <= limit or not 0 <= h["first"] <= limit:
                raise Invalid("incarnation, first_seq or first is out of range")
            f = h["filter"]
            if f["until"] != 0 and f["until"] <= f["since"]:
                raise Invalid("the filter ends before it begins")
            self.origin = h["end"].partition("\n")[0]
            if not self.origin.endswith("/org/%s/%d" % (h["org"], h["incarnation"])):
                raise Invalid("the checkpoint at the end is not of this organization and incarnation")
        except Invalid as e:
            raise Fault(where, str(e)) from e
        self.h, self.filter = h, f
        self.end = self.open(h["end"], "the checkpoint at the end", "the export's end")
        if self.end.size < h["first"]:
            raise Fault(where, "the export begins after its end")
        try:
            self.tree = Range(h["first"], hashes_of(h["left"]))
        except Invalid as e:
            raise Fault(where, "left: %s" % e) from e
        self.late = -MAX64 - 1
        if h["before"] == "":
            if h["first"] != 0 or h["after"] != "":
                raise Fault(where, "the checkpoint before the first row is missing")
        else:
            before = self.open(h["before"], "the checkpoint before", "the checkpoint before")
            if before.size != h["first"] or before.root != self.tree.root():
                raise Fault("the checkpoint before", "it does not fit the tree before the first row")
            if h["after"] != "":
                self.late = before.time
        self.newest = self.end
        if h["newest"] == "":
            if h["consistency"]:
                raise Fault(where, "it has a proof without the newest checkpoint")
        else:
            self.newest = self.open(h["newest"], "the newest checkpoint", "the newest checkpoint")
            try:
                if any(type(x) is not str for x in h["consistency"]):
                    raise Invalid("a hash of the proof is not a string")
                proof = hashes_of(h["consistency"])
            except Invalid as e:
                raise Fault(where, str(e)) from e
            if self.newest.size <= self.end.size:
                raise Fault("the newest checkpoint", "it is not after the end")
            if self.end.size == 0:
                if proof:
                    raise Fault("the newest checkpoint", "an empty tree needs no proof")
            elif not consistent(self.end.size, self.end.root, self.newest.size, self.newest.root, proof):
                raise Fault("the newest checkpoint", "its tree does not continue that of the end")
        if h["prev_mac"] != "" and (not HASH.fullmatch(h["prev_mac"]) or h["first_seq"] == 1 and h["first"] == 0):
            raise Fault(where, "prev_mac is not a MAC")
        self.mac = bytes.fromhex(h["prev_mac"])
        for source, note in self.held_notes:
            try:
                origin = checkpoint_of(note).origin
            except Invalid:
                origin = self.origin
            if h["first"] == 0 and self.is_earlier(origin):
                c, signed = opened(self.check, self.keys, note, origin, source)
                c.source = source
                if signed:
                    self.earlier.append(c)
                continue
            if origin != self.origin:
                self.check.incomplete("%s is of %s, and the export is of %s: nothing compares them" % (source, origin, self.origin))
                continue
            c, signed = opened(self.check, self.keys, note, self.origin, source)
            c.source = source
            if signed:
                self.held.append(c)
        compare(self.held + self.known)
        self.passed()

    def open(self, note, where, source):
        c, signed = opened(self.check, self.keys, note, self.origin, where)
        c.source = source
        if signed:
            self.known.append(c)
        return c

    def place(self, size):
        return "entries %d to %d" % (self.h["first_seq"] + max(self.agreed, self.h["first"]), self.h["first_seq"] + size - 1)

    def passed(self):
        for c in self.held:
            if c.size == self.tree.size:
                if c.root != self.tree.root():
                    raise Fault(self.place(c.size), "the export has other entries than %s" % c.source, (c.note, self.h["end"]))
                self.agreed = c.size

    def read_rows(self):
        h = self.h
        total = self.end.size - h["first"]
        prefix = part(b"aid link v2") + part(h["org"].encode()) + PAIR.pack(8, h["incarnation"], 8, 0)[:16]
        readline, update, sha = self.stream.readline, self.sum.update, hashlib.sha256
        fast, append, tree = ROW_FAST.fullmatch, self.tree.append, self.tree
        scanstring, quote = json.decoder.scanstring, json.encoder.encode_basestring
        numbers, pair, length = NUMBERS.pack, PAIR.pack, LENGTH.pack
        f = self.filter
        agent, session, request, kind, since, until = (f[n] for n in FILTER)
        every = not (agent or session or request or kind or since or until)
        last_time, last_version, last_epoch = -MAX64 - 1, 0, 0
        seq = h["first_seq"] + h["first"]
        held = {c.size for c in self.held}
        late_before, org = self.late, h["org"]
        encoded = {}
        final = seq + total - 1
        first, reopened = True, h["incarnation"] > 1 and h["first"] == 0
        while seq <= final:
            try:
                line = readline(MAX_LINE + 1)
                if line[-1:] != b"\n" or len(line) > MAX_LINE:
                    self.stop(seq)
                update(line)
                body = line[:-1] if seq == final else line[:-2]
                if seq != final and line[-2:] != b",\n":
                    raise Invalid("the row is not in canonical form")
                text = body.decode("utf-8")
                m, entry = fast(text), None
                quoted = m and m[15]
                if quoted:
                    entry, end = scanstring(quoted, 1)
                    if end != len(quoted) or quote(entry) != quoted:
                        m = None
                    else:
                        entry = entry.encode()
                if m:
                    n, appended, at, k, a, s, r, w, ws, pws, digest, epoch, version, mac = m.groups()[:14]
                    n, appended, at, ws, pws, epoch, version = int(n), int(appended), int(at), int(ws), int(pws), int(epoch), int(version)
                    late = False
                else:
                    n, appended, at, k, a, s, r, w, ws, pws, digest, epoch, version, mac, late, entry = self.slow_row(text)
                raw_mac, raw_hash = bytes.fromhex(mac), bytes.fromhex(digest)
                if not 1 <= epoch <= 0x7FFFFFFF or version not in (1, 2, 3) or ws < 0 or pws < 0:
                    raise Invalid("a number is out of range")
                strings = b""
                for x in (k, a, s):
                    e = encoded.get(x)
                    if e is None:
                        if len(encoded) > 10000:
                            encoded.clear()
                        b = x.encode()
                        e = encoded[x] = length(len(b)) + b
                    strings += e
                e = encoded.get(w)
                if e is None:
                    b = w.encode()
                    e = encoded[w] = length(len(b)) + b
                b = r.encode()
                link = b"".join((prefix, numbers(8, n, 8, appended, 8, at), strings, length(len(b)), b, e, pair(8, ws, 8, pws), HASH_LENGTH, raw_hash))
                selected = every or (
                    (not agent or agent == a) and (not session or session == s) and (not request or request == r) and (not kind or kind == k)
                    and (not since or at >= since) and (not until or at < until)
                )
                opening = reopened and first
                changing = k == "keys.changed" and w == "control"
                selected = selected or opening or changing
                if selected:
                    if entry is None:
                        raise Invalid("it matches the filter, and its entry is missing")
                elif entry is not None or late:
                    raise Invalid("it does not match the filter, and has an entry")
                if late != (selected and at < late_before):
                    raise Invalid('"late" is wrong')
                if selected:
                    if sha(b"\0" + entry).digest() != raw_hash:
                        raise Invalid("the entry has another hash than its link")
                    same_fields(entry, org, w, k, a, s, r, appended, at)
                    self.entries += 1
                    if opening:
                        self.reopened(k, entry)
                    if changing:
                        self.changed(entry, n - h["first_seq"])
                if n != seq:
                    raise Invalid("%d is in its place" % n)
                if version < min(last_version, 2) or epoch < last_epoch:
                    raise Invalid("its MAC has an older version or epoch than the entry before")
                if version > 1 and last_version > 1 and not first and appended <= last_time:
                    raise Invalid("it was not appended after the entry before it")
                last_time, last_version, last_epoch, first = appended, version, epoch, False
                if self.mac_keys:
                    self.check_mac(epoch, version, link, raw_mac)
                self.mac = raw_mac
                if k == "malformed":
                    self.malformed += 1
            except Invalid as e:
                raise Fault("entry %d" % seq, str(e)) from e
            except (ValueError, RecursionError, struct.error) as e:
                raise Fault("entry %d" % seq, "the row is not in canonical form") from e
            append(sha(b"\0" + link).digest())
            if held and tree.size in held:
                self.passed()
            self.rows += 1
            seq += 1

    def changed(self, entry, index):
        """Read the entry of a key change."""
        try:
            e = parse_json(entry)
        except Invalid:
            e = None
        if not isinstance(e, dict):
            raise Invalid("it is not the entry of a key change")
        role, old, new, size, *signatures = (d if e.get(n) is None else e[n] for n, d in (
            ("role", ""), ("old_kid", ""), ("new_kid", ""), ("size", 0), ("old_signature", ""), ("new_signature", "")))
        if any(type(x) is not str for x in [role, old, new] + signatures) or type(size) is not int:
            raise Invalid("it is not the entry of a key change")
        self.changes.append((index, (self.origin, role, old, new, size)))

    def key_changes(self):
        """Compare the key changes in the rows with those of the JWKS."""
        first, known = self.h["first_seq"], [c.what for c in self.keys.changes]
        for index, change in self.changes:
            _, _, old, new, size = change
            if size != index + 1:
                raise Fault("entry %d" % (first + index), "it is a key change that begins at another size than its own")
            if change in known:
                self.check.ok("entry %d: key %s replaces %s from size %d on, signed by both" % (first + index, new, old, size))
            else:
                self.check.incomplete("entry %d is a key change that the JWKS does not have: get the organization's JWKS again (GET /v1/audit/jwks)"
                                      % (first + index))
        there = [change for _, change in self.changes]
        for change in known:
            if change[0] == self.origin and self.h["first"] < change[4] <= self.end.size and change not in there:
                raise Fault("entry %d" % (first + change[4] - 1), "the JWKS has a key change of this log, and the entry is not that change")

    def is_earlier(self, origin):
        """Report whether an origin is of an earlier incarnation of the export's log."""
        prefix, _, own = self.origin.rpartition("/")
        m = re.fullmatch(re.escape(prefix) + "/([1-9][0-9]{0,17})", origin, re.ASCII)
        return bool(m) and int(m[1]) < int(own)

    def reopened(self, kind, entry):
        """Verify the first entry of a log that was reopened after a loss."""
        try:
            e = parse_json(entry)
        except Invalid:
            e = None
        e = e if isinstance(e, dict) else {}
        note, restored, lost_from, lost_to = (d if e.get(n) is None else e[n] for n, d in (("previous", ""), ("restored", 0), ("lost_from", 0), ("lost_to", 0)))
        if kind != "chain.reopened" or type(note) is not str or any(type(x) is not int for x in (restored, lost_from, lost_to)):
            raise Invalid("a reopened log does not begin with its entry chain.reopened")
        origin = note.partition("\n")[0]
        if not self.is_earlier(origin):
            raise Invalid("its previous checkpoint is not of an earlier incarnation")
        size, before = 0, None
        try:
            before = open_note(self.keys, note, origin)
            size = before.size
        except Unknown as error:
            self.lost.append("the checkpoint before the log was reopened: %s" % error)
        for k in self.earlier:
            if before is None or k.origin != before.origin or k.size < size:
                self.lost.append("%s is of %s, and the export is of %s: nothing compares them" % (k.source, k.origin, self.origin))
            elif k.size > size or k.root != before.root:
                raise Fault("entry %d" % self.h["first_seq"], "%s has %d entries, and the log was reopened behind another checkpoint with %d"
                            % (k.source, k.size, size), (k.note, note))
            else:
                self.check.ok("%s is the checkpoint behind which the log was reopened" % k.source)
        if restored < 0 or lost_from < 0 or (lost_to == 0) != (lost_from == 0) or lost_to < lost_from or lost_to >= self.h["first_seq"]:
            raise Invalid("the numbers of the lost entries are not a range before the first entry")
        if lost_to:
            self.lost.append("entries %d to %d were lost before the log was reopened" % (lost_from, lost_to))
        elif restored < size:
            raise Invalid("it names no lost entries, and fewer were restored than the checkpoint has")

    def slow_row(self, text):
        """Read a row of any form. Its parts are as in ROW, then late and the entry's bytes."""
        wrong = Invalid("the row is not in canonical form")
        pairs = ROW_DECODER.decode(text)
        names = tuple([p[0] for p in pairs]) if type(pairs) is list else ()
        if names not in ROWS:
            raise wrong
        v = dict(pairs)
        if ROW_ENCODER.encode(v) != text:
            raise wrong
        values = [p[1] for p in pairs[:14]]
        if any(type(x) is not (int if i in (0, 1, 2, 8, 9, 11, 12) else str) for i, x in enumerate(values)):
            raise wrong
        if not HASH.fullmatch(values[10]) or not HASH.fullmatch(values[13]):
            raise wrong
        late, coded = ROWS[names] or (False, None)
        if late and v["late"] is not True or coded and type(v[coded]) is not str:
            raise wrong
        entry = None
        if coded == "entry":
            entry = v["entry"].encode()
        elif coded:
            entry = not_text(v["entry_base64"])
        return values + [late, entry]

    def stop(self, seq):
        raise Fault("entry %d" % seq, "the file ends before the line is complete, or the line has more than %d bytes" % MAX_LINE)

    def check_mac(self, epoch, version, link, mac):
        key = self.mac_keys.get(epoch) or self.mac_keys.get(0)
        if key is None or version == 1:
            self.mac_unchecked += 1
            return
        message = LENGTH.pack(epoch) + part(self.mac) + link
        own = self.macs.get(epoch)
        if own is None:
            own = key
            if hmac.new(own, message, "sha256").digest() != mac:
                own = org_key(key, epoch, self.h["org"])
            self.macs[epoch] = own
        if hmac.new(own, message, "sha256").digest() != mac:
            raise Invalid("its MAC is wrong, or the HMAC key is another one")
        self.mac_checked += 1

    def finish(self, last):
        if self.stream.read(1):
            raise Fault("the end of the file", "something follows the export")
        root = self.tree.root()
        if root != self.end.root:
            raise Fault(self.place(self.end.size), "their links are not those of the checkpoint with size %d" % self.end.size)
        where, h = "the signature", self.h
        try:
            if not last.startswith(b'"envelope":') or not last.endswith(b"}\n"):
                raise Invalid("the last line is not an envelope")
            e = parse_json(last[len(b'"envelope":') : -2])
            fields(e, ENVELOPE, "the envelope")
            for s in e["signatures"]:
                fields(s, SIGNATURE, "a signature")
            signatures = [{"keyid": s["keyid"], "sig": s["sig"]} for s in e["signatures"]]
            canonical = {"payloadType": e["payloadType"], "payload": e["payload"], "signatures": signatures}
            if b'"envelope":' + dump(canonical) + b"}\n" != last:
                raise Invalid("the last line is not in canonical form")
            signer = ""
            try:
                payload, signer = open_envelope(self.keys, e, EXPORT)
            except Unknown as e:
                self.check.incomplete("%s: %s" % (where, e))
                payload = e.payload
        except Invalid as e:
            raise Fault(where, str(e)) from e
        statement = {
            "format": FORMAT, "id": h["id"], "org": h["org"], "filter": h["filter"], "first": h["first"], "end": self.end.size,
            "root": base64.b64encode(root).decode(), "entries": self.entries, "sha256": self.sum.hexdigest(),
        }
        if dump(statement) != payload:
            raise Fault(where, "it is of another file: the statement does not say what the file is")
        if signer and self.keys.replaced(self.origin, signer, self.end.size, self.end.signed):
            raise Fault(where, "key %s signed it, and was replaced before the end of the export" % signer)
        self.key_changes()
        self.report(signer)

    def report(self, signer):
        c, h, end, newest = self.check, self.h, self.end, self.newest
        first, last = h["first_seq"] + h["first"], h["first_seq"] + end.size - 1
        for text in self.lost:
            c.incomplete(text)
        if not self.rows and self.earlier:
            c.incomplete("%s is of %s, and the export has no entry: nothing compares them" % (self.earlier[0].source, self.earlier[0].origin))
        for k in self.held:
            if k.size > newest.size:
                c.incomplete("%s has %d entries and the export's newest checkpoint has %d: the export is older, or the log was cut; order a new one"
                             % (k.source, k.size, newest.size))
            elif k.size < h["first"]:
                c.incomplete("%s has %d entries, and the export begins behind them: order an export from there" % (k.source, k.size))
            elif end.size < k.size < newest.size:
                c.incomplete("%s has %d entries, and the export ends at %d: order an export up to there" % (k.source, k.size, end.size))
        upto = "up to the checkpoint of %s with %d entries at %s" % (self.origin, end.size, end.text_time)
        c.complete = "complete for the filter among entries %d to %d, %s" % (first, last, upto) if self.rows else "no entries, " + upto
        c.ok("%d links are the leaves of the signed checkpoint with %d entries" % (self.rows, end.size))
        c.ok("%d entries match the filter, and each has the hash and the fields of its link" % self.entries)
        if h["first"] > 0:
            c.ok("the links continue the checkpoint with %d entries" % h["first"])
        if h["newest"]:
            c.ok("the newest checkpoint, with %d entries, continues the end" % newest.size)
        for k in self.held:
            if h["first"] <= k.size <= end.size or k.size == newest.size:
                c.ok("%s agrees: %d entries at %s" % (k.source, k.size, k.text_time))
        if signer:
            c.ok("the export is signed with key %s" % signer)
        if self.mac_keys:
            c.note("%d MACs are right and %d could not be checked. They prove nothing to a reader who does not trust the holders of the HMAC key; "
                   "the checkpoints do." % (self.mac_checked, self.mac_unchecked))
        else:
            c.note("The result rests on public keys and checkpoints. No HMAC key was given, so MACs were not checked.")
        if not self.held:
            c.note("No checkpoint from elsewhere was given (--checkpoint). Without one, a log that was rewritten or cut and signed again is not detected.")
        if self.malformed:
            c.note("%d entries could not be read when they arrived, and are in the log unchanged." % self.malformed)
        if any(h["filter"].values()):
            c.note("The links say which entries match. The fields of links whose entries are not here were not compared with these entries.")


HASH_LENGTH = LENGTH.pack(32)


def not_text(s):
    """Return the bytes of an entry that is not UTF-8."""
    b = unbase64(s)
    try:
        b.decode("utf-8")
    except UnicodeDecodeError:
        return b
    raise Invalid("the row is not in canonical form")


def org_key(key, epoch, org):
    """Derive the key of an org and epoch from the installation's. HKDF with SHA-256, RFC 5869."""
    info = b"aid audit chain v2\0" + LENGTH.pack(epoch) + org.encode()
    prk = hmac.new(bytes(32), key, "sha256").digest()
    return hmac.new(prk, info + b"\1", "sha256").digest()


def same_fields(entry, org, writer, kind, agent, session, request, appended, at):
    """Raise Invalid if the fields of an entry are not those of its link."""
    if kind == "malformed":
        if agent or session or request or at != appended:
            raise Invalid("its link has fields that a malformed entry has not")
        return
    try:
        e = decode(ENTRY_DECODER, entry.decode("utf-8"))
    except (Invalid, ValueError) as error:
        raise Invalid("the entry is not valid JSON, or its fields are not text") from error
    if type(e) is not dict:
        raise Invalid("the entry is not valid JSON, or its fields are not text")
    values = [e.get(n) or "" if e.get(n) is None or type(e.get(n)) is str else None for n in ("time", "org", "writer", "kind", "agent_id", "request_id", "session_id", "own_session")]
    if None in values:
        raise Invalid("the entry is not valid JSON, or its fields are not text")
    moment, e_org, e_writer, e_kind, e_agent, e_request, e_session, own = values
    e_session = e_session or own  # the request had no id of its caller
    if moment != time_text(at) or e_org != org or e_writer != writer:
        raise Invalid("time, org or writer of the entry are not those of its link")
    if e_kind == kind and e_agent == agent and e_request == request and e_session == session:
        return
    for inside, column, limit, optional in (
        (e_kind, kind, 64, False), (e_agent, agent, 128, False), (e_request, request, 128, False), (e_session, session, 256, True),
    ):
        if inside == column or optional and column == "" or len(inside.encode("utf-8", "replace")) > limit or "\0" in inside:
            continue
        raise Invalid("kind, agent_id, request_id or session_id of the entry is not that of its link")


def verify_chain(stream, keys, held=(), mac_keys=None):
    """Verify an export. held has pairs (name, text) of checkpoints from elsewhere."""
    return Check("chain").run(lambda c: Export(c, stream, keys, held, mac_keys or {}).verify())


# Bundles: single entries with inclusion proofs. They never show that nothing is missing.

BUNDLE = {"format": str, "org": str, "checkpoints": list, "consistency": list, "entries": list}
CONSISTENCY = {"incarnation": int, "old": int, "size": int, "proof": list}
PIECE = {"index": int, "size": int, "link": str, "entry": str, "proof": list}


class Link:
    """The fields of a link, read from its bytes."""

    def __init__(self, b):
        parts, at = [], 0
        while at < len(b):
            if at + 8 > len(b):
                raise Invalid("a link is cut off")
            n = LENGTH.unpack_from(b, at)[0]
            if n > len(b) - at - 8:
                raise Invalid("a link is cut off")
            parts.append(b[at + 8 : at + 8 + n])
            at += 8 + n
        if len(parts) != 14 or parts[0] != b"aid link v2" or len(parts[13]) != 32 or any(len(parts[i]) != 8 for i in (2, 3, 4, 5, 11, 12)):
            raise Invalid("a link has another version or form")
        try:
            self.org, self.kind, self.agent, self.session, self.request, self.writer = (parts[i].decode("utf-8") for i in (1, 6, 7, 8, 9, 10))
        except UnicodeDecodeError as e:
            raise Invalid("a link has another version or form") from e
        self.incarnation, self.seq, self.appended, self.time, self.writer_seq, self.prev = (
            struct.unpack(">q", parts[i])[0] for i in (2, 3, 4, 5, 11, 12)
        )
        self.hash = parts[13]


PROOF = {"status": str, "reason": str, "receipt": str, "signature": str, "seq": int, "request_id": str, "incarnation": int, "leaf_index": int, "link": str,
         "path": list, "checkpoint": str, "archive": list}
PROOF_CONSISTENCY = {"incarnation": int, "old": int, "size": int, "path": list, "old_checkpoint": str, "checkpoint": str}


def bundle_of(check, data):
    """Return a bundle from its JSON, or from a response of /v1/audit/proof."""
    try:
        value = parse_json(data)
        if not isinstance(value, dict):
            raise Invalid("it is not an object")
        form = PROOF if "status" in value else PROOF_CONSISTENCY if "old" in value else None
        if form is None:
            return value
        for name, v in value.items():
            if v is None and name in form:
                v = value[name] = form[name]()  # as if it was not there
            if name == "path" and type(v) is list:
                v = value[name] = ["" if x is None else x for x in v]
            if type(v) is not form.get(name) or name == "path" and any(type(x) is not str for x in v):
                raise Invalid("it has an unknown member, or one of another type")
        get = {n: value.get(n, form[n]()) for n in form}
        out = {"format": "aid bundle v1", "org": "", "checkpoints": [], "consistency": [], "entries": []}
        if form is PROOF:
            if get["status"] != "included":
                check.incomplete('the service says that the entry is "%s"' % get["status"])
                return out
            link = Link(unbase64(get["link"]))
            if (link.seq, link.incarnation, link.request) != (get["seq"], get["incarnation"], get["request_id"]):
                raise Invalid("seq, incarnation or request_id is not that of the link")
            out["org"], out["checkpoints"] = link.org, [get["checkpoint"]]
            out["entries"] = [{"index": get["leaf_index"], "size": checkpoint_of(get["checkpoint"]).size, "link": get["link"], "proof": get["path"]}]
            return out
        org = get["checkpoint"].partition("\n")[0].partition("/org/")[2]
        end = "/%d" % get["incarnation"]
        if not org.endswith(end) or not get["old_checkpoint"]:
            raise Invalid("it has not the two checkpoints")
        out["org"], out["checkpoints"] = org[: -len(end)], [get["old_checkpoint"], get["checkpoint"]]
        out["consistency"] = [{n: get[n] for n in ("incarnation", "old", "size")}]
        out["consistency"][0]["proof"] = get["path"]
        return out
    except Invalid as e:
        raise Fault("the bundle", str(e)) from e


class Bundle:
    def __init__(self, check, value, keys, held=()):
        """Verify a bundle. Raise Fault."""
        self.links, self.checkpoints, self.signed = [], {}, []
        where = "the bundle"
        try:
            b = fields(value, BUNDLE, where)
            if b["format"] != "aid bundle v1":
                raise Invalid("its format is unknown: this version reads aid bundle v1")
            for p in b["consistency"]:
                fields(p, CONSISTENCY, "a consistency proof")
                [unbase64(x) for x in p["proof"]]
            for p in b["entries"]:
                names = set(p) if isinstance(p, dict) else set()
                fields(p, PIECE_BASE64 if "entry_base64" in names else PIECE if "entry" in names else PIECE_BARE, "an entry")
                if p.get("entry_base64") == "":
                    raise Invalid("an entry has no bytes")
                [unbase64(x) for x in [p["link"], p.get("entry_base64", "")] + p["proof"]]
        except Invalid as e:
            raise Fault(where, str(e)) from e
        self.org = b["org"]
        seen = list(held)
        for i, note in enumerate(b["checkpoints"]):
            where = "checkpoint %d of the bundle" % (i + 1)
            try:
                c = checkpoint_of(note)
            except Invalid as e:
                raise Fault(where, str(e)) from e
            if "/org/%s/" % self.org not in c.origin:
                raise Fault(where, "it is not of the organization")
            c, signed = opened(check, keys, note, c.origin, where)
            c.source = where
            incarnation = c.origin.rpartition("/")[2]
            if not re.fullmatch("[1-9][0-9]{0,17}", incarnation, re.ASCII) or not c.origin.endswith("/org/%s/%s" % (self.org, incarnation)):
                raise Fault(where, "it is not of the organization")
            if signed:
                seen.append(c)
                self.signed.append(c)
                check.ok("a signed checkpoint of %s with %d entries at %s" % (c.origin, c.size, c.text_time))
            self.checkpoints[int(incarnation), c.size] = c
        compare(seen)
        self.proved = set()
        for i, p in enumerate(b["consistency"]):
            where = "consistency proof %d of the bundle" % (i + 1)
            try:
                old, new = (self.checkpoints.get((p["incarnation"], p[n])) for n in ("old", "size"))
                if old is None or new is None:
                    raise Invalid("the bundle has no checkpoint of this size")
                if not consistent(old.size, old.root, new.size, new.root, hashes_of(p["proof"])):
                    raise Invalid("the larger tree does not continue the smaller one")
            except Invalid as e:
                raise Fault(where, str(e)) from e
            self.proved.add((old.origin, old.size, new.size))
            check.ok("the checkpoint with %d entries continues that with %d" % (new.size, old.size))
        for i, p in enumerate(b["entries"]):
            where = "piece %d of the bundle" % (i + 1)
            try:
                coded = "entry_base64" in p
                bare = not coded and "entry" not in p
                data = unbase64(p["link"])
                link = Link(data)
                where = "entry %d" % link.seq
                if link.org != self.org:
                    raise Invalid("it is of another organization")
                entry = b""
                if not bare:
                    entry = not_text(p["entry_base64"]) if coded else p["entry"].encode("utf-8")
                    if hashlib.sha256(b"\0" + entry).digest() != link.hash:
                        raise Invalid("the entry has another hash than its link")
                    same_fields(entry, link.org, link.writer, link.kind, link.agent, link.session, link.request, link.appended, link.time)
                if p["index"] < 0 or link.incarnation == 1 and link.seq != p["index"] + 1:
                    raise Invalid("its index is not that of its number")
                c = self.checkpoints.get((link.incarnation, p["size"]))
                if c is None:
                    check.incomplete("%s: the bundle has no checkpoint of its size, so nothing shows that the entry is in the log" % where)
                elif inclusion_root(leaf_hash(data), p["index"], p["size"], hashes_of(p["proof"])) != c.root:
                    raise Invalid("its proof does not lead to the checkpoint with size %d" % c.size)
                else:
                    check.ok("entry %d is in the log with %d entries" % (link.seq, c.size))
            except Invalid as e:
                raise Fault(where, str(e)) from e
            self.links.append((link, entry))
        if self.links:
            check.note("A bundle has single entries. It does not show that no other entry is missing: order an export for that.")
        check.complete = "no completeness"



PIECE_BARE = {n: t for n, t in PIECE.items() if n != "entry"}
PIECE_BASE64 = {("entry_base64" if n == "entry" else n): t for n, t in PIECE.items()}


def verify_bundle(data, keys):
    def verify(c):
        Bundle(c, bundle_of(c, data), keys)

    return Check("bundle").run(verify)


def verify_checkpoints(notes, keys, bundle=None):
    """Verify signed checkpoints of one log, as pairs (name, text), and compare them."""

    def verify(c):
        seen, origins = [], set()
        for source, note in notes:
            try:
                origin = checkpoint_of(note).origin
            except Invalid as e:
                raise Fault(source, str(e)) from e
            cp, signed = opened(c, keys, note, origin, source)
            cp.source = source
            origins.add(origin)
            if signed:
                seen.append(cp)
                c.ok("%s: %s has %d entries at %s" % (source, origin, cp.size, cp.text_time))
        compare(seen)
        if len(origins) > 1:
            c.incomplete("the checkpoints are of %d logs: %s" % (len(origins), ", ".join(sorted(origins))))
        proved = set()
        if bundle is not None:
            proved = Bundle(c, bundle_of(c, bundle), keys, seen).proved
            c.complete = ""
        seen.sort(key=lambda s: (s.origin, s.size))
        for a, b in zip(seen, seen[1:]):
            if a.origin == b.origin and a.size != b.size and a.size != 0 and (a.origin, a.size, b.size) not in proved:
                c.incomplete("nothing shows that the log with %d entries continues that with %d: give --bundle with a consistency proof, "
                             "or check an export with --checkpoint" % (b.size, a.size))
        if len(seen) == 1:
            c.note("One checkpoint proves its own signatures only. Give two, or check an export with --checkpoint.")
        if seen:
            c.complete = "up to the checkpoint of %s with %d entries at %s" % (seen[-1].origin, seen[-1].size, seen[-1].text_time)

    return Check("checkpoint").run(verify)


def document(c, data, keys, payload_type, where):
    """Open a signed document. Return its payload, parsed, and the key that signed it or ""."""
    try:
        if len(data) > MAX_DOCUMENT:
            raise Invalid("it is too large")
        try:
            payload, signer = open_envelope(keys, parse_json(data), payload_type)
            c.ok("signed with key %s" % signer)
        except Unknown as e:
            c.incomplete("%s: %s" % (where, e))
            payload, signer = e.payload, ""
        return parse_json(payload), signer
    except Invalid as e:
        raise Fault(where, str(e)) from e


def signed_in_time(c, keys, signer, where, checkpoints):
    """Check the key that signed a document. A key that was replaced counts if it had no successor at the document's checkpoints."""
    if not signer or not keys.succeeded(signer):
        return
    for cp in checkpoints:
        if keys.replaced(cp.origin, signer, cp.size, True):
            raise Fault(where, "key %s signed it, and was replaced before its checkpoint of %s with %d entries" % (signer, cp.origin, cp.size))
    if not checkpoints:
        c.incomplete("%s: key %s signed it, and was replaced since. No checkpoint in it shows that it is older: order a new one" % (where, signer))
    else:
        c.note("Key %s signed %s, and was replaced after its checkpoint. A thief of that key could still sign it." % (signer, where))


def attested(keys, subject, note):
    """Return the checkpoint of an attestation if the keys open it, and if it is of the subject's organization."""
    org = subject[len("aid:session/") :].partition("/")[0]
    origin = note.partition("\n")[0] if type(note) is str else ""
    if not org or not origin.rpartition("/")[0].endswith("/org/" + org):
        return []
    try:
        return [open_note(keys, note, origin)]
    except (Invalid, Unknown):
        return []


REPORT_FORM = {"format": str, "id": str, "org": str, "subject": dict, "created_at": str, "summary": dict, "timeline": list, "attestation": object, "bundle": dict}
SUBJECT = {"kind": str, "id": str}
SUMMARY = {"requests": int, "allowed": int, "denied": int, "open": int, "agents": list, "models": list, "policies": list, "cost_nano_usd": int, "unpriced": int}
STEP = {"seq": int, "time": str, "stage": str, "text": str, "detail": list}


def verify_report(data, keys):
    def verify(c):
        where = "the report"
        p, signer = document(c, data, keys, REPORT, where)
        try:
            if not isinstance(p, dict) or p.get("format") != "aid forensics v1":
                raise Invalid("its format is unknown: this version reads aid forensics v1")
            if set(p) != set(REPORT_FORM) or any(type(p[n]) is not t for n, t in REPORT_FORM.items() if t is not object):
                raise Invalid("it has not exactly the members of the format")
            fields(p["subject"], SUBJECT, "subject")
            fields(p["summary"], SUMMARY, "summary")
            for step in p["timeline"]:
                fields(step, STEP, "a step")
        except Invalid as e:
            raise Fault(where, str(e)) from e
        if p["bundle"].get("org") != p["org"]:
            raise Fault(where, "its entries are of another organization")
        b = Bundle(c, p["bundle"], keys)
        signed_in_time(c, keys, signer, where, b.signed)
        entries = {link.seq for link, _ in b.links}
        for step in p["timeline"]:
            if step["seq"] not in entries:
                raise Fault(where, "a step of its timeline has no entry in its bundle")
        if p["attestation"] is not None:
            where = "the attestation in the report"
            try:
                attestation = dump(p["attestation"])
            except Invalid as e:
                raise Fault(where, str(e)) from e
            statement(c, attestation, keys, where)
        c.note("The entries and their proofs are checked. The summary and the sentences of the timeline are the service's own.")

    return Check("report").run(verify)


STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://ai-identity.co/attestations/session/v1"


def statement(c, data, keys, where):
    s, signer = document(c, data, keys, IN_TOTO, where)
    try:
        if not isinstance(s, dict) or set(s) != {"_type", "subject", "predicateType", "predicate"} or s["_type"] != STATEMENT:
            raise Invalid("it is not an in-toto Statement v1")
        if s["predicateType"] != PREDICATE:
            raise Invalid("its predicate is of a type that this version does not read")
        subject, predicate = s["subject"], s["predicate"]
        if not isinstance(subject, list) or len(subject) != 1 or not isinstance(predicate, dict):
            raise Invalid("it has not exactly one subject and a predicate")
        form = fields(subject[0], {"name": str, "digest": dict}, "the subject")
        digest = fields(form["digest"], {"rfc6962_sha256": str}, "the digest")["rfc6962_sha256"]
        if not form["name"].startswith("aid:session/") or not HASH.fullmatch(digest):
            raise Invalid("its subject is not a session")
    except Invalid as e:
        raise Fault(where, str(e)) from e
    c.ok("%s is about %s, whose links have the root %s" % (where, form["name"], digest))
    signed_in_time(c, keys, signer, where, attested(keys, form["name"], predicate.get("checkpoint")))
    if predicate.get("complete") is not True:
        c.incomplete("%s says that it is not complete" % where)
    return s


def verify_attestation(data, keys):
    def verify(c):
        statement(c, data, keys, "the attestation")
        c.note("The attestation counts the session's entries. Check them with an export of the session: chain EXPORT.")

    return Check("attestation").run(verify)


RECEIPT = re.compile(r"([A-Za-z0-9_.-]{1,128})/([1-9][0-9]{0,18})/([0-9a-f]{64})(?:/([A-Za-z0-9_-]{86}))?", re.ASCII)


def verify_receipt(text, data, keys):
    """Verify a receipt against a bundle with its entry and its writer's first one."""

    def verify(c):
        m = RECEIPT.fullmatch(text)
        if not m or int(m[2]) > MAX64:
            raise Fault("the receipt", "it has not the form WRITER/SEQUENCE/LEAF/SIGNATURE")
        writer, number, leaf = m[1], int(m[2]), bytes.fromhex(m[3])
        try:
            sig = unbase64url(m[4]) if m[4] else b""
        except Invalid as e:
            raise Fault("the receipt", str(e)) from e
        b = Bundle(c, bundle_of(c, data), keys)
        found = [link for link, _ in b.links if link.writer == writer and link.writer_seq == number]
        if any(link.hash == leaf for link in found):
            c.ok("the log has the receipt's entry")
        elif found:
            raise Fault("the receipt", "the log has another entry under the receipt's number")
        else:
            c.incomplete("the bundle has no entry of writer %s with number %d" % (writer, number))
        keys_of_writer = []
        for link, entry in b.links:
            if link.writer == writer and link.kind == "writer.started" and entry:
                try:
                    key = decode(ENTRY_DECODER, entry.decode("utf-8")).get("receipt_key")
                except (Invalid, ValueError, AttributeError):
                    continue
                if type(key) is str and key:
                    keys_of_writer.append(key)
        if not sig or not keys_of_writer:
            c.note("The receipt's signature was not checked. The proof that the log has its entry does not need it.")
        else:
            message = part(b"aid receipt v1") + part(b.org.encode()) + part(writer.encode()) + part(LENGTH.pack(number)) + part(leaf)
            try:
                decoded = [unbase64url(k) for k in keys_of_writer]
            except Invalid as e:
                raise Fault("the entry writer.started", "its receipt key: %s" % e) from e
            if not any(ed25519_verify(k, message, sig) for k in decoded):
                raise Fault("the receipt", "its signature is not that of its writer")
            c.ok("the receipt is signed by its writer")

    return Check("receipt").run(verify)


# The command line.


def read_file(name):
    try:
        with open(name, "rb") as f:
            return f.read()
    except OSError as e:
        raise Usage("%s: %s" % (name, e.strerror)) from e


def read_note(name):
    """Return the text of a checkpoint. Bytes that are not UTF-8 stay as halves of surrogate pairs, which no checkpoint has."""
    return read_file(name).decode("utf-8", "surrogateescape")


def load_keys(args):
    """Return the keys of the JWKS that are pinned, and why there are none."""
    name = args.jwks or "jwks.json"
    if not args.jwks and not os.path.exists(name):
        return KeySet(), "there is no JWKS: fetch /.well-known/jwks.json, compare its key ids with the ones you were given, and use --jwks FILE"
    try:
        keys = parse_jwks(read_file(name))
    except Invalid as e:
        return KeySet(), "%s: %s" % (name, e)
    for kid in args.pin:
        if kid not in {k.kid for k in keys}:
            return KeySet(), "%s: it does not have the pinned key %s" % (name, kid)
    return keys.pin(args.pin), ""


def hmac_keys():
    """Read AI_IDENTITY_HMAC_KEY: HEX, EPOCH:HEX,... or the name of a file with one of these or lines EPOCH HEX."""
    text = os.environ.get("AI_IDENTITY_HMAC_KEY", "").strip()
    if not text:
        return {}
    one = re.compile(r"(?:(?:[0-9a-fA-F]{2}){32,64})")
    for attempt in (0, 1):
        if one.fullmatch(text):
            return {0: bytes.fromhex(text)}
        keys = {}
        for item in re.split(r"[,\n]", text):
            item = item.strip()
            if not item or item.startswith("#"):
                continue
            m = re.fullmatch(r"([1-9][0-9]{0,9})[:\s]\s*((?:[0-9a-fA-F]{2}){32,64})(?:\s+from=\S+)?", item)
            if not m or int(m[1]) in keys:
                keys = {}
                break
            keys[int(m[1])] = bytes.fromhex(m[2])
        if keys:
            return keys
        if attempt or not os.path.isfile(text):
            break
        try:
            text = read_file(text).decode("ascii").strip()
        except UnicodeDecodeError:
            break
    raise Usage("AI_IDENTITY_HMAC_KEY is not HEX (64 to 128 digits), EPOCH:HEX,EPOCH:HEX or the name of a file with them")


def parser():
    p = argparse.ArgumentParser(
        prog="ai_identity_verify", description="Verify evidence of AI Identity offline.",
        epilog="Exit codes: 0 intact; 1 tampered, and where; 2 incomplete, or no key; 3 wrong usage.")
    sub = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, text, *files, **more):
        c = sub.add_parser(name, help=text, description=text)
        for file, options in files:
            c.add_argument(file, **options)
        c.add_argument("--jwks", metavar="FILE", help="public keys; default: ./jwks.json. Keys inside other files are never trusted")
        c.add_argument("--pin", metavar="KID", action="append", default=[], help="trust only this key of the JWKS, and keys that replaced it; may be repeated")
        c.add_argument("--json", action="store_true", help="print the verdict as JSON")
        c.add_argument("--verbose", action="store_true", help="print each check")
        return c

    c = command("chain", "Verify an export of the audit log.", ("file", {"metavar": "EXPORT"}))
    c.add_argument("--checkpoint", metavar="FILE", action="append", default=[], help="a checkpoint that you kept; may be repeated")
    command("report", "Verify a forensics report.", ("file", {"metavar": "REPORT"}))
    command("attestation", "Verify the attestation of a session.", ("file", {"metavar": "ATTESTATION"}))
    c = command("checkpoint", "Verify checkpoints and compare them.", ("files", {"metavar": "CHECKPOINT", "nargs": "+"}))
    c.add_argument("--bundle", metavar="FILE", help="a bundle with consistency proofs")
    c.add_argument("--evidence", metavar="FILE", help="write two checkpoints that contradict each other to this file")
    command("bundle", "Verify single entries with inclusion proofs.", ("file", {"metavar": "BUNDLE"}))
    c = command("receipt", "Verify a receipt (X-AID-Receipt) against a bundle.", ("receipt", {"metavar": "RECEIPT"}))
    c.add_argument("file", metavar="BUNDLE")
    return p


def execute(args):
    keys, why = load_keys(args)
    if args.command == "chain":
        held = [(name, read_note(name)) for name in args.checkpoint]
        macs = hmac_keys()
        try:
            with open(args.file, "rb", buffering=1 << 20) as f:
                v = verify_chain(f, keys, held, macs)
        except OSError as e:
            raise Usage("%s: %s" % (args.file, e.strerror)) from e
    elif args.command == "checkpoint":
        notes = [(name, read_note(name)) for name in args.files]
        v = verify_checkpoints(notes, keys, read_file(args.bundle) if args.bundle else None)
        if args.evidence and v["proof"]:
            with open(args.evidence, "w", encoding="utf-8") as f:
                f.write("\n".join(v["proof"]))
    elif args.command == "receipt":
        text = args.receipt.strip()
        if text.lower().startswith("x-aid-receipt:"):
            text = text[len("x-aid-receipt:") :].strip()
        v = verify_receipt(text, read_file(args.file), keys)
    else:
        verify = {"report": verify_report, "attestation": verify_attestation, "bundle": verify_bundle}[args.command]
        v = verify(read_file(args.file), keys)
    if why:
        v["notes"].insert(0, why)
    return v


def show(v, verbose, out):
    print(v["verdict"].upper() + (": " + (v["where"] + ": " if v["where"] else "") + v["problem"] if v["problem"] else ""), file=out)
    if v["complete"]:
        print("completeness: " + v["complete"], file=out)
    if verbose:
        for line in v["checks"]:
            print("  checked: " + line, file=out)
    for line in v["notes"]:
        print("  note: " + line, file=out)
    for note in v["proof"]:
        print("\n--- checkpoint ---\n" + note, end="", file=out)


def with_pins(argv):
    """The arguments, with each --pin and its value as one. A key id may begin with "-"."""
    argv, joined = iter(argv), []
    for arg in argv:
        if arg == "--pin":
            value = next(argv, None)
            arg = arg if value is None else "--pin=" + value
        joined.append(arg)
    return joined


def main(argv=None, out=None):
    out = out or sys.stdout
    try:
        args = parser().parse_args(with_pins(sys.argv[1:] if argv is None else argv))
    except SystemExit as e:
        return USAGE if e.code else INTACT
    try:
        v = execute(args)
    except Usage as e:
        print("ai_identity_verify: %s" % e, file=sys.stderr)
        return USAGE
    if args.json:
        print(json.dumps(v, indent=2), file=out)
    else:
        show(v, args.verbose, out)
    return v["exit"]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        sys.exit(USAGE)
