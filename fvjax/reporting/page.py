"""Build a self-contained HTML page from text, tables and pictures; what is not markup already is escaped.

The page loads nothing: its style and pictures are inside it, it has no script, and its content security policy forbids
browsers to fetch anything for it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
@page { size: A4; margin: 16mm 14mm; }
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; color: #1b1f24; background: #fff;
  max-width: 62rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .6rem; padding-bottom: .2rem; border-bottom: 2px solid #0072b2; }
h3 { font-size: 1.1rem; margin: 1.8rem 0 .4rem; }
h4 { font-size: 1rem; margin: 1.3rem 0 .3rem; }
h1, h2, h3, h4, dd, p, li, td:first-child, table.text small { overflow-wrap: anywhere; }
p, ul { margin: .4rem 0 .7rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 .9rem; font-size: .84rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: .84rem; color: #4a5159; padding-bottom: .3rem; }
th, td { padding: .28rem .45rem; text-align: right; vertical-align: top; border-bottom: 1px solid #d8dde3; }
td { white-space: nowrap; }
th { border-bottom: 2px solid #59636e; vertical-align: bottom; }
th:first-child, td:first-child, table.text th, table.text td { text-align: left; }
td:first-child { min-width: 7.5em; white-space: normal; }
td small { display: block; color: #4a5159; }
table.text td { white-space: normal; }
table.text td:first-child { white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .88rem; margin: .5rem 0; }
dt { color: #4a5159; }
dd { margin: 0; }
figure { margin: .6rem 0; }
figcaption { font-size: .8rem; color: #4a5159; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: .8rem; }
.figures img { width: 100%; height: auto; }
img.face { width: 56px; height: 56px; vertical-align: middle; }
.note { color: #4a5159; font-size: .86rem; }
.caution { border-left: 4px solid #d55e00; padding: .2rem .7rem; background: #fdf3ec; }
@media print {
  html { font-size: 9.5pt; }
  body { font-size: 9.5pt; max-width: none; padding: 0; }
  h2 { break-before: page; }
  h2.first { break-before: auto; }
  h1, h2, h3, h4, caption { break-after: avoid; }
  figure, tr, .caution, dl > * { break-inside: avoid; }
  thead { display: table-header-group; }
  table { font-size: 7.6pt; }
  th, td { padding: .2rem .3rem; }
  .figures { display: block; }
  .figures figure { display: inline-block; width: 48%; vertical-align: top; }
  .caution { background: none; }
}
"""


class Html(str):
    """Text that is HTML; every other string is escaped when an element takes it up."""


def element(name: str, *children: str, **attributes: str) -> Html:
    """Return an element. A child that is not :class:`Html` is text; `class_` is the attribute "class"."""
    given = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{join(children)}</{name}>")


def join(parts: Sequence[str]) -> Html:
    """Return parts after one another, text escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def paragraph(*children: str, class_: str = "") -> Html:
    """Return a paragraph."""
    return element("p", *children, **({"class_": class_} if class_ else {}))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", *, text: bool = False) -> Html:
    """Return a table, its first column set left and the others right; with `text` all are set left."""
    top = element("thead", element("tr", *(element("th", cell) for cell in head)))
    body = element("tbody", *(element("tr", *(element("td", cell) for cell in row)) for row in rows))
    title = element("caption", caption) if caption else ""
    return element("table", title, top, body, **({"class_": "text"} if text else {}))


def two_lines(first: str, second: str) -> Html:
    """Return the content of a cell with a second, smaller line below the first."""
    return join([first, element("small", second)]) if second else join([first])


def facts(pairs: Sequence[tuple[str, str]]) -> Html:
    """Return a list of names and values."""
    return element("dl", *(part for name, value in pairs for part in (element("dt", name), element("dd", value))))


def picture(data: bytes, kind: str, alt: str, class_: str = "") -> Html:
    """Return a picture whose bytes are in the page. kind: "svg+xml", "png" or "jpeg"."""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    given = f' class="{escape(class_)}"' if class_ else ""
    return Html(f'<img{given} src="{source}" alt="{escape(alt)}">')


def figure(image: Html, caption: str) -> Html:
    """Return a picture with its caption."""
    return element("figure", image, element("figcaption", caption))


def page(title: str, body: Sequence[Html]) -> str:
    """Return the whole document."""
    head = (
        '<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    )
    content = "\n".join(body)
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{content}\n</body>\n</html>\n'
