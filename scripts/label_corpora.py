"""Corpora of three kinds of labels, as files that a user would write.

Each function writes one corpus from real files and says where they came from. Functions that read
take folders, so that tests can give them small ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from debian_docs import (
    KINDS,
    Pool,
    candidates,
    distinct,
    fetch,
    package_version,
    read_pages,
    squeeze,
    unpack,
)

# Languages in the order of preference. `.h` is left out: it is C and C++.
LANGUAGES: dict[str, tuple[str, ...]] = {
    "python": (".py",),
    "javascript": (".js", ".mjs"),
    "c++": (".hpp", ".cuh", ".cpp"),
    "perl": (".pm",),
    "c": (".c",),
    "fortran": (".f90", ".f"),
    "html": (".html",),
    "css": (".css",),
    "sql": (".sql",),
    "shell": (".sh",),
}
LINES, LONGEST_LINE, PIECES_PER_FILE, LEAST_CHARS = 40, 400, 4, 200
DOCS, DOCS_LABELS = ("gnome-user-docs",), ("en", "de", "fr", "es", "it")
# Culture -> Debian package, and its files of sayings, verses, quotations and politics.
CULTURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "en": ("fortunes", ("songs-poems", "wisdom", "people", "politics", "sports", "law", "food")),
    "de": ("fortunes-de", ("sprichworte", "sprueche", "gedichte", "fussball", "zitate")),
    "es": ("fortunes-es", ("refranes.fortunes", "proverbios.fortunes", "sabiduria.fortunes")),
    "it": ("fortunes-it", ("italia",)),
    "ru": ("fortunes-ru", ("russia_today", "polit", "art", "book", "fomenko", "war")),
    "zh": ("fortunes-zh", ("tang300", "song100")),
}
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
HEADING = re.compile(r"\s*(--|《|题目|作者)")  # the author of a saying; title and poet of a poem
MIN_CHARS, MAX_CHARS = 8, 600
USR = [Path("/usr", each) for each in ("include", "share", "lib/node_modules")]
NAMED = 4  # packages of a language that the record names


class Missing(Exception):
    """A source is not there. The message says how to get it."""


def by_hash(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def write_lines(out: Path, records: Iterable[dict[str, str]]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    out.write_text(text, encoding="utf-8")


# --------------------------------------------------------------------------- programming languages


def write_code(
    out: Path, per_label: int, roots: Sequence[Path] | None = None, number: int = 6
) -> dict[str, Any]:
    """Write pieces of source files of six languages. The id of a piece is its file.

    Args:
        out: JSON lines file.
        per_label: pieces per language, at most.
        roots: folders that are searched; default `sys.prefix` and parts of `/usr`.
        number: of languages: the first of `LANGUAGES` that have half of the pieces.

    Returns:
        `packages`: language -> the packages that gave most files, with their number, and how many
        further packages there are.

    Raises:
        Missing: fewer languages are there.
    """
    found = source_files(roots or [Path(sys.prefix), *USR])
    seen: set[str] = set()
    taken: dict[str, list[dict[str, str]]] = {}
    packages: dict[str, Any] = {}
    for language in LANGUAGES:
        pieces = list(islice(language_pieces(found.get(language, {}), language, seen), per_label))
        if 2 * len(pieces) >= per_label and len(taken) < number:
            taken[language] = pieces
            files = {piece["id"] for piece in pieces}
            owner = {name: package for package, name, _ in flat(found[language])}
            of = Counter(owner[name] for name in sorted(files))
            packages[language] = dict(of.most_common(NAMED)) | {"others": max(len(of) - NAMED, 0)}
    if len(taken) < number:
        raise Missing(
            f"source files of {len(taken)} languages were found, {number} are needed; "
            "`pip install scikit-learn` and `apt-get install perl nodejs` bring some"
        )
    write_lines(out, (piece for pieces in taken.values() for piece in pieces))
    return {"packages": packages}


def source_files(roots: Sequence[Path]) -> dict[str, dict[str, dict[str, Path]]]:
    """Language -> package -> name of a file below its root -> the file."""
    of = {suffix: language for language, ends in LANGUAGES.items() for suffix in ends}
    found: dict[str, dict[str, dict[str, Path]]] = {}
    for root in roots:
        for folder, inner, names in os.walk(root):
            inner[:] = [name for name in inner if name not in {"__pycache__", "src"}]
            for name in names:
                language = of.get(os.path.splitext(name)[1])
                if language:
                    place = Path(folder, name).relative_to(root)
                    package = package_of(place)
                    found.setdefault(language, {}).setdefault(package, {}).setdefault(
                        place.as_posix(), Path(folder, name)
                    )
    return found


def package_of(place: Path) -> str:
    """The Python package of a file, or else the first two folders of its place."""
    parts = place.parts[:-1]
    for home in ("site-packages", "dist-packages"):
        if home in parts[:-1]:
            return parts[parts.index(home) + 1]
    return "/".join(parts[:2]) or "."


def flat(packages: dict[str, dict[str, Path]]) -> Iterator[tuple[str, str, Path]]:
    """(package, name, file): packages take turns, files of a package come by hash."""
    orders = [[(p, name, packages[p][name]) for name in by_hash(packages[p])] for p in packages]
    return (each for turn in zip_longest(*orders) for each in turn if each is not None)


def language_pieces(
    packages: dict[str, dict[str, Path]], language: str, seen: set[str]
) -> Iterator[dict[str, str]]:
    """Pieces of some 40 lines, a few of each file, without repetitions."""
    for _, name, path in flat(packages):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        if any(len(line) > LONGEST_LINE for line in lines):  # minified, or data
            continue
        pieces = ("\n".join(lines[at : at + LINES]) for at in range(0, len(lines), LINES))
        for text in islice((p for p in pieces if len(p) >= LEAST_CHARS), PIECES_PER_FILE):
            key = " ".join(text.split())
            if key not in seen:
                seen.add(key)
                yield {"text": text, "label": language, "id": name}


# --------------------------------------------------------------------------- packages


def get(names: Sequence[str], cache: Path) -> dict[str, Path]:
    """The Debian packages, from the cache or by `apt-get download`."""
    cache.mkdir(parents=True, exist_ok=True)
    try:
        return fetch(list(names), cache)
    except (OSError, subprocess.CalledProcessError):
        raise Missing(
            f"{', '.join(names)} cannot be fetched; on Debian run `apt-get update`, or copy the "
            f".deb files from deb.debian.org to {cache}"
        ) from None


def versions(debs: dict[str, Path]) -> dict[str, Any]:
    return {"packages": {name: package_version(deb) for name, deb in debs.items()}}


# --------------------------------------------------------------------------- documentation


def write_docs(out: Path, per_label: int, cache: Path) -> dict[str, Any]:
    """Write paragraphs of GNOME's help in five languages; translations share their id."""
    debs = get(DOCS, cache)
    with tempfile.TemporaryDirectory() as scratch:
        found = write_parallel(out, per_label, [unpack(d, Path(scratch)) for d in debs.values()])
    return found | versions(debs)


