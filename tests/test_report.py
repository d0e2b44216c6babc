"""The report: what is in the page, that nothing in a run can break out of it, and how it looks in a browser."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from omnidecode import LLM, RequestError, SamplingParams, report

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "tests" / "data" / "run.json"
SAMPLE: dict[str, Any] = json.loads(RUN.read_text(encoding="utf-8"))
VOID = {"meta", "link", "br", "hr", "img", "input", "source", "col", "area", "base", "embed", "track", "wbr"}


class Page(HTMLParser):
    """A page as a list of elements; fails where tags do not balance."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str]]] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        element = (tag, {name: value or "" for name, value in attrs})
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not any(tag in ("style", "script") for tag, _ in self.open):
            self.words.append(data)

    def all(self, tag: str, cls: str = "") -> list[dict[str, str]]:
        return [a for t, a in self.found if t == tag and (not cls or cls in a.get("class", "").split())]

    @property
    def text(self) -> str:
        return "".join(self.words)


def sample_page() -> str:
    return report.render(report.load(json.dumps(SAMPLE)))


def answers() -> list[dict[str, Any]]:
    return [answer for output in SAMPLE["outputs"] for answer in output["outputs"]]


def test_sample_has_every_kind() -> None:
    origins = [origin for answer in answers() for origin in answer["origins"]]
    assert {origin["source"] for origin in origins} == {"target", "draft", "canvas"}
    assert any(origin["branch"] for origin in origins)
    assert any(origin["depth"] >= 3 for origin in origins)
    assert any(origin["confidence"] is not None for origin in origins)
    for answer in answers():
        assert "".join(origin["text"] for origin in answer["origins"]).startswith(answer["text"])


def test_structure() -> None:
    page = Page(sample_page())
    assert len(page.all("article")) == len(answers())
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) == 1
    (root,) = page.all("html")
    assert root["lang"] == "en"
    tokens = [a for a in page.all("span", "t") if a.get("role") == "listitem"]
    origins = [origin for answer in answers() for origin in answer["origins"]]
    assert len(tokens) == len(origins)
    for drawn, origin in zip(tokens, origins):
        classes = drawn["class"].split()
        assert drawn["tabindex"] == "0" and f"forward {origin['forward']}" in drawn["aria-label"]
        assert origin["source"] in classes and ("branch" in classes) == bool(origin["branch"])
        if origin["source"] == "draft":  # the number says it without colour
            assert drawn["data-n"].endswith(str(origin["depth"])) and f"d{min(origin['depth'], 8)}" in classes
        if origin["source"] == "canvas":
            assert drawn["data-n"].endswith(str(origin["forward"])) and any(re.fullmatch("c[1-8]", c) for c in classes)
    canvas = sum(origin["source"] == "canvas" for origin in origins)
    assert len(page.all("g", "g")) == canvas == len(page.all("rect", "sure"))
    for region in page.all("div", "scroll"):
        assert region["tabindex"] == "0" and region["aria-label"]
    targets = {a["id"] for _, a in page.found if "id" in a}
    assert len(targets) == sum("id" in a for _, a in page.found)
    assert all(a["href"][1:] in targets for a in page.all("a"))


def test_timeline_has_every_forward_once() -> None:
    for output in SAMPLE["outputs"]:
        page = Page(report.render(report.load(json.dumps([output]))))
        (answer,) = output["outputs"]
        rows = [int(a["data-f"]) for a in page.all("tr") if "data-f" in a]
        assert rows == sorted({origin["forward"] for origin in answer["origins"]})
        usage = answer["usage"]
        assert f"{len(answer['token_ids']) / usage['forwards']:.2f}" in page.words
        assert output["guarantee"] in page.words and f"{usage['forwards']:,}" in page.words
        if usage["drafted"]:
            assert f"{usage['accepted']:,} of {usage['drafted']:,}" in page.words


