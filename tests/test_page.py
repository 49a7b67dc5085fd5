"""The page in results/page, which `make page` builds, in headless Chromium: its pictures are those of PyTorch."""

import json
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue

import numpy as np
import pytest
import torch

from diffusion import sample
from diffusion.spec import SampleSpec
from files.errors import ConfigError
from runs import load_run
from sharing.onnx_page import for_page

pytestmark = pytest.mark.page
ROOT = Path(__file__).parent.parent
SITE = ROOT / "results" / "page"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()
SECONDS = 300  # until the page sends the next result: seconds, or minutes where other programs use all cores
LABELS, GUIDANCE = [3, 8], 2.0
ERRORS = """<script>
const send = (path, body) => fetch(path, { method: "POST", body });
addEventListener("error", ({ message }) => send("error", message));
addEventListener("unhandledrejection", ({ reason }) => send("error", String(reason)));
</script>"""
DRAW = """<script type="module">
import { load, networks } from "./network.js";
import { Diffusion, SAMPLERS, normal, withLabels } from "./sampler.js";
const read = async (path) => new Float32Array(await (await fetch(path)).arrayBuffer());
for (const facts of await networks()) {
  const network = await load(facts), diffusion = new Diffusion(facts), none = facts.classes.length;
  const labels = none ? %s : [0, 0], guidance = none ? %s : 1;
  const model = withLabels(network, [
    { labels, weights: [guidance, guidance] }, { labels: [none, none], weights: [1 - guidance, 1 - guidance] },
  ]);
  for (const method of ["DDIM", "UniPC"]) for (const calls of [1, 10]) {
    let x;
    const steps = diffusion.steps(calls);
    for await (const frame of SAMPLERS[method](diffusion, model, await read(`noise/${facts.name}`), steps))
      x = frame.sample;
    await send(`${facts.name} ${method}_${calls}`, x);
  }
}
await send("noise", normal(7, 3, 100000));
</script>"""
CLICK = """<iframe src="index.html" width="390" height="3000"></iframe><script type="module">
const frame = document.querySelector("iframe"), wait = (ms) => new Promise((done) => setTimeout(done, ms));
await new Promise((done) => frame.addEventListener("load", done));
const page = frame.contentDocument, $ = (id) => page.getElementById(id);
frame.contentWindow.addEventListener("error", ({ message }) => send("error", message));
const idle = async () => { do await wait(300); while (page.body.ariaBusy !== "false"); };
const pixels = () => [...page.querySelectorAll("#samples canvas")].map((canvas) => canvas.toDataURL()).join();
const change = async (id, value) => {
  $(id).value = value; $(id).dispatchEvent(new Event("change", { bubbles: true })); await idle(); return pixels();
};
await idle();
await change("calls", 2);
const first = await change("seed", 5), other = await change("seed", 6), again = await change("seed", 5);
const of_class = await change("class", 1);
$("way").click(); await idle();
const between = [...page.querySelectorAll("#between canvas")].map((canvas) => canvas.toDataURL());
const ends = ["left", "right"].map((id) => $(id).toDataURL());
await send("page", JSON.stringify({ first, other, again, of_class, between, ends, wide: page.body.scrollWidth }));
</script>"""


