"""From plain values to HTML: the template, how numbers are written, and the data packed into the page."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_HERE = Path(__file__).parent
_SCRIPTS = ("tools", "heat", "plots", "features", "steering", "search", "page")


def render(view: dict[str, Any], data: dict[str, Any]) -> str:
    """The page of what `parts.read_run` returns. Everything but our own style and script is escaped or packed."""
    # Autoescape for every template, whatever its name.
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "share": share, "interval": interval}
    style = Markup((_HERE / "page.css").read_text(encoding="utf-8"))
    script = Markup(
        "\n".join((_HERE / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS)
    )
    return environment.get_template("page.html").render(
        view, css=style, js=script, packed=packed(data)
    )


def packed(data: dict[str, Any]) -> str:
    """JSON, gzip in base64: several times smaller, and no text in it can be read as markup. The browser unpacks it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), mtime=0)).decode()


def number(value: float | None, digits: int = 3) -> str:
    """A count with separators, a float with `digits` decimals, or few significant digits when very small."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    written = f"{value:.1e}" if value and abs(value) < 10**-digits else f"{value:.{digits}f}"
    return written.replace("-", "−")


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(ends: list[float] | None) -> str:
    return f"{ends[0]:.3f} – {ends[1]:.3f}".replace("-", "−") if ends else ""
