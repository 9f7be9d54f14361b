"""The papers' data as plain values: where it lies, at which revision, under which codes, and what a text is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from saefeat.io import UserError

PAPER_LABELS = (
    "en",
    "de",
    "fr",
    "it",
    "pt",
    "hi",
    "es",
    "th",
    "bg",
    "ru",
    "tr",
    "vi",
    "ja",
    "ko",
    "zh",
)
_ISO3 = "eng deu fra ita por hin spa tha bul rus tur vie jpn kor zho"
_SCRIPTS = "Latn Latn Latn Latn Latn Deva Latn Thai Cyrl Cyrl Latn Latn Jpan Hang Hans"
_HUB_TEXTS = 10_000
_DIGITS = 12  # of a number of texts; Python refuses to read thousands of them


@dataclass(frozen=True)
class Source:
    """Files of one kind, and how a row of them becomes an example.

    Attributes:
        name: begins the ids, so that two sources never share one.
        at: the directory of the files, as `hf://datasets/OWNER/NAME@REVISION`, a URL or a local
            path; for archives the archive itself; for `hub` the data set's id.
        read: streamed: `parquet`, `json` (lines), `tsv` (a header, no quotes), `hub`; fetched
            whole: `lines` (an example a line), `archive` (an example a line of a zip's or tar's
            members), `wili` (the archive with x_SPLIT.txt and y_SPLIT.txt).
        files: path below `at`, or of an archive's members, with {code}, {split} and {shard}; for
            `hub` the configuration.
        labels: label -> the source's code, or several separated by blanks. Empty: whatever the
            label column holds.
        text, identity: templates over the columns, {row}, {code} and {split}; without identity the
            text's hash is it.
        label: the column that holds the code; empty where the file has one label. `by_ending`: that
            column holds a path, and its ending is the code.
        splits: as the source has them; the first is read unless another is named.
        shards: how many files share all labels, read one after the other until every label has its
            texts.
        max_texts: of a label, unless asked otherwise.
        spread: take these all over the source, by hash, and not its first.
        gate: where a person is granted access, where that is needed; `instead`: an open corpus for
            whoever is not.
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
    gate: str = ""
    instead: str = ""