class Handler(SimpleHTTPRequestHandler):
    """Serves the site and more files that are given. Puts (path, content) of what the browser sends in a queue."""

    def __init__(self, *args, more: dict[str, bytes], sent: Queue):
        self.more, self.sent = more, sent
        super().__init__(*args, directory=str(SITE))

    def do_GET(self):
        if self.path not in self.more:
            return super().do_GET()
        self.answer(self.more[self.path])

    def do_POST(self):
        self.sent.put((self.path[1:].replace("%20", " "), self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer(b"")

    def answer(self, content: bytes):
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path.endswith(".html") else "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def in_chromium(html: str, last: str, profile: Path, **more: bytes) -> dict[str, bytes]:
    """What a page of the site with this content sends, until it sends `last`."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    assert browser, "this test needs Chromium: apt-get install chromium"
    assert (SITE / "networks.json").is_file(), "this test needs the page: make page"
    sent, found = Queue(), {}
    files = {f"/{name}": content for name, content in more.items()} | {"/test.html": (ERRORS + html).encode()}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, more=files, sent=sent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/test.html"
        with open(profile / "log", "wb") as log:
            command = [browser, *FLAGS, f"--user-data-dir={profile}", address]
            chromium = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while last not in found:
                path, content = sent.get(timeout=SECONDS)
                assert path != "error", content.decode()
                found[path] = content
        except Empty:
            pytest.fail(f"the page sent only {list(found)} in {SECONDS} s; see {profile / 'log'}")
        finally:
            chromium.terminate()
            chromium.wait()
            server.shutdown()
    return found


@pytest.fixture(scope="module")
def facts():
    return {network["name"]: network for network in json.loads((SITE / "networks.json").read_text())}


def test_pictures_are_those_of_pytorch(facts, tmp_path):
    """From the same noise, within 2/255 everywhere: both compute in float32, and sum in another order."""
    runs = {name: load_run(ROOT / "checkpoints" / f"{name}.safetensors") for name in facts}
    noise = {name: run.noise([0, 1], seed=4)[0] for name, run in runs.items()}
    files = {f"noise/{name}": x.numpy().tobytes() for name, x in noise.items()}
    found = in_chromium(DRAW % (LABELS, GUIDANCE), "noise", tmp_path, **files)
    for name, run in runs.items():
        labels = {"labels": LABELS, "guidance": GUIDANCE} if facts[name]["classes"] else {}
        for spec in ("DDIM_1", "DDIM_10", "UniPC_1", "UniPC_10"):
            expected = sample(run.diffusion, run.labelled([0, 1], **labels), noise[name], SampleSpec.parse(spec))
            drawn = torch.frombuffer(bytearray(found[f"{name} {spec}"]), dtype=torch.float32).view_as(expected)
            assert expected.std() > 0.2, "a picture"
            assert (drawn - expected).abs().max() * 127.5 <= 2, (name, spec)
    drawn = np.frombuffer(found["noise"], np.float32)  # errors of mean and deviation: 1 / sqrt(n) and 0.7 of that
    assert abs(drawn.mean()) < 4 / len(drawn) ** 0.5 and abs(drawn.std() - 1) < 3 / len(drawn) ** 0.5


def test_the_page_draws_on_a_phone(tmp_path):
    found = json.loads(in_chromium(CLICK, "page", tmp_path)["page"])
    assert found["first"] == found["again"] and len({found[key] for key in ("first", "other", "of_class")}) == 3
    assert found["wide"] <= 390, "no scrolling to the side"
    assert len(found["between"]) == len(set(found["between"])) == 11
    assert [found["between"][0], found["between"][-1]] == found["ends"]


def test_the_page_is_small_and_complete(facts):
    files = [file for file in SITE.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 15e6
    assert {f"{name}.onnx.gz" for name in facts} == {file.name for file in files if ".onnx" in file.name}


def test_a_network_without_guidance_is_refused():
    with pytest.raises(ConfigError, match="only knows guidance 1"):
        for_page(ROOT / "checkpoints" / "fashion_mnist_fast.safetensors")


def test_every_word_is_there_in_both_languages():
    html = (ROOT / "page" / "index.html").read_text(encoding="utf-8")
    english, chinese = (re.findall(rf'<span lang="{lang}">([^<]+)<', html) for lang in ("en", "zh"))
    assert len(english) == len(chinese) > 20
    assert all(re.search(r"[\u4e00-\u9fff]", words) for words in chinese)
    classes = {name for network in json.loads((SITE / "networks.json").read_text()) for name in network["classes"]}
    script = (ROOT / "page" / "page.js").read_text(encoding="utf-8")
    assert [name for name in classes if not name.isdecimal() and name not in script] == []
