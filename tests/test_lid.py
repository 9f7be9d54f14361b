"""Language identification: heads against the published definitions, token by token."""

from __future__ import annotations

import math
import pickle
import warnings
from dataclasses import replace

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from helpers import make_stats, random_sae
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import classification_report, confusion_matrix, f1_score
from sklearn.model_selection import GridSearchCV

from saefeat.codes import Codes
from saefeat.collection import collect
from saefeat.corpora import make_plan
from saefeat.dictionaries import SAE, Identity
from saefeat.io import UserError, load_tensors, save_tensors
from saefeat.lid.features import Features, featurize, read_features, root_counts
from saefeat.lid.head import Head
from saefeat.lid.heads import HEADS, FitSize, linear, sae_heads
from saefeat.lid.heads.linear import CAPITALS, linear_head, make_copies
from saefeat.lid.heads.naive_bayes import naive_bayes_head
from saefeat.lid.heads.sae_count import count_head
from saefeat.lid.heads.sae_min_max import min_max_head
from saefeat.lid.identifier import LanguageIdentifier
from saefeat.methods import METHODS
from saefeat.ranking import make_part
from saefeat.selection import Selection
from saefeat.statistics import Observed, Stats

WIDTH, K = 64, 4
LABELS = ("de", "en", "th")


SAES = [random_sae(), random_sae("other", "resid_post@1", seed=1)]
NEURONS = [Identity("mlp_act@0", 48), Identity("mlp_act@1", 48)]


@pytest.fixture(scope="module")
def plan(tiny_corpus, tiny_lm):
    return make_plan(tiny_corpus, tiny_lm)


@pytest.fixture(scope="module")
def collected(tmp_path_factory, plan, tiny_lm):
    out = tmp_path_factory.mktemp("lid")
    collect(tiny_lm, plan, [*SAES, *NEURONS], out, places={"bags": out / "bags"})
    return out


@pytest.fixture(scope="module")
def stats(collected):
    return {path.stem: Stats.load(path) for path in collected.glob("*.safetensors")}


@pytest.fixture(scope="module")
def texts(tiny_corpus):
    """Test texts, one without any unit at the end."""
    return [tiny_corpus.texts[i] for i in tiny_corpus.positions("test", 0)] + [""]


@pytest.fixture(scope="module")
def activations(tiny_lm, texts):
    """Per text {dictionary: activations [tokens, width], 0 where a unit is not among the k}."""
    layers = tiny_lm.model.model.layers
    modules = {"mlp_out@0": layers[0].mlp, "resid_post@1": layers[1]}
    modules |= {"mlp_act@0": layers[0].mlp.act_fn, "mlp_act@1": layers[1].mlp.act_fn}
    seen, result = {}, []

    def note(site):
        return lambda _m, _i, out: seen.update(
            {site: (out[0] if isinstance(out, tuple) else out)[0]}
        )

    handles = [module.register_forward_hook(note(site)) for site, module in modules.items()]
    with torch.no_grad():
        for text in texts:
            tiny_lm.model(input_ids=torch.tensor([tiny_lm.tokenizer(text)["input_ids"]]))
            row = {d.id: top(seen[d.site][1:], d) for d in SAES}
            result.append(row | {d.id: seen[d.site][1:] for d in NEURONS})
    for handle in handles:
        handle.remove()
    return result


def top(x, sae):
    pre = torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc)
    best = pre.topk(sae.k, dim=1)
    return torch.zeros_like(pre).scatter(1, best.indices, best.values)


@pytest.fixture(scope="module")
def features(tiny_lm, texts):
    return featurize(tiny_lm, [*SAES, *NEURONS], texts)


@pytest.fixture(scope="module")
def chosen(stats):
    """A loose selection: several labels, several dictionaries, shared units."""
    selection = METHODS["sae-lape"].rank(
        [stats[sae.id] for sae in SAES],
        example_rate=0.3,
        high_frequency_rate=0.05,
        owners="any",
        ratio=0.6,
    )
    assert all(len(selection.for_label(label)) > 1 for label in LABELS)
    assert set(selection.dictionaries) == {sae.id for sae in SAES}
    return selection


@pytest.fixture(scope="module")
def chosen_neurons(stats):
    selection = METHODS["lape"].rank(
        [stats[d.id] for d in NEURONS], top_rate=0.2, filter_rate=0.5, activation_bar_ratio=0.7
    )
    assert len(selection) > 3
    return selection


def best_or_none(rows, known):
    return [
        LABELS[int(np.argmax(row))] if ok else None for row, ok in zip(rows, known, strict=True)
    ]


def sets(selection):
    """[(dictionary, unit, row of the label)]."""
    rows = selection.to_pandas()
    return [
        (d, u, LABELS.index(label))
        for d, u, label in zip(rows.dictionary, rows.unit, rows.label, strict=True)
    ]


# --------------------------------------------------------------------------- the published heads


@pytest.mark.parametrize("name", ["sae-count", "neuron-count"])
def test_a_count_head_counts_the_tokens_on_which_the_units_of_a_label_fire(
    name, chosen, chosen_neurons, stats, features, activations
):
    selection = chosen if name == "sae-count" else chosen_neurons
    expected = np.zeros((len(activations), 3))
    for dictionary, unit, k in sets(selection):
        expected[:, k] += [int((row[dictionary][:, unit] > 0).sum()) for row in activations]
    head = count_head(name, selection)
    assert head.scores(features).tolist() == expected.tolist()
    assert head.predict(features) == best_or_none(expected, expected.any(1))
    assert head.predict(features)[-1] is None


