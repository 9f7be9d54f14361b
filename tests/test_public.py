"""The public names of the package."""

from __future__ import annotations

import subprocess
import sys

import saefeat


def test_every_public_name_is_found_and_documented():
    assert len(set(saefeat.__all__)) == len(saefeat.__all__)
    for name in saefeat.__all__:
        found = getattr(saefeat, name)
        assert callable(found) and found.__name__ == name and found.__doc__
    assert set(saefeat.__all__) <= set(dir(saefeat))


def test_names_are_imported_when_they_are_asked_for():
    code = (
        "import sys, saefeat\n"
        "assert not {'torch', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "import saefeat.certainty, saefeat.sets, saefeat.overlap\n"
        "for name in saefeat.__all__: assert callable(getattr(saefeat, name)), name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(saefeat, "no_such_name")
