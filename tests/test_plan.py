"""Plans choose the same examples as if all texts were tokenised, but tokenise few of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from helpers import refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saefeat import corpora
from saefeat.corpora import Corpus, make_plan
from saefeat.corpora.corpus import hashed
from saefeat.io import UserError


class Watched:
    """A tokenizer whose calls are passed to a function."""

    def __init__(self, tokenizer, call):
        self.tokenizer, self.call = tokenizer, call

    def __call__(self, *args, **options):
        return self.call(*args, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def planned_at_once(corpus, lm, budget, limit, count_bos, temperature=None):
    """The chosen examples in hashed order, with tokens and counts, from all texts tokenised."""
    positions = corpus.positions("train", 0)
    sizes = Counter(corpus.of[i] for i in positions)
    budgets = dict.fromkeys(sizes, budget)
    if temperature is not None:
        for label, n in sizes.items():
            share = (n / max(sizes.values())) ** (1 / temperature)
            budgets[label] = max(1, round(budget * share))
    rows = dict(
        zip(positions, lm.tokenize([corpus.texts[i] for i in positions], limit), strict=True)
    )
    counts = {i: sum(t not in lm.special_ids for t in row) for i, row in rows.items()}
    used, chosen = Counter(), []
    for i in sorted(positions, key=lambda i: (hashed(0, "budget", corpus.ids[i]), i)):
        if counts[i] and (budget is None or used[corpus.of[i]] < budgets[corpus.of[i]]):
            counts[i] += len(lm.prefix) * count_bos
            used[corpus.of[i]] += counts[i]
            chosen.append((i, rows[i], counts[i]))
    return chosen


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a cat", "Haus " * 9, "x", "</s>", "der Hund ist"]),
            st.sampled_from("abc"),
            st.integers(0, 30),
        ),
        min_size=1,
        max_size=60,
    ),
    st.one_of(st.none(), st.integers(1, 40)),
    st.integers(1, 7),
    st.booleans(),
    st.sampled_from([None, 1.0, 2.5, 1000.0]),
)
def test_slices_choose_the_same_examples_as_tokenising_all_texts(
    monkeypatch, tiny_lm, rows, budget, size, count_bos, temperature
):
    texts, of, ids = map(list, zip(*rows, strict=True))
    corpus = Corpus(texts, of, [str(i) for i in ids], tuple(sorted(set(of))), "some")
    temperature = temperature if budget else None
    expected = planned_at_once(corpus, tiny_lm, budget, 12, count_bos, temperature)
    monkeypatch.setattr(corpora, "_SLICE", size)
    options = {"max_tokens": budget, "token_limit": 12, "mixed": True, "count_bos": count_bos}
    options["temperature"] = temperature
    if {corpus.of[i] for i, _, _ in expected} < set(of):
        with pytest.raises(UserError, match="has no usable text in the train split"):
            make_plan(corpus, tiny_lm, **options)
        return
    plan = make_plan(corpus, tiny_lm, **options)
    assert [(i, plan.tokens[i], plan.counts[i]) for i in plan.order] == expected
    monkeypatch.setattr(corpora, "_SLICE", 256)
    assert make_plan(corpus, tiny_lm, **options).skipped == plan.skipped


def test_a_small_budget_tokenises_few_of_many_texts(tiny_corpus, tiny_lm, monkeypatch):
    many = Corpus(
        *([*getattr(tiny_corpus, name)] * 20 for name in ("texts", "of")),
        [str(i) for i in range(20 * len(tiny_corpus))],
        tiny_corpus.labels,
        "many",
    )
    read = []

    def tokenize(texts, **options):
        read.extend(texts)
        return tiny_lm.tokenizer(texts, **options)

    make_plan(many, replace(tiny_lm, tokenizer=Watched(tiny_lm.tokenizer, tokenize)), max_tokens=10)
    assert 0 < len(read) <= 256 < len(many)


@pytest.mark.parametrize("temperature", [1, 2, 1 / 0.3, 1e9])
def test_a_temperature_mixes_labels_by_their_sizes(tiny_lm, temperature):
    sizes = {"a": 6400, "b": 1600, "c": 400}
    of = [label for label, n in sizes.items() for _ in range(n)]
    corpus = Corpus(["cat"] * len(of), of, [str(i) for i in range(len(of))], tuple(sizes), "some")
    plan = make_plan(corpus, tiny_lm, split="all", max_tokens=300, temperature=temperature)
    each = Counter(corpus.of[i] for i in plan.chosen.tolist())
    powers = {label: (n / len(of)) ** (1 / temperature) for label, n in sizes.items()}
    for label, power in powers.items():  # all texts have as many tokens
        share = each[label] / each.total()
        assert share == pytest.approx(power / sum(powers.values()), abs=0.005)
    assert each["a"] * plan.counts[int(plan.chosen[0])] == 300
    assert plan.policy["temperature"] == temperature
    assert "temperature" not in make_plan(corpus, tiny_lm, max_tokens=3).policy


@pytest.mark.parametrize(
    ("options", "message", "option"),
    [
        ({"temperature": 5.0}, "give the budget of the largest", "max_tokens"),
        ({"temperature": 0.5, "max_tokens": 9}, "at least 1, not 0.5", "temperature"),
        ({"temperature": float("nan"), "max_tokens": 9}, "at least 1, not nan", "temperature"),
    ],
)
def test_temperatures_without_a_meaning_are_refused(tiny_corpus, tiny_lm, options, message, option):
    with refused(message, option):
        make_plan(tiny_corpus, tiny_lm, **options)