@dataclass(frozen=True)
class Recipe:
    """A corpus by name."""

    name: str
    about: str
    licence: str
    sources: tuple[Source, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that are read unless others are named."""
        return tuple(dict.fromkeys(label for source in self.sources for label in source.labels))


@dataclass(frozen=True)
class Request:
    """A recipe, with the split and the number of texts a label that were asked for (None: the recipe's own)."""

    recipe: Recipe
    split: str | None = None
    max_texts: int | None = None


def _coded(codes: str, labels: tuple[str, ...] = PAPER_LABELS) -> dict[str, str]:
    return dict(zip(labels, codes.split(), strict=True))


def _same(labels: str) -> dict[str, str]:
    return {label: label for label in labels.split()}


_FLORES = {
    label: f"{code}_{script}"
    for label, code, script in zip(PAPER_LABELS, _ISO3.split(), _SCRIPTS.split(), strict=True)
}

WILI = Source(
    name="wili-2018",
    at="https://zenodo.org/records/841984/files/wili-2018.zip",
    sha256="727e52ca4e13400e6def1b1b594ca12c8b7fd49ad9d45fd5c9e57a1f6d3b7a3f",
    read="wili",
    labels=_coded(_ISO3),
    label="code",
    identity="{split}/{row}",
    splits=("test", "train"),
    max_texts=500,
)
XNLI = Source(
    name="xnli",
    at="hf://datasets/facebook/xnli@b8dd5d7af51114dbda02c0e3f6133f332186418e",
    read="parquet",
    files="{code}/{split}-*.parquet",
    labels=_same("en de fr hi es th bg ru tr vi ar el sw ur zh"),
    text="{premise} {hypothesis}",
    identity="{split}/{row}",  # the files are parallel, row by row
    splits=("train", "validation", "test"),
)
PAWS_X = Source(
    name="paws-x",
    at="hf://datasets/google-research-datasets/paws-x@4cd8187c404bda33cb1f62b49b001115862acf37",
    read="parquet",
    files="{code}/{split}-00000-of-00001.parquet",
    labels=_same("en de fr es ja ko zh"),
    text="{sentence1}",
    identity="{split}/{id}",
    splits=("train", "validation", "test"),
)
FLORES_PLUS = Source(
    name="flores+",
    at="hf://datasets/openlanguagedata/flores_plus@5fec6c13f9e5a4db2f745d4ec0d7c9721ddc4f06",
    read="json",
    files="{split}/{code}.jsonl",
    labels={**_FLORES, "zh": "cmn_Hans"},
    identity="{split}/{id}",
    splits=("dev", "devtest"),
    max_texts=1012,
    gate="https://huggingface.co/datasets/openlanguagedata/flores_plus",
    instead="flores-200",
)
FLORES_200 = Source(
    name="flores-200",
    at="https://dl.fbaipublicfiles.com/nllb/flores200_dataset.tar.gz",
    sha256="b8b0b76783024b85797e5cc75064eb83fc5288b41e9654dabc7be6ae944011f6",
    read="archive",
    files="*flores200_dataset/{split}/{code}.{split}",
    labels=_FLORES,
    identity="{split}/{row}",
    splits=("dev", "devtest"),
    max_texts=1012,
)
MUREL = Source(
    name="murel",
    # GitHub packs an archive anew at will, so that the commit is what pins it, not a checksum.
    at="https://codeload.github.com/namazifard/Culture_Neurons/zip/8563f9f9bfb6158ec108a88d8387f72f733fdfdf",
    read="archive",
    files="*/data/{code}/*.txt",
    labels=_same("en de da zh ru fa"),
    max_texts=20_000,
    spread=True,  # the first files are a few novels
)
TATOEBA = Source(
    name="tatoeba",
    at="https://raw.githubusercontent.com/facebookresearch/LASER/fec5c7d63daa2bea9d127e8252b10e87278586c0/data/tatoeba/v1",
    read="lines",
    files="tatoeba.{code}-eng.{code}",
    labels={label: code for label, code in {**_coded(_ISO3), "zh": "cmn"}.items() if label != "en"},
    identity="{code}/{row}",
)
GITHUB_CODE = Source(
    name="github-code",
    at="hf://datasets/codeparrot/github-code@v1.1",
    read="parquet",
    files="data/train-{shard:05d}-of-01126.parquet",
    labels={
        "c": ".c .h",
        "c++": ".cpp .hpp .c++ .h++ .cc .hh .C .H",
        "c#": ".cs",
        "java": ".java",
        "rust": ".rs",
        "python": ".py",
        "javascript": ".js",
        "php": ".php .php3 .php4 .php5 .phps .phpt",
        "html": ".html",
        "go": ".go",
        "ruby": ".rb",
    },
    text="{content}",
    label="path",
    by_ending=True,
    identity="{repo_name}/{path}",
    shards=1126,
)
WIKIPEDIA = Source(
    name="wikipedia",
    at="hf://datasets/wikimedia/wikipedia@b04c8d1ceb2f5cd4588862100d08de323dccfbaa",
    read="parquet",
    files="20231101.en/train-00000-of-00041.parquet",
    labels={"wiki": "en"},
    identity="{id}",
)
FINEWEB_2 = Source(
    name="fineweb-2",
    at="hf://datasets/HuggingFaceFW/fineweb-2@af9c13333eb981300149d5ca60a8e9d659b276b9",
    read="parquet",
    files="data/{code}/{split}/000_00000.parquet",
    labels={label: code for label, code in {**_FLORES, "zh": "cmn_Hani"}.items() if label != "en"},
    identity="{id}",
    splits=("train", "test"),
    max_texts=4000,
)
FINEWEB = Source(
    name="fineweb",
    at="hf://datasets/HuggingFaceFW/fineweb@9bb295ddab0e05d785b879661af7260fed5140fc",
    read="parquet",
    files="sample/10BT/000_00000.parquet",
    labels={"en": "en"},
    identity="{id}",
    max_texts=4000,
)
COMMONLID = Source(
    name="commonlid",
    at="hf://datasets/commoncrawl/CommonLID@1ab8feb9fa051f7ad60e80f8592fac0d973ead9b",
    read="tsv",
    files="commonlid_20251209.tsv.gz",
    labels={**_coded(_ISO3), "zh": "zho cmn"},
    label="tag",
    splits=("test",),
    gate="https://huggingface.co/datasets/commoncrawl/CommonLID",
    instead="wili-2018",
)
_ENGLISH_OF_TATOEBA = replace(
    TATOEBA, files="tatoeba.deu-eng.eng", labels={"en": "deu"}
)  # translates the German


def _only(source: Source, labels: str) -> Source:
    return replace(source, labels={label: source.labels[label] for label in labels.split()})


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "wili-2018",
            "paragraphs of Wikipedia, 235 languages, 500 of each split",
            "ODbL-1.0",
            (WILI,),
        ),
        Recipe("xnli", "premise and hypothesis, translated", "CC-BY-NC-4.0", (XNLI,)),
        Recipe(
            "paws-x",
            "first sentences of paraphrase pairs, translated",
            "free for any purpose",
            (PAWS_X,),
        ),
        Recipe("flores+", "translated sentences, version 4.6", "CC-BY-SA-4.0", (FLORES_PLUS,)),
        Recipe(
            "flores-200",
            "translated sentences, the open release of 2022",
            "CC-BY-SA-4.0",
            (FLORES_200,),
        ),
        Recipe(
            "sae-lape",
            "what SAE-LAPE was counted on: XNLI, PAWS-X and FLORES+ together",
            "as of its parts",
            (_only(XNLI, "en de fr hi es th bg ru tr vi"), PAWS_X, FLORES_PLUS),
        ),
        Recipe("murel", "texts of six cultures, by line", "as of its 69 sets", (MUREL,)),
        Recipe(
            "tatoeba",
            "short sentences that translate English",
            "CC-BY-2.0-FR",
            (TATOEBA, _ENGLISH_OF_TATOEBA),
        ),
        Recipe(
            "github-code",
            "files by programming language, and English Wikipedia",
            "of each repository; CC-BY-SA-3.0",
            (GITHUB_CODE, WIKIPEDIA),
        ),
        Recipe("fineweb-2", "web pages; English from FineWeb", "ODC-By-1.0", (FINEWEB_2, FINEWEB)),
        Recipe(
            "commonlid",
            "lines of the web, judged by people",
            "Common Crawl's terms of use",
            (COMMONLID,),
        ),
    )
}