def test_nothing_is_loaded() -> None:
    for page in (sample_page(), report.render(report.load(json.dumps(BENCH)))):
        assert not re.search(r"(?i)@import|url\(|//[a-z]|\bsrc\s*=|href\s*=\s*[\"']?[^\"'#]", page)
        parsed = Page(page)
        assert "default-src 'none'" in next(a["content"] for a in parsed.all("meta") if a.get("http-equiv"))
        assert not parsed.all("link") and not parsed.all("img") and not parsed.all("iframe")


HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;-->]]>\x00\x1b\u202e\ud800${x}$title"


def test_hostile_text_stays_text() -> None:
    run = copy.deepcopy(SAMPLE)
    run["model"] = HOSTILE
    for output in run["outputs"]:
        output["prompt"] = output["strategy"] = output["guarantee"] = HOSTILE
        for answer in output["outputs"]:
            answer["text"] = answer["finish_reason"] = HOSTILE
            answer["notes"] = [{"label": HOSTILE, "place": 1, "tokens": [[1, 0.5, HOSTILE]]}]
            for origin in answer["origins"]:
                origin["text"] = HOSTILE
        output["outputs"].append({"index": 1, "token_ids": [1], "text": HOSTILE, "score": 1.0, "beside": 0})
    page = report.render(report.load(json.dumps(run)))
    page.encode("utf-8")
    parsed = Page(page)
    assert len(parsed.all("script")) == 1 and not parsed.all("img")
    assert not any(name.startswith("on") for _, attributes in parsed.found for name in attributes)
    assert "</script><script>alert(1)</script>\"'><img src=x" in parsed.text and "${x}$title" in parsed.text
    assert "\x00" not in page and "\x1b" not in page and "\ud800" not in page
    same = [tag for tag, _ in Page(sample_page()).found]
    kept = [tag for tag, _ in parsed.found if tag in ("article", "script", "svg", "section", "main")]
    assert kept == [tag for tag in same if tag in ("article", "script", "svg", "section", "main")]


BENCH = {
    "model": "m",
    "prompts": 4,
    "max_tokens": 128,
    "temperature": 0.0,
    "rounds": 3,
    "rows": [
        {"strategy": "plain", "guarantee": "exact", "identical": True, "tokens_per_second": 50.0, "tokens_per_forward": 1.0, "ratio": 1.0},
        {"strategy": "token-recycling", "guarantee": "exact", "identical": False, "tokens_per_second": 90.0, "tokens_per_forward": 2.5, "ratio": 1.8},
    ],
}  # fmt: skip


def test_bench() -> None:
    page = Page(report.render(report.load(json.dumps(BENCH))))
    assert {"plain", "token-recycling", "90.0", "2.50", "1.80", "yes", "no"} <= set(page.words)
    assert len(page.all("tr")) == 3


ROW = {"guarantee": "approximate", "overhead": 0.012, "tokens_per_forward": 1.5, "ratio_to_autoregressive": None}
SWEEP = {
    "task": "t<b>",
    "questions": 8,
    "canvas": 16,
    "rounds": 2,
    "rows": [
        {"model": "t-diffusion", "strategy": "llada", "parameters": {}, "accuracy": 100.0, "nfe_per_question": 16.0, "ratio_to_static": 1.0, **ROW},
        {"model": "t-block", "strategy": "sdar", "parameters": {"x": "<i>"}, "accuracy": 87.5, "nfe_per_question": 4.0, "ratio_to_static": 3.25, **ROW},
        {"model": "t-ar", "strategy": "plain", "parameters": {}, "accuracy": 75.0, "nfe_per_question": 16.0, "ratio_to_static": 2.0, **ROW},
    ],
}  # fmt: skip