def write_parallel(out: Path, per_label: int, trees: Sequence[Path]) -> dict[str, Any]:
    """Write the paragraphs of unpacked packages that all five languages have.

    `scripts/debian_docs.py` says which paragraphs are text of their language.
    """
    pools = {kind: Pool() for kind in KINDS}
    for tree in trees:
        read_pages(tree, pools["page"])
    found: dict[str, dict[str, str]] = {label: {} for label in DOCS_LABELS}
    for record in distinct(list(candidates(pools))):
        if record.label in found:
            found[record.label].setdefault(record.place, record.text)
    shared = by_hash(set.intersection(*(set(texts) for texts in found.values())))
    rows = [(label, place) for label in DOCS_LABELS for place in shared[:per_label]]
    write_lines(out, ({"text": found[lang][at], "label": lang, "id": at} for lang, at in rows))
    return {"parallel paragraphs": len(shared)}


# --------------------------------------------------------------------------- cultures


def write_cultures(out: Path, per_label: int, cache: Path) -> dict[str, Any]:
    """Write a folder of LABEL.txt, a text per line: sayings, verses and quotations."""
    debs = get([package for package, _ in CULTURES.values()], cache)
    with tempfile.TemporaryDirectory() as scratch:
        trees = {name: unpack(deb, Path(scratch)) for name, deb in debs.items()}
        write_sayings(out, per_label, {c: trees[package] for c, (package, _) in CULTURES.items()})
    return versions(debs)


def write_sayings(out: Path, per_label: int, trees: dict[str, Path]) -> None:
    """Write the texts of unpacked packages, one tree per culture."""
    out.mkdir(parents=True, exist_ok=True)
    for culture, tree in trees.items():
        files = [
            list(sayings(path))
            for name in CULTURES[culture][1]
            for path in sorted((tree / "usr/share/games/fortunes").rglob(name))
            if path.parent.name != "off"  # offensive, and encoded
        ]
        turns = (text for turn in zip_longest(*map(by_hash, files)) for text in turn if text)
        lines = islice(dict.fromkeys(turns), per_label)
        (out / f"{culture}.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")


def sayings(path: Path) -> Iterator[str]:
    """The texts of a file of `fortune`, without colours, titles and authors."""
    for entry in re.split(r"^%.*\n?", path.read_text("utf-8", "replace"), flags=re.MULTILINE):
        lines = ESCAPE.sub("", entry).splitlines()
        text = squeeze(" ".join(line for line in lines if not HEADING.match(line)))
        if MIN_CHARS <= len(text) <= MAX_CHARS:
            yield text
