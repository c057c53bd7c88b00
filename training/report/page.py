"""What our pages share: their look, tables and numbers. Plain HTML in one file, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["STYLE", "document", "number", "table"]

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1c2733;max-width:1080px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em;margin:0}h2{font-size:1.15em;margin:2em 0 .5em;border-bottom:1px solid #cfd8e0}
p{margin:.5em 0;max-width:75ch}code{font-size:.92em;overflow-wrap:anywhere}table{border-collapse:collapse;width:100%}
td,th{padding:.18em .6em;text-align:left;vertical-align:top;border-bottom:1px solid #eef2f5}
th{font-weight:600;color:#51606e;font-size:.85em;vertical-align:bottom}
.n{text-align:right;width:3.6em;font-variant-numeric:tabular-nums;white-space:nowrap}
.tiles{display:flex;flex-wrap:wrap;gap:1em;margin:1.2em 0}.tile{background:#f2f6f9;border-radius:6px;padding:.5em 1em}
.tile b{display:block;font-size:1.45em}.muted{color:#6b7a88}.bar{white-space:nowrap;width:122px}
.bar i{display:inline-block;height:.8em}.key i{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}
.tier{border-radius:3px;padding:0 .4em;font-size:.85em;white-space:nowrap}
.evaluated{background:#d4ecd9}.trained{background:#fdeebf}.unsupported{background:#f3d9d6}
.look li{margin:.3em 0}
"""


def document(title: str, parts: Iterable[str], style: str = "") -> str:
    """A whole page. title: text; parts: HTML; style: further CSS."""
    head = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    body = "\n".join(parts)
    return f"{head}<title>{escape(title)}</title><style>{STYLE}{style}</style><body>{body}</body></html>\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 1) -> str:
    """Cells are HTML. The columns from `numbers` on are right-aligned."""
    kind = ["" if i < numbers else " class=n" for i in range(len(head))]
    top = "".join(f"<th{k}>{h}</th>" for k, h in zip(kind, head, strict=True))
    body = "".join("<tr>" + "".join(f"<td{k}>{c}</td>" for k, c in zip(kind, r, strict=True)) + "</tr>" for r in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def number(n: int) -> str:
    """Thousands apart, zero pale."""
    return f"{n:,}".replace(",", "&#8239;") if n else "<span class=muted>0</span>"