def test_bench_of_diffusion_is_drawn() -> None:
    page = Page(report.render(report.load(json.dumps({"diffusion": [SWEEP, SWEEP]}))))
    assert len(page.all("svg")) == 2 and len(page.all("tr")) == 2 * 4
    assert [len(page.all(shape, "cell")) for shape in ("circle", "rect", "path")] == [2, 2, 2], (
        "a shape a kind of model"
    )
    points = [each for each in page.all("g") if each.get("role") == "listitem"]
    assert points[1]["aria-label"] == "Row 2, sdar:x=<i> on t-block: 87.5 % exact in 4.0 forwards"
    assert {"3.25", "87.5", "1.2", "t<b>"} <= set(page.words)
    # Fewer forwards stand further left, better answers higher.
    circle, path = page.all("circle", "cell")[0], page.all("path", "cell")[0]
    assert path["d"].startswith(f"M{circle['cx']} ") and float(path["d"].split()[1].split("l")[0]) > float(circle["cy"])
    assert float(page.all("rect", "cell")[0]["x"]) < float(circle["cx"])
    for wrong, said in (
        ({"task": 3}, "run.diffusion[0].task"),
        ({"rows": [{}]}, "run.diffusion[0].rows[0]: expected a field"),
    ):
        with pytest.raises(RequestError, match=re.escape(said)):
            report.load(json.dumps({"diffusion": [{**SWEEP, **wrong}]}))


def test_runs_of_all_commands_are_read() -> None:
    whole = report.load(json.dumps(SAMPLE))
    assert report.load(json.dumps(SAMPLE["outputs"])).replies == whole.replies  # generate --json
    lines = "\n".join(json.dumps(output) for output in SAMPLE["outputs"])
    assert report.load(lines).replies == whole.replies  # chat --json
    assert report.load(json.dumps(SAMPLE["outputs"][0])).replies == whole.replies[:1]


def test_answers_to_one_prompt_stand_together() -> None:
    run = copy.deepcopy(SAMPLE["outputs"][0])
    run["outputs"] *= 3
    page = Page(report.render(report.load(json.dumps([run]))))
    assert [f"Answer {at} of 3" in page.words for at in (1, 2, 3)] == [True] * 3
    assert len(page.all("section")) == 1 and len(page.all("article")) == 3


def test_run_without_origins_is_told_so() -> None:
    run = copy.deepcopy(SAMPLE)
    for output in run["outputs"]:
        for answer in output["outputs"]:
            del answer["origins"]
    page = Page(report.render(report.load(json.dumps(run))))
    assert "does not tell where its tokens came from" in page.text and answers()[0]["text"] in page.text
    assert not page.all("span", "t")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda run: run.clear(), "run: expected what `omnidecode generate --json`"),
        (lambda run: run.update(outputs=[]), "at least one output"),
        (lambda run: run.update(outputs={}), "run.outputs: expected list"),
        (lambda run: run.update(seconds="1"), "run.seconds: expected int or float, found '1'"),
        (lambda run: run["outputs"][0].pop("strategy"), "outputs[0]: expected a field 'strategy'"),
        (lambda run: run["outputs"][0]["outputs"][0]["origins"].pop(), "origins: expected one for each of"),
        (lambda run: run["outputs"][0]["outputs"][0]["origins"][2].update(source="air"), "origins[2].source: expected one of"),
        (lambda run: run["outputs"][0]["outputs"][0]["origins"][1].update(depth=True), "origins[1].depth: expected int, found True"),
        (lambda run: run["outputs"][0]["outputs"][0].update(token_ids=["x"]), "token_ids"),
        (lambda run: run["outputs"][0]["outputs"][0]["usage"].update(rows="many"), "usage.rows: expected int"),
        (lambda run: run["outputs"][0]["outputs"][0].update(notes=[{"label": "a", "place": 1, "tokens": [[1, 2]]}]), "[id, weight, text]"),
    ],
)  # fmt: skip
def test_what_is_no_run_is_named(change: Any, message: str) -> None:
    run = copy.deepcopy(SAMPLE)
    change(run)
    with pytest.raises(RequestError, match=re.escape(message)):
        report.load(json.dumps(run))