def test_min_max_scales_each_firing_value_by_the_units_extremes_over_all_labels_unclamped(
    chosen, stats, features, activations
):
    expected, seen = np.zeros((len(activations), 3)), []
    for dictionary, unit, k in sets(chosen):
        low = min(float(v) for v in stats[dictionary].min[:, unit])
        high = max(float(v) for v in stats[dictionary].max[:, unit])
        for i, row in enumerate(activations):
            hits = [
                (float(v) - low) / (high - low + 1e-6) for v in row[dictionary][:, unit] if v > 0
            ]
            expected[i, k] += sum(hits)
            seen += hits
    assert min(seen) < 0
    assert max(seen) > 1  # unclamped: the texts go beyond what the statistics saw
    head = min_max_head(chosen, stats.__getitem__)
    assert np.allclose(head.scores(features), expected, atol=1e-3)
    assert head.predict(features)[-1] is None


@pytest.mark.parametrize("value", [0.1, 1.2345678, 3.3333333])
def test_min_max_gives_0_for_a_unit_whose_values_are_all_equal(value):
    n = 5
    stats = stats_of([[n]], (n,))
    codes = Codes(torch.full((n, 1), value), torch.zeros(n, 1, dtype=torch.int64), 1)
    bag = codes.bag(torch.tensor([n]))
    stats.add(Observed(codes, torch.tensor([n]), torch.tensor([0]), torch.tensor([0])))
    part = make_part(stats, torch.tensor([0]), torch.tensor([0]), torch.zeros(1))
    selection = Selection.build([part])
    total = float(bag.sum[0]) * 2.0**-20
    assert total != n * float(bag.min[0])  # it was rounded, and 1e-6 is what it is divided by
    features = Features({"d": sp.csr_matrix([[float(n)]])}, {"d": sp.csr_matrix([[total]])})
    head = min_max_head(selection, lambda _: stats)
    assert head.scores(features)[0, 0] == pytest.approx(0, abs=1e-5)


def stats_of(fired, tokens=(10, 10), dictionary="d"):
    """Statistics with the firing tokens of each label and unit."""
    return make_stats(dictionary, labels="abc"[: len(fired)], fired=fired, tokens=tokens)


def features_of(**counts):
    """Features with the given counts by dictionary; values are all 1."""
    matrices = {name: sp.csr_matrix(np.asarray(rows, np.float32)) for name, rows in counts.items()}
    return Features(
        matrices, {name: matrix.astype(np.float64) for name, matrix in matrices.items()}
    )


def test_naive_bayes_by_hand():
    first, second = stats_of([[3, 0], [1, 4]], dictionary="d"), stats_of([[2], [0]], dictionary="e")
    head = naive_bayes_head({"d": first, "e": second}.__getitem__, ["d", "e"], ("a", "b"))
    # Three units, 5 firings under each label, one added to each: (3+1)/8, (0+1)/8, (2+1)/8 and
    # (1+1)/8, 5/8, 1/8.
    p = {"a": [4 / 8, 1 / 8, 3 / 8], "b": [2 / 8, 5 / 8, 1 / 8]}
    seen = features_of(d=[[2, 0], [0, 1]], e=[[1], [0]])
    expected = [[2 * math.log(q[0]) + math.log(q[2]), math.log(q[1])] for q in p.values()]
    assert np.allclose(head.scores(seen).T, expected)
    assert head.predict(seen) == ["a", "b"]
    assert np.allclose(head.probabilities(seen)[1], [1 / 6, 5 / 6])


def test_ties_go_to_the_first_label_and_a_text_where_nothing_fired_is_unknown():
    head = Head("sae-count", ("b", "a"), {"d": np.array([0, 2])}, {"d": np.eye(2)})
    seen = features_of(d=[[1, 0, 1], [0, 0, 1], [0, 5, 0], [0, 0, 0]])
    assert head.predict(seen) == ["b", "a", None, None]
    assert head.probabilities(seen).tolist() == [[0.5, 0.5], [0, 1], [0, 0], [0, 0]]


def test_a_head_without_units_says_nothing():
    empty = Head("neuron-count", LABELS, {}, {})
    seen = features_of(d=[[1, 1]])
    assert empty.predict(seen) == [None]
    assert empty.evidence(seen) == [[]]


# --------------------------------------------------------------------------- evidence, files


def test_the_evidence_names_the_units_read_and_adds_up_to_the_lead_over_the_other_labels():
    counts = {"d": np.array([[3.0, 0, 0], [1, 1, 0]]), "e": np.array([[0.0, 6, 0]])}
    head = Head("sae-count", LABELS, {"d": np.array([4, 7]), "e": np.array([1])}, counts)
    row = np.zeros((1, 9))
    row[0, [0, 4, 7]] = [9, 2, 4]  # unit 0 is not read
    seen = features_of(d=row, e=[[0, 1]])
    assert head.scores(seen).tolist() == [[10, 10, 0]]
    assert head.predict(seen) == ["de"]
    # 4: 2 x (3 - 0), 7: 4 x (1 - 1/2); e:1 speaks for English and is left out.
    assert head.evidence(seen) == [
        [
            {"dictionary": "d", "unit": 4, "weight": 6.0},
            {"dictionary": "d", "unit": 7, "weight": 2.0},
        ]
    ]
    assert head.evidence(seen, n=1)[0] == head.evidence(seen)[0][:1]


