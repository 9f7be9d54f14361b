"""Imports within saefeat point downwards only, at the top of a module and inside functions."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import saefeat

ROOT = Path(saefeat.__file__).parent
# "The rooms" of the design, top to bottom.
ROOMS = [
    ["__main__"],
    ["cli"],
    ["experiments"],
    ["run"],
    ["report", "export"],
    ["rundir"],
    ["scoring"],
    ["lid", "baselines"],
    ["certainty"],
    ["steering"],
    ["attribution"],
    ["lens"],
    ["evaluation", "forcing", "confusion"],
    ["methods", "overlap"],
    ["partition"],
    ["sets"],
    ["selection"],
    ["ranking"],
    ["collection"],
    ["sae"],
    ["memory", "shares"],
    ["dictionaries", "statistics", "codes", "encoders"],
    ["activations"],
    ["hooks", "generation"],
    ["steps"],
    ["models", "corpora"],
    ["config", "artefacts"],
    ["labels", "assets", "resume", "schema", "registry", "tokens", "parquet", "watch"],
    ["world"],
    ["progress", "io", "words", "drawing"],
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def modules():
    """Dotted names within saefeat -> files; the package's own `__init__` is above all rooms."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            yield name, path


def imports(name, tree, known):
    """Modules of saefeat that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}, line {node.lineno}: a relative import"
            if node.module == "saefeat":
                yield from (alias.name for alias in node.names)
            elif (node.module or "").startswith("saefeat."):
                target = node.module.removeprefix("saefeat.")
                parts = [f"{target}.{alias.name}" for alias in node.names]
                yield from (part if part in known else target for part in parts)
        elif isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix("saefeat.") for a in node.names if a.name.startswith("saefeat.")
            )


def graph():
    known = dict(modules())
    return {
        name: set(imports(name, ast.parse(path.read_text()), known)) for name, path in known.items()
    }


def room(module):
    return module.split(".")[0]


def test_every_module_stands_in_a_room():
    assert {room(name) for name, _ in modules()} <= LEVEL.keys()


def test_imports_point_downwards_only():
    upwards = {
        (name, target)
        for name, targets in graph().items()
        for target in targets
        if LEVEL[room(target)] < LEVEL[room(name)]
    }
    assert upwards == set()


def test_no_modules_import_each_other_in_a_circle():
    assert len(list(TopologicalSorter(graph()).static_order())) == len(list(modules()))


def test_imports_inside_functions_are_seen():
    tree = ast.parse(
        "def f():\n    from saefeat.run import run\n"
        "    from saefeat import lid\n    import saefeat.cli\n"
    )
    assert set(imports("x", tree, {})) == {"run", "lid", "cli"}


def test_the_command_line_imports_nothing_heavy_at_the_top():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "cli").glob("*.py")]
    top = {n.module for tree in trees for n in tree.body if isinstance(n, ast.ImportFrom)}
    ours = {
        module
        for module in top
        if module.startswith("saefeat") and not module.startswith("saefeat.cli")
    }
    registries = {
        "saefeat.lid.heads",
        "saefeat.methods",
        "saefeat.sae.formats",
        "saefeat.sae.writers",
    }
    assert ours <= {"saefeat.io", "saefeat.config", "saefeat.progress", *registries}