def find_recipe(source: str, columns: tuple[str, str, str]) -> Request | None:
    """What `NAME[:SPLIT][#N]` or `hub:REPO[@REVISION][:CONFIG[:SPLIT]][#N]` asks for; None for any other source.

    `columns`: text, label and id, where the user named them. Raises UserError for a part that
    cannot be read.
    """
    bare, hashed, number = source.partition("#")
    name, *rest = bare.split(":")
    if name != "hub" and name not in RECIPES:
        return None
    if hashed and (not number.isdecimal() or len(number) > _DIGITS or not int(number)):
        raise UserError(
            f"{source}: after # stands the greatest number of texts a label, such as {bare}#500"
        )
    max_texts = int(number) if hashed else None
    if name == "hub":
        return _hub(source, rest, columns, max_texts)
    recipe = RECIPES[name]
    splits = list(dict.fromkeys(split for part in recipe.sources for split in part.splits))
    if len(rest) > 1 or any(split not in splits for split in rest):
        raise UserError(
            f"{source}: {name} has the splits {', '.join(splits)}; give {name} or {name}:{splits[0]}"
        )
    if columns[1:] != ("label", "id"):
        raise UserError(
            f"the recipe {name} knows its label and id columns; leave out --label-column and --id-column"
        )
    if columns[0] != "text":
        sources = tuple(replace(part, text=_template(columns[0])) for part in recipe.sources)
        recipe = replace(recipe, sources=sources)
    return Request(recipe, rest[0] if rest else None, max_texts)


def _hub(
    source: str, parts: list[str], columns: tuple[str, str, str], max_texts: int | None
) -> Request:
    repo, _, revision = (parts[0] if parts else "").partition("@")
    if len(parts) > 3 or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        raise UserError(
            f"{source} is no corpus of the hub; write hub:OWNER/NAME, hub:OWNER/NAME:CONFIG"
        )
    text, label, identity = columns
    found = Source(
        name=repo,
        at=repo,
        read="hub",
        files=parts[1] if len(parts) > 1 else "",
        text=_template(text),
        label=label,
        identity="{" + identity + "}",
        splits=(parts[2] if len(parts) > 2 else "",),
        max_texts=_HUB_TEXTS,
        revision=revision,
        gate=f"https://huggingface.co/datasets/{repo}",
    )
    return Request(Recipe(f"hub:{repo}", "a data set of the hub", "", (found,)), None, max_texts)


def _template(column: str) -> str:
    return column if "{" in column else "{" + column + "}"
