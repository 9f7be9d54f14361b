"""The corpora that have a name: sources, revisions, labels and licences."""

from __future__ import annotations

from dataclasses import replace

from saefeat.corpora.sources import Recipe, Source

# fmt: off
PAPER_LABELS = (
    "en", "de", "fr", "it", "pt", "hi", "es", "th", "bg", "ru", "tr", "vi", "ja", "ko", "zh",
)
# fmt: on
_CODES = (
    "eng_Latn deu_Latn fra_Latn ita_Latn por_Latn hin_Deva spa_Latn tha_Thai bul_Cyrl rus_Cyrl "
    "tur_Latn vie_Latn jpn_Jpan kor_Hang zho_Hans"
)
_FLORES: dict[str, str] = dict(zip(PAPER_LABELS, _CODES.split(), strict=True))
_ISO3: dict[str, str] = {label: code[:3] for label, code in _FLORES.items()}


def _uncoded(labels: str) -> dict[str, str]:
    """Labels that are their own codes."""
    return {label: label for label in labels.split()}


WILI = Source(
    name="wili-2018",
    at="https://zenodo.org/records/841984/files/wili-2018.zip",
    sha256="727e52ca4e13400e6def1b1b594ca12c8b7fd49ad9d45fd5c9e57a1f6d3b7a3f",
    read="wili",
    labels=_ISO3,
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
    labels=_uncoded("en de fr hi es th bg ru tr vi ar el sw ur zh"),
    text="{premise} {hypothesis}",
    identity="{split}/{row}",  # the files are parallel, row by row
    splits=("train", "validation", "test"),
)
PAWS_X = Source(
    name="paws-x",
    at="hf://datasets/google-research-datasets/paws-x@4cd8187c404bda33cb1f62b49b001115862acf37",
    read="parquet",
    files="{code}/{split}-00000-of-00001.parquet",
    labels=_uncoded("en de fr es ja ko zh"),
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
    access_url="https://huggingface.co/datasets/openlanguagedata/flores_plus",
    alternative="flores-200",
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
    # Pinned by the commit: GitHub may pack the same files into other bytes.
    at="https://codeload.github.com/namazifard/Culture_Neurons/zip/8563f9f9bfb6158ec108a88d8387f72f733fdfdf",
    read="archive",
    files="*/data/{code}/*.txt",
    labels=_uncoded("en de da zh ru fa"),
    max_texts=20_000,
    spread=True,  # the first files hold a few novels
)
TATOEBA = Source(
    name="tatoeba",
    at="https://raw.githubusercontent.com/facebookresearch/LASER/fec5c7d63daa2bea9d127e8252b10e87278586c0/data/tatoeba/v1",
    read="lines",
    files="tatoeba.{code}-eng.{code}",
    labels={label: code for label, code in {**_ISO3, "zh": "cmn"}.items() if label != "en"},
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
    labels={**_ISO3, "zh": "zho cmn"},
    label="tag",
    splits=("test",),
    access_url="https://huggingface.co/datasets/commoncrawl/CommonLID",
    alternative="wili-2018",
)
# The English side of the German translations.
_TATOEBA_ENGLISH = replace(TATOEBA, files="tatoeba.deu-eng.eng", labels={"en": "deu"})

# fmt: off
_RECIPES = (
    Recipe("wili-2018", "paragraphs of Wikipedia, 235 languages, 500 of each split", "ODbL-1.0",
           (WILI,)),
    Recipe("xnli", "premise and hypothesis, translated", "CC-BY-NC-4.0", (XNLI,)),
    Recipe("paws-x", "first sentences of paraphrase pairs, translated", "free for any purpose",
           (PAWS_X,)),
    Recipe("flores+", "translated sentences, version 4.6", "CC-BY-SA-4.0", (FLORES_PLUS,)),
    Recipe("flores-200", "translated sentences, the open release of 2022", "CC-BY-SA-4.0",
           (FLORES_200,)),
    Recipe("sae-lape", "the data of SAE-LAPE: XNLI, PAWS-X and FLORES+ together", "as of its parts",
           (replace(XNLI, labels=_uncoded("en de fr hi es th bg ru tr vi")), PAWS_X,
            FLORES_PLUS)),
    Recipe("murel", "texts of six cultures, by line", "as of its 69 sets", (MUREL,)),
    Recipe("tatoeba", "short sentences that translate English", "CC-BY-2.0-FR",
           (TATOEBA, _TATOEBA_ENGLISH)),
    Recipe("github-code", "files by programming language, and English Wikipedia",
           "of each repository; CC-BY-SA-3.0", (GITHUB_CODE, WIKIPEDIA)),
    Recipe("fineweb-2", "web pages; English from FineWeb", "ODC-By-1.0", (FINEWEB_2, FINEWEB)),
    Recipe("commonlid", "lines of the web, judged by people", "Common Crawl's terms of use",
           (COMMONLID,)),
)
# fmt: on
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}
