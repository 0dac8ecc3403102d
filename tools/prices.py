"""Turns the price list of the package genai-prices into provider/prices/list.json.

    python3 tools/prices.py WHEEL provider/prices

The package's data is a Python file made of calls like ModelInfo(id='…'). It is
parsed and never run: what is not one of the calls below is an error, and so is a
rate that is not a whole number of nano-dollars per million tokens, or that this
file does not know. Nothing is guessed.
"""

import ast
import json
import re
import sys
import zipfile
from decimal import Decimal
from pathlib import Path

# Whose prices we keep: their id there, our kind, and the hosts of the vendor's own
# API. Regional hosts are not among them: some charge more.
VENDORS = [
    ("openai", "openai", ["api.openai.com"]),
    ("anthropic", "anthropic", ["api.anthropic.com"]),
    ("google", "gemini", ["generativelanguage.googleapis.com"]),
    ("cohere", "cohere", ["api.cohere.com", "api.cohere.ai"]),
    ("mistral", "mistral", ["api.mistral.ai"]),
]

# Their name of a rate, and ours. A rate of another name that an answer of a served
# endpoint could bring about must be one of IGNORED, so that a new one is noticed.
RATES = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached",
    "cache_write_mtok": "write",
    "cache_write_1h_mtok": "write_1h",
    "input_audio_mtok": "input_audio",
    "input_image_mtok": "input_image",
    "input_video_mtok": "input_video",
    "cache_audio_read_mtok": "cached_audio",
    "cache_image_read_mtok": "cached_image",
    "output_audio_mtok": "output_audio",
    "output_image_mtok": "output_image",
    "output_video_mtok": "output_video",
}
# By the page, hour or character: no answer tells us how many.
UNCOUNTED = {"input_document_kpages", "input_annotated_document_kpages", "audio_hours", "input_audio_hours", "input_mchars"}
# What the vendor's own tools cost besides; see docs/prices.md.
IGNORED = UNCOUNTED | {"web_searches_kcount", "storage_searches_kcount"}

# Names whose price two published lists did not agree on when this version was taken
# over (LiteLLM's, in PyPI's litellm 1.110.2, was the other; 245 names agreed). They
# are mostly names that move on to a newer model. Nobody can say what they cost, so
# they have no price; an answer usually names the dated model, which has.
DISPUTED = {
    "openai": ["gpt-4o-mini-tts"],
    "mistral": ["magistral-medium-latest", "magistral-small-latest", "mistral-large-latest", "mistral-medium", "open-mistral-nemo"],
}

CALLS = {
    "Provider", "ModelInfo", "ModelPrice", "TieredPrices", "Tier", "ConditionalPrice", "PriceVariant", "StartDateConstraint",
    "TimeOfDateConstraint", "ClauseStartsWith", "ClauseEndsWith", "ClauseContains", "ClauseRegex", "ClauseEquals", "ClauseOr",
    "ClauseAnd", "UsageExtractor", "UsageExtractorMapping", "ArrayMatch",
}


def value(node):
    """What a node of the data says: calls become dicts with "call"."""
    match node:
        case ast.Constant():
            return node.value
        case ast.List():
            return [value(x) for x in node.elts]
        case ast.Dict():
            return {value(k): value(v) for k, v in zip(node.keys, node.values)}
        case ast.Call(func=ast.Name(id="Decimal"), args=[ast.Constant(value=str(text))]):
            return Decimal(text)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="datetime"), attr="date"), args=[y, m, d]):
            return f"{value(y):04}-{value(m):02}-{value(d):02}"
        case ast.Call(func=ast.Attribute(value=ast.Name(id="datetime"), attr="time")):
            return "a time of day"  # of vendors that are not ours
        case ast.Call(func=ast.Name(id=name), args=[], keywords=kws) if name in CALLS:
            return {"call": name} | {k.arg: value(k.value) for k in kws}
    raise SystemExit(f"line {getattr(node, 'lineno', '?')}: not data: {ast.dump(node)[:200]}")


def nano(d):
    """Dollars per million tokens as a whole number of nano-dollars."""
    n = d * 10**9
    if n != int(n) or n < 0:
        raise SystemExit(f"{d} is not a whole number of nano-dollars")
    return int(n)


def rate(v):
    """A rate: a number, or the first one and then pairs of a length and the rate above it."""
    if isinstance(v, Decimal):
        return nano(v)
    tiers = sorted(v["tiers"], key=lambda t: t["start"])
    return [nano(v["base"])] + [n for t in tiers for n in (t["start"], nano(t["price"]))]


def rates(price, where):
    out = {}
    for name, v in price.items():
        if name == "call" or v is None or name in IGNORED:
            continue
        if name not in RATES:
            raise SystemExit(f"{where}: the rate {name} is new: say in this file what it is")
        out[RATES[name]] = rate(v)
    return {k: out[k] for k in RATES.values() if k in out}