@pytest.mark.parametrize("name", ["sae-min-max", "linear"])
def test_all_evidence_for_and_against_adds_up_to_the_scores(
    name, chosen, stats, features, tiny_corpus, texts
):
    of = [tiny_corpus.of[tiny_corpus.texts.index(text)] for text in texts[:-1]] + ["th"]
    some = Features(
        {d.id: features.counts[d.id] for d in SAES}, {d.id: features.sums[d.id] for d in SAES}
    )
    head = (
        linear_head(some, of, LABELS)
        if name == "linear"
        else min_max_head(chosen, stats.__getitem__)
    )
    scores = head.scores(some) - (head.intercept if len(head.intercept) else 0)
    for i, row in enumerate(head.evidence(some, n=10**6)):
        k = int(head.scores(some)[i].argmax())
        against = Head(head.name, LABELS, head.units, *negated(head), head.intercept, head.root)
        lead = scores[i, k] - (scores[i].sum() - scores[i, k]) / 2
        one = Features(
            {d: m[i] for d, m in some.counts.items()}, {d: m[i] for d, m in some.sums.items()}
        )
        opposed = sum(u["weight"] for part in contributions(against, one, k) for u in part)
        assert sum(u["weight"] for u in row) - opposed == pytest.approx(lead, abs=1e-3)


def negated(head):
    return {n: -w for n, w in head.counts.items()}, {n: -w for n, w in head.sums.items()}


def contributions(head, one, k):
    """What speaks against label k: the contributions of the negated head."""
    rows = root_counts(one.counts) if head.root else one.counts
    for name, units in head.units.items():
        sums = sp.csr_matrix(one.sums[name][:, units]) if name in head.sums else None
        yield head._contributions(name, sp.csr_matrix(rows[name][:, units]), sums, k)


@pytest.mark.parametrize(
    "name", ["sae-count", "sae-min-max", "neuron-count", "naive-bayes", "linear"]
)
def test_a_saved_head_predicts_the_same(
    tmp_path, name, chosen, chosen_neurons, stats, features, texts, tiny_corpus
):
    if name == "naive-bayes":
        head = naive_bayes_head(stats.__getitem__, [sae.id for sae in SAES], LABELS)
    elif name == "linear":
        of = [tiny_corpus.of[tiny_corpus.texts.index(text)] for text in texts[:-1]] + ["th"]
        head = linear_head(features, of, LABELS)
    else:
        selection = chosen_neurons if name == "neuron-count" else chosen
        head = (
            min_max_head(selection, stats.__getitem__)
            if name == "sae-min-max"
            else count_head(name, selection)
        )
    head.save(tmp_path / "head.safetensors")
    loaded = Head.load(tmp_path / "head.safetensors")
    assert loaded.name == name
    assert np.array_equal(loaded.scores(features), head.scores(features))
    assert loaded.predict(features) == head.predict(features)
    assert np.array_equal(loaded.probabilities(features), head.probabilities(features))
    assert loaded.evidence(features) == head.evidence(features)
    head.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "head.safetensors"
    ).read_bytes()


def test_a_file_that_is_no_head_is_a_user_error(tmp_path, collected):
    with pytest.raises(UserError, match="does not exist"):
        Head.load(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="holds no head"):
        Head.load(collected / "wide.safetensors")


# --------------------------------------------------------------------------- features


def test_the_bags_that_were_written_are_the_features_of_the_same_texts(collected, plan, tiny_lm):
    positions = sorted(plan.tokens)
    read = read_features(collected / "bags", {sae.id: sae.width for sae in SAES}, positions)
    made = featurize(tiny_lm, SAES, [plan.corpus.texts[i] for i in positions])
    for sae in SAES:
        assert (read.counts[sae.id] != made.counts[sae.id]).nnz == 0
        assert np.allclose(read.sums[sae.id].toarray(), made.sums[sae.id].toarray(), atol=1e-4)
        assert read.counts[sae.id].sum() > K * len(positions)


def test_bags_are_read_in_the_order_asked_for(collected, plan):
    positions = sorted(plan.tokens)[:20]
    widths = {sae.id: sae.width for sae in SAES}
    forward, backward = (
        read_features(collected / "bags", widths, p) for p in (positions, positions[::-1])
    )
    assert (forward.counts["wide"][::-1] != backward.counts["wide"]).nnz == 0


def test_missing_bags_are_a_user_error(tmp_path):
    with pytest.raises(UserError, match="holds no bags; collect them first"):
        read_features(tmp_path, {"wide": WIDTH}, [0])


def test_the_features_are_the_firing_tokens_and_the_sums_of_their_values(features, activations):
    for dictionary in (*SAES, *NEURONS):
        counts = np.stack([(row[dictionary.id] > 0).sum(0).numpy() for row in activations])
        sums = np.stack([row[dictionary.id].clamp(min=0).sum(0).numpy() for row in activations])
        assert np.array_equal(features.counts[dictionary.id].toarray(), counts)
        assert np.allclose(features.sums[dictionary.id].toarray(), sums, atol=1e-3)


def test_odd_texts_have_a_row_each(tiny_lm):
    odd = ["", " ", "\0", "lone \ud800", "</s>", "cat " * 5000, "cat"]
    made = featurize(tiny_lm, SAES[:1], odd)
    total = np.asarray(made.counts["wide"].sum(1)).ravel()
    assert len(made) == len(odd)
    assert total[0] == total[4] == 0
    assert total[5] > 50 * total[6] > 0


