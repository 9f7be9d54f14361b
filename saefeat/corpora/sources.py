"""Where the data of a named corpus are, and how a row becomes an example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """Files of one kind, and how a row of them becomes an example.

    The names of the fields are part of the key of the cache: a new name means new downloads.

    Attributes:
        name: prefix of the ids, so that two sources never share an id.
        at: the directory of the files as `hf://datasets/OWNER/NAME@REVISION`, URL or local path;
            for archives the archive itself; for `hub` the id of the data set.
        read: how the files are read. Streamed: `parquet`, `json` (lines), `tsv` (a header, no
            quotes), `hub`. Fetched as a whole: `lines` (one example per line), `archive` (one
            example per line of the members of a zip or tar), `wili` (an archive with x_SPLIT.txt
            and y_SPLIT.txt).
        files: path below `at`, or of the members of an archive, with {code}, {split} and {shard};
            for `hub` the configuration.
        labels: label -> code of the source, or several codes separated by spaces. Empty: the
            labels are the values of the label column.
        text: template of the text over the columns, {row}, {code} and {split}.
        identity: template of the id over the same; empty: the id is the hash of the text.
        label: the column that holds the code; empty if a file has one label.
        by_ending: whether that column holds a path, whose suffix is the code.
        splits: of the source; the first is the default.
        shards: number of files that all labels share. They are read in order until every label
            has its texts.
        max_texts: default number of texts per label.
        spread: take the texts from the whole source, by hash, instead of the first ones.
        sha256: of the archive.
        revision: of a data set of the hub.
        access_url: where access to a gated data set is granted.
        alternative: an open corpus for those without access.
    """

    name: str
    at: str
    read: str
    files: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    text: str = "{text}"
    identity: str = ""
    label: str = ""
    by_ending: bool = False
    splits: tuple[str, ...] = ("train",)
    shards: int = 1
    max_texts: int = 1000
    spread: bool = False
    sha256: str = ""
    revision: str = ""
    access_url: str = ""
    alternative: str = ""


@dataclass(frozen=True)
class Recipe:
    """A corpus by name, of one or several sources."""

    name: str
    about: str
    licence: str
    sources: tuple[Source, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that are read by default."""
        return tuple(dict.fromkeys(label for source in self.sources for label in source.labels))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of its sources; the first is the default."""
        return tuple(dict.fromkeys(split for source in self.sources for split in source.splits))
