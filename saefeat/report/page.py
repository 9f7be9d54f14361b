"""From plain values to HTML: the template, how numbers are written, and plotly.js packed into the page."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

_HERE = Path(__file__).parent
_BLANKS = str.maketrans({"\n": "↵", "\r": "↵", "\t": "⇥"})


def render(view: dict[str, Any]) -> str:
    """The page of what `parts.read_run` returns. Everything but our own style and script is escaped."""
    # Autoescape for every template, whatever its name.
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "share": share, "interval": interval, "visible": visible}
    assets = {name: Markup((_HERE / f"page.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    return environment.get_template("page.html").render(view, **assets, plotly=_packed_plotly())


def _packed_plotly() -> str:
    """plotly.js, gzip in base64: 2 MB in place of 4.8. The browser unpacks it."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def number(value: float | None, digits: int = 3) -> str:
    """A count with separators, a float with `digits` decimals, or few significant digits when very small."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 10**-digits:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(ends: list[float] | None) -> str:
    return f"{ends[0]:.3f} – {ends[1]:.3f}" if ends else ""


def visible(token: str) -> str:
    """A token with its white space made visible: line ends as arrows, blanks at the ends as open boxes."""
    body = token.strip(" ")
    start = len(token) - len(token.lstrip(" ")) if body else len(token)
    end = len(token) - start - len(body)
    return ("␣" * start + body + "␣" * end).translate(_BLANKS)