SILENT = [" ", "\u200b", "12345 67890", "?!", "😀", "❤️"]


def test_texts_without_a_letter_have_empty_rows_unless_labels_are_written_without(tiny_lm):
    for letters, rows in ((True, [0]), (False, [0, 3, 4, 5, 6])):
        made = featurize(tiny_lm, SAES[:1], ["cat", *SILENT], letters=letters)
        assert np.flatnonzero(made.counts["wide"].sum(1)).tolist() == rows


def test_a_selection_of_neurons_gives_their_columns_alone(tiny_lm, features, texts):
    picked = Identity("mlp_act@1", 48, units=torch.tensor([7, 3]))
    made = featurize(tiny_lm, [picked], texts)
    for kind in ("counts", "sums"):
        found, every = (getattr(f, kind)["mlp_act@1"].toarray() for f in (made, features))
        assert np.array_equal(found[:, [3, 7]], every[:, [3, 7]])
        assert not np.delete(found, [3, 7], axis=1).any()


# --------------------------------------------------------------------------- the linear head


def separable(labels, n=60):
    """Counts where each label has a unit of its own, amid noise."""
    draw = np.random.default_rng(0)
    of = [labels[i % len(labels)] for i in range(n)]
    rows = draw.poisson(1.0, (n, 12)).astype(np.float32)
    for i, label in enumerate(of):
        rows[i, labels.index(label)] += 6
    return features_of(d=rows[:, :6], e=rows[:, 6:]), of


@pytest.mark.parametrize("labels", [("b", "a"), ("c", "a", "b"), ("a", "b", "c", "d")])
def test_the_linear_head_learns_what_can_be_separated_whatever_the_order_of_the_labels(labels):
    seen, of = separable(list(labels))
    head = linear_head(seen, of, labels)
    assert head.predict(seen) == of
    assert head.labels == labels
    assert np.allclose(head.probabilities(seen).sum(1), 1)


def test_with_two_labels_the_probabilities_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    seen, of = separable(["b", "a"])
    x = np.hstack([m.toarray() for m in root_counts(seen.counts).values()])
    assert np.allclose((x**2).sum(1), 1, atol=1e-5)
    expected = (
        LogisticRegression(C=linear.C, max_iter=200, tol=1e-3).fit(x, of).predict_proba(x)
    )  # columns a, b
    assert np.allclose(
        linear_head(seen, of, ("b", "a")).probabilities(seen), expected[:, ::-1], atol=1e-2
    )


def test_a_head_of_too_many_weights_reads_the_units_that_tell_most(monkeypatch):
    labels = ("a", "b", "c")
    seen, of = separable(list(labels))
    monkeypatch.setattr(linear, "WEIGHTS", 3 * 3 + 2)  # three units for each of three labels
    head = linear_head(seen, of, labels)
    assert {name: units.tolist() for name, units in head.units.items()} == {"d": [0, 1, 2], "e": []}
    assert {name: weights.shape for name, weights in head.counts.items()} == {
        "d": (3, 3),
        "e": (0, 3),
    }
    assert head.predict(seen) == of
    assert head.evidence(seen)[0][0]["unit"] == 0


def test_the_copies_are_beginnings_and_capitals_and_none_says_nothing():
    texts, of = ["1234567890 1234567890 ja", "der Hund und die Katze", "น้ำ"], ["de", "de", "th"]
    copies, labels, weights = make_copies(texts, of)
    assert copies == [
        "der Hund und die Kat",
        "น้ำ",
        "1234567890 1234567890 JA",
        "DER HUND UND DIE KATZE",
        "DER HUND UND DIE KAT",
    ]
    assert labels == ["de", "th", "de", "de", "de"]
    assert weights.tolist() == [1, 1, 1, 1, 1, CAPITALS, CAPITALS, CAPITALS]
    assert make_copies(texts, of, letters=False)[0][0] == "1234567890 123456789"


def test_a_row_of_weight_nothing_is_not_learnt_from():
    seen, of = separable(["a", "b"])
    wrong = [*of, *("b" if label == "a" else "a" for label in of)]
    twice = Features.stack([seen, seen])
    weights = np.repeat([1.0, 0.0], len(of))
    plain, weighed = (
        linear_head(seen, of, ("a", "b")),
        linear_head(twice, wrong, ("a", "b"), weights=weights),
    )
    assert np.allclose(plain.scores(seen), weighed.scores(seen), atol=0.05)
    assert linear_head(twice, wrong, ("a", "b")).predict(seen) != of


def test_units_that_never_fire_tell_nothing(monkeypatch):
    labels = ("a", "b")
    seen, of = separable(list(labels))
    silent = features_of(d=np.zeros((len(of), 5)), e=seen.counts["d"].toarray())
    monkeypatch.setattr(linear, "WEIGHTS", 2 * 6)
    assert {
        name: units.tolist() for name, units in linear_head(silent, of, labels).units.items()
    } == {"d": [], "e": [0, 1, 2, 3, 4, 5]}


# --------------------------------------------------------------------------- scikit-learn

TEXTS = [f"the cat number {i} sat" for i in range(12)] + [f"น้ำ {i} แมว" for i in range(12)]
OF = ["en"] * 12 + ["th"] * 12


