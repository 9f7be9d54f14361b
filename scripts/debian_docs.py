"""Make a labelled corpus for language identification from translated documentation in Debian.

    python scripts/debian_docs.py --out docs.jsonl [--per-label 300] [--offset 0] [--cache DIR]

The .deb files come from `apt-get download` (which needs an up-to-date index: `apt-get update`) and
are unpacked with `dpkg-deb -x` into a temporary folder. Nothing is installed. Three kinds of text
are read:

- `page`: paragraphs of Mallard help pages, `<p>` in `usr/share/help/LANG/**/*.page`
  (gnome-user-docs, evolution-common);
- `html`: paragraphs of the LibreOffice help, `<p id=...>` in `help/LANG/text/**/*.html`
  (libreoffice-help-XX);
- `mo`: sentences (tool tips, questions, help on options) in the `.mo` catalogues of
  libreoffice-l10n-XX, evolution-common, gimp-data, gnome-control-center-data, gnumeric-common and
  vlc-l10n.

Bulgarian and Thai have `mo` only. `pt` is the European translation, `zh` the one in simplified
characters (`zh_CN`).

A paragraph is kept only if its English original is known: by file and position among the `<p>` of
a page (pages with another number of paragraphs are left out), by file and `id` in the help, by the
message in a catalogue. This place is the record's `id`, so that translations of one paragraph share
it. The rules are:

1. The English original is a sentence: it begins with a capital, ends in `.`, `!`, `?` or `:`, and
   has at least five words, or fifteen if it names a menu path (`Choose Insert - Frame.` is not a
   sentence).
2. The text has 20 to 600 characters and is neither code nor a template: 60 % of its visible
   characters are letters, and it has no placeholder, markup or keyboard mnemonic. The same holds
   for its original.
3. A translation is not the English text. Without case and with letters only, it differs from every
   English text, and at most a fifth of its word triples occur in the English texts. (Documentation
   keeps English where a translation is missing, sometimes inside a paragraph or in an older
   wording.)
4. In hi, th, bg, ru, ja, ko and zh at least half of the letters are of the expected script; ja
   needs kana and zh has none. For labels in Latin script, rule 3 is the only test of the language.
5. A text that occurs under two labels, compared as in rule 3, is left out. Repetitions are kept
   once.

No language identifier is used, so that the corpus favours none. The rules cannot find a translation
into another language, or one that was entered for the wrong message.

Per label, the texts of each kind are ordered by their SHA-256, the kinds take turns until they are
exhausted, and the records from `--offset` to `--offset + --per-label` are written. The same
packages give the same bytes, and runs whose ranges do not overlap share no text. (They may have
different translations of one paragraph, under the same `id`.) `OUT.json` has package versions and
counts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import struct
import subprocess
import sys
import tempfile
import unicodedata
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path

LABELS = ("en", "de", "fr", "it", "pt", "hi", "es", "th", "bg", "ru", "tr", "vi", "ja", "ko", "zh")
LOCALES = {"en": "C", "zh": "zh_CN"}  # folders under usr/share; the label itself where not listed
OFFICE = {"en": "en-US", "zh": "zh-CN"}  # folders of LibreOffice
COMMON = (
    "evolution-common",
    "gimp-data",
    "gnome-control-center-data",
    "gnome-user-docs",
    "gnumeric-common",
    "vlc-l10n",
)
NO_OFFICE_HELP = {"bg", "th"}
MALLARD = "{http://projectmallard.org/1.0/}"
KINDS = ("page", "html", "mo")
SCRIPTS = {
    "hi": {"DEVANAGARI"},
    "th": {"THAI"},
    "bg": {"CYRILLIC"},
    "ru": {"CYRILLIC"},
    "ja": {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK"},
    "ko": {"HANGUL"},
    "zh": {"CJK"},
}
KANA = {"HIRAGANA", "KATAKANA"}
SKIPPED_CLASSES = {
    "code",
    "codeintable",
    "bascode",
    "smathcode",
    "related",
    "image",
    "imageintable",
}
TEMPLATE = re.compile(
    r"%[\w(*.#'-]|\$|[\[#]\w|[{}<>|\\^=`]|&\w+;|(?<![\w.])[_~&]\w|\w[_~&]\w|https?:"
)
SENTENCE = re.compile(r"[\"'\u201c\u2018(]?[A-Z].*[.!?:][\"'\u201d\u2019)]*")
MENU_PATH = re.compile(r"\w\W? [-\u2013>\u25b8] [\"'\u201c\u2018]?[A-Z]")
MIN_CHARS, MAX_CHARS = 20, 600
MIN_WORDS, MIN_WORDS_WITH_MENU = 5, 15
MIN_LETTER_SHARE, MAX_ENGLISH_TRIPLES = 0.6, 0.2


@dataclass
class Pool:
    """The texts of one kind: place -> English, and label -> place -> translation."""

    english: dict[str, str] = field(default_factory=dict)
    translated: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, label: str, place: str, text: str) -> None:
        texts = self.english if label == "en" else self.translated.setdefault(label, {})
        texts.setdefault(place, text)


@dataclass(frozen=True)
class Record:
    text: str
    label: str
    place: str
    kind: str

    def json_line(self) -> str:
        fields = {"text": self.text, "label": self.label, "id": self.place}
        return json.dumps(fields, ensure_ascii=False) + "\n"

    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


# --------------------------------------------------------------------------- packages


def package_names() -> list[str]:
    names: list[str] = list(COMMON)
    for label in LABELS:
        suffix = OFFICE.get(label, label).lower()
        if label not in NO_OFFICE_HELP:
            names.append(f"libreoffice-help-{suffix}")
        if label != "en":
            names.append(f"libreoffice-l10n-{suffix}")
    return sorted(names)


def fetch(names: list[str], cache: Path) -> dict[str, Path]:
    """The file of each package in the cache; missing ones are downloaded."""
    missing = [name for name in names if not list(cache.glob(f"{name}_*.deb"))]
    if missing:
        subprocess.run(
            ["apt-get", "-q", "download", *missing], cwd=cache, check=True, stdout=sys.stderr
        )
    return {name: sorted(cache.glob(f"{name}_*.deb"))[-1] for name in names}


def package_version(deb: Path) -> str:
    command = ["dpkg-deb", "-f", str(deb), "Version"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def unpack(deb: Path, root: Path) -> Path:
    target = root / deb.stem
    subprocess.run(["dpkg-deb", "-x", str(deb), str(target)], check=True)
    return target


# --------------------------------------------------------------------------- readers


def squeeze(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).replace("\u00ad", "").split())


def page_paragraphs(path: Path) -> list[str]:
    return [page_text(paragraph) for paragraph in ET.parse(path).getroot().iter(MALLARD + "p")]


def page_text(paragraph: ET.Element) -> str:
    """Its text; empty if it has a link that shows the title of another page."""
    if any(not "".join(link.itertext()).strip() for link in paragraph.iter(MALLARD + "link")):
        return ""
    for tag, joint in (("guiseq", " ▸ "), ("keyseq", "+")):
        for sequence in paragraph.iter(MALLARD + tag):
            for item in list(sequence)[:-1]:
                item.tail = joint
    return squeeze("".join(paragraph.itertext()))


def read_pages(tree: Path, pool: Pool) -> None:
    help_root = tree / "usr/share/help"
    originals = help_root / LOCALES["en"]
    for original in sorted(originals.rglob("*.page")):
        name = original.relative_to(originals)
        english = page_paragraphs(original)
        for label in LABELS:
            path = help_root / LOCALES.get(label, label) / name
            paragraphs = page_paragraphs(path) if path.is_file() else []
            if len(paragraphs) == len(english):
                for number, text in enumerate(paragraphs):
                    pool.add(label, f"page:{name.with_suffix('').as_posix()}#{number}", text)


class HelpParser(HTMLParser):
    """Collects the text of each `<p id=...>`, without variants for one system or program."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: dict[str, str] = {}
        self.current: str | None = None
        self.spans: list[bool] = []  # the open spans; true for a variant that is left out

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        if tag == "span":
            self.spans.append("hidden" in fields and "class" in fields)
        elif tag == "p":
            self.spans.clear()
            skipped = SKIPPED_CLASSES.intersection((fields.get("class") or "").split())
            self.current = None if skipped else fields.get("id")
            if self.current is not None and self.current in self.paragraphs:
                self.current = None  # included twice
        elif tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self.current = None
        elif tag == "span" and self.spans:
            self.spans.pop()

    def handle_data(self, data: str) -> None:
        if self.current is not None and not any(self.spans):
            self.paragraphs[self.current] = self.paragraphs.get(self.current, "") + data