def test_no_json() -> None:
    for text in ("", "{", "<html>", "3", "null", "[3]"):
        with pytest.raises(RequestError, match="expected"):
            report.load(text)


def test_palettes_are_sequential_and_readable() -> None:
    """Luminance alone orders the shades, and text on each has a contrast of at least 4.5 (WCAG AA)."""
    blocks = re.findall(r":root \{(.*?)\}", sample_page(), re.S)
    assert len(blocks) == 2  # light, dark
    for block in blocks:
        colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", block))
        for on, under in [("ink", "page"), ("soft", "page"), ("soft", "card"), ("ink", "card"), ("hot-ink", "hot")]:
            assert contrast(colours[on], colours[under]) >= 4.5, (on, under)
        for palette in "dc":
            shades = [luminance(colours[f"{palette}{n}"]) for n in range(1, 9)]
            ordered = sorted(shades)
            assert shades in (ordered, ordered[::-1]) and len(set(shades)) == 8
            for n in range(1, 9):
                assert contrast(colours["ink"], colours[f"{palette}{n}"]) >= 4.5, (palette, n)


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def run_cli(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "omnidecode", "report", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, encoding="utf-8", timeout=120)


def test_command_line(tmp_path: Path) -> None:
    copied = tmp_path / "run.json"
    copied.write_text(json.dumps(SAMPLE), encoding="utf-8")
    beside = run_cli(str(copied))
    assert (beside.returncode, beside.stdout) == (0, f"{tmp_path / 'run.html'}\n"), beside.stderr
    assert (tmp_path / "run.html").read_text(encoding="utf-8") == sample_page()
    chosen = run_cli(str(copied), "-o", str(tmp_path / "page.html"), "--json")
    assert json.loads(chosen.stdout) == {"report": str(tmp_path / "page.html")}
    assert run_cli("-", stdin=json.dumps(SAMPLE)).stdout == sample_page()
    for arguments in (["/no/such.json"], [str(copied), "-o", str(tmp_path)], [str(tmp_path / "run.html")]):
        bad = run_cli(*arguments)
        assert bad.returncode == 2 and "expected" in bad.stderr and "Traceback" not in bad.stderr


@pytest.mark.skipif("OMNIDECODE_TEST_GGUF" not in os.environ, reason="OMNIDECODE_TEST_GGUF names no model")
@pytest.mark.parametrize("strategy", ["plain", {"name": "token-recycling", "adaptive": False}])
def test_of_real_outputs(llm: LLM, tmp_path: Path, strategy: Any) -> None:
    (output,) = llm.generate(
        "Colours: red, green, blue, red, green, blue, red, café ☕, red,",
        SamplingParams(temperature=0, max_tokens=32, logprobs=1),
        strategy=strategy,
    )
    (answer,) = output.outputs
    assert len(answer.origins) == len(answer.token_ids)
    assert "".join(origin.text for origin in answer.origins).startswith(answer.text)
    forwards = [origin.forward for origin in answer.origins]
    assert forwards == sorted(forwards) and forwards[0] >= 1 and forwards[-1] <= answer.usage.forwards
    drafted = [origin for origin in answer.origins if origin.source == "draft"]
    assert len(drafted) == answer.usage.accepted and all(origin.depth >= 1 for origin in drafted)
    assert bool(drafted) == (strategy != "plain")
    for before, after in zip(answer.origins, answer.origins[1:]):  # a path goes down one step at a time
        if after.source == "draft":
            assert after.depth == (
                before.depth + 1 if before.source == "draft" and before.forward == after.forward else 1
            )
    page = report.render([output], seconds=0.5, model=llm.path.name)
    assert len([a for a in Page(page).all("span", "t") if a.get("role")]) == len(answer.token_ids)
    report.save(output, tmp_path / "run.json", seconds=0.5, model=llm.path.name)
    assert report.render(report.load((tmp_path / "run.json").read_text(encoding="utf-8"))) == page
    frame = output._repr_html_()
    (framed,) = Page(frame).all("iframe")
    assert framed["srcdoc"] == report.render(output) and framed["sandbox"] == "allow-scripts"


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