@pytest.mark.parametrize("head", ["linear", "naive-bayes", "sae-count", "sae-min-max"])
def test_the_identifier_fits_predicts_and_scores(tiny_lm, head):
    made = LanguageIdentifier(tiny_lm, SAES, head=head).fit(TEXTS, OF)
    assert list(made.classes_) == ["en", "th"]
    predicted = made.predict(TEXTS)
    assert predicted.shape == (24,)
    assert set(predicted) <= {"en", "th", None}
    assert made.score(TEXTS, OF) == np.mean([a == b for a, b in zip(predicted, OF, strict=True)])
    if head in ("linear", "naive-bayes"):
        assert made.score(TEXTS, OF) > 0.9
        rows = made.predict_proba(TEXTS)
        assert np.allclose(rows.sum(1), 1)
        assert [made.classes_[k] for k in rows.argmax(1)] == list(predicted)
        assert made.decision_function(TEXTS).shape == (24, 2)


@pytest.mark.parametrize("head", sae_heads())
def test_a_text_where_nothing_can_be_said_is_unknown_has_no_probabilities_and_counts_as_wrong(
    tiny_lm, head
):
    made = LanguageIdentifier(tiny_lm, SAES, head=head).fit(TEXTS, OF)
    assert made.predict(SILENT).tolist() == ["unknown"] * len(SILENT)
    assert not made.predict_proba(SILENT).any()
    assert "unknown" not in made.classes_
    assert made.set_params(unknown=None).predict(SILENT).tolist() == [None] * len(SILENT)
    if head in ("linear", "naive-bayes"):
        rows = made.predict_proba([*SILENT, "the cat"])
        assert np.allclose(rows.sum(1), [0] * len(SILENT) + [1])
        assert made.score([*SILENT[:1], "the cat"], ["en", "en"]) == 0.5


