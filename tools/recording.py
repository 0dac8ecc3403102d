"""Records the product in a terminal, and renders the recording.

    recording.py AID ENVOY POSTGRES DOCS

It starts `aid up` with its stand-in provider on the default ports, types the commands of
SCRIPT into a real shell, and writes DOCS/recording.cast (asciicast v2). An event "i" is a
command that was typed. The events "o" after it, up to the next prompt, are its output.
termtosvg renders the file to recording-light.svg and recording-dark.svg, which name the
file's SHA-256. TestDocs in e2e types the commands again and compares what they print.
"""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

WIDTH, HEIGHT = 100, 37
PROMPT = "\x1b[32m$\x1b[0m "

SCRIPT = [
    '# support-bot has its own key and may use one model, "demo". The key is in $AID_KEY.',
    "chat() { curl -s localhost:8080/v1/chat/completions -H \"Authorization: Bearer $AID_KEY\" \\\n"
    "  -H 'Content-Type: application/json' \\\n"
    "  -d '{\"model\": \"'$1'\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'; echo; }",
    "# 1. Allowed: the decision is on disk before the request is forwarded.",
    "chat demo",
    "# 2. Rejected: the response has the reason, and the provider receives nothing.",
    "chat demo-secret",
    "aid explain model_not_allowed",
    "# 3. Verified: the MAC of each audit entry covers the entry before it.",
    "aid audit verify --home .aid",
    "# 4. Revoked: every sidecar rejects the key in well under a second.",
    "curl -s -X DELETE localhost:8081/v1/agents/$AGENT/keys/$KEY -H \"Authorization: Bearer $ORG\"",
    "chat demo",
    "aid audit verify --home .aid",
]

# Colors of the text and the background, then the 8 colors of a terminal.
THEMES = {
    "light": ("#1f2328", "#f6f8fa", "#24292f:#cf222e:#116329:#4d2d00:#0550ae:#8250df:#1b7c83:#6e7781"),
    "dark": ("#e6edf3", "#161b22", "#484f58:#ff7b72:#3fb950:#d29922:#58a6ff:#bc8cff:#39c5cf:#b1bac4"),
}


def call(method, path, key, body=None):
    request = urllib.request.Request("http://localhost:8081" + path, method=method, data=json.dumps(body).encode(),
                                     headers={"Authorization": "Bearer " + key, "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


class Cast:
    """Writes events with the time since its start."""

    def __init__(self, path):
        self.file = path.open("w", encoding="utf-8")
        self.begin = time.monotonic()
        self.line({"version": 2, "width": WIDTH, "height": HEIGHT, "title": "AI Identity: allowed, rejected, verified, revoked"})

    def line(self, value):
        print(json.dumps(value, ensure_ascii=False), file=self.file)

    def event(self, kind, text):
        self.line([round(time.monotonic() - self.begin, 3), kind, text.replace("\n", "\r\n")])


def perform(cast, shell, command):
    """Types a command as a person does, runs it, and records what it prints."""
    cast.event("o", PROMPT)
    time.sleep(0.4)
    comment = command.startswith("#")
    shown = command.replace("\n", "\n> ")
    for at in range(0, len(shown), 3):
        chunk = shown[at:at + 3]
        cast.event("o", f"\x1b[36m{chunk}\x1b[0m" if comment else chunk)
        time.sleep(0.06)
    cast.event("o", "\n")
    if comment:
        time.sleep(0.6)
        return
    cast.event("i", command)
    shell.stdin.write(command.encode() + b"\nprintf '\\0'\n")
    shell.stdin.flush()
    output = b""
    while not output.endswith(b"\0"):
        more = shell.stdout.read1(65536)
        if not more:
            sys.exit(f"the shell ended at {command!r}")
        output += more
    if len(output) > 1:
        cast.event("o", output[:-1].decode())
    time.sleep(2 if len(output) > 1 else 0.5)


def record(aid, envoy, postgres, path):
    # The embedded Postgres does not run as root, so its account must reach the folder.
    with tempfile.TemporaryDirectory(prefix="aid", dir="/tmp") as work:
        os.chmod(work, 0o711)
        up = subprocess.Popen([aid, "up", "--envoy", envoy, "--postgres-dir", postgres, "--stand-in", "127.0.0.1:8089"],
                              cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            if not any(line == "ready\n" for line in up.stdout):
                sys.exit("aid up is not ready:\n" + up.stderr.read())
            org = pathlib.Path(work, ".aid", "org.key").read_text().strip()
            agent = call("POST", "/v1/agents", org, {"name": "support-bot", "allowed_models": ["demo"]})["id"]
            key = call("POST", f"/v1/agents/{agent}/keys", org, {"name": "first", "scopes": ["chat:completions"]})
            env = {"PATH": os.path.dirname(aid) + ":" + os.environ["PATH"], "LANG": "C.UTF-8", "HOME": work,
                   "ORG": org, "AGENT": agent, "KEY": key["id"], "AID_KEY": key["key"]}
            shell = subprocess.Popen(["bash", "--norc", "--noprofile"], cwd=work, env=env, stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            cast = Cast(path)
            for command in SCRIPT:
                perform(cast, shell, command)
            cast.event("o", PROMPT)
            cast.file.close()
            shell.stdin.close()
            shell.wait()
        finally:
            up.terminate()
            up.wait()


def render(cast, docs):
    digest = hashlib.sha256(cast.read_bytes()).hexdigest()
    template = pathlib.Path(__file__).with_suffix(".svg")
    for name, (text, background, palette) in THEMES.items():
        out = docs / f"recording-{name}.svg"
        with tempfile.NamedTemporaryFile("w", suffix=".json") as theme:
            json.dump({"fg": text, "bg": background, "palette": palette}, theme)
            theme.flush()
            subprocess.run([sys.executable, "-m", "termtosvg", "render", str(cast), str(out), "--template", str(template),
                            "--theme", theme.name, "--min-frame-duration", "60ms", "--loop-delay", "10000ms"], check=True)
        svg = out.read_text(encoding="utf-8")
        start = svg.index(">", svg.index("<svg")) + 1
        last = re.findall(r"translateY\(-\d+px\)", svg)[-1]
        out.write_text(f"{svg[:start]}<title>A terminal: a request is allowed, one is rejected, the log is verified, the key is revoked</title>"
                       f"<desc>recording.cast sha256:{digest}</desc>"
                       f"<style>@media (prefers-reduced-motion) {{#screen_view {{animation: none !important; transform: {last}}}}}</style>"
                       f"{svg[start:]}", encoding="utf-8")


def main():
    aid, envoy, postgres, docs = (os.path.abspath(a) for a in sys.argv[1:])
    cast = pathlib.Path(docs, "recording.cast")
    record(aid, envoy, postgres, cast)
    render(cast, pathlib.Path(docs))


main()
