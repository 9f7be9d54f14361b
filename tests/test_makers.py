"""Published ways to steer: what each builds from a run's statistics, and where it cannot work."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import close
from hypothesis import given
from hypothesis import strategies as st

from saefeat.codes import Codes
from saefeat.collection import collect as collect_stats
from saefeat.config import CONSTANT, STEERING_METHODS, Decoding
from saefeat.corpora.random_tokens import random_plan
from saefeat.generation import encode_prompts, generate, perplexities, text_losses
from saefeat.generation import texts_of as texts
from saefeat.hooks import capture
from saefeat.io import UserError
from saefeat.report.steering import steering_view
from saefeat.run import open_run
from saefeat.run.budget import LossBudget, at_full_strength
from saefeat.run.continuation import continue_prompts
from saefeat.run.grids import demo_grid, full_grid
from saefeat.run.prompting import instruct
from saefeat.run.recipes import load_recipe
from saefeat.run.steer import BEGINNING, Bench
from saefeat.run.sweep import sweep
from saefeat.rundir import RunDir
from saefeat.statistics.files import CONTROL
from saefeat.steering import NoUnits, Schedule, SteeringRecipe, apply
from saefeat.steering.edits import LOGITS
from saefeat.steering.makers import MAKERS
from saefeat.steering.makers.features import exclusive_units
from saefeat.steering.recipes import NONE, sites_read, with_controls
from saefeat.steering.twins import random_units

SITE, LAST = "resid_post@0", "resid_post@1"
ROWS = [[0, 40, 41], [0, 50, 51, 52, 53, 54, 55], [0, 60, 61, 62, 63]]
PROMPTS = ["The old man", "Water is"]
DECODING = Decoding(max_new_tokens=8)

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(scope="module")
def module_bench(tiny_run, tmp_path_factory):
    """A bench on a copy of the run, with the statistics of every site that a recipe reads."""
    out = shutil.copytree(tiny_run, tmp_path_factory.mktemp("makers") / "run")
    bench = Bench(open_run(out), "en", DECODING)
    bench.collect_missing(full_grid(bench.opened.lm, [[SITE]]))
    return bench


@pytest.fixture
def bench(module_bench):
    return module_bench


def recipe(method, edit=None, sites=(SITE,), schedule=CONSTANT, **parameters):
    known = STEERING_METHODS[method]
    chosen = {**known.parameters, **parameters}
    return SteeringRecipe(method, edit or known.edits[0], sites, schedule, 1.0, chosen)


def means(bench, site, *labels):
    stats = bench.builder.collected.read(site)
    return [stats.mean()[stats.labels.index(label)] for label in labels]


def vectors(n=40, seed=0):
    return torch.randn(1, n, 32, generator=torch.Generator().manual_seed(seed))


def change_of(bench, chosen, label="de", site=SITE):
    """The one change of a recipe at a site, as a function of vectors and a strength."""
    changes, count = bench.builder.build(chosen, label)
    (change,) = changes[site]
    return (lambda x, strength=1.0: change(x, torch.full((*x.shape[:2], 1), strength))), count


def texts_of(bench, site, label):
    """Vectors at a site of counted tokens of some training texts of a label, by hand."""
    opened, found = bench.opened, []
    path = opened.lm.site(site).path
    positions = [i for i in opened.plan.chosen.tolist() if opened.corpus.of[i] == label]
    with capture(opened.lm.model, (path,)) as captured:
        for i in positions:
            ids = torch.tensor([[0, *opened.plan.tokens[i]]])
            found.append(captured.run(opened.lm.model, input_ids=ids)[path][0, 1:])
    return torch.cat(found)


# --------------------------------------------------------------------------- what they build


def test_the_clamp_takes_the_source_to_the_projection_of_the_labels_mean(bench):
    de, en = means(bench, SITE, "de", "en")
    axis = ((de - en) / (de - en).norm()).float()
    change, _ = change_of(bench, recipe("clamp"))
    for strength in (1.0, 0.3, -1.0):
        target = float(en @ axis.double()) + strength * float((de - en).norm())
        close(change(vectors(), strength) @ axis, torch.full((1, 40), target), 1e-4)
    one_sided, _ = change_of(bench, recipe("one-sided"))
    x, target = vectors(), float(de @ axis.double())
    wanted = torch.where((x @ axis < target)[..., None], change(x), x)
    close(one_sided(x), wanted, 1e-5)


def test_the_boundary_is_that_of_a_logistic_regression(bench):
    change, _ = change_of(bench, recipe("one-sided", "clamp, boundary"), "th")
    far, near = (texts_of(bench, SITE, label) for label in ("en", "th"))
    moved = change(far[None])[0]
    axis = (moved - far)[(moved - far).norm(dim=1).argmax()]
    axis = axis / axis.norm()
    at = (moved @ axis).min()
    # Tokens beyond the boundary stay, all others come to lie on it; it separates the labels.
    close(moved @ axis, torch.maximum(far @ axis, at.expand(len(far))), 1e-4)
    accuracy = ((far @ axis < at).float().mean() + (near @ axis > at).float().mean()) / 2
    difference = near.mean(0) - far.mean(0)
    threshold = (near.mean(0) + far.mean(0)) @ difference / 2
    simple = (far @ difference < threshold).float().mean()
    simple = (simple + (near @ difference > threshold).float().mean()) / 2
    assert accuracy > 0.6 and accuracy > simple - 0.05


def test_ablation_and_gate_read_the_sources_most_monolingual_features(bench):
    (sae,) = bench.builder.saes_at(SITE)
    stats = bench.builder.collected.stats(sae)
    mean = stats.mean().numpy()
    row = stats.labels.index("en")
    others = [k for k in range(3) if k != row]
    units = np.argsort(-(mean[row] - mean[others].mean(0)), kind="stable")[:3].tolist()
    directions = sae.W_dec[units] / sae.W_dec[units].norm(dim=1, keepdim=True)
    x = vectors()
    change, count = change_of(bench, recipe("ablation", top=3))
    close(change(x), x - (x @ directions.T) @ directions, 1e-5)
    assert count == 3
    de, en = means(bench, SITE, "de", "en")
    gated, count = change_of(bench, recipe("gated", top=3))
    fires = (sae.encode(x[0]).dense()[:, units] > 0).any(1)
    assert count == 3 and 0 < fires.sum() < len(fires)
    close(gated(x, 2.0)[0], x[0] + 2 * (de - en).float() * fires[:, None], 1e-5)
    slanted, _ = change_of(bench, recipe("ablation", "erase, orthogonal", top=3))
    close(slanted(x) @ directions.T, torch.zeros(1, 40, 3), 1e-4)


@pytest.mark.parametrize("edit", STEERING_METHODS["codes"].edits)
def test_steering_in_the_space_of_codes_keeps_the_error(bench, edit):
    """The vector is dec(z + a v) + (x - dec(z)) for any x, with a of the published formula."""
    (sae,) = bench.builder.saes_at(SITE)
    stats = bench.builder.collected.stats(sae)
    rows = {label: k for k, label in enumerate(stats.labels)}
    total, tokens = stats.total.double() / 2**20, stats.tokens
    if edit == "add, from source":
        other = total[rows["en"]] / tokens[rows["en"]]
    else:
        both = [rows["en"], rows["th"]]
        other = total[both].sum(0) / tokens[both].sum()
    v = total[rows["de"]] / tokens[rows["de"]] - other
    v = (v / v.norm()).float()
    if edit == "add, block before":
        with pytest.raises(NoUnits):  # no block stands before the first
            bench.builder.build(recipe("codes", edit), "de")
        return
    de, en = means(bench, SITE, "de", "en")
    alpha = float((de - en).norm() / (v @ sae.W_dec).norm())
    x = vectors()
    z = sae.encode(x[0]).dense()
    plain = sae.decode(Codes(z, None, sae.width))
    wanted = (z + 0.8 * alpha * v) @ sae.W_dec + sae.b_dec + (x[0] - plain)
    change, _ = change_of(bench, recipe("codes", edit))
    close(change(x, 0.8)[0], wanted, 1e-4)


def test_the_block_before_gets_the_vector_of_its_successor(bench, monkeypatch):
    (sae,) = bench.builder.saes_at(SITE)
    stats = bench.builder.collected.stats(sae)
    later = replace(sae, site=LAST)
    monkeypatch.setattr(bench.builder, "saes", [later])
    monkeypatch.setattr(type(bench.builder.collected), "stats", lambda *_: stats)
    here = bench.builder.build(recipe("codes", sites=(LAST,)), "de")[0]
    before = bench.builder.build(recipe("codes", "add, block before", (LAST,)), "de")[0]
    assert here.keys() == {LAST} and before.keys() == {SITE}
    one = torch.ones(1, 40, 1)
    assert torch.equal(here[LAST][0](vectors(), one), before[SITE][0](vectors(), one))


@pytest.mark.parametrize("beta", [1, 0.4])
@pytest.mark.parametrize("edit", STEERING_METHODS["recover"].edits)
def test_recover_takes_a_step_of_kept_norm_at_every_layer(bench, edit, beta):
    chosen = recipe("recover", edit, (SITE, LAST), beta=beta)
    changes, _ = bench.builder.build(chosen, "de")
    assert changes.keys() == {SITE, LAST}
    for site in (SITE, LAST):
        de, en, th = means(bench, site, "de", "en", "th")
        centre = (de + en + th) / 3
        v = (de - centre) - beta * (en - centre)
        h = vectors()
        length = {"step": (de - en).norm(), "step, absolute": 1.0}.get(edit)
        size = h.norm(dim=-1, keepdim=True) if length is None else length
        moved = h + 0.3 * size * (v / v.norm())
        wanted = (moved * h.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)).float()
        close(change_of(bench, chosen, site=site)[0](h, 0.3), wanted, 1e-5)


@pytest.mark.parametrize(
    ("edit", "more"),
    [
        ("clamp", {}),
        ("clamp", {"layer": 1}),
        ("clamp, monolingual", {"layer": 1}),
        ("clamp, monolingual", {"anchor": 1}),
    ],
)
def test_overwriting_sets_the_coordinates_that_differ_most(bench, edit, more):
    read = LAST if "layer" in more else SITE
    chosen = recipe("overwrite", edit, top=5, outlier_factor=4, **more)
    de, en = means(bench, read, "de", "en")
    if edit != "clamp":
        (en,) = means(bench, SITE if "layer" in more else LAST, "de")  # of the anchor
    stats = bench.builder.collected.read(read)
    every = (stats.total.double() / 2**20).sum(0) / stats.tokens.sum()
    difference = (de - en).abs()
    difference[every.abs() > 4 * every.abs().median()] = 0
    units = difference.argsort(descending=True)[:5]
    x = vectors()
    wanted = x.clone()
    wanted[..., units] = (0.4 * de[units]).float()
    change, count = change_of(bench, chosen)
    close(change(x, 0.4), wanted, 1e-6)
    assert count == 5
    every_one, _ = change_of(bench, recipe("overwrite", edit, top=5, outlier_factor=1e9, **more))
    if edit == "clamp":
        assert (every_one(x, 0.4) != x).any(-1).all()


def test_overwriting_needs_means_of_the_same_coordinates(bench):
    neurons = recipe("overwrite", sites=("mlp_act@0",), layer=1)
    bench.collect_missing([neurons])
    with pytest.raises(NoUnits, match="resid_post@1 has other coordinates; choose other sites"):
        bench.builder.build(neurons, "de")
    assert sites_read(recipe("overwrite", layer=1, anchor=0)) == [SITE, LAST, SITE]


@pytest.mark.parametrize("edit", STEERING_METHODS["pca"].edits)
def test_the_stretch_is_along_the_first_principal_component(bench, edit):
    chosen = recipe("pca", edit, (LAST,))
    try:
        change, _ = change_of(bench, chosen, "th", LAST)
    except NoUnits as error:
        pytest.fail(str(error))
    labels = ("en", "th") if "pair" in edit else ("de", "en", "th")
    # The sample has every token of this small plan, up to 1,000 of each label.
    limit = bench.builder.collected.read(LAST).header["dictionary"].get("max_norm")
    sample = bench.builder.evidence.sample(LAST, limit)
    x = sample.take(labels).double().numpy()
    centre = x.mean(0)
    axis = np.linalg.svd(x - centre, full_matrices=False)[2][0]
    th, en = (mean.numpy() for mean in means(bench, LAST, "th", "en"))
    of_target, of_source = ((mean - centre) @ axis for mean in (th, en))
    a, h = of_target / of_source - 1, vectors().double().numpy()
    part = ((h - centre) @ axis)[..., None]
    if edit.endswith("source side"):
        part = part * (np.sign(part) == np.sign(of_source))
    close(change(vectors()).double(), torch.from_numpy(h + a * part * axis), 1e-3)


def test_samples_have_tokens_of_every_label_without_outliers(bench):
    sample = bench.builder.evidence.sample(SITE, None)
    for label in ("de", "en", "th"):
        found, wanted = sample.take([label]), texts_of(bench, SITE, label)
        rows = {tuple(row) for row in wanted.mul(1e3).round().tolist()}
        hit = [tuple(row) in rows for row in found.mul(1e3).round().tolist()]
        assert len(found) >= min(1000, len(wanted)) and np.mean(hit) > 0.9
    limit = float(sample.x.norm(dim=1).median())
    assert 0 < len(bench.builder.evidence.sample(SITE, limit).x) < len(sample.x)


def test_langfir_adds_few_features_of_the_label_alone(bench):
    (sae,) = bench.builder.saes_at(SITE)
    stats = bench.builder.collected.stats(sae)
    chosen = recipe("langfir", top=2, example_rate=0.05, other_rate=0.3)
    row, others = stats.labels.index("th"), [0, 1]
    assert stats.labels == ("de", "en", "th")
    active = stats.fired_examples[row] / stats.examples[row]
    elsewhere = stats.fired[others].sum(0) / stats.tokens[others].sum()
    found = [u for u in range(sae.width) if active[u] >= 0.05 and elsewhere[u] <= 0.3]
    units = sorted(found, key=lambda u: (-float(active[u]), u))[:2]
    th, en = (stats.mean()[k] for k in (2, 1))
    v = ((th - en)[units][:, None] * sae.W_dec[units]).sum(0)
    a, b = means(bench, SITE, "th", "en")
    change, count = change_of(bench, chosen, "th")
    close(change(torch.zeros(1, 1, 32))[0, 0], (v / v.norm() * (a - b).norm()).float(), 1e-4)
    assert count == 2


def test_langfir_leaves_out_features_of_random_tokens_where_they_were_collected(run_copy):
    opened = open_run(run_copy)
    (sae,) = [sae for sae in opened.saes if sae.site == SITE]
    stats = RunDir(run_copy).load_stats(sae.id)
    rates = {"top": 2, "example_rate": 0.05, "other_rate": 0.3}
    chosen, row = recipe("langfir", **rates, random_rate=0.2), stats.labels.index("th")
    found = exclusive_units(stats, "th", **rates | {"top": 64})
    assert Bench(opened, "en", DECODING).builder.build(chosen, "th")[1] == 2 < len(found)
    assert RunDir(run_copy).load_control(sae.id) is None
    collect_stats(
        opened.lm, random_plan(opened.lm, opened.plan, 20), [sae], run_copy / "stats" / CONTROL
    )
    control = RunDir(run_copy).load_control(sae.id)
    quiet = [u for u in found if control.fired_examples[0, u] / control.examples[0] < 0.2]
    assert exclusive_units(stats, "th", control, **rates, random_rate=0.2) == quiet[:2]
    assert quiet[:2] != found[:2], "the filter has nothing to do"
    bench = Bench(opened, "en", DECODING)
    directions = sae.W_dec[quiet[:2]].double()
    mean = stats.mean()
    v = ((mean[row] - mean[stats.labels.index("en")])[quiet[:2], None] * directions).sum(0)
    change, count = change_of(bench, chosen, "th")
    moved = change(torch.zeros(1, 1, 32))[0, 0]
    close(moved / moved.norm(), (v / v.norm()).float(), 1e-4)
    assert count == len(quiet[:2])


# --------------------------------------------------------------------------- tokens


def test_own_tokens_and_log_odds_are_those_of_plain_counts(bench):
    opened, evidence = bench.opened, bench.builder.evidence
    labels, n = opened.corpus.labels, evidence.vocabulary
    counts = np.zeros((len(labels), n))
    for i, ids in opened.plan.tokens.items():
        for token in ids:
            counts[labels.index(opened.corpus.of[i]), token] += token > 2
    assert torch.equal(evidence.counts, torch.from_numpy(counts).long())
    p = (counts + 1) / (counts.sum(1, keepdims=True) + n)
    th = labels.index("th")
    others = [k for k in range(len(labels)) if k != th]
    own = (counts[th] > 0) & (p[th] >= p.max(0))
    assert evidence.own_tokens("th").tolist() == own.tolist() and 0 < own.sum() < n
    odds = np.log(p[th]) - np.log(p[others].mean(0))
    close(evidence.log_odds("th").double(), torch.from_numpy(odds), 1e-5)
    boost, count = change_of(bench, recipe("boost", sites=(LOGITS,)), "th", LOGITS)
    raised = own | evidence.neutral_tokens.numpy()
    x = torch.randn(1, 1, n, generator=torch.Generator().manual_seed(0))
    close(boost(x, 0.5), x + 2.5 * torch.from_numpy(raised))
    assert count == raised.sum()
    adaptive, _ = change_of(bench, recipe("boost-adaptive", sites=(LOGITS,)), "th", LOGITS)
    sure = x.clone()
    sure[..., 7] = 30
    assert torch.equal(adaptive(sure), sure) and torch.equal(adaptive(x), boost(x))
    table, _ = change_of(bench, recipe("log-odds", sites=(LOGITS,)), "th", LOGITS)
    close(table(x, 2.0), x + 2 * torch.from_numpy(odds).float(), 1e-5)


def test_neutral_tokens_have_no_letters(bench):
    lm = bench.opened.lm
    neutral = bench.builder.evidence.neutral_tokens
    assert neutral[[0, 1, 2]].all()  # special, among them the end of text
    for text in (" ", ".", "7", "\n", "("):
        assert neutral[lm.tokenizer(text, add_special_tokens=False)["input_ids"]].all()
    for text in ("a", "Z", "the"):
        assert not neutral[lm.tokenizer(text, add_special_tokens=False)["input_ids"]].any()
    part = lm.tokenizer("ä", add_special_tokens=False)["input_ids"]  # bytes of a letter
    assert len(part) == 2 and not neutral[part].any()


def test_output_scores_are_those_of_one_amplified_feature_at_a_time(bench):
    (sae,) = bench.builder.saes_at(SITE)
    lm, units = bench.opened.lm, [3, 17, 40]
    ids = torch.tensor([lm.prefix + lm.tokenize(["From my experience,"], 32)[0]])
    norm, weight = lm.model.model.norm, lm.unembedding()
    wanted, mass = [], []
    tokens = bench.builder.evidence.own_tokens("th")
    for unit in units:
        best = (norm(sae.W_dec[unit]) @ weight.T).topk(20).indices

        def edit(_m, _i, out, unit=unit):
            x = out[0] if isinstance(out, tuple) else out
            z = sae.encode(x[0, -1:]).dense()[0]
            after = z.clone()
            after[unit] += 10 * z.max()
            x[0, -1] += (after - z) @ sae.W_dec

        handle = lm.model.model.layers[0].register_forward_hook(edit)
        try:
            p = lm.model(input_ids=ids).logits[0, -1].softmax(-1)
        finally:
            handle.remove()
        order = p.argsort(descending=True).tolist()
        rank = min(order.index(token) for token in best.tolist())
        wanted.append((1 - rank / len(p)) * float(p[best].max()))
        mass.append(float(p[tokens].sum()))
    found = bench.builder.evidence.output_scores(sae, SITE, units)
    close(found, torch.tensor(wanted), 1e-5)
    close(bench.builder.evidence.output_scores(sae, SITE, units, tokens), torch.tensor(mass), 1e-5)


@pytest.mark.parametrize("edit", STEERING_METHODS["output-score"].edits)
def test_features_of_low_output_score_are_left_out(bench, edit):
    def count(score):
        return bench.builder.build(recipe("output-score", edit, top=20, score=score), "de")[1]

    (sae,) = bench.builder.saes_at(SITE)
    features = SteeringRecipe("features", "add", (SITE,), CONSTANT, 1.0, {"top": 20})
    units = bench.builder._choose(features, "de", SITE)[0].units
    tokens = bench.builder.evidence.own_tokens("de") if "language" in edit else None
    scores = bench.builder.evidence.output_scores(sae, SITE, units, tokens)
    middle = float(scores.median())
    assert count(0) == len(units) > count(middle) == int((scores >= middle).sum()) > 0
    with pytest.raises(NoUnits, match=r"output-score has no units for de.*lower score"):
        count(1.01)


# --------------------------------------------------------------------------- every path


NEURON_EDITS = STEERING_METHODS["neurons"].edits
CASES = [(method, edit) for method in MAKERS for edit in STEERING_METHODS[method].edits]


def case(method, edit):
    """A recipe of the full grid that works in the tiny run."""
    if (method, edit) == ("codes", "add, block before"):
        pytest.skip("the run has an SAE at the first block only")
    sites = {"recover": (SITE, LAST), "pca": (LAST,), "boost": (LOGITS,), "log-odds": (LOGITS,)}
    more = {"langfir": {"example_rate": 0.05, "other_rate": 0.3}, "overwrite": {"top": 6}}
    if edit.endswith("monolingual"):
        more["overwrite"]["layer"] = 1
    at = sites.get(method.removesuffix("-adaptive"), (SITE,))
    return recipe(method, edit, at, Schedule(first=3, rest=0.4), **more.get(method, {}))


@pytest.mark.parametrize(("method", "edit"), CASES)
def test_each_row_has_its_own_strength_and_strength_0_none(bench, method, edit):
    lm, chosen = bench.opened.lm, case(method, edit)
    changes, _ = bench.builder.build(chosen, "th")
    plain, strengths = generate(lm, ROWS, DECODING, repeat=1), [0.0, 1.5, -0.7]
    with apply(lm, changes, torch.tensor(strengths), chosen.schedule):
        together = generate(lm, ROWS, DECODING, repeat=1)
    assert together[0] == plain[0]
    for row, strength, tokens in zip(ROWS, strengths, together, strict=True):
        with apply(lm, changes, strength, chosen.schedule):
            assert generate(lm, [row], DECODING) == [tokens]
    with apply(lm, changes, 0.0, chosen.schedule):
        assert generate(lm, ROWS, DECODING, repeat=1) == plain
    before = text_losses(lm, PROMPTS, 32)
    with apply(lm, changes, 2.0):
        assert text_losses(lm, PROMPTS, 32) != before


# --------------------------------------------------------------------------- where they cannot work


@pytest.mark.parametrize("method", ["ablation", "gated"])
def test_methods_that_read_the_source_need_one(bench, method):
    whole = replace(bench.builder.collected, source_label=None)
    builder = type(bench.builder)(whole, bench.opened.saes, bench.builder.evidence)
    with pytest.raises(NoUnits, match=f"the method {method} has no units .* needs a source label"):
        builder.build(recipe(method), "de")


@pytest.mark.parametrize(("method", "edit"), CASES)
def test_a_label_without_tokens_has_nothing_to_be_steered_with(tiny_run, bench, method, edit):
    chosen = case(method, edit)
    fresh = Bench(open_run(bench.opened.out), "en", DECODING)
    for name in (SITE, LAST, "sae-resid_post@0"):
        stats = fresh.builder.collected.read(name)
        stats.tokens[stats.labels.index("th")] = 0
    counts = fresh.builder.evidence.counts.clone()
    counts[fresh.opened.corpus.labels.index("th")] = 0
    fresh.builder.evidence.counts = counts
    with pytest.raises(NoUnits):
        fresh.builder.build(chosen, "th")


def test_equal_means_cannot_be_clamped(bench):
    fresh = Bench(open_run(bench.opened.out), "en", DECODING)
    stats = fresh.builder.collected.read(SITE)
    stats.total[stats.labels.index("de")] = stats.total[stats.labels.index("en")]
    stats.tokens[stats.labels.index("de")] = stats.tokens[stats.labels.index("en")]
    with pytest.raises(NoUnits, match="the means of de and of its source are equal"):
        fresh.builder.build(recipe("clamp"), "de")


# --------------------------------------------------------------------------- random twins


def twin_of(chosen):
    return with_controls(chosen)["random"]


@pytest.mark.parametrize(
    ("method", "edit"), [*CASES, ("features", "add"), *(("neurons", e) for e in NEURON_EDITS)]
)
def test_every_method_has_a_random_twin_of_its_kind(bench, method, edit):
    sites = ("mlp_act@0", "mlp_act@1")
    chosen = case(method, edit)
    chosen = replace(chosen, sites=sites) if method == "neurons" else chosen
    assert with_controls(chosen) == {
        "none": NONE,
        method: chosen,
        "random": replace(chosen, edit=f"{edit}, at random"),
    }
    (own, units), (random, drawn) = (
        bench.builder.build(each, "th") for each in (chosen, twin_of(chosen))
    )
    again, _ = bench.builder.build(twin_of(chosen), "th")
    assert own.keys() == random.keys() and (0 < drawn <= units if units else drawn == 0)
    widths = {LOGITS: bench.builder.evidence.vocabulary, "mlp_act@0": 64, "mlp_act@1": 64}
    for site in own:
        x = torch.randn(1, 20, widths.get(site, 32), generator=torch.Generator().manual_seed(3))
        found = [each[site][0](x, torch.ones(1, 20, 1)) for each in (own, random, again)]
        assert torch.equal(found[1], found[2]) and not torch.equal(found[0], found[1])


@pytest.mark.parametrize("method", ["none", "random", "random-vector"])
def test_controls_have_no_twin(method):
    chosen = recipe(method, sites=()) if method == "none" else recipe(method)
    chosen = NONE if method == "none" else chosen
    assert with_controls(chosen) == {"none": NONE, method: chosen}


def test_the_methods_random_and_random_vector_are_twins(bench):
    x = vectors()
    for name, method in (("random", "features"), ("random-vector", "diffmean")):
        control, count = change_of(bench, recipe(name))
        twin, same = change_of(bench, twin_of(recipe(method)))
        assert torch.equal(control(x), twin(x)) and count == same


def test_a_random_vector_has_the_length_of_the_difference_of_means(bench):
    de, en = means(bench, SITE, "de", "en")
    change, count = change_of(bench, recipe("random-vector", sites=(SITE, LAST)))
    moved = change(vectors(), 0.7) - vectors()
    other = change_of(bench, recipe("random-vector", sites=(SITE, LAST)), site=LAST)[0]
    close(moved.norm(dim=-1), (0.7 * (de - en).norm()).float().expand(1, 40), 1e-4)
    assert count == 0 and float(torch.cosine_similarity(moved[0, 0], (de - en).float(), 0)) < 0.6
    along = other(vectors()) - vectors()  # each site has a direction of its own
    assert abs(float(torch.cosine_similarity(moved[0, 0], along[0, 0], 0))) < 0.6


def test_the_twin_of_an_ablation_erases_and_that_of_a_gate_reads_random_features(bench):
    (sae,) = bench.builder.saes_at(SITE)
    stats = bench.builder.collected.stats(sae)
    mean = stats.mean()
    score = mean[1] - (mean[0] + mean[2]) / 2
    assert stats.labels == ("de", "en", "th")
    units = score.argsort(descending=True, stable=True)[:3].tolist()
    others = random_units(stats, units, 11)
    assert len(others) == 3 and not {*others} & {*units}
    directions = sae.W_dec[others] / sae.W_dec[others].norm(dim=1, keepdim=True)
    x = vectors()
    change, count = change_of(bench, twin_of(recipe("ablation", top=3)))
    close(change(x), x - (x @ directions.T) @ directions, 1e-5)
    de, en = means(bench, SITE, "de", "en")
    gated, gates = change_of(bench, twin_of(recipe("gated", top=3)))
    fires = (sae.encode(x[0]).dense()[:, others] > 0).any(1)
    close(gated(x, 2.0)[0], x[0] + 2 * (de - en).float() * fires[:, None], 1e-5)
    assert count == gates == 3


@pytest.mark.parametrize("edit", ["clamp", "clamp, boundary"])
def test_the_twin_of_a_clamp_goes_as_far_along_a_random_axis(bench, edit):
    chosen, (en,) = recipe("one-sided", edit), means(bench, SITE, "en")
    ends = []
    for each in (chosen, twin_of(chosen)):
        x = vectors()
        after = change_of(bench, each)[0](x)
        moved = (after - x)[0]
        axis = moved[moved.norm(dim=1).argmax()]
        axis = axis / axis.norm()
        far = texts_of(bench, SITE, "en").mean(0) if each is chosen else en.float()
        # All tokens that move come to lie at one place of the axis, beyond the source's mean.
        place = (after[0] @ axis)[moved.norm(dim=1) > 1e-3]
        close(place, place[:1].expand(len(place)), 1e-4)
        ends.append((axis, place[0] - far @ axis))
    close(ends[0][1], ends[1][1], 1e-3)
    random = change_of(bench, recipe("random-vector"))[0](vectors()) - vectors()
    assert float(torch.cosine_similarity(random[0, 0], ends[1][0], 0)) > 0.999
    both, _ = change_of(bench, twin_of(recipe("clamp")))
    de, _ = means(bench, SITE, "de", "en")
    wanted = en @ ends[1][0].double() + (de - en).norm()
    close(both(vectors()) @ ends[1][0], wanted.float().expand(1, 40), 1e-4)


def test_the_twin_of_a_step_keeps_the_norm_and_that_of_a_stretch_moves_as_far(bench):
    h, length = vectors(), (lambda a, b: (a - b).norm())(*means(bench, SITE, "de", "en"))
    step, _ = change_of(bench, twin_of(recipe("recover")))
    axis = change_of(bench, recipe("random-vector"))[0](h) - h
    moved = h + 0.3 * float(length) * axis / axis.norm(dim=-1, keepdim=True)
    wanted = moved * h.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)
    close(step(h, 0.3), wanted, 1e-4)
    limit = bench.builder.collected.read(LAST).header["dictionary"].get("max_norm")
    x = bench.builder.evidence.sample(LAST, limit).x[None]
    sizes = []
    for chosen in (recipe("pca", sites=(LAST,)), twin_of(recipe("pca", sites=(LAST,)))):
        change, _ = change_of(bench, chosen, "th", LAST)
        sizes.append(float((change(x) - x).square().mean()))
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3) and sizes[0] > 0


def test_the_twin_of_overwriting_writes_other_coordinates(bench):
    (de,), x = means(bench, SITE, "de"), vectors()
    own, _ = change_of(bench, recipe("overwrite", top=5))
    random, count = change_of(bench, twin_of(recipe("overwrite", top=5)))
    written = [(change(x) != x).any((0, 1)).nonzero().flatten() for change in (own, random)]
    assert count == len(written[1]) == 5 and not {*written[0].tolist()} & {*written[1].tolist()}
    close(random(x)[0, 0, written[1]], de[written[1]].float(), 1e-6)


def test_the_twin_of_neurons_clamps_as_many_others_of_the_layer(bench):
    site = "mlp_act@0"
    chosen = recipe("neurons", "clamp, source off", (site,), top_rate=0.3)
    on, off = bench.builder._choose_neurons(replace(chosen, edit="clamp, source off"), "th", site)
    x = torch.randn(1, 10, 64, generator=torch.Generator().manual_seed(1))
    change, count = change_of(bench, twin_of(chosen), "th", site)
    edited = (change(x) != x).any((0, 1)).nonzero().flatten().tolist()
    assert count == len(edited) == len(on) + len(off) > 1
    assert off and not {*edited} & {*on, *off}
    (th,) = means(bench, site, "th")
    silent = [unit for unit in edited if float(change(x)[0, 0, unit].abs()) < 1e-6]
    rest = [unit for unit in edited if unit not in silent]
    assert len(silent) == len(off)
    close(change(x)[0, 0, rest], th[rest].float(), 1e-5)


@pytest.mark.parametrize("edit", STEERING_METHODS["output-score"].edits)
def test_the_twin_of_a_filter_has_as_many_features_as_it_kept(bench, edit):
    score = 0.0001
    count = bench.builder.build(recipe("output-score", edit, top=20, score=0), "de")[1]
    while bench.builder.build(recipe("output-score", edit, top=20, score=score), "de")[1] == count:
        score *= 1.5
    chosen = recipe("output-score", edit, top=20, score=score)
    kept = bench.builder.build(chosen, "de")[1]
    assert 0 < kept < count and bench.builder.build(twin_of(chosen), "de")[1] == kept


def test_the_twins_at_the_logits_have_other_tokens(bench):
    evidence, x = bench.builder.evidence, torch.zeros(1, 1, bench.builder.evidence.vocabulary)
    own = evidence.own_tokens("th") & ~evidence.neutral_tokens
    for method in ("boost", "boost-adaptive"):
        change, count = change_of(bench, twin_of(recipe(method, sites=(LOGITS,))), "th", LOGITS)
        raised = change(x)[0, 0] == 5
        assert raised[evidence.neutral_tokens].all() and not (raised & own).any()
        assert count == raised.sum() <= (own | evidence.neutral_tokens).sum()
        assert (raised & ~evidence.neutral_tokens & ~evidence.counts.any(0)).sum() == 0
    table = evidence.log_odds("th")
    change, _ = change_of(bench, twin_of(recipe("log-odds", sites=(LOGITS,))), "th", LOGITS)
    assert not torch.equal(change(x)[0, 0], table)
    assert torch.equal(change(x)[0, 0].sort().values, table.sort().values)


def test_a_twin_without_units_is_reported_and_left_out(bench, monkeypatch):
    said = []
    monkeypatch.setattr(bench.opened, "say", said.append)
    all_of_them = recipe("overwrite", top=400)  # the site has 32 coordinates
    found = bench.add_controls(all_of_them, "de")
    assert list(found) == ["none", "overwrite"]
    assert "overwrite has no random twin for de" in said[-1]
    assert list(bench.add_controls(recipe("diffmean"), "de")) == ["none", "diffmean", "random"]


# --------------------------------------------------------------------------- prompting


def test_prompting_puts_an_instruction_before_the_prompt(bench):
    """By hand: the text that follows the instruction, measured as if it followed the prompt."""
    lm, chosen = bench.opened.lm, load_recipe(bench, "th", "prompting")
    ids = encode_prompts(lm, PROMPTS, 20)
    (found,), units = bench.measure(chosen, "th", ids, [chosen.strength])
    told = encode_prompts(lm, [f"Respond in Thai.\n{prompt}" for prompt in PROMPTS], 8)
    rows = generate(lm, told, DECODING)
    assert units == 0 and found.texts == texts(lm, rows)
    close(torch.tensor(found.perplexity), torch.tensor(perplexities(lm, ids, rows)))
    assert found.texts != bench.measure(NONE, "th", ids, [0.0])[0][0].texts
    (row, _) = continue_prompts(bench, "th", PROMPTS, chosen)
    assert row["text"] == found.texts[0] and row["twin"] != row["text"]


def test_prompting_stands_in_the_turn_of_a_chat(bench, monkeypatch):
    monkeypatch.setattr(
        bench.opened.lm.tokenizer,
        "chat_template",
        "{{ '<' }}{% for m in messages %}{{ m['content'] }}{% endfor %}{{ '>' }}",
    )
    chosen, lm = load_recipe(bench, "th", "prompting"), bench.opened.lm
    (row,) = continue_prompts(bench, "th", ["The old man"], chosen, chat=True)
    ids = lm.tokenizer("<Respond in Thai.\nThe old man>", add_special_tokens=False)["input_ids"]
    assert row["text"] == texts(lm, generate(lm, [ids], DECODING))[0]


def test_prompting_needs_the_name_of_a_language():
    with pytest.raises(NoUnits, match="the method prompting has no name for python"):
        instruct("python")


def test_prompting_is_refused_where_only_the_model_counts(saefeat, run_copy, tmp_path):
    table = tmp_path / "t.jsonl"
    table.write_text('{"source": "The cat.", "reference": "x", "label": "th"}\n')
    with pytest.raises(UserError, match="prompting changes the prompts and not the model"):
        with_controls(replace(NONE, method="prompting", edit="instruct"))
    pytest.importorskip("sacrebleu")
    ask = ["steer", "translate", "--run", run_copy, "--table", table, "--method", "prompting"]
    code, _, err = saefeat(*ask)
    assert code == 2 and "prompting changes the prompts and not the model" in err


def test_a_sweep_compares_with_a_random_vector_and_with_prompting(bench, tmp_path):
    grid = full_grid(bench.opened.lm, [[SITE]], [1.0])
    tried = {"features", "random", "random-vector", "prompting"}
    grid = [each for each in grid if each.method in tried]
    path = sweep(bench, grid, PROMPTS, tmp_path / "m.json", labels=["th"])
    found = bench.run.load_steering_metrics(path)
    rows = {row["method"]: row for row in found["rows"] if row["half"] == "report"}
    assert rows.keys() == {"none", *tried} == {row["method"] for row in found["summary"]}
    assert rows["prompting"]["sites"] == [] and rows["random-vector"]["sites"] == [SITE]
    assert load_recipe(bench, "th", "prompting") == grid[-1]
    view = steering_view(found, None)
    assert view["methods"] == [name for name in STEERING_METHODS if name in rows]


def test_prompts_leave_room_for_the_instruction(bench, tmp_path):
    lm = bench.opened.lm
    most = lm.model.config.max_position_embeddings - DECODING.max_new_tokens - BEGINNING
    text = "7"
    while len(encode_prompts(lm, [text], 0)[0]) < most:
        text += " 7"
    grid = [*demo_grid([SITE]), load_recipe(bench, "th", "prompting")]
    with pytest.raises(UserError, match=f"prompt 1 has {most} tokens; with .* it exceeds"):
        sweep(bench, grid, [text, text], tmp_path / "m.json", labels=["th"])
    assert encode_prompts(lm, [text], DECODING.max_new_tokens + BEGINNING)


# --------------------------------------------------------------------------- generate and sweep


def test_every_method_steers_from_the_command_line_before_a_sweep(saefeat, run_copy):
    ask = ["steer", "generate", "--run", run_copy, "--label", "th", "--prompt", "The old man"]
    for method in STEERING_METHODS:
        if method in ("none", "langfir", "output-score"):  # they find none here by default
            continue
        code, text, err = saefeat(*ask, "--method", method, "--json", "--max-new-tokens", 4)
        assert code == 0, (method, err)
        assert json.loads(text)["label"] == "th"
    code, _, err = saefeat(*ask, "--method", "magic")
    assert code == 2 and re.search("no setting for magic; the methods are features, output-", err)


def test_a_sweep_of_chosen_methods_compares_them(saefeat, run_copy, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    ask = ["steer", "sweep", "--run", run_copy, "--out", tmp_path / "m.json", "--prompts", prompts]
    methods = "clamp,boost,recover,overwrite"
    code, text, _ = saefeat(*ask, "--methods", methods, "--labels", "th", "--max-new-tokens", 7)
    found = json.loads((tmp_path / "m.json").read_text())
    wanted = {"none", "features", "random", *methods.split(",")}
    assert code == 0 and {row["method"] for row in found["rows"]} == wanted
    assert all(f"\n{method} " in text for method in wanted) and "loss_budget" not in found
    recipes = json.loads((run_copy / "steering/settings.json").read_text())["methods"]
    assert set(recipes) >= set(methods.split(","))
    code, _, err = saefeat(*ask, "--methods", "magic")
    assert code == 2 and "there is no method magic; the methods are all, ablation, boost" in err
    assert "(--methods)" in err


@pytest.mark.parametrize(("method", "nats"), [("log-odds", 0.2), ("log-odds", 3.0), ("boost", 1.0)])
def test_a_loss_budget_gives_a_setting_its_strength(bench, method, nats):
    budget, chosen = LossBudget(bench, nats), recipe(method, sites=(LOGITS,))
    prompted = load_recipe(bench, "th", "prompting")
    assert budget.fit(prompted, "th") == prompted  # there is nothing to fit
    fitted, lm = budget.fit(chosen, "th"), bench.opened.lm
    changes, _ = bench.builder.build(chosen, "th")
    plain = text_losses(lm, budget.texts, 32)
    with apply(lm, changes, fitted.strength):
        edited = text_losses(lm, budget.texts, 32)
    assert np.mean(edited) - np.mean(plain) == pytest.approx(nats, abs=0.03)
    assert replace(fitted, strength=1.0) == chosen and fitted.strength > 0
    with pytest.raises(NoUnits, match=r"no strength of ablation \(erase\) raises the loss of en"):
        LossBudget(bench, 200.0).fit(recipe("ablation"), "th")


@given(st.floats(0.05, 60), st.floats(0.5, 3), st.floats(0.02, 2))
def test_the_strength_of_a_budget_is_found_wherever_the_loss_rises_to_it(
    module_bench, answer, power, begin
):
    class Rising(LossBudget):
        def loss(self, changes, strength):
            return 4.0 + self.nats * (strength / answer) ** power

    found = Rising(module_bench, 0.7)._bisect({}, begin)
    if found is None:  # the greatest strength that is doubled to stays below it
        assert answer > 32  # half of the greatest
    else:
        assert 0.7 * (found / answer) ** power == pytest.approx(0.7, abs=0.0301)


def test_a_loss_that_jumps_over_the_budget_has_no_strength(bench):
    class Jumping(LossBudget):
        def loss(self, changes, strength):
            return 4.0 if strength < 1e-9 else 6.0

    assert Jumping(bench, 0.7)._bisect({}, 1.0) is None


def test_a_sweep_under_a_budget_has_one_strength_per_setting(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(LossBudget, "loss", lambda _self, _changes, strength: 4.0 + strength)
    grid = demo_grid([SITE])
    path = sweep(
        bench, grid, PROMPTS, tmp_path / "m.json", halves=False, labels=["th"], loss_budget=0.75
    )
    found = json.loads(path.read_text())
    assert found["loss_budget"] == 0.75
    rows = {row["method"]: row["strength"] for row in found["rows"]}
    assert len(found["rows"]) == len(rows) == 3
    assert rows == pytest.approx({"none": 0, "diffmean": 0.75, "features": 0.75}, abs=0.03)
    constant = {"first": 0, "rest": None}  # texts are read at full strength
    assert all(row["schedule"] == constant for row in found["rows"])
    assert load_recipe(bench, "th", "diffmean").schedule == CONSTANT
    other = sweep(bench, grid, PROMPTS, tmp_path / "o.json", halves=False, labels=["th"])
    assert json.loads(other.read_text())["grid"] != found["grid"]
    assert load_recipe(bench, "th").strength in {each.strength for each in grid}


def test_under_a_budget_settings_differ_in_more_than_strength_and_schedule(bench):
    grid = full_grid(bench.opened.lm, [[SITE]])
    found = at_full_strength(grid)
    assert {each.schedule for each in found} == {CONSTANT}
    wanted = {(r.method, r.edit, r.sites, str(r.parameters)) for r in grid}
    settings = [(r.method, r.edit, r.sites, str(r.parameters)) for r in found]
    assert set(settings) == wanted and len(settings) == len(wanted) < len(grid)


@pytest.mark.parametrize("budget", [0, -1, "nan"])
def test_a_budget_has_to_be_positive(saefeat, run_copy, tmp_path, budget):
    ask = ["steer", "sweep", "--run", run_copy, "--out", tmp_path / "m.json"]
    code, _, err = saefeat(*ask, "--loss-budget", budget)
    assert code == 2 and "loss" in err
    assert len([line for line in err.splitlines() if line.startswith("saefeat: ")]) == 1
