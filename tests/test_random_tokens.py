"""Random-token sequences: what they consist of, and their statistics, whole and in shards."""

from __future__ import annotations

from statistics import median_low

import pytest
import torch
from helpers import contents, random_sae, refused

from saefeat.config import CollectConfig
from saefeat.corpora import make_plan
from saefeat.corpora.random_tokens import _ordinary, random_plan
from saefeat.run import collect, rank
from saefeat.statistics import Stats
from saefeat.statistics.files import CONTROL
from saefeat.statistics.merging import merge

SEQUENCES = 70  # three windows of 32


def below(place):
    """The directory of the statistics of random tokens."""
    return place / CONTROL


def collected(lm, corpus, out, **options):
    options = {"saes": [random_sae()], "random_tokens": SEQUENCES} | options
    return collect(lm, corpus, out=out, **options)


@pytest.fixture(scope="module")
def windows_of_32():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saefeat.corpora.WINDOW", 32)
        yield


@pytest.fixture(scope="module")
def whole(windows_of_32, tiny_corpus, tiny_lm, tmp_path_factory):
    out = tmp_path_factory.mktemp("random") / "stats"
    collected(tiny_lm, tiny_corpus, out)
    return out


def test_sequences_are_as_long_as_the_median_text_and_of_ordinary_tokens(tiny_corpus, tiny_lm):
    plan = make_plan(tiny_corpus, tiny_lm)
    made = random_plan(tiny_lm, plan, 500)
    special = set(tiny_lm.tokenizer.all_special_ids)
    vocabulary = set(tiny_lm.tokenizer.get_vocab().values()) - special
    assert set(_ordinary(tiny_lm)) == vocabulary
    length = median_low(len(ids) for ids in plan.tokens.values())
    assert [len(ids) for ids in made.tokens.values()] == [length] * 500
    drawn = torch.tensor(list(made.tokens.values())).flatten()
    assert set(drawn.tolist()) <= vocabulary
    counts = torch.bincount(drawn)[sorted(vocabulary)].double()
    # Chi-square of uniform draws: its mean is the degrees of freedom, its deviation sqrt(2 df).
    expected, df = len(drawn) / len(vocabulary), len(vocabulary) - 1
    assert abs(((counts - expected) ** 2 / expected).sum() - df) < 5 * (2 * df) ** 0.5
    assert made.total == 500 * length and made.corpus.labels == ("random-tokens",)


def test_the_seed_of_the_plan_decides_what_is_drawn(tiny_corpus, tiny_lm):
    one, same, other = (
        random_plan(tiny_lm, make_plan(tiny_corpus, tiny_lm, seed=seed), 5).tokens
        for seed in (0, 0, 1)
    )
    assert one == same != other


def test_bos_is_put_before_them_and_counted_only_as_asked(tiny_corpus, tiny_lm):
    for count_bos in (False, True):
        plan = random_plan(tiny_lm, make_plan(tiny_corpus, tiny_lm, count_bos=count_bos), 3)
        (batch,) = plan.batches(tiny_lm, plan.window(0))
        assert batch.input_ids[:, : len(tiny_lm.prefix)].tolist() == [tiny_lm.prefix] * 3
        assert int(batch.counted.sum()) == plan.total
    assert tiny_lm.prefix


def test_added_tokens_are_no_ordinary_ones(smollm):
    ids = set(_ordinary(smollm))
    assert not ids & smollm.tokenizer.added_tokens_decoder.keys()
    assert len(ids) > 40_000 and max(ids) < smollm.embedding_rows


def test_their_statistics_are_a_directory_of_one_label(whole, tiny_lm, tiny_corpus):
    stats, texts = (Stats.load(place / "wide.safetensors") for place in (below(whole), whole))
    assert stats.labels == ("random-tokens",) and "random-tokens" not in texts.labels
    assert stats.examples.tolist() == [SEQUENCES]
    plan = random_plan(tiny_lm, make_plan(tiny_corpus, tiny_lm), SEQUENCES)
    assert stats.tokens.tolist() == [plan.total] and stats.header["windows"] == [0, 1, 2]
    for key in ("model", "dictionary"):
        assert stats.header[key] == texts.header[key]
    assert sorted(contents(below(whole))) == [
        "examples/wide.parquet",
        "mlp_out@0.safetensors",
        "wide.safetensors",
    ]


def test_the_counts_are_those_of_the_sequences_run_alone(whole, tiny_lm, tiny_corpus):
    plan = random_plan(tiny_lm, make_plan(tiny_corpus, tiny_lm), SEQUENCES)
    sae, fired = random_sae(), torch.zeros(64, dtype=torch.long)
    in_sequences = torch.zeros(64, dtype=torch.long)
    seen = []
    handle = tiny_lm.model.model.layers[0].mlp.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output[0])
    )
    with torch.no_grad():
        for ids in plan.tokens.values():
            tiny_lm.model(input_ids=torch.tensor([[*tiny_lm.prefix, *ids]]))
            x = seen.pop()[len(tiny_lm.prefix) :]
            codes = sae.encode(x).dense()
            fired += (codes > 0).sum(0)
            in_sequences += (codes > 0).any(0)
    handle.remove()
    stats = Stats.load(below(whole) / "wide.safetensors")
    assert torch.equal(stats.fired[0], fired)
    assert torch.equal(stats.fired_examples[0], in_sequences)


def test_shards_merge_to_the_same_bytes(whole, tiny_corpus, tiny_lm, tmp_path, small_windows):
    shards = [tmp_path / str(i) for i in range(4)]  # the last has no window of random tokens
    for i, shard in enumerate(shards):
        collected(tiny_lm, tiny_corpus, shard, shard=f"{i}/4")
    assert merge(shards[::-1], tmp_path / "merged") == []
    assert contents(tmp_path / "merged") == contents(whole)
    texts, random = merge(shards[1:], tmp_path / "gap")
    assert "windows are in no shard" in texts and random.startswith("random-tokens: 1 of 3 windows")


def test_shards_with_and_without_them_are_not_merged(tiny_corpus, tiny_lm, tmp_path, small_windows):
    shards = [tmp_path / str(i) for i in range(2)]
    for i, shard in enumerate(shards):
        collected(tiny_lm, tiny_corpus, shard, shard=f"{i}/2", random_tokens=i * SEQUENCES)
    with refused("0 has no random-tokens, but .*1 has"):
        merge(shards, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_they_are_added_to_finished_statistics(
    whole, tiny_corpus, tiny_lm, tmp_path, small_windows
):
    collected(tiny_lm, tiny_corpus, tmp_path, random_tokens=0)
    assert not below(tmp_path).exists()
    before = contents(tmp_path)
    collected(tiny_lm, tiny_corpus, tmp_path)
    assert contents(tmp_path) == contents(whole)
    assert before.items() <= contents(tmp_path).items()
    with refused("something else", "out"):
        collected(tiny_lm, tiny_corpus, tmp_path, random_tokens=SEQUENCES + 1)


def test_langfir_ranks_with_them(whole):
    chosen = rank(whole, "langfir", example_rate=0.3, random_rate=0.9)
    texts, control = (Stats.load(place / "wide.safetensors") for place in (whole, below(whole)))
    quiet = control.fired_examples[0] < 0.9 * SEQUENCES
    want = (texts.fired_examples >= 0.3 * texts.examples[:, None]) & quiet
    for k, label in enumerate(texts.labels):
        assert sorted(chosen.units("wide")[label]) == want[k].nonzero().flatten().tolist()
    assert len(chosen) and not quiet.all()


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="random_tokens"):
        CollectConfig(random_tokens=-1)