def read_help(tree: Path, pool: Pool) -> None:
    for label in LABELS:
        folder = tree / "usr/share/libreoffice/help" / OFFICE.get(label, label) / "text"
        for path in sorted(folder.rglob("*.html")):
            parser = HelpParser()
            parser.feed(path.read_text(encoding="utf-8"))
            name = path.relative_to(folder).with_suffix("").as_posix()
            for key, text in parser.paragraphs.items():
                pool.add(label, f"html:{name}#{key}", squeeze(text))


def mo_messages(data: bytes) -> Iterator[tuple[str, str]]:
    """(message, translation) pairs of a GNU catalogue; messages with plural forms are left out."""
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    count, keys, values = struct.unpack_from(f"{order}3I", data, 8)
    for index in range(count):
        key, value = (_mo_string(data, order, table + 8 * index) for table in (keys, values))
        if key and "\0" not in key:
            yield key, value


def _mo_string(data: bytes, order: str, entry: int) -> str:
    length, start = struct.unpack_from(f"{order}2I", data, entry)
    return data[start : start + length].decode("utf-8", "replace")


def read_catalogues(tree: Path, pool: Pool) -> None:
    for label in LABELS:
        if label == "en":
            continue
        folders = [tree / "usr/share/locale" / LOCALES.get(label, label) / "LC_MESSAGES"]
        folders.append(
            tree / "usr/lib/libreoffice/program/resource" / _office_locale(label) / "LC_MESSAGES"
        )
        for path in sorted(path for folder in folders for path in folder.glob("*.mo")):
            for key, value in mo_messages(path.read_bytes()):
                english = squeeze(key.rpartition("\x04")[2])
                place = f"mo:{path.stem}#{hashlib.sha256(key.encode()).hexdigest()[:12]}"
                pool.add("en", place, english)
                pool.add(label, place, squeeze(value))


