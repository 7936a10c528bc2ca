"""T7: names from a table of runs are text in every sink of a report, and nothing else."""

import base64
import csv
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from edge import compose

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.page import table_html
from llmtrain.scaling.report import _md_table, write_report
from llmtrain.scaling.wording import Table
from llmtrain.spec.build import build

PAYLOADS = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>",
    '"><b onmouseover="x">', "' onclick='x", "</td></tr></table><h1>x",
    "</title><script>x</script>",
    "</style><script>x</script>", "<!-- x -->", "--><script>x</script>", "]]><script>x</script>",
    "<iframe src=javascript:x>", "<a href='javascript:x'>y</a>", "<meta http-equiv=refresh>",
    "<base href=//evil>", "<link rel=stylesheet href=//evil>", "<form action=//evil>",
    "[x](javascript:alert(1))", "![x](http://evil/a.png)", "x | y | z", "`code` **bold** _i_",
    "\\`<u>\\`", "a\n# heading\n", "a\n\n<script>x</script>", "a\r\n- item", "$\\frac{1}{$ $x",
    "&lt;script&gt;", "=cmd|' /C calc'!A0", "\x1b[31mred\x1b[0m", "\u202eevil<i>",
)  # fmt: skip


class Page(HTMLParser):
    """Collects tags, and attributes that could act."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.acting: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.acting += [f"{k}={v}" for k, v in attrs if k.startswith("on")]
        self.acting += [f"{k}={v}" for k, v in attrs if "javascript" in (v or "")]
        if tag != "img":
            self.acting += [f"{k}={v}" for k, v in attrs if k in ("src", "href", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def seen(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    return page


def runs_csv(path: Path, name: Sequence[str], group: str) -> Path:
    """Write a table with a planted law whose text columns are payloads."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("params", "tokens", "loss", "run_id", "group", "status"))
    for c in (1e18, 1e19, 1e20):
        for i in range(-2, 3):
            n = 1e8 * 2**i * (c / 1e18) ** 0.5
            d = c / 6 / n
            loss = 1.7 + 400 / n**0.34 + 410 / d**0.28
            writer.writerow((n, d, loss, f"{name[0]}{c}{i}", group, "done"))
    for payload in name:
        writer.writerow((1e8, 1e9, 3, payload, group, payload))
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report whose groups, runs, states and command are payloads."""
    folder = tmp_path_factory.mktemp("report")
    source = runs_csv(folder / "<b>runs.csv", PAYLOADS, " ".join(PAYLOADS))
    config = build(
        AnalyzeConfig, compose("analyze", ["runs=given", "bootstrap=20", "publish=disabled"])
    )
    analysis = analyze(config, load_runs(source))
    write_report(analysis, folder / "out", [f"out={payload}" for payload in PAYLOADS])
    return folder / "out"


def test_no_payload_becomes_a_tag_or_a_handler_of_the_page(report: Path) -> None:
    html = (report / "report.html").read_text(encoding="utf-8")
    page = seen(html)
    plain = {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "ul",
             "li", "b", "figure", "figcaption", "img", "div", "table", "thead", "tbody", "tr", "th",
             "td", "code"}  # fmt: skip
    assert page.tags <= plain
    assert page.acting == []
    assert "<script>alert(1)</script>" in page.text  # it is there, as text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    assert "script" not in policy[1]
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', html)) <= {"data:"}


def test_no_payload_becomes_markup_in_markdown(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    *body, command = text.rpartition("### Command")
    page = seen("".join(body))
    assert page.tags == set()
    assert page.acting == []
    assert "\n# heading" not in text
    assert "\n- item" not in text
    assert re.search(r"(?<!\\)\[x(?<!\\)\]\(", "".join(body)) is None
    assert command.strip().count("\n") == 0  # one indented line: a code block to its end
    for row in [line for line in text.splitlines() if line.startswith("| ")]:
        assert row.endswith(" |")


def test_no_payload_reaches_a_figure(report: Path) -> None:
    figures = [*report.rglob("*.svg")]
    assert figures
    html = (report / "report.html").read_text(encoding="utf-8")
    inlined = [base64.b64decode(m) for m in re.findall(r"base64,([A-Za-z0-9+/=]+)", html)]
    for content in [*(path.read_bytes() for path in figures), *inlined]:
        for word in (b"<script", b"onload", b"onerror", b"javascript", b"alert(1)", b"evil"):
            assert word not in content


def test_law_json_and_file_names_hold_the_names_as_data(report: Path) -> None:
    document = json.loads((report / "law.json").read_text(encoding="utf-8"))
    assert {item["run_id"] for item in document["exclusions"]} >= {p.strip() for p in PAYLOADS[:20]}
    for path in report.rglob("*"):
        assert re.fullmatch(r"[A-Za-z0-9._-]+", path.name), path


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_is_text_in_every_cell(payload: str) -> None:
    table = Table(title=payload, header=(payload, "b"), rows=((payload, payload),), note=payload)
    assert seen(table_html(table)).tags <= {
        "h3",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "p",
    }
    assert seen(table_html(table)).acting == []
    lines = _md_table(table).splitlines()
    assert seen(_md_table(table)).tags == set()
    (row,) = [line for line in lines if line.startswith("| ") and line != lines[2]]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