def start(constraint, where):
    if constraint is None:
        return None
    if constraint["call"] != "StartDateConstraint":
        raise SystemExit(f"{where}: a price that depends on {constraint['call']}")
    return constraint["start_date"]


def escaped(text):
    if re.search(r"[*#\s]", text):
        raise SystemExit(f"{text!r} is no name")
    return text.lower()


def patterns(clause):
    """Names, in which * is anything and # a digit; and names that are not meant all the same."""
    match clause["call"]:
        case "ClauseEquals":
            return [escaped(clause["equals"])], []
        case "ClauseStartsWith":
            return [escaped(clause["starts_with"]) + "*"], []
        case "ClauseEndsWith":
            return ["*" + escaped(clause["ends_with"])], []
        case "ClauseContains":
            return ["*" + escaped(clause["contains"]) + "*"], []
        case "ClauseRegex":
            return regex(clause["regex"])
        case "ClauseOr":
            both = [patterns(c) for c in clause["or_"]]
            return [p for yes, _ in both for p in yes], [p for _, no in both for p in no]
        case "ClauseAnd":
            both = [patterns(c) for c in clause["and_"]]
            meant = [yes for yes, _ in both if yes != ["*"]]
            if len(meant) == 1:
                return meant[0], [p for _, no in both for p in no]
    raise SystemExit(f"cannot say {clause}")


def regex(r):
    if r == r"^(?!.*-[tT][tT][sS](?:$|-))":
        return ["*"], ["*-tts", "*-tts-*"]
    if r.startswith("^"):
        plain = re.sub(r"\\d\{(\d+)\}", lambda m: "#" * int(m[1]), r[1:]).replace(r"\d", "#").replace(r"\.", ".")
        plain, rest = (plain[:-1], "") if plain.endswith("$") else (plain, "*")
        choices = [plain]
        if m := re.search(r"\[([-@]+)\]", plain):
            choices = [plain[: m.start()] + c + plain[m.end() :] for c in m[1]]
        if all(re.fullmatch(r"[a-z0-9.@#-]+", c) for c in choices):
            return [c + rest for c in choices], []
    raise SystemExit(f"cannot say the regular expression {r}")


def model(vendor, m):
    where = f"{vendor}/{m['id']}"
    yes, no = patterns(m["match"])
    out = {"id": m["id"], "match": yes}
    if no:
        out["but"] = no
    standard = m["prices"] if isinstance(m["prices"], list) else [{"prices": m["prices"]}]
    prices = []
    for p in standard:
        r = rates(p["prices"], where)
        if from_ := start(p.get("constraint"), where):
            r = {"from": from_} | r
        prices.append(r)
    # By the hour, page or character, if only in part: nothing that we could compute.
    # The model stays, without prices, so that no wider name takes its place.
    if any(k in UNCOUNTED for p in standard for k in p["prices"]) or not any("input" in p for p in prices):
        return out | {"prices": []}
    out["prices"] = prices
    tiers = []
    for v in m.get("price_variants") or []:
        (key, service), *more = v["when"].items()
        if service in ("batch", "default"):
            continue  # not served; the same
        if more or key not in ("service_tier", "speed"):
            raise SystemExit(f"{where}: a price that depends on {v['when']}")
        r = {"service": service}
        if from_ := start(v.get("constraint"), where):
            r["from"] = from_
        tiers.append(r | rates(v["prices"], where))
    if tiers:
        out["services"] = tiers
    return out


def main(wheel, folder):
    name, version = Path(wheel).name.split("-")[:2]
    with zipfile.ZipFile(wheel) as z:
        tree = ast.parse(z.read("genai_prices/data.py"))
        licence = z.read(f"{name}-{version}.dist-info/licenses/LICENSE").decode()
    listed = next(n.value for n in tree.body if isinstance(n, ast.AnnAssign) and n.target.id == "providers")
    theirs = {p["id"]: p for p in map(value, listed.elts)}
    lines = []
    for id_, kind, hosts in VENDORS:
        models = []
        if kind in DISPUTED:
            models.append("   " + json.dumps({"id": "disputed", "match": DISPUTED[kind], "prices": []}, separators=(",", ":")))
        for m in theirs[id_]["models"]:
            if id_ == "google" and m["id"].startswith("claude"):
                continue  # Vertex AI's, which is another API
            models.append("   " + json.dumps(model(id_, m), separators=(",", ":")))
        head = json.dumps({"kind": kind, "hosts": hosts})
        lines.append(f" {head[:-1]}, \"models\": [\n" + ",\n".join(models) + "\n ]}")
    text = (
        f'{{"source": "genai-prices {version} (PyPI), MIT: see LICENSE.genai-prices; made by `make prices`",\n'
        '"unit": "nano-USD per million tokens",\n"vendors": [\n' + ",\n".join(lines) + "\n]}\n"
    )
    json.loads(text)
    (Path(folder) / "list.json").write_text(text)
    (Path(folder) / "LICENSE.genai-prices").write_text(licence)


if __name__ == "__main__":
    main(*sys.argv[1:])