def _office_locale(label: str) -> str:
    return OFFICE.get(label, label).replace("-", "_")


def read_packages(debs: dict[str, Path], root: Path) -> dict[str, Pool]:
    pools = {kind: Pool() for kind in KINDS}
    for name in sorted(debs):
        tree = unpack(debs[name], root)
        read_pages(tree, pools["page"])
        read_help(tree, pools["html"])
        read_catalogues(tree, pools["mo"])
    return pools


# --------------------------------------------------------------------------- rules


def plain(text: str) -> str:
    """The letters of the text, without case, and the marks that belong to them."""
    return "".join(char for char in text.casefold() if unicodedata.category(char)[0] in "LM")


def triples(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return [tuple(words[start : start + 3]) for start in range(len(words) - 2)]


def is_sentence(english: str) -> bool:
    fewest = MIN_WORDS_WITH_MENU if MENU_PATH.search(english) else MIN_WORDS
    return len(english.split()) >= fewest and SENTENCE.fullmatch(english) is not None


def is_prose(text: str) -> bool:
    if not MIN_CHARS <= len(text) <= MAX_CHARS or TEMPLATE.search(text) or "\ufffd" in text:
        return False
    return len(plain(text)) >= MIN_LETTER_SHARE * len("".join(text.split()))


def in_script(text: str, label: str) -> bool:
    if label not in SCRIPTS:
        return True
    letters = [unicodedata.name(char, "?").split()[0] for char in text if char.isalpha()]
    kana = not KANA.isdisjoint(letters)
    if kana != (label == "ja"):
        return False
    return 2 * sum(script in SCRIPTS[label] for script in letters) >= len(letters)


@dataclass
class English:
    """All English texts, with which rule 3 compares."""

    texts: set[str]
    triples: set[tuple[str, ...]]

    @classmethod
    def of(cls, pools: dict[str, Pool]) -> English:
        texts = {text for pool in pools.values() for text in pool.english.values()}
        return cls(
            {plain(text) for text in texts}, {triple for text in texts for triple in triples(text)}
        )

    def has(self, text: str) -> bool:
        """Whether rule 3 takes a text for English."""
        if plain(text) in self.texts:
            return True
        found = triples(text)
        return sum(triple in self.triples for triple in found) > MAX_ENGLISH_TRIPLES * len(found)


def candidates(pools: dict[str, Pool]) -> Iterator[Record]:
    english = English.of(pools)
    for kind, pool in pools.items():
        originals = {
            place: text
            for place, text in pool.english.items()
            if is_sentence(text) and is_prose(text)
        }
        yield from (Record(text, "en", place, kind) for place, text in originals.items())
        for label, texts in pool.translated.items():
            for place, text in texts.items():
                if (
                    place in originals
                    and is_prose(text)
                    and in_script(text, label)
                    and not english.has(text)
                ):
                    yield Record(text, label, place, kind)


def distinct(records: list[Record]) -> list[Record]:
    """Apply rule 5; of equal texts, the first by place is kept."""
    labels: dict[str, set[str]] = {}
    for record in records:
        labels.setdefault(plain(record.text), set()).add(record.label)
    first: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: (record.label, record.place, record.text)):
        key = plain(record.text)
        if len(labels[key]) == 1:
            first.setdefault(key, record)
    return list(first.values())


