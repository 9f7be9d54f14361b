"""Fixtures: tiny random models of every family, a tokenizer, a corpus, a run, the command line."""

from __future__ import annotations

import copy
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from saefeat import assets, corpora, progress
from saefeat.config import RunConfig
from saefeat.corpora import Corpus, Plan, load_corpus, make_plan
from saefeat.io import UserError
from saefeat.models import LanguageModel, load_model, wrap

# Threads wait for each other on tensors this small: two threads take five times as long as one.
torch.set_num_threads(1)
VOCABULARY, HIDDEN, FFN, LAYERS, HEADS = 300, 32, 48, 2, 2
_GATED = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}
_GEMMA = {**_GATED, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_inner": FFN,
    "n_layer": LAYERS,
    "n_head": HEADS,
}
_NEOX = {name: value for name, value in _GATED.items() if name != "num_key_value_heads"}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _GATED),
    "mistral": ("Mistral", {**_GATED, "sliding_window": 8}),
    "qwen2": ("Qwen2", _GATED),
    "qwen3": ("Qwen3", {**_GATED, "head_dim": 16}),
    "gemma2": ("Gemma2", _GEMMA),
    "gemma3": ("Gemma3Text", _GEMMA),
    "gpt2": ("GPT2", _GPT2),
    "neox-parallel": ("GPTNeoX", {**_NEOX, "use_parallel_residual": True}),
    "neox-sequential": ("GPTNeoX", {**_NEOX, "use_parallel_residual": False}),
}
_HEADS = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}
_PROSE = [
    "the cat sat on the mat and the dog ran after it",
    "der Hund und die Katze sind in dem Haus",
] * 4


def make_model(family: str, seed: int = 0) -> Any:
    """A random float32 model. Noise is added to every weight, norms and biases included."""
    import transformers

    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(
        **options, bos_token_id=0, eos_token_id=1, pad_token_id=2
    )
    torch.manual_seed(seed)
    model = getattr(transformers, _HEADS.get(name, f"{name}ForCausalLM"))(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape), alpha=0.15)
    return model


def make_tokenizer() -> Any:
    """Byte-level BPE that puts `<s>` (0) before a text and has `</s>` (1) and `<pad>` (2)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_PROSE, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Undo what a test of a run sets: bytes are compared at one number of threads."""
    yield
    torch.set_num_threads(1)


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process sees one core, so that a run in it takes one thread, as `tiny_run` did."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})


@pytest.fixture
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress writes a line at every update."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)


@pytest.fixture
def no_gradients() -> Iterator[None]:
    """For a whole file: `pytestmark = pytest.mark.usefixtures("no_gradients")`."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Each family of models in turn."""
    return request.param


@pytest.fixture(scope="session")
def family_model(family: str) -> Any:
    """A tiny model of the family; shared, so change a copy (`copy.deepcopy`)."""
    return make_model(family)


@pytest.fixture(scope="session")
def family_lm(family: str, family_model: Any, tokenizer: Any) -> LanguageModel:
    return wrap(family_model, tokenizer, family)


@pytest.fixture(scope="session")
def make_lm(tokenizer: Any) -> Callable[..., LanguageModel]:
    """make_lm(family="llama", seed=0): a new language model, which the test may change."""

    def make(family: str = "llama", seed: int = 0) -> LanguageModel:
        return wrap(make_model(family, seed), copy.deepcopy(tokenizer), f"tiny-{family}-{seed}")

    return make


@pytest.fixture(scope="session")
def tiny_lm(make_lm: Callable[..., LanguageModel]) -> LanguageModel:
    """A random Llama of 2 layers, 32 wide, 48 neurons, 300 tokens; shared, never changed."""
    return make_lm("llama")


@pytest.fixture(scope="session")
def save_lm(make_lm: Callable[..., LanguageModel]) -> Callable[..., Path]:
    """save_lm(directory, family="llama", seed=0): a directory that `load_model` reads."""

    def save(directory: Path, family: str = "llama", seed: int = 0) -> Path:
        lm = make_lm(family, seed)
        lm.model.save_pretrained(directory)
        lm.tokenizer.save_pretrained(directory)
        return directory

    return save


@pytest.fixture(scope="session")
def tiny_corpus() -> Corpus:
    """240 beginnings of real sentences in German, English and Thai, in turns."""
    sentences = load_corpus("embedded:eld", labels=["de", "en", "th"])
    texts = {
        label: [t for t, of in zip(sentences.texts, sentences.of, strict=True) if of == label]
        for label in sentences.labels
    }
    return load_corpus(
        [(texts[label][i][: 12 + i % 17], label) for i in range(80) for label in sentences.labels]
    )


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> int:
    """Windows of 32 examples, so that a tiny corpus has several."""
    monkeypatch.setattr(corpora, "WINDOW", 32)
    return 32


@pytest.fixture
def tiny_plan(tiny_corpus: Corpus, tiny_lm: LanguageModel, small_windows: int) -> Plan:
    """The train split of the tiny corpus, in windows of 32."""
    return make_plan(tiny_corpus, tiny_lm)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory, save_lm: Callable[..., Path]) -> Path:
    """The model of `tiny_lm` as a directory."""
    return save_lm(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_jsonl(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Corpus) -> Path:
    """The tiny corpus as a file."""
    path = tmp_path_factory.mktemp("corpora") / "tiny.jsonl"
    rows = zip(tiny_corpus.texts, tiny_corpus.of, tiny_corpus.ids, strict=True)
    lines = [
        json.dumps({"text": text, "label": label, "id": identity}) for text, label, identity in rows
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def config(tiny_model_dir: Path, tiny_jsonl: Path) -> RunConfig:
    """The configuration of `tiny_run`."""
    return RunConfig(
        str(tiny_model_dir),
        str(tiny_jsonl),
        d_sae=64,
        k=4,
        dtype="float32",
        train_tokens=8000,
        max_tokens=8000,
        steer_prompts=0,
        matrix_texts=0,
    )


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> Path:
    """A complete run of the tiny model on the tiny corpus; shared, so change a copy."""
    from saefeat.run import run

    out = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.sched_getaffinity", lambda _: {0})  # one thread
        run(config, out)
    return out


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_run` that a test may change."""
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture
def saefeat(monkeypatch, capsys):
    """saefeat(*arguments, stdin=b"") -> exit code, standard output, standard error."""

    from saefeat import cli

    def call(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["saefeat", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def gemma() -> LanguageModel:
    """Gemma-3-270m in float32; shared, never changed."""
    return load_model("embedded:gemma-3-270m", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def smollm() -> LanguageModel:
    """SmolLM2-135M-Instruct in float32: a chat template, and no BOS before a text."""
    try:
        assets.fetch("smollm2-135m")
    except UserError as error:
        pytest.skip(f"the asset is not available: {error}")
    return load_model("embedded:smollm2-135m", dtype="float32", device="cpu")
