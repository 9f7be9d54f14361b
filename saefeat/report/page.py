"""The page: the template with its values, and the data of the script packed into it."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from saefeat.report.formats import interval, number, share

_HERE = Path(__file__).parent
_SCRIPTS = ("tools", "heat", "plots", "features", "steering", "search", "page")


def render(view: dict[str, Any], data: dict[str, Any]) -> str:
    """The page of a view and the data that its script draws (see `saefeat.report.view`).

    Everything but our own style and script is escaped or packed.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "share": share, "interval": interval}
    style = Markup(_own("page.css"))
    script = Markup("\n".join(_own(f"{name}.js") for name in _SCRIPTS))
    template = environment.get_template("page.html")
    return template.render(view, css=style, js=script, packed=packed(data))


def _own(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def packed(data: dict[str, Any]) -> str:
    """JSON, compressed by gzip, in base64: small, and free of markup."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), mtime=0)).decode()