# --------------------------------------------------------------------------- selection


def in_turns(records: list[Record]) -> list[Record]:
    """Records of one label in the order of their hashes, the kinds in turns."""
    ordered = sorted(records, key=Record.digest)
    rows = zip_longest(*([record for record in ordered if record.kind == kind] for kind in KINDS))
    return [record for row in rows for record in row if record is not None]


def select(records: list[Record], offset: int, per_label: int) -> list[Record]:
    chosen: list[Record] = []
    for label in LABELS:
        ordered = in_turns([record for record in records if record.label == label])
        chosen.extend(ordered[offset : offset + per_label])
    return chosen


def summary(
    chosen: list[Record], available: list[Record], debs: dict[str, Path]
) -> dict[str, object]:
    labels: dict[str, object] = {}
    total = Counter(record.label for record in available)
    for label in LABELS:
        records = [record for record in chosen if record.label == label]
        kinds = Counter(record.kind for record in records)
        characters = sum(len(record.text) for record in records)
        labels[label] = {
            "records": len(records),
            "characters": characters,
            "available": total[label],
            "kinds": {kind: kinds[kind] for kind in KINDS},
        }
    return {
        "packages": {name: package_version(deb) for name, deb in sorted(debs.items())},
        "labels": labels,
    }


def build(out: Path, per_label: int, offset: int, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    debs = fetch(package_names(), cache)
    with tempfile.TemporaryDirectory(prefix="debian-docs-") as scratch:
        pools = read_packages(debs, Path(scratch))
    available = distinct(list(candidates(pools)))
    chosen = select(available, offset, per_label)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(record.json_line() for record in chosen), encoding="utf-8")
    report = summary(chosen, available, debs)
    out.with_name(out.name + ".json").write_text(
        json.dumps(report, indent=2) + "\n", encoding="utf-8"
    )
    print(json.dumps(report["labels"]), file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON lines file to write")
    parser.add_argument("--per-label", type=int, default=300, help="records per label")
    parser.add_argument("--offset", type=int, default=0, help="records per label to skip first")
    parser.add_argument("--cache", type=Path, help="folder that keeps the downloaded packages")
    args = parser.parse_args()
    if args.cache is not None:
        build(args.out, args.per_label, args.offset, args.cache)
        return
    with tempfile.TemporaryDirectory(prefix="debian-docs-") as cache:
        build(args.out, args.per_label, args.offset, Path(cache))


if __name__ == "__main__":
    main()