#: Walks through the page with the keyboard and writes what it saw into the title.
PROBE = """
<script>
const errors = [];
addEventListener("error", (e) => errors.push(String(e.message)));
addEventListener("securitypolicyviolation", (e) => errors.push(e.violatedDirective + " " + e.blockedURI));
addEventListener("load", () => {
  const tokens = [...document.querySelectorAll("[role=listitem][tabindex='0'].t")];
  const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
  const details = document.getElementById("details");
  tokens[0].focus();
  const first = details.textContent === tokens[0].getAttribute("aria-label") && !details.hidden;
  key("ArrowRight");
  const second = document.activeElement === tokens[1] && details.textContent === tokens[1].getAttribute("aria-label");
  const lit = document.querySelectorAll(".hot").length;
  key("Escape");
  const gone = details.hidden && document.querySelectorAll(".hot").length === 0;
  const cell = document.querySelector("svg .g[tabindex='0']");
  cell.focus();
  key("ArrowRight");
  const walked = document.activeElement.matches("svg .g") && document.activeElement !== cell;
  document.activeElement.blur();
  scrollTo(0, 0);
  document.documentElement.dataset.seen = JSON.stringify({
    errors, first, second, lit, gone, walked, tokens: tokens.length, cells: document.querySelectorAll("svg .g").length,
    wide: document.documentElement.scrollWidth - innerWidth, dark: matchMedia("(prefers-color-scheme: dark)").matches,
    background: getComputedStyle(document.body).backgroundColor });
});
</script>
"""


def chromium(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0"]
    return subprocess.run([CHROMIUM, *fixed, *arguments], capture_output=True, text=True, encoding="utf-8", timeout=120)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install it (apt-get install chromium) to see the page drawn")
@pytest.mark.parametrize("scheme, width", [("light", 1100), ("dark", 1100), ("light", 500)])
def test_in_a_browser(tmp_path: Path, scheme: str, width: int) -> None:
    page = sample_page()
    # The probe is a script of its own: only here may the page run others than its own.
    probed = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", page, count=1).replace(
        "<style>", PROBE + "<style>", 1
    )
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "probed.html").write_text(probed, encoding="utf-8")
    flags = [f"--window-size={width},1400"] + (["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else [])
    dumped = chromium(*flags, "--dump-dom", f"file://{tmp_path / 'probed.html'}")
    seen = re.search(r'data-seen="([^"]*)"', dumped.stdout)
    assert seen, dumped.stderr
    facts = json.loads(seen.group(1).replace("&quot;", '"'))
    assert facts["errors"] == [] and "CONSOLE" not in dumped.stderr, dumped.stderr
    assert facts["first"] and facts["second"] and facts["lit"] >= 2 and facts["gone"] and facts["walked"], facts
    origins = [origin for answer in answers() for origin in answer["origins"]]
    assert facts["tokens"] == len(origins)
    assert facts["cells"] == sum(origin["source"] == "canvas" for origin in origins)
    assert facts["wide"] <= 0, "the page is wider than its window"
    assert facts["dark"] == (scheme == "dark")
    assert facts["background"] == ("rgb(20, 23, 27)" if scheme == "dark" else "rgb(255, 255, 255)")
    picture = ROOT / "artifacts" / f"report-{scheme}-{width}.png"
    picture.parent.mkdir(exist_ok=True)
    picture.unlink(missing_ok=True)
    drawn = chromium(*flags, f"--screenshot={picture}", f"file://{tmp_path / 'page.html'}")
    assert "CONSOLE" not in drawn.stderr, drawn.stderr  # its own script passes its own policy
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