def test_the_metrics_of_scikit_learn_take_what_is_unknown(tiny_lm):
    made = LanguageIdentifier(tiny_lm, SAES, head="naive-bayes").fit(TEXTS, OF)
    texts, of = [*TEXTS, *SILENT], [*OF, *["en"] * len(SILENT)]
    predicted = made.predict(texts)
    assert confusion_matrix(of, predicted, labels=[*made.classes_, "unknown"])[0, 2] == len(SILENT)
    assert f1_score(of, predicted, average="macro", labels=made.classes_) < 1
    report = classification_report(of, predicted, output_dict=True, zero_division=0)
    assert report["unknown"]["support"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a score that fails and becomes nan
        search = GridSearchCV(made, {"seed": [0]}, cv=2, scoring="f1_micro").fit(texts, of)
    assert 0.5 < search.best_score_ < 1


def test_labels_that_are_written_without_letters_can_be_told_apart(tiny_lm):
    sums, smiles = (
        [f"{i} + {i} = {2 * i}" for i in range(20)],
        ["😀" * (1 + i % 5) for i in range(20)],
    )
    for head in ("linear", "naive-bayes"):
        made = LanguageIdentifier(tiny_lm, SAES, head=head).fit(
            sums + smiles, ["sum"] * 20 + ["smile"] * 20
        )
        assert made.predict(["7 + 7 = 14", "😀😀", " ", "\u200b"]).tolist() == [
            "sum",
            "smile",
            "unknown",
            "unknown",
        ]


def test_the_linear_head_knows_its_labels_in_capitals(tiny_lm):
    english = [
        f"the cat number {i} sat on the mat and the dog ran after it" for i in "abcdefghijklmnop"
    ]
    thai = [f"น้ำ {i} แมว" for i in "กขคงจฉชซ"] * 2
    german = [f"der Hund {i} und die Katze sind in dem Haus" for i in "abcdefghijklmnop"]
    made = LanguageIdentifier(tiny_lm, SAES).fit(
        english + german + thai, ["en"] * 16 + ["de"] * 16 + ["th"] * 16
    )
    assert made.score([text.upper() for text in english + german], ["en"] * 16 + ["de"] * 16) > 0.9


# --------------------------------------------------------------------------- pickles


@pytest.fixture
def stored(tmp_path, tiny_model_dir):
    """A model and two SAEs on disk."""
    from saefeat.models import load_model
    from saefeat.sae.store import load_saes, save_sae

    for sae in SAES:
        save_sae(sae, tmp_path / "saes" / sae.id)
    lm = load_model(tiny_model_dir, dtype="float32")
    return lm, load_saes(str(tmp_path / "saes"), lm), tmp_path


@pytest.mark.parametrize("objects", [True, False])
def test_a_pickle_holds_names_and_paths_and_predicts_the_same(stored, objects, monkeypatch):
    lm, saes, folder = stored
    monkeypatch.chdir(folder)
    given = (lm, [replace(saes[0], id="renamed"), saes[1]]) if objects else (lm.name, "saes")
    made = LanguageIdentifier(*given).fit(TEXTS, OF)
    joblib.dump(made, folder / "identifier.joblib")
    weights = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    heads = sum(w.nbytes for w in made.head_.counts.values())
    assert (folder / "identifier.joblib").stat().st_size < heads + 10_000 < weights
    assert made.predict_proba(TEXTS).shape == (24, 2)  # what was pickled still holds all
    monkeypatch.chdir("/")
    loaded = joblib.load(folder / "identifier.joblib")
    assert loaded.model == lm.name and loaded.saes == [
        str(folder / "saes" / sae.id) for sae in saes
    ]
    assert not hasattr(loaded, "lm_")
    again = pickle.loads(pickle.dumps(loaded))  # before it was used
    for one in (loaded, again):
        assert np.array_equal(one.predict_proba(TEXTS), made.predict_proba(TEXTS))
        assert one.lm_.dtype == made.lm_.dtype == (lm.dtype if objects else one.lm_.dtype)
        assert [sae.id for sae in one.saes_] == [sae.id for sae in made.saes_]
    assert pickle.loads(pickle.dumps(loaded)).fit(TEXTS, OF).score(TEXTS, OF) > 0.9


@pytest.mark.parametrize("head", ["linear", "naive-bayes", "sae-min-max"])
def test_a_saved_identifier_finds_its_model_and_saes_by_their_paths(stored, head, monkeypatch):
    lm, saes, folder = stored
    monkeypatch.chdir(folder)
    renamed = [replace(saes[0], id="renamed"), saes[1]]
    made = LanguageIdentifier(lm, renamed, head=head, seed=3, unknown=None).fit(TEXTS, OF)
    made.save("one.safetensors")
    monkeypatch.chdir("/")
    loaded = LanguageIdentifier.load(folder / "one.safetensors")
    assert loaded.get_params() == {
        "head": head,
        "model": lm.name,
        "saes": [str(folder / "saes" / sae.id) for sae in saes],
        "seed": 3,
        "unknown": None,
    }
    assert [sae.id for sae in loaded.saes_] == ["renamed", saes[1].id]
    assert list(loaded.classes_) == list(made.classes_)
    assert loaded.predict([*TEXTS, "123"]).tolist() == made.predict([*TEXTS, "123"]).tolist()
    assert np.array_equal(loaded.predict_proba(TEXTS), made.predict_proba(TEXTS))
    loaded.save(folder / "two.safetensors")
    one, two = (folder / f"{name}.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_saved_identifier_takes_its_model_and_saes_again(tiny_lm, tmp_path, make_lm):
    path = tmp_path / "identifier.safetensors"
    made = LanguageIdentifier(tiny_lm, SAES).fit(TEXTS, OF)
    made.save(path)  # neither the model nor the SAEs are on disk
    loaded = LanguageIdentifier.load(path, model=tiny_lm, saes=SAES)
    assert np.array_equal(loaded.predict_proba(TEXTS), made.predict_proba(TEXTS))
    with pytest.raises(UserError, match=r"the SAE wide of .* has no recorded path; give the SAEs"):
        LanguageIdentifier.load(path, model=tiny_lm)
    with pytest.raises(UserError, match="the model tiny-llama-0"):
        LanguageIdentifier.load(path, saes=SAES)
    for options, changed in (
        ({"model": make_lm("llama", 1), "saes": SAES}, "tiny-llama-1"),
        ({"model": tiny_lm, "saes": [random_sae(seed=7), SAES[1]]}, "wide"),
        ({"model": tiny_lm, "saes": SAES[:1]}, "other"),
    ):
        with pytest.raises(UserError, match=f"{changed} has changed since the identifier was"):
            LanguageIdentifier.load(path, **options)


def test_a_file_that_is_no_identifier_is_a_user_error(tiny_lm, tmp_path):
    path = tmp_path / "head.safetensors"
    made = LanguageIdentifier(tiny_lm, SAES).fit(TEXTS, OF)
    made.head_.save(path)
    with pytest.raises(UserError, match=r"head\.safetensors holds the head of a run"):
        LanguageIdentifier.load(path)
    made.save(path)
    tensors, header = load_tensors(path)
    for part in ("model", "saes", "seed"):
        rest = {k: v for k, v in header["identifier"].items() if k != part}
        save_tensors(path, tensors, {**header, "identifier": rest})
        with pytest.raises(UserError, match=rf"head\.safetensors .*identifier\.{part}"):
            LanguageIdentifier.load(path, model=tiny_lm, saes=SAES)
    with pytest.raises(NotFittedError):
        LanguageIdentifier(tiny_lm, SAES).save(path)


def test_an_identifier_on_a_real_model_is_saved_and_loaded(tmp_path):
    from saefeat.sae.store import save_sae

    rows = torch.randn(256, 576, generator=torch.Generator().manual_seed(0))
    sae = SAE("few", "resid_post@3", rows.t().contiguous(), torch.zeros(256), rows, rows[0] * 0, 8)
    save_sae(sae, tmp_path / "few")
    model = "embedded:smollm2-135m"
    made = LanguageIdentifier(model, str(tmp_path / "few")).fit(TEXTS, OF)
    made.save(tmp_path / "identifier.safetensors")
    loaded = LanguageIdentifier.load(tmp_path / "identifier.safetensors")
    assert loaded.model == model and loaded.lm_ is not made.lm_
    texts = ["the dog sat", "แมว น้ำ", "123"]
    assert loaded.predict(texts).tolist() == made.predict(texts).tolist() == ["en", "th", "unknown"]
    assert np.array_equal(loaded.predict_proba(texts), made.predict_proba(texts))


def test_what_has_changed_since_is_not_used(stored):
    from saefeat.sae.store import save_sae

    lm, saes, folder = stored
    made = pickle.dumps(LanguageIdentifier(lm, saes, head="naive-bayes").fit(TEXTS, OF))
    save_sae(random_sae(seed=7), folder / "saes" / "wide")
    loaded = pickle.loads(made)
    for _ in range(2):
        with pytest.raises(
            UserError, match="wide has changed since the identifier was fitted; fit it again"
        ):
            loaded.predict(TEXTS)
    assert loaded.fit(TEXTS, OF).predict(TEXTS[:1]) == ["en"]


def test_saes_made_in_memory_are_held_whole_and_a_model_must_have_its_name(tiny_lm, stored):
    lm = stored[0]
    made = LanguageIdentifier(lm, SAES).fit(TEXTS, OF)
    loaded = pickle.loads(pickle.dumps(made))
    assert np.array_equal(loaded.predict_proba(TEXTS), made.predict_proba(TEXTS))
    nameless = pickle.loads(
        pickle.dumps(LanguageIdentifier(tiny_lm, SAES, head="naive-bayes").fit(TEXTS, OF))
    )
    with pytest.raises(UserError, match="the model tiny-llama-0"):
        nameless.predict(TEXTS)
    assert nameless.set_params(model=tiny_lm).predict(TEXTS[:1]) == ["en"]  # or it is given again


def test_an_identifier_that_is_not_fitted_can_be_pickled(stored):
    lm, saes, folder = stored
    loaded = pickle.loads(pickle.dumps(LanguageIdentifier(lm, saes, seed=3)))
    assert loaded.get_params() == {
        "head": "linear",
        "model": lm.name,
        "seed": 3,
        "unknown": "unknown",
        "saes": [str(folder / "saes" / sae.id) for sae in saes],
    }
    assert loaded.fit(TEXTS, OF).score(TEXTS, OF) > 0.9


@pytest.mark.parametrize("head", ["linear", "naive-bayes", "sae-count"])
def test_fitting_survives_blank_texts_nul_and_lone_surrogates(tiny_lm, head):
    odd = [*TEXTS, "", "\ud800", "a\0b", "</s>"]
    made = LanguageIdentifier(tiny_lm, SAES, head=head).fit(odd, [*OF, "en", "en", "th", "th"])
    assert len(made.predict(odd)) == len(odd)


def test_naive_bayes_of_the_identifier_is_read_from_the_statistics_of_its_texts(
    tiny_lm, features, stats, plan
):
    positions = sorted(plan.tokens)
    of = [plan.corpus.of[i] for i in positions]
    made = LanguageIdentifier(tiny_lm, SAES, head="naive-bayes").fit(
        [plan.corpus.texts[i] for i in positions], of
    )
    expected = naive_bayes_head(stats.__getitem__, [sae.id for sae in SAES], LABELS)
    assert np.array_equal(made.head_.scores(features), expected.scores(features))


def test_the_identifier_can_be_cloned_and_searched_over(tiny_lm):
    made = LanguageIdentifier(tiny_lm, [SAES[0]], head="naive-bayes", seed=3)
    assert made.get_params() == {
        "model": tiny_lm,
        "saes": [SAES[0]],
        "head": "naive-bayes",
        "seed": 3,
        "unknown": "unknown",
    }
    assert clone(made).get_params()["seed"] == 3
    assert not hasattr(clone(made.fit(TEXTS, OF)), "head_")
    search = GridSearchCV(made, {"head": ["naive-bayes", "linear"]}, cv=2).fit(TEXTS, OF)
    assert search.best_score_ > 0.8
    assert set(search.predict(["the cat", "แมว"])) <= {"en", "th"}


def test_an_identifier_that_is_not_fitted_is_refused(tiny_lm):
    with pytest.raises(NotFittedError):
        LanguageIdentifier(tiny_lm, SAES).predict(["a"])


@pytest.mark.parametrize(
    ("options", "of", "message"),
    [
        ({"head": "neuron"}, OF, "unknown head neuron; choose from sae-count, "),
        ({"saes": []}, OF, "give at least one SAE"),
        ({"saes": ["/nowhere"]}, OF, "/nowhere does not exist"),
        ({}, ["en"] * 24, "at least two labels"),
        ({}, OF[:-1], "there are 24 texts but 23 labels"),
        ({}, [*OF[:-1], None], "label 23 .* is None"),
        ({}, [*OF[:-1], float("nan")], "label 23 .* is nan"),
        ({}, [*OF[:-1], "unknown"], "a label is 'unknown'"),
        ({"unknown": "en"}, OF, "a label is 'en'"),
    ],
)
def test_bad_arguments_of_the_identifier_are_user_errors(tiny_lm, options, of, message):
    with pytest.raises(UserError, match=message):
        LanguageIdentifier(**{"model": tiny_lm, "saes": SAES, **options}).fit(TEXTS, of)


def test_a_label_with_blank_texts_only_is_refused(tiny_lm):
    with pytest.raises(UserError, match="all texts of the label fr are blank"):
        LanguageIdentifier(tiny_lm, SAES).fit([*TEXTS, "", " \u200b"], [*OF, "fr", "fr"])


def test_saes_and_their_sources_may_be_given_together(tiny_lm, tmp_path):
    from saefeat.sae.store import save_sae

    save_sae(SAES[1], tmp_path / "other")
    for given in ([SAES[0], str(tmp_path / "other")], [tmp_path / "other", SAES[0]]):
        made = LanguageIdentifier(tiny_lm, given, head="naive-bayes").fit(TEXTS, OF)
        assert [sae.id for sae in made.saes_] == [getattr(one, "id", "other") for one in given]
    assert [sae.id for sae in LanguageIdentifier(tiny_lm, SAES[0]).fit(TEXTS, OF).saes_] == ["wide"]


def test_saes_that_are_given_are_checked(tiny_lm, make_lm, tmp_path):
    from saefeat.sae.store import save_sae

    def say(lm, *given):
        with pytest.raises(UserError) as told:
            LanguageIdentifier(lm, list(given)).fit(TEXTS, OF)
        return str(told.value)

    save_sae(SAES[0], tmp_path / "wide")
    assert (
        say(tiny_lm, SAES[0], str(tmp_path / "wide"))
        == "two SAEs are named wide; rename one of the directories"
    )
    assert "a value of type Identity is neither an SAE nor a source" in say(
        tiny_lm, SAES[0], NEURONS[0]
    )
    of_other = replace(
        SAES[0], record={"model": {"name": "tiny-llama-0", "fingerprint": tiny_lm.fingerprint}}
    )
    save_sae(replace(of_other, id="of_other"), tmp_path / "of_other")
    other_lm = make_lm("llama", 1)
    assert "was trained on tiny-llama-0, not on tiny-llama-1" in say(
        other_lm, str(tmp_path / "of_other")
    )
    LanguageIdentifier(other_lm, [of_other]).fit(TEXTS, OF)  # whoever loaded it has chosen
    narrow = replace(SAES[0], site="mlp_act@0")
    assert "reads vectors of 32, but mlp_act@0 of tiny-llama-0 has 48" in say(tiny_lm, narrow)


def test_saes_may_be_given_by_directory(tiny_lm, tmp_path):
    from saefeat.sae.store import save_sae

    save_sae(SAES[0], tmp_path / "wide")
    by_path = LanguageIdentifier(tiny_lm, str(tmp_path), head="naive-bayes").fit(TEXTS, OF)
    by_hand = LanguageIdentifier(tiny_lm, SAES[:1], head="naive-bayes").fit(TEXTS, OF)
    assert np.array_equal(by_path.predict_proba(TEXTS), by_hand.predict_proba(TEXTS))


def test_a_selection_of_another_order_of_labels_keeps_its_columns(stats):
    order = ("th", "de", "en")
    parts = METHODS["sae-lape"].rank([stats["wide"]], example_rate=0.3, high_frequency_rate=0.05)
    turned = Selection(parts.table, {**parts.header, "labels": list(order)})
    assert count_head("sae-count", turned).labels == order


def test_the_identifier_takes_tables_and_refuses_one_string(tiny_lm):
    import pandas as pd
    from datasets import Dataset

    columns = {"text": TEXTS, "label": OF}
    by_list = LanguageIdentifier(tiny_lm, SAES, head="naive-bayes").fit(TEXTS, OF)
    expected = by_list.predict_proba(TEXTS)
    for table in (
        columns,
        pd.DataFrame(columns),
        Dataset.from_dict(columns),
        list(zip(TEXTS, OF, strict=True)),
    ):
        made = LanguageIdentifier(tiny_lm, SAES, head="naive-bayes").fit(table)
        assert np.array_equal(made.predict_proba(TEXTS), expected)
        assert made.score(table) == by_list.score(TEXTS, OF)
    for table in (columns, pd.Series(TEXTS), Dataset.from_dict(columns)["text"], iter(TEXTS)):
        assert np.array_equal(by_list.decision_function(table), by_list.decision_function(TEXTS))
    one = "one string; write"
    for method in (
        by_list.predict,
        by_list.predict_proba,
        by_list.decision_function,
        by_list.score,
    ):
        with pytest.raises(UserError, match=r"one string|is not labelled text"):
            method("the cat")
    with pytest.raises(UserError, match=one):
        by_list.score("the cat", ["en"])
    for texts, labels in (("abc", "dee"), (TEXTS, "en"), ("abc", list("dee"))):
        with pytest.raises(UserError, match=one):
            LanguageIdentifier(tiny_lm, SAES).fit(texts, labels)
    with pytest.raises(UserError, match="24 texts but 23 labels"):
        LanguageIdentifier(tiny_lm, SAES).fit(TEXTS, OF[1:])


# --------------------------------------------------------------------------- the registry


def test_every_head_says_what_it_reads_and_what_its_fit_takes():
    size = FitSize(texts=100, tokens=3000, tokens_per_text=31.0, width=512, labels=3)
    twice = replace(size, texts=200, tokens=6000, width=1024)
    rows = len(make_copies(["a sentence of some length"] * 100, ["en"] * 100)[0]) + 100
    least_bytes = {"naive-bayes": 8 * 512 * 3, "linear": 4 * rows * 512}  # weights; dense rows
    least_tokens = {"linear": 3000}  # the whole texts in capitals
    for name, kind in HEADS.items():
        read = [kind.reads(each.identity) for each in (SAES[0], NEURONS[0])]
        assert kind.title and sum(read) == 1
        for takes, least in ((kind.fit_bytes, least_bytes), (kind.fit_tokens, least_tokens)):
            if name in least:
                assert least[name] <= takes(size) < takes(twice)
            else:  # of what is loaded anyway
                assert takes(size) == takes(twice) == 0
    wide = [HEADS["linear"].fit_bytes(replace(size, width=10**power)) for power in (7, 8, 9)]
    assert wide[0] == wide[1] == wide[2]  # the number of weights is limited
    assert sae_heads() == ["sae-count", "sae-min-max", "naive-bayes", "linear"]
    with pytest.raises(UserError, match="unknown head 'x'; choose from sae-count, "):
        HEADS["x"]
