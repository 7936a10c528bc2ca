"""A report as one self-contained HTML page: escaped text, inlined figures, no remote asset."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from llmtrain.scaling.wording import Table

STYLE = """
:root{--paper:#fff;--ink:#1c1e21;--soft:#5b6168;--line:#dfe3e8;--tint:#f4f6f8;--mark:#0072b2}
@media(prefers-color-scheme:dark){:root{--paper:#15181c;--ink:#e6e8eb;--soft:#9aa3ad;
--line:#333a42;--tint:#1e2329;--mark:#56b4e9}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.2rem 1rem 4rem}
h1{font-size:1.5rem;line-height:1.25;margin:.6rem 0 .2rem}
h2{font-size:1.2rem;margin:2.4rem 0 .6rem;border-top:1px solid var(--line);padding-top:1.4rem}
h3{font-size:1rem;margin:1.8rem 0 .4rem}
p.where,p.note,figcaption{color:var(--soft);font-size:.86rem;overflow-wrap:anywhere}
ul.verdict{list-style:none;margin:1rem 0;padding:.8rem 1rem;background:var(--tint);
border-left:4px solid var(--mark);border-radius:4px}
ul.verdict li{margin:.35rem 0}
ul.verdict li:first-child{font-weight:600}
ul.findings{padding-left:1.1rem}
ul.findings b{font-weight:600}
figure{margin:1.6rem 0}
figure img{display:block;width:100%;max-width:52rem;height:auto;background:#fff;padding:.5rem;
border:1px solid var(--line);border-radius:6px}
figure.narrow img{max-width:34rem}
@media(max-width:40rem){figure:not(.narrow){overflow-x:auto}
figure:not(.narrow) img{width:42rem;max-width:none}
figcaption{position:sticky;left:0}}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);
vertical-align:top;white-space:nowrap}
td:last-child{white-space:normal;min-width:9rem}
th{color:var(--soft);font-weight:600}
code{font:0.86rem ui-monospace,monospace;overflow-wrap:anywhere}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
"""Should a name get past the escaping, the browser still runs and fetches nothing."""
NARROW = ("envelope", "surface", "profile", "shapes", "multiplier")


def render_page(title: str, where: str, body: Sequence[str]) -> str:
    """Return the page; `body` is finished HTML, title and where are plain text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body><main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="where">{escape(where)}</p>\n'
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def heading(text: str) -> str:
    """Return a section's heading."""
    return f"<h2>{escape(text)}</h2>"


def verdict_list(lines: Sequence[str]) -> str:
    """Return the verdict's box."""
    return '<ul class="verdict">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def finding_list(findings: Sequence[tuple[str, str]]) -> str:
    """Return the guards that spoke, as (level, message)."""
    if not findings:
        return "<p>No guard has anything to say.</p>"
    items = (f"<li><b>{escape(level)}</b>: {escape(text)}</li>" for level, text in findings)
    return '<ul class="findings">' + "".join(items) + "</ul>"


def table_html(table: Table) -> str:
    """Return a table with its title and note."""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h3>{escape(table.title)}</h3><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}"
    )


def figure_html(name: str, svg: Path, caption: str) -> str:
    """Return a figure inlined as a data URI, so that nothing in it can act on the page."""
    data = base64.b64encode(svg.read_bytes()).decode("ascii")
    kind = ' class="narrow"' if name in NARROW else ""
    return (
        f'<figure{kind}><img alt="{escape(caption)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
