"""The page's own verifier agrees with the hub on every vector, verdicts included: two programs, one protocol."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "verdicts.json").read_text())

# A function of the module and the vectors.
RUN = """async (v, { keys, messages, signatures, requests, evening }) => {
const hub = v.fromHex(keys.hub), viewer = v.fromHex(keys.viewer);
const open = {
  ticket: (bytes) => v.openTicket(bytes, hub),
  receipt: (bytes) => v.openReceipt(bytes, viewer),
  batch: (bytes) => v.openBatch(bytes),
};
const domain = new TextEncoder().encode("restream/receipt/v1\\n");
const out = { messages: [], signatures: [], requests: [], steps: [] };
for (const { kind, hex, flips, lengths } of messages) {
  const good = v.fromHex(hex);
  const made = [await open[kind](good)];
  for (const [at, mask] of flips) {
    const bytes = good.slice();
    bytes[at] ^= mask;
    made.push(await open[kind](bytes));
  }
  for (const [length] of lengths) {
    const bytes = new Uint8Array(length);
    bytes.set(good.slice(0, length));
    made.push(await open[kind](bytes));
  }
  out.messages.push(made);
}
for (const s of signatures) {
  out.signatures.push(await v.verify(v.fromHex(s.key), domain, v.fromHex(s.body), v.fromHex(s.signature)));
}
for (const r of requests) {
  out.requests.push(await v.openRequest(r.authorization, r.method, r.target, v.fromHex(r.body), r.now_s));
}
const node = { publicKey: evening.node.public_key, friendId: evening.node.friend_id, suspended: false };
node.networks = new Set(evening.node.networks);
const segments = evening.segments.map(v.fromHex);
const judge = new v.Judge({ settings: evening.settings, node, firstSequence: evening.first_sequence, segments });
for (const t of evening.tickets) await judge.issued(v.fromHex(t.ticket), t.network, t.account_id);
for (const s of evening.steps) {
  node.suspended = s.suspended;
  out.steps.push(await judge.judge(v.fromHex(s.receipt), s.now_s, (sequence) => sequence === s.lost));
}
return out;
}"""
SCRIPT = f"""
import {{ webcrypto }} from "node:crypto";
import {{ readFileSync }} from "node:fs";
globalThis.crypto ??= webcrypto; // Node 18, as Debian 12 has it
const vectors = JSON.parse(readFileSync(process.argv[3], "utf-8"));
console.log(JSON.stringify(await ({RUN})(await import(process.argv[2]), vectors)));
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def static() -> Iterator[str]:
    """The pages' scripts over HTTP."""
    handler = partial(Quiet, directory=str(ROOT / "api" / "web" / "static"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module", params=["node", pytest.param("page", marks=pytest.mark.browser)])
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the verifier says to all of it, in node and in a page."""
    if request.param == "page":
        page = request.getfixturevalue("browser").new_page()
        page.goto(request.getfixturevalue("static"))
        found: dict[str, Any] = page.evaluate(
            f"async (all) => ({RUN})(await import('/verifier.js'), all)", VECTORS
        )
        page.close()
        return found
    if shutil.which("node") is None:
        pytest.skip("needs node, as building the pages does")
    script = tmp_path_factory.mktemp("verifier") / "vectors.mjs"
    script.write_text(SCRIPT)
    module = (ROOT / "api" / "web" / "static" / "verifier.js").as_uri()
    vectors = ROOT / "tests" / "vectors" / "verdicts.json"
    command = ["node", str(script), module, str(vectors)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    made: dict[str, Any] = json.loads(run.stdout)
    return made


def test_each_changed_byte_is_refused_for_the_same_reason(said: dict[str, Any]) -> None:
    for mine, message in zip(said["messages"], VECTORS["messages"], strict=True):
        assert mine == [
            "ok",
            *(flip[2] for flip in message["flips"]),
            *(cut[1] for cut in message["lengths"]),
        ]


def test_signatures_on_which_libraries_differ(said: dict[str, Any]) -> None:
    wrong = [
        s["name"]
        for mine, s in zip(said["signatures"], VECTORS["signatures"], strict=True)
        if mine != s["holds"]
    ]
    assert wrong == []


def test_signed_requests(said: dict[str, Any]) -> None:
    assert said["requests"] == [r["result"] for r in VECTORS["requests"]]


def test_every_verdict_of_the_evening(said: dict[str, Any]) -> None:
    for mine, step in zip(said["steps"], VECTORS["evening"]["steps"], strict=True):
        expected = [step[name] for name in ("verdict", "cap", "units", "credited_bytes")]
        assert [mine["verdict"], mine["cap"], mine["units"], mine["creditedBytes"]] == expected, step["why"]
