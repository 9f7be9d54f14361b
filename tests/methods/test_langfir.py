import pytest
import torch
from helpers import contents, make_stats, selection_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from saefeat.corpora import make_plan
from saefeat.corpora.random_tokens import LABEL, random_plan
from saefeat.io import UserError
from saefeat.methods.langfir import langfir
from saefeat.run import collect, rank
from saefeat.statistics import Stats
from saefeat.statistics.files import CONTROL
from saefeat.statistics.merging import merge


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_equals_its_definition(data):
    k, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    examples = [data.draw(st.sampled_from([0, 4, 10])) for _ in range(k)]
    active = [[data.draw(st.integers(0, n)) for _ in range(width)] for n in examples]
    random = [data.draw(st.integers(0, 10)) for _ in range(width)]
    rates = {name: data.draw(st.floats(0.05, 1)) for name in ("example_rate", "random_rate")}
    top = data.draw(st.none() | st.integers(1, 3))
    stats = make_stats("a", examples=examples, fired=active, fired_examples=active)
    control = make_stats(
        "a", labels=[LABEL], examples=[10], fired=[random], fired_examples=[random]
    )
    selection = langfir([stats], [control], **rates, top=top)
    wanted = []
    for label, n in enumerate(examples):
        scored = [
            (random[u] / 10 - active[label][u] / n, u)
            for u in range(width)
            if n
            and active[label][u] / n >= rates["example_rate"]
            and random[u] / 10 < rates["random_rate"]
        ]
        wanted += [(f"L{label}", u, pytest.approx(s)) for s, u in sorted(scored)[:top]]
    assert [(row[0], *row[3:]) for row in selection_rows(selection)] == wanted


def test_a_case_by_hand():
    # Unit 0 is the label's own; unit 1 fires on anything; unit 2 on all text of both labels.
    active = [[10, 10, 9], [0, 10, 10]]
    stats = make_stats("a", examples=[10, 10], fired=active, fired_examples=active)
    control = make_stats(
        "a", labels=[LABEL], examples=[20], fired=[[0, 20, 1]], fired_examples=[[0, 20, 1]]
    )
    assert selection_rows(langfir([stats], [control], example_rate=0.9)) == [
        ("L0", 1, "a", 0, -1.0),
        ("L0", 2, "a", 2, pytest.approx(-0.85)),
        ("L1", 1, "a", 2, pytest.approx(-0.95)),
    ]


def test_random_sequences_are_ordinary_tokens_of_the_texts_length(tiny_corpus, tiny_lm):
    plan = make_plan(tiny_corpus, tiny_lm, max_tokens=200)
    made = random_plan(tiny_lm, plan, 30)
    lengths = sorted(len(ids) for ids in plan.tokens.values())
    assert {len(ids) for ids in made.tokens.values()} == {lengths[(len(lengths) - 1) // 2]}
    tokens = {token for ids in made.tokens.values() for token in ids}
    assert not tokens & tiny_lm.special_ids
    assert len(tokens) > 100 and max(tokens) < len(tiny_lm.tokenizer)
    assert made.corpus.labels == (LABEL,) and made.total == 30 * lengths[(len(lengths) - 1) // 2]
    assert random_plan(tiny_lm, plan, 30).tokens == made.tokens
    other = make_plan(tiny_corpus, tiny_lm, max_tokens=200, seed=1)
    assert random_plan(tiny_lm, other, 30).tokens != made.tokens


def test_collected_in_shards_and_ranked_against_the_control(tmp_path, tiny_corpus, tiny_lm):
    options = {"neurons": True, "max_tokens": 150, "random_tokens": 12}
    collect(tiny_lm, tiny_corpus, out=tmp_path / "whole", **options)
    control = Stats.load(tmp_path / "whole" / CONTROL / "mlp_act@0.safetensors")
    assert control.labels == (LABEL,) and control.examples.tolist() == [12]
    shards = [tmp_path / f"s{i}" for i in range(2)]
    for i, shard in enumerate(shards):
        collect(tiny_lm, tiny_corpus, out=shard, shard=f"{i}/2", **options)
    merge(shards, tmp_path / "merged")
    whole, merged = (contents(tmp_path / name / CONTROL) for name in ("whole", "merged"))
    assert whole == merged
    found = rank(tmp_path / "whole", "langfir", dictionaries=["mlp_act@*"], example_rate=0.5)
    assert found.header["parameters"] == {"example_rate": 0.5, "random_rate": 0.1, "top": None}
    texts = Stats.load(tmp_path / "whole" / "mlp_act@0.safetensors")
    units = found.units("mlp_act@0")
    share = control.fired_examples[0] / 12
    for k, label in enumerate(found.labels):
        own = texts.fired_examples[k] / texts.examples[k] >= 0.5
        assert sorted(units[label]) == (own & (share < 0.1)).nonzero().flatten().tolist()
    assert torch.equal(
        Stats.load(tmp_path / "merged" / "mlp_act@1.safetensors").fired,
        Stats.load(tmp_path / "whole" / "mlp_act@1.safetensors").fired,
    )


def test_without_a_control_the_command_that_collects_it_is_named(tmp_path, tiny_corpus, tiny_lm):
    collect(tiny_lm, tiny_corpus, out=tmp_path / "o", neurons=True, max_tokens=50)
    with pytest.raises(UserError, match="no statistics of random tokens") as error:
        rank(tmp_path / "o", "langfir", dictionaries=["mlp_act@*"])
    assert error.value.command == "collect --random-tokens 100"
