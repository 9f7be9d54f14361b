"""The Python of the README runs as it stands, block after block in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks():
    """(line, code) of each block of Python."""
    text = README.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in BLOCK.finditer(text)]


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    from saefeat.io import cache_dir

    monkeypatch.setenv("SAEFEAT_CACHE", str(cache_dir().resolve()))
    monkeypatch.chdir(tmp_path)
    assert blocks()
    namespace = {"__name__": "__main__"}
    for line, code in blocks():
        # Blank lines before the code make an error name the line of the README.
        exec(compile("\n" * line + code, str(README), "exec"), namespace)
