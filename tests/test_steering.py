"""Edits change what they should, as much as they should, on every path of generation."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import shutil

import numpy as np
import pytest
import torch
from helpers import padded

from saefeat.collection import collect
from saefeat.corpora import in_hashed_order, make_plan
from saefeat.dictionaries import SAE, Identity
from saefeat.generation import Decoding, generate
from saefeat.hooks import capture
from saefeat.io import UserError
from saefeat.methods.feature_diffmean import feature_diffmean
from saefeat.models import wrap
from saefeat.sae.store import load_sae, save_sae
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.steering import (
    CONSTANT,
    EDITS,
    Schedule,
    ablate,
    add,
    apply,
    changes_of,
    clamp,
    edits,
    follow,
    following,
    hold,
    patches,
    replace,
    scale,
    steer,
    times,
)
from saefeat.steering.along import add_where_firing, clamp_projection, erase, step, stretch
from saefeat.steering.changes import OF_PASS, label_mean, project_onto_units, rescale
from saefeat.steering.edits import schedule_change, token_strengths
from saefeat.steering.following import quantile_of

HIDDEN, FFN = 32, 48  # of the models in conftest.py
OF_MANY = ("quantile", "iqr", "mad")
BY_TOKEN = [edit for edit in EDITS if edit not in OF_PASS]
ROWS = [[0, 40, 41], [0, 50, 51, 52, 53, 54, 55], [0, 60, 61, 62, 63]]
SITE = "mlp_out@0"
NEW = 8


pytestmark = pytest.mark.usefixtures("no_gradients")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_sae(site=SITE, k=6, width=64, seed=0, **options):
    rows = random(width, HIDDEN, seed=seed)
    bias = 0.3 * random(width, seed=seed + 1)
    return SAE(
        "wide",
        site,
        rows.t().contiguous(),
        bias,
        rows / rows.norm(dim=1, keepdim=True),
        0.1 * random(HIDDEN, seed=seed + 2),
        k=k,
        **options,
    )


def unit(seed):
    """A vector of length 1."""
    return random(HIDDEN, seed=seed) / random(HIDDEN, seed=seed).norm()


UNITS = [5, 2, 33, 60]
NEURONS = [40, 3, 17]


def kinds():
    """name -> (site, change) of every edit, on vectors, on neurons and on features of an SAE."""
    sae, neurons = make_sae(), Identity("mlp_act@1", FFN)
    made = {
        "add": (SITE, add(2 * random(HIDDEN))),
        "replace": (SITE, replace(random(HIDDEN, seed=3))),
        "clamp projection": ("resid_post@1", clamp_projection(unit(5), -0.5, 3.0)),
        "erase": (SITE, erase(random(3, HIDDEN, seed=6))),
        "add where firing": (SITE, add_where_firing(2 * random(HIDDEN), [(sae, UNITS)])),
        "step": ("resid_post@0", step(unit(7), 3.0)),
        "stretch": ("resid_post@1", stretch(unit(8), random(HIDDEN, seed=9), -2.5)),
    }
    for name, dictionary, units in (("features", sae, UNITS), ("neurons", neurons, NEURONS)):
        values = 2 + random(len(units), seed=4).abs()
        site = dictionary.site
        made |= {
            f"scale {name}": (site, scale(dictionary, units)),
            f"ablate {name}": (site, ablate(dictionary, units)),
            f"clamp {name}": (site, clamp(dictionary, units, values)),
            f"raise {name}": (site, clamp(dictionary, units, values, only_raise=True)),
        }
    made |= {
        "shift features": (SITE, edits.shift(sae, UNITS, 2 + random(4, seed=4).abs())),
        "follow features": (SITE, follow(sae, UNITS)),
        "follow neurons": ("mlp_act@1", follow(neurons, NEURONS, 0.9, added=True)),
        "hold neurons": ("mlp_act@1", hold(neurons, NEURONS, 3.0)),
        "times neurons": ("mlp_act@1", times(neurons, NEURONS)),
    }
    return made


KINDS = kinds()


@pytest.fixture(params=KINDS)
def kind(request):
    """(site, change) of each edit in turn."""
    return KINDS[request.param]


def go(lm, rows, new=NEW, **options):
    """The new tokens of each row by transformers' own `generate`, greedy, ends ignored."""
    ids, mask = padded(rows)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 2, **options}
    return lm.model.generate(ids, attention_mask=mask, max_new_tokens=new, **options)[
        :, ids.shape[1] :
    ].tolist()


def change_by_hand(lm, change, x, steps, strength=1.0, schedule=CONSTANT):
    return schedule_change(change, strength, schedule)(x, torch.tensor(steps))


def vectors(lm, site, row):
    path = lm.site(site).path
    with capture(lm.model, (path,)) as captured:
        return captured.run(lm.model, input_ids=torch.tensor([row]))[path].clone()


# --------------------------------------------------------------------------- every path


def test_greedy_output_is_the_same_with_and_without_cache_batched_and_alone(family_lm, kind):
    site, change = kind
    with apply(family_lm, {site: [change]}, 1.3, Schedule(first=3, rest=0.4)):
        cached = go(family_lm, ROWS)
        assert go(family_lm, ROWS, use_cache=False) == cached
        assert [go(family_lm, [row])[0] for row in ROWS] == cached
        assert [go(family_lm, [row], use_cache=False)[0] for row in ROWS[:2]] == cached[:2]


def test_every_edit_changes_what_is_generated(tiny_lm, kind):
    site, change = kind
    plain = logits(tiny_lm)
    with apply(tiny_lm, {site: [change]}, 1.5):
        assert (logits(tiny_lm) - plain).abs().max() > 1e-3
    assert torch.equal(logits(tiny_lm), plain)


def logits(lm, rows=ROWS):
    ids, mask = padded(rows)
    return lm.model(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("name", ["add", "follow features"])
def test_sampled_output_is_the_same_with_and_without_cache_batched_and_alone(family_lm, name):
    site, change = KINDS[name]
    decoding = Decoding(max_new_tokens=NEW, seed=3)
    with apply(family_lm, {site: [change]}, 1.0, Schedule(first=2, rest=0.3)):
        batched = generate(family_lm, ROWS, decoding, repeat=1)
        assert [generate(family_lm, [row], decoding)[0] for row in ROWS] == batched
        torch.manual_seed(0)
        sampled = go(family_lm, ROWS, do_sample=True)
        torch.manual_seed(0)
        assert go(family_lm, ROWS, do_sample=True, use_cache=False) == sampled


def test_all_tokens_are_edited_except_special_ones_and_padding(tiny_lm):
    seen = []
    handle = None
    mean = random(HIDDEN)
    try:
        with apply(tiny_lm, {SITE: [replace(mean)]}, 1.0):
            handle = tiny_lm.model.model.layers[0].mlp.register_forward_hook(
                lambda _m, _i, out: seen.append(out)
            )
            go(tiny_lm, ROWS, 4)
    finally:
        handle.remove()
    assert [x.shape[1] for x in seen] == [7, 1, 1, 1]
    edited = [(x == mean).all(-1) for x in seen]
    ids, _ = padded(ROWS)
    assert torch.equal(edited[0], ids > 2)  # 0 to 2 are special
    assert all(x.all() for x in edited[1:])


@pytest.mark.parametrize("strength", [0, 0.0, -0.0, torch.zeros(3)])
def test_strength_0_changes_no_bit(family_lm, kind, strength):
    site, change = kind
    plain = logits(family_lm)
    with apply(family_lm, {site: [change]}, strength):
        assert torch.equal(logits(family_lm), plain)


def test_strength_0_changes_no_bit_of_a_model_in_bfloat16(tiny_lm, kind):
    site, change = kind
    half = wrap(copy.deepcopy(tiny_lm.model).to(torch.bfloat16), tiny_lm.tokenizer, "half")
    plain = logits(half)
    with apply(half, {site: [change]}, 0.0):
        assert torch.equal(logits(half), plain)
    with apply(half, {site: [change]}, 1.5):
        assert logits(half).dtype == torch.bfloat16 and not torch.equal(logits(half), plain)


def test_strengths_per_row_equal_one_run_each(family_lm, kind):
    site, change = kind
    strengths = [0.0, 1.5, -0.7]
    schedule = Schedule(first=2, rest=0.6)
    with apply(family_lm, {site: [change]}, torch.tensor(strengths), schedule):
        together = go(family_lm, ROWS)
        assert go(family_lm, ROWS, use_cache=False) == together
    for row, strength, tokens in zip(ROWS, strengths, together, strict=True):
        with apply(family_lm, {site: [change]}, strength, schedule):
            assert go(family_lm, [row])[0] == tokens
    assert together[0] == go(family_lm, ROWS[:1])[0]


def test_no_edits_are_allowed_and_change_nothing(tiny_lm):
    plain = logits(tiny_lm)
    for changes in ({}, {SITE: []}):
        with apply(tiny_lm, changes, 1.0):
            assert torch.equal(logits(tiny_lm), plain)


def test_hooks_are_gone_after_an_exception(tiny_lm):
    def count():
        return sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny_lm.model.modules()
        )

    before, plain = count(), logits(tiny_lm)
    changes = {
        SITE: [KINDS["add"][1], KINDS["scale features"][1]],
        "resid_post@1": [KINDS["replace"][1]],
    }
    with pytest.raises(ZeroDivisionError), apply(tiny_lm, changes, 1.0):
        logits(tiny_lm)
        raise ZeroDivisionError
    with pytest.raises(RuntimeError), apply(tiny_lm, {SITE: [add(random(HIDDEN + 1))]}, 1.0):
        logits(tiny_lm)
    with (
        pytest.raises(UserError, match="unknown site"),
        apply(tiny_lm, {SITE: changes[SITE], "nowhere": [1]}, 1.0),
    ):
        pass
    assert count() == before
    assert torch.equal(logits(tiny_lm), plain)


# --------------------------------------------------------------------------- order


def test_edits_of_a_site_are_made_in_order_and_nested_contexts_follow_outer_ones(tiny_lm):
    neurons = Identity(SITE, HIDDEN)
    double, shift = scale(neurons, range(HIDDEN)), add(random(HIDDEN))
    x = vectors(tiny_lm, SITE, ROWS[1])
    x[:, 0] = 0  # BOS is not edited
    wanted = {"double, shift": 2 * x + random(HIDDEN), "shift, double": 2 * (x + random(HIDDEN))}
    for name, first, second in (("double, shift", double, shift), ("shift, double", shift, double)):
        with apply(tiny_lm, {SITE: [first, second]}, 1.0):
            listed = vectors(tiny_lm, SITE, ROWS[1])
        with apply(tiny_lm, {SITE: [first]}, 1.0), apply(tiny_lm, {SITE: [second]}, 1.0):
            nested = vectors(tiny_lm, SITE, ROWS[1])
        assert torch.equal(listed, nested)
        torch.testing.assert_close(listed[:, 1:], wanted[name][:, 1:])


def test_two_names_of_one_module_are_both_edited(tiny_lm):
    one, two = add(random(HIDDEN)), add(random(HIDDEN, seed=1))
    with apply(tiny_lm, {SITE: [one], "model.layers.0.mlp": [two]}, 1.0):
        both = logits(tiny_lm)
    with apply(tiny_lm, {SITE: [one, two]}, 1.0):
        assert torch.equal(logits(tiny_lm), both)


def test_edits_of_several_sites_equal_nested_contexts(tiny_lm):
    changes = {SITE: [KINDS["add"][1]], "resid_post@1": [add(random(HIDDEN, seed=9))]}
    with apply(tiny_lm, changes, 1.0):
        together = logits(tiny_lm)
    with (
        apply(tiny_lm, {SITE: changes[SITE]}, 1.0),
        apply(tiny_lm, {"resid_post@1": changes["resid_post@1"]}, 1.0),
    ):
        assert torch.equal(logits(tiny_lm), together)


# --------------------------------------------------------------------------- schedules


def test_strength_falls_after_the_first_tokens_and_keeps_its_sign():
    steps = torch.tensor([[-1, 0, 0, 1, 2, 3, 4]])
    schedule = Schedule(first=2, rest=0.3)

    def strengths(strength, of=schedule):
        return token_strengths(of, steps, strength)[0, :, 0].tolist()

    assert strengths(1.5) == pytest.approx([0, 1.5, 1.5, 1.5, 1.5, 0.3, 0.3])
    assert strengths(-1.5) == pytest.approx([0, -1.5, -1.5, -1.5, -1.5, -0.3, -0.3])
    assert strengths(0.2) == pytest.approx(
        [0] + [0.2] * 6
    )  # `rest` is a limit, not a strength of its own
    assert strengths(1.5, CONSTANT) == [0] + [1.5] * 6
    assert strengths(1.5, Schedule(first=0, rest=0.0)) == [0, 1.5, 1.5, 0, 0, 0, 0]
    rows = token_strengths(schedule, steps.expand(2, -1), torch.tensor([2.0, 0.1]))[..., 0]
    torch.testing.assert_close(rows, torch.tensor([[0, 2, 2, 2, 2, 0.3, 0.3], [0] + [0.1] * 6]))


@pytest.mark.parametrize("first", [0, 2, 5])
def test_a_schedule_with_rest_0_is_one_edit_of_the_first_tokens_on_every_path(tiny_lm, first):
    mean = random(HIDDEN)
    for options in ({}, {"use_cache": False}):
        seen = []
        with apply(tiny_lm, {SITE: [replace(mean)]}, 1.0, Schedule(first=first, rest=0.0)):
            handle = tiny_lm.model.model.layers[0].mlp.register_forward_hook(
                lambda _m, _i, x, s=seen: s.append(x)
            )
            try:
                for rows in ([[40]], ROWS, ROWS[1:2]):  # one after another in one context
                    seen.clear()
                    go(tiny_lm, rows, NEW, **options)
                    x = torch.cat(seen[-NEW:], 1) if not options else seen[-1]
                    edited = (x == mean).all(-1)[:, -(NEW - 1) :]
                    assert edited.tolist() == [[step <= first for step in range(1, NEW)]] * len(
                        rows
                    )
            finally:
                handle.remove()


def test_a_schedule_that_lasts_as_long_as_the_text_has_full_strength(tiny_lm, kind):
    site, change = kind
    with apply(tiny_lm, {site: [change]}, 1.0):
        constant = go(tiny_lm, ROWS)
    with apply(tiny_lm, {site: [change]}, 1.0, Schedule(first=NEW, rest=0.0)):
        assert go(tiny_lm, ROWS) == constant


def test_beam_search_runs_under_an_edit(tiny_lm, kind):
    site, change = kind
    with apply(tiny_lm, {site: [change]}, 1.0, Schedule(first=2, rest=0.2)):
        beams = go(tiny_lm, ROWS, num_beams=3)
        assert go(tiny_lm, ROWS, num_beams=3, use_cache=False) == beams


# --------------------------------------------------------------------------- what an edit does


def test_ablating_neurons_equals_zeroing_columns_of_down_proj(tiny_lm):
    lesioned = copy.deepcopy(tiny_lm.model)
    lesioned.model.layers[1].mlp.down_proj.weight[:, NEURONS] = 0
    rows = [row[1:] for row in ROWS]  # without BOS, which edits leave alone
    with apply(tiny_lm, {"mlp_act@1": [ablate(Identity("mlp_act@1", FFN), NEURONS)]}, 1.0):
        ids, mask = padded(rows)
        keep = mask.bool()
        ablated = tiny_lm.model(input_ids=ids, attention_mask=mask).logits[keep]
        tokens = go(tiny_lm, rows)
    torch.testing.assert_close(
        ablated, lesioned(input_ids=ids, attention_mask=mask).logits[keep], rtol=0, atol=1e-5
    )
    assert go(dataclasses.replace(tiny_lm, model=lesioned), rows) == tokens
    assert (
        ablated - tiny_lm.model(input_ids=ids, attention_mask=mask).logits[keep]
    ).abs().max() > 1e-3


@pytest.mark.parametrize("strength", [1.0, 0.4, -1.0, 2.5])
def test_edits_of_neurons_match_their_definition(strength):
    x = random(2, 3, FFN)
    dictionary, values = Identity("mlp_act@1", FFN), torch.tensor([1.0, -2.0, 0.1])
    steps = torch.zeros(2, 3, dtype=torch.int64)
    wanted = {
        "scale": (scale(dictionary, NEURONS), lambda v, _m: v * (1 + strength)),
        "ablate": (ablate(dictionary, NEURONS), lambda v, _m: v * (1 - strength)),
        "clamp": (clamp(dictionary, NEURONS, values), lambda _v, m: strength * m),
        "raise": (
            clamp(dictionary, NEURONS, values, only_raise=True),
            lambda v, m: max(v, strength * m),
        ),
        "shift": (edits.shift(dictionary, NEURONS, values), lambda v, m: v + strength * m),
        "hold": (hold(dictionary, NEURONS, -7.0), lambda _v, _m: -7.0),
        "times": (times(dictionary, NEURONS), lambda v, _m: v * strength),
    }
    for name, (change, rule) in wanted.items():
        expected = x.clone()
        for n, m in zip(NEURONS, values.tolist(), strict=True):
            for b in range(2):
                for t in range(3):
                    expected[b, t, n] = rule(x[b, t, n].item(), m)
        torch.testing.assert_close(
            schedule_change(change, strength, CONSTANT)(x, steps), expected, msg=name
        )


def brute_force(sae, x, rule):
    """x plus each chosen unit's change of value times its direction, in loops."""
    out = x.clone()
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            codes = sae.encode(x[b, t][None])
            z = dict(zip(codes.indices[0].tolist(), codes.values[0].tolist(), strict=True))
            for place, unit in enumerate(UNITS):
                out[b, t] += (rule(z.get(unit, 0.0), place) - z.get(unit, 0.0)) * sae.W_dec[unit]
    return out


@pytest.mark.parametrize("strength", [1.0, 0.4, -1.0])
def test_edits_of_features_write_back_only_their_difference(strength):
    sae, x = make_sae(k=24), random(2, 12, HIDDEN, seed=7)
    values = torch.tensor([0.5, 3.0, 1.0, 2.0])
    steps = torch.zeros(2, 12, dtype=torch.int64)
    wanted = {
        "scale": (scale(sae, UNITS), lambda v, _p: v * (1 + strength)),
        "ablate": (ablate(sae, UNITS), lambda v, _p: v * (1 - strength)),
        "clamp": (clamp(sae, UNITS, values), lambda _v, p: strength * values[p].item()),
        "raise": (
            clamp(sae, UNITS, values, only_raise=True),
            lambda v, p: max(v, strength * values[p].item()),
        ),
        "shift": (edits.shift(sae, UNITS, values), lambda v, p: v + strength * values[p].item()),
        "hold": (hold(sae, UNITS, 0.7), lambda _v, _p: 0.7),
        "times": (times(sae, UNITS), lambda v, _p: v * strength),
    }
    fires = sae.encode(x.flatten(0, 1)).of(torch.tensor(UNITS)) > 0
    assert fires.any() and not fires.all()
    for name, (change, rule) in wanted.items():
        made = schedule_change(change, strength, CONSTANT)(x, steps)
        torch.testing.assert_close(made, brute_force(sae, x, rule), rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.5, 0.93, 1.0])
def test_a_quantile_is_that_of_numpy(quantile):
    for shape in ((7,), (3, 40), (2, 1)):
        x = random(*shape)
        wanted = np.quantile(x.double().numpy(), quantile, axis=-1)
        np.testing.assert_allclose(quantile_of(x, quantile), wanted, rtol=1e-5, atol=1e-6)


def published(values, units, statistic):
    """A statistic of values [tokens, units], in float64, as arXiv 2507.22581 has it in torch."""
    values = values.double()
    if isinstance(statistic, float):
        return float(values.quantile(statistic))
    if statistic == "mad":
        return float((values[:, units] - values.median()).abs().median())
    iqr = values.quantile(0.75) - values.quantile(0.25)
    return float({"mean": values.mean(), "std": values.std(), "iqr": iqr}[statistic])


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("statistic", [1.0, 0.9, 0.25, "mean", "std", "iqr", "mad"])
@pytest.mark.parametrize("which", ["features", "neurons"])
def test_following_edits_match_their_definition(monkeypatch, which, statistic, added):
    """By token and by pass, in loops over rows and tokens; step -1 and outliers count nowhere."""
    monkeypatch.setattr(following, "_CELLS", 100)  # one or two tokens at a time
    x, strength = random(3, 6, FFN if which == "neurons" else HIDDEN, seed=7), 1.7
    x[1, 4] *= 100
    steps = torch.tensor([[0, 0, 0, 0, 1, 2], [-1, -1, 0, 0, 0, 0], [-1] * 6])
    dictionary: Identity | SAE = Identity("mlp_act@1", FFN, max_norm=60.0)
    if which == "features":
        dictionary = make_sae(k=24, max_norm=60.0)
    units = NEURONS if which == "neurons" else UNITS
    every = torch.stack([dictionary.encode(row).dense() for row in x])
    for of_pass in (False, True):
        expected = x.clone()
        for b, t in np.ndindex(3, 6):
            here = [i for i in range(6) if steps[b, i] >= 0 and x[b, i].norm() <= 60]
            if t not in here:
                continue
            level = published(every[b, here if of_pass else [t]], units, statistic)
            for unit in units:
                z = float(every[b, t, unit])
                moved = strength * level + (z if added else 0.0) - z
                expected[b, t] += moved * dictionary.directions_of([unit])[0]
        change = follow(dictionary, units, statistic, added=added, of_pass=of_pass)
        found = schedule_change(change, strength, CONSTANT)(x, steps)
        found = torch.where(steps[..., None] < 0, x, found)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_statistic_of_no_units_edits_nothing():
    x, steps = random(2, 3, FFN), torch.zeros(2, 3, dtype=torch.int64)
    for of_pass in (False, True):
        change = follow(Identity("mlp_act@1", FFN), [], "mad", of_pass=of_pass)
        assert torch.equal(schedule_change(change, 1.0, CONSTANT)(x, steps), x)


def test_edits_leave_the_reconstruction_error_out():
    sae, x = make_sae(), random(4, 5, HIDDEN, seed=7)
    steps = torch.zeros(4, 5, dtype=torch.int64)
    flat = x.flatten(0, 1)
    codes = sae.encode(flat)
    assert (
        sae.decode(codes) - flat
    ).norm() > 0.3 * flat.norm()  # a poor SAE: there is much to keep out
    silent = [u for u in range(64) if not (codes.of(torch.tensor([u])) > 0).any()][:3]
    assert silent and torch.equal(schedule_change(ablate(sae, silent), 1.0, CONSTANT)(x, steps), x)
    every = list(range(64))
    own = codes.dense().view(4, 5, -1)
    for row in range(4):  # clamped to the values that they have
        for token in range(5):
            at = x[row, token][None, None]
            same = schedule_change(clamp(sae, every, own[row, token]), 1.0, CONSTANT)(
                at, steps[:1, :1]
            )
            torch.testing.assert_close(same, at, rtol=0, atol=1e-5)
    gone = schedule_change(ablate(sae, every), 1.0, CONSTANT)(x, steps).flatten(0, 1)
    torch.testing.assert_close(gone, flat - (sae.decode(codes) - sae.b_dec), rtol=0, atol=1e-5)


def test_features_of_outlier_tokens_are_not_edited():
    x = random(1, 6, HIDDEN, seed=7)
    x[0, 2] *= 100
    sae = make_sae(k=24, max_norm=50.0)
    steps = torch.zeros(1, 6, dtype=torch.int64)
    for change in (ablate(sae, range(64)), clamp(sae, UNITS, torch.full((4,), 9.0))):
        changed = (schedule_change(change, 1.0, CONSTANT)(x, steps) != x).any(-1)[0]
        assert changed.tolist() == [True, True, False, True, True, True]


def test_add_and_replace_match_their_definition(tiny_lm):
    v = random(HIDDEN)
    x = vectors(tiny_lm, SITE, ROWS[1])
    for strength in (1.0, -0.5, 3.0):
        for change, wanted in (
            (add(v), x + strength * v),
            (replace(v), (strength * v).expand_as(x)),
        ):
            with apply(tiny_lm, {SITE: [change]}, strength):
                found = vectors(tiny_lm, SITE, ROWS[1])
            torch.testing.assert_close(found[:, 1:], wanted[:, 1:])
            assert torch.equal(found[:, 0], x[:, 0])  # BOS


def test_raising_never_lowers_and_changes_no_bit_of_what_is_higher():
    neurons = Identity("mlp_act@1", FFN)
    x = random(1, 40, FFN)
    values = torch.tensor([0.3, -0.2, 0.0])
    found = schedule_change(clamp(neurons, NEURONS, values, only_raise=True), 1.0, CONSTANT)(
        x, torch.zeros(1, 40).long()
    )
    assert (found[..., NEURONS] >= values).all() and (found >= x).all()
    higher = x[..., NEURONS] >= values
    assert higher.any() and torch.equal(found[..., NEURONS][higher], x[..., NEURONS][higher])


# --------------------------------------------------------------------------- from statistics


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_lm, tiny_corpus):
    """Statistics of an SAE, of the vectors at its site and of neurons, by `collect`."""
    folder = tmp_path_factory.mktemp("steering")
    save_sae(make_sae(), folder / "wide")
    sae = load_sae(folder / "wide")
    plan = make_plan(tiny_corpus, tiny_lm)
    dictionaries = [sae, Identity(SITE, HIDDEN), Identity("mlp_act@1", FFN)]
    places = {"responses": folder / "responses"}
    collect(tiny_lm, plan, dictionaries, folder / "stats", places=places)
    return folder


def ranked(world, *dictionaries, **parameters):
    parameters = {"top": 5, "entropy_ratio": 1.0, "source": "en"} | parameters
    folder = world / "stats"
    chosen = feature_diffmean(
        [Stats.load(folder / f"{name}.safetensors") for name in dictionaries], **parameters
    )
    chosen.header["stats"] = str(folder)  # as `run.rank` does
    return chosen


@pytest.fixture(scope="module")
def selection(world):
    """Features of `de` and `th`, against `en`, which has none."""
    chosen = ranked(world, "wide")
    assert [len(chosen.for_label(label)) for label in ("de", "en", "th")] == [5, 0, 5]
    return chosen


@pytest.fixture(scope="module")
def neurons(world):
    return ranked(world, "mlp_act@1")


def mean_vectors(lm, corpus, site, label):
    """Mean over the counted tokens of the train split's texts, one text at a time."""
    rows = [corpus.texts[i] for i in corpus.positions("train", 0) if corpus.of[i] == label]
    found = [vectors(lm, site, [0, *lm.tokenize([text], 256)[0]])[0, 1:] for text in rows]
    return torch.cat(found).double().mean(0)


@pytest.fixture(scope="module")
def means(world, tiny_lm, tiny_corpus):
    """{(site, label): mean vector}, read without `collect`."""
    with torch.no_grad():
        return {
            (site, label): mean_vectors(tiny_lm, tiny_corpus, site, label)
            for site in (SITE, "mlp_act@1")
            for label in ("de", "en", "th")
        }


def shift(lm, site, row=ROWS[1]):
    """(before, function that gives the shift of the site's vectors now), BOS left out."""
    before = vectors(lm, site, row)[0, 1:]
    return before, lambda: vectors(lm, site, row)[0, 1:] - before


@pytest.mark.parametrize("source", ["en", None])
@pytest.mark.parametrize("which", ["features", "neurons"])
def test_strength_1_adds_a_vector_as_long_as_the_difference_of_means(
    tiny_lm, selection, neurons, means, source, which
):
    chosen, site = (selection, SITE) if which == "features" else (neurons, "mlp_act@1")
    rest = means[site, "en"] if source else (means[site, "en"] + means[site, "th"]) / 2
    length = float((means[site, "de"] - rest).norm())
    _, moved = shift(tiny_lm, site)
    for strength in (1.0, 2.0, -0.5):
        with steer(tiny_lm, chosen, "de", strength, source=source):
            found = moved()
        torch.testing.assert_close(
            found.norm(dim=1), torch.full((6,), abs(strength) * length), rtol=1e-3, atol=0
        )
        torch.testing.assert_close(found, found[:1].expand_as(found), rtol=0, atol=1e-4)


def test_labels_of_another_code_system_steer_in_the_same_way(tiny_lm, selection):
    _, moved = shift(tiny_lm, SITE)
    found = []
    for label, source in (("de", "en"), ("deu_Latn", "eng")):
        with steer(tiny_lm, selection, label, source=source):
            found.append(moved())
    assert torch.equal(*found) and found[0].any()


def test_the_vector_of_features_is_the_difference_of_means_projected_on_their_directions(
    tiny_lm, world, selection, means
):
    sae = load_sae(world / "wide")
    units = selection.units("wide")["de"]
    difference = means[SITE, "de"] - means[SITE, "en"]
    basis = np.linalg.svd(sae.W_dec[units].double().numpy(), full_matrices=False)[2]
    by_hand = torch.from_numpy(basis.T @ (basis @ difference.double().numpy()))
    found = project_onto_units([(sae, units)], difference.double())
    torch.testing.assert_close(
        found.double(), by_hand * (difference.norm() / by_hand.norm()), rtol=1e-4, atol=1e-5
    )
    _, moved = shift(tiny_lm, SITE)
    with steer(tiny_lm, selection, "de", source="en"):
        assert torch.nn.functional.cosine_similarity(moved(), by_hand[None].float()).min() > 0.9999


def test_repeated_units_do_not_change_the_vector(world, means):
    sae = load_sae(world / "wide")
    difference = (means[SITE, "de"] - means[SITE, "en"]).double()
    once, twice = (project_onto_units([(sae, [3, 8])] * n, difference) for n in (1, 2))
    torch.testing.assert_close(once, twice)
    assert not project_onto_units([(sae, [])], difference).any()


def test_the_vector_of_neurons_is_the_difference_of_means_at_them_alone(tiny_lm, neurons, means):
    units = neurons.units("mlp_act@1")["th"]
    _, moved = shift(tiny_lm, "mlp_act@1")
    with steer(tiny_lm, neurons, "th", source="en"):
        found = moved()[0]
    others = [u for u in range(FFN) if u not in units]
    assert torch.equal(found[others], torch.zeros(len(others)))
    difference = (means["mlp_act@1", "th"] - means["mlp_act@1", "en"])[units].float()
    assert torch.nn.functional.cosine_similarity(found[units], difference, dim=0) > 0.9999


def test_two_dictionaries_of_one_site_share_its_force(tiny_lm, world, means):
    """Strength 1 has the length of the difference of means, for any number of dictionaries."""
    both = ranked(world, "wide", SITE)
    assert len(both.units("wide")["de"]) == len(both.units(SITE)["de"]) == 5
    _, moved = shift(tiny_lm, SITE)
    with steer(tiny_lm, both, "de", source="en"):
        found = moved().norm(dim=1)
    length = float((means[SITE, "de"] - means[SITE, "en"]).norm())
    torch.testing.assert_close(found, torch.full((6,), length), rtol=1e-3, atol=0)


def test_rescale_keeps_zero():
    assert rescale(torch.tensor([3.0, 4.0]), 10).tolist() == [6.0, 8.0]
    assert rescale(torch.zeros(2), 10).tolist() == [0.0, 0.0]
    assert rescale(torch.tensor([1e-30, 0.0], dtype=torch.float64), 2).tolist() == [2.0, 0.0]


def test_strength_1_patches_with_the_labels_mean(tiny_lm, neurons, means):
    units = neurons.units("mlp_act@1")["de"]
    mean = means["mlp_act@1", "de"].float()
    before = vectors(tiny_lm, "mlp_act@1", ROWS[1])
    for strength in (1.0, -0.5):
        with steer(tiny_lm, neurons, "de", strength, edit="clamp"):
            now = vectors(tiny_lm, "mlp_act@1", ROWS[1])
        torch.testing.assert_close(
            now[0, 1:, units], (strength * mean[units]).expand(6, -1), rtol=0, atol=1e-4
        )
        with steer(tiny_lm, neurons, "de", strength, edit="raise"):
            now = vectors(tiny_lm, "mlp_act@1", ROWS[1])
        wanted = torch.maximum(before[0, 1:, units], strength * mean[units])
        torch.testing.assert_close(now[0, 1:, units], wanted, rtol=0, atol=1e-4)
        with steer(tiny_lm, neurons, "de", strength, edit="replace"):
            now = vectors(tiny_lm, "mlp_act@1", ROWS[1])
        torch.testing.assert_close(now[0, 1:], (strength * mean).expand(6, -1), rtol=0, atol=1e-4)


def test_features_are_clamped_to_the_labels_mean(tiny_lm, world, selection):
    sae, stats = load_sae(world / "wide"), Stats.load(world / "stats" / "wide.safetensors")
    units = selection.units("wide")["de"]
    before = vectors(tiny_lm, SITE, ROWS[1])[0, 1:]
    z = sae.encode(before).of(torch.tensor(units))
    mean = stats.mean()[stats.labels.index("de")][units].float()
    assert torch.equal(label_mean(stats, "de")[units].float(), mean)
    wanted = {"clamp": mean - z, "raise": (mean - z).clamp(min=0), "scale": z, "ablate": -z}
    for edit, moved in wanted.items():
        with steer(tiny_lm, selection, "de", edit=edit):
            now = vectors(tiny_lm, SITE, ROWS[1])[0, 1:]
        torch.testing.assert_close(now, before + moved @ sae.W_dec[units], rtol=0, atol=1e-5)


def sentence_means(lm, world, corpus, which, label):
    """Mean of each unit over each train text of a label, one text at a time: float64 [n, width]."""
    sae, found = load_sae(world / "wide"), []
    for i in corpus.positions("train", 0):
        if corpus.of[i] == label:
            row = [0, *lm.tokenize([corpus.texts[i]], 256)[0]]
            x = vectors(lm, SITE if which == "features" else "mlp_act@1", row)[0, 1:]
            values = sae.encode(x).dense() if which == "features" else x
            found.append(values.double().mean(0))
    return torch.stack(found)


@pytest.mark.parametrize("which", ["features", "neurons"])
def test_patched_edits_set_units_to_statistics_of_sentence_means(
    tiny_lm, world, tiny_corpus, selection, neurons, which
):
    chosen, name, site = {
        "features": (selection, "wide", SITE),
        "neurons": (neurons, "mlp_act@1", "mlp_act@1"),
    }[which]
    units = chosen.units(name)["de"]
    each = sentence_means(tiny_lm, world, tiny_corpus, which, "de")[:, units]
    assert 2 < len(each) < 100  # all of them count
    lower = each.sort(0).values[(len(each) - 1) // 2]
    before = vectors(tiny_lm, site, ROWS[1])[0, 1:]
    for edit, values in (("pmax", each.amax(0)), ("pmedian", lower)):
        for strength in (1.0, 2.5):
            with steer(tiny_lm, chosen, "de", strength, edit=edit):
                now = vectors(tiny_lm, site, ROWS[1])[0, 1:]
            wanted = strength * values.float()
            if which == "neurons":
                torch.testing.assert_close(now[:, units], wanted.expand(6, -1), rtol=0, atol=1e-4)
                continue
            sae = load_sae(world / "wide")
            moved = wanted - sae.encode(before).of(torch.tensor(units))
            torch.testing.assert_close(now, before + moved @ sae.W_dec[units], rtol=0, atol=1e-4)


@pytest.mark.parametrize("which", ["responses", "plan"])
def test_patches_are_of_the_first_100_texts_by_hash(
    tiny_lm, world, tiny_corpus, monkeypatch, which
):
    monkeypatch.setattr(patches, "SENTENCES", 6)
    plan = make_plan(tiny_corpus, tiny_lm)
    own = [i for i in tiny_corpus.positions("train", 0) if tiny_corpus.of[i] == "th"]
    rows = sentence_means(tiny_lm, world, tiny_corpus, "neurons", "th")
    first = set(in_hashed_order(tiny_corpus, own, 0)[:6])
    each = rows[[i in first for i in own]]
    neurons = Identity("mlp_act@1", FFN)
    if which == "plan":
        found = patches.collect_patches(tiny_lm, plan, [neurons], "th")["mlp_act@1"]
    else:
        header = Stats.load(world / "stats" / "mlp_act@1.safetensors").header
        found = patches.read_patches(world / "stats", header, "th")
    torch.testing.assert_close(found["pmax"], each.amax(0).float(), rtol=0, atol=1e-5)
    lower = each.sort(0).values[2]
    torch.testing.assert_close(found["pmedian"], lower.float(), rtol=0, atol=1e-5)


def test_patches_from_collected_responses_and_from_the_texts_are_the_same(
    tiny_lm, world, tiny_corpus
):
    dictionaries = [load_sae(world / "wide"), Identity("mlp_act@1", FFN)]
    computed = patches.collect_patches(tiny_lm, make_plan(tiny_corpus, tiny_lm), dictionaries, "de")
    for dictionary in dictionaries:
        header = Stats.load(world / "stats" / f"{dictionary.id}.safetensors").header
        read = patches.read_patches(world / "stats", header, "de")
        for name in ("pmax", "pmedian"):
            torch.testing.assert_close(read[name], computed[dictionary.id][name], atol=1e-6, rtol=0)


def test_shift_adds_means_and_contrast_their_differences(tiny_lm, world, selection, means):
    sae, stats = load_sae(world / "wide"), Stats.load(world / "stats" / "wide.safetensors")
    units = selection.units("wide")["de"]
    de, en, th = (stats.mean()[stats.labels.index(x)][units] for x in ("de", "en", "th"))
    before = vectors(tiny_lm, SITE, ROWS[1])[0, 1:]
    for edit, source, values in (
        ("shift", None, de),
        ("contrast", "en", de - en),
        ("contrast", None, de - (en + th) / 2),
    ):
        with steer(tiny_lm, selection, "de", 1.5, edit=edit, source=source):
            now = vectors(tiny_lm, SITE, ROWS[1])[0, 1:]
        wanted = before + 1.5 * values.float() @ sae.W_dec[units]
        torch.testing.assert_close(now, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("edit", OF_PASS)
@pytest.mark.parametrize("which", ["features", "neurons"])
def test_an_edit_of_a_pass_is_the_same_batched_and_alone_and_strength_0_changes_no_bit(
    tiny_lm, selection, neurons, edit, which
):
    chosen, plain = selection if which == "features" else neurons, logits(tiny_lm)
    with steer(tiny_lm, chosen, "de", 2.0, edit=edit):
        together = logits(tiny_lm)
        for i, row in enumerate(ROWS):
            alone = logits(tiny_lm, [row])[0]
            torch.testing.assert_close(together[i, -len(row) :], alone, rtol=0, atol=1e-4)
        # Most values of features are 0, and so are these statistics.
        zero = which == "features" and edit.startswith("pass-add-") and edit[9:] in OF_MANY
        assert bool((together - plain).abs().max() > 1e-3) is not zero
    with steer(tiny_lm, chosen, "de", 0.0, edit=edit):
        assert torch.equal(logits(tiny_lm), plain)


def test_an_edit_of_a_pass_differs_from_that_by_token(tiny_lm, neurons):
    """The published maximum sees all tokens; with a cache, the new token alone."""
    row = ROWS[1]
    with steer(tiny_lm, neurons, "de", 1.0, edit="pass-max"):
        whole = vectors(tiny_lm, "mlp_act@1", row)[0, 1:]
        shorter = vectors(tiny_lm, "mlp_act@1", row[:3])[0, 1:]
    with steer(tiny_lm, neurons, "de", 1.0, edit="max"):
        by_token = vectors(tiny_lm, "mlp_act@1", row)[0, 1:]
        again = vectors(tiny_lm, "mlp_act@1", row[:3])[0, 1:]
    torch.testing.assert_close(again, by_token[:2], rtol=0, atol=1e-5)
    unit = neurons.units("mlp_act@1")["de"][0]
    assert whole[:, unit].unique().numel() == 1 < by_token[:, unit].unique().numel()
    assert torch.equal(whole[0, unit], by_token[:, unit].max())
    assert (shorter[0, unit] - whole[0, unit]).abs() > 1e-3


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("added", ["", "add-"])
@pytest.mark.parametrize("name", ["max", "quantile", "mean", "std", "iqr", "mad"])
def test_test_time_edits_write_the_published_statistic_of_the_values_of_the_model(
    tiny_lm, neurons, name, added, cached
):
    """In generation, batched and alone; a pass with a cache holds the new token alone."""
    site, statistic = "mlp_act@1", {"max": 1.0, "quantile": 0.9}.get(name, name)
    units = torch.tensor(neurons.units(site)["de"])
    for prefix, rows in itertools.product(("", "pass-"), (ROWS, ROWS[:1], ROWS[1:2])):
        passes = []
        with steer(tiny_lm, neurons, "de", 1.5, edit=f"{prefix}{added}{name}"):
            module = tiny_lm.model.get_submodule(tiny_lm.site(site).path)
            hook = module.register_forward_hook(lambda *found, to=passes: to.append(found[-1]))
            with hook:
                new = go(tiny_lm, rows, use_cache=cached)
        for i, (row, more) in enumerate(zip(rows, new, strict=True)):
            # The edit is in the last layer, so these are the values before it too.
            plain = vectors(tiny_lm, site, [*row, *more[:-1]])[0]
            edited = torch.cat([one[i] for one in passes]) if cached else passes[-1][i]
            prompt, later = list(range(1, len(row))), list(range(len(row), len(plain)))
            seen = [prompt, *([t] for t in later)] if cached else [prompt + later]
            wanted = plain.clone()
            for part in seen if prefix else [[t] for t in prompt + later]:
                here = torch.tensor(part)[:, None], units
                level = 1.5 * published(plain[part], units, statistic)
                wanted[here] = wanted[here] * bool(added) + level
            torch.testing.assert_close(edited[-len(plain) :], wanted, rtol=1e-4, atol=1e-5)
            assert (wanted - plain).abs().max() > 1e-3


@pytest.mark.parametrize("edit", BY_TOKEN)
@pytest.mark.parametrize("which", ["features", "neurons"])
def test_steered_text_is_the_same_with_and_without_cache_batched_and_alone(
    tiny_lm, selection, neurons, edit, which
):
    chosen = selection if which == "features" else neurons
    for schedule in (CONSTANT, Schedule(first=3, rest=0.3)):
        with steer(tiny_lm, chosen, "de", 2.0, edit=edit, source="en", schedule=schedule):
            cached = go(tiny_lm, ROWS)
            assert go(tiny_lm, ROWS, use_cache=False) == cached
            assert [go(tiny_lm, [row])[0] for row in ROWS] == cached
    with steer(tiny_lm, chosen, "de", 0.0, edit=edit, source="en"):
        assert go(tiny_lm, ROWS, use_cache=False) == go(tiny_lm, ROWS)


@pytest.mark.parametrize("edit", EDITS)
def test_strength_0_of_steer_changes_no_bit(tiny_lm, selection, edit):
    plain = logits(tiny_lm)
    with steer(tiny_lm, selection, "de", 0.0, edit=edit):
        assert torch.equal(logits(tiny_lm), plain)
    assert torch.equal(logits(tiny_lm), plain)


@pytest.mark.parametrize("edit", EDITS)
def test_by_default_add_gets_weaker_and_other_edits_are_constant(tiny_lm, selection, edit):
    with steer(tiny_lm, selection, "de", 2.0, edit=edit, source="en"):
        found = go(tiny_lm, ROWS)
    schedule = Schedule() if edit == "add" else CONSTANT
    with steer(tiny_lm, selection, "de", 2.0, edit=edit, source="en", schedule=schedule):
        assert go(tiny_lm, ROWS) == found


def test_steers_nest_and_compose_in_order(tiny_lm, selection, neurons):
    with steer(tiny_lm, selection, "de", source="en"):
        outer = vectors(tiny_lm, SITE, ROWS[1])
        with (
            steer(tiny_lm, selection, "th", -1.0, source="en"),
            steer(tiny_lm, neurons, "de", edit="ablate"),
        ):
            inner = vectors(tiny_lm, SITE, ROWS[1])
            act = vectors(tiny_lm, "mlp_act@1", ROWS[1])
        assert torch.equal(vectors(tiny_lm, SITE, ROWS[1]), outer)
    changes = [
        changes_of(tiny_lm, selection, label, source="en")[SITE][0] for label in ("de", "th")
    ]
    x = vectors(tiny_lm, SITE, ROWS[1])
    steps = [[-1, 0, 0, 0, 0, 0, 0]]
    first = change_by_hand(tiny_lm, changes[0], x, steps)
    assert torch.equal(outer[:, 1:], first[:, 1:])
    assert torch.equal(inner, change_by_hand(tiny_lm, changes[1], first, steps, -1.0))
    assert (act[0, 1:, neurons.units("mlp_act@1")["de"]] == 0).all()


def test_a_saved_selection_steers_as_the_one_in_memory(tiny_lm, selection, tmp_path):
    selection.save(tmp_path / "s.parquet")
    with steer(tiny_lm, selection, "de", 2.0):
        wanted = logits(tiny_lm)
    with steer(tiny_lm, Selection.load(tmp_path / "s.parquet"), "de", 2.0):
        assert torch.equal(logits(tiny_lm), wanted)


def test_dictionaries_and_statistics_may_be_given(tiny_lm, world, selection, tmp_path):
    moved = Selection(selection.table, {**selection.header, "stats": str(tmp_path)})
    moved.header["dictionaries"] = {
        "wide": {**selection.dictionaries["wide"], "path": str(tmp_path / "gone")}
    }
    with steer(tiny_lm, selection, "de", 2.0):
        wanted = logits(tiny_lm)
    given = {"dictionaries": {"wide": load_sae(world / "wide")}, "stats": world / "stats"}
    with steer(tiny_lm, moved, "de", 2.0, **given):
        assert torch.equal(logits(tiny_lm), wanted)
    with pytest.raises(UserError, match="gone"), steer(tiny_lm, moved, "de", stats=world / "stats"):
        pass


# --------------------------------------------------------------------------- errors


def refused(lm, selection, label="de", *args, match, **options):
    """`steer` raises one sentence that says so, before any hook is set."""
    before = sum(len(m._forward_hooks) for m in lm.model.modules())
    with (
        pytest.raises(UserError, match=match) as error,
        steer(lm, selection, label, *args, **options),
    ):
        raise AssertionError("it was not refused")
    assert "\n" not in str(error.value)
    assert sum(len(m._forward_hooks) for m in lm.model.modules()) == before


def test_unknown_labels_edits_and_sources_are_refused(tiny_lm, selection):
    refused(tiny_lm, selection, "xx", match=r"no label 'xx'.*de, en, th")
    refused(tiny_lm, selection, "en", match="no units for en")
    refused(tiny_lm, selection, edit="push", match=r"no edit 'push'.*add, scale, clamp")
    refused(tiny_lm, selection, edit="max:0.5", match=r"no edit 'max:0.5'")
    refused(tiny_lm, selection, edit="pass-std:0.5", match=r"no edit 'pass-std:0.5'.*, add-mad, ")
    for edit in ("quantile:x", "quantile:1.5", "pass-quantile:", "add-quantile:nan"):
        refused(tiny_lm, selection, edit=edit, match=f"of the edit '{edit}' is not a number from 0")
    refused(tiny_lm, selection, source="xx", match=r"no label 'xx'.*de, en, th")


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_a_strength_that_is_not_finite_is_refused(tiny_lm, selection, strength):
    refused(
        tiny_lm, selection, "de", strength, match="not a finite number; 1 is .* else the whole edit"
    )
    bad = torch.tensor([0.0, strength])
    with (
        pytest.raises(UserError, match="not a finite number"),
        apply(tiny_lm, {SITE: [KINDS["add"][1]]}, bad),
    ):
        pass


def test_strengths_of_another_number_of_rows_are_refused(tiny_lm):
    with (
        apply(tiny_lm, {SITE: [KINDS["add"][1]]}, torch.ones(2)),
        pytest.raises(UserError, match=r"2 .*3"),
    ):
        logits(tiny_lm)


def test_another_model_is_refused(make_lm, selection):
    refused(make_lm("llama", 1), selection, match=r"of the model tiny-llama-0, not of tiny-llama-1")


@pytest.mark.parametrize(("edit", "missing"), [("add", SITE), ("clamp", "wide"), ("replace", SITE)])
def test_missing_statistics_are_refused_by_name(tiny_lm, world, selection, tmp_path, edit, missing):
    for name in {"wide", SITE} - {missing}:
        (tmp_path / f"{name}.safetensors").write_bytes(
            (world / "stats" / f"{name}.safetensors").read_bytes()
        )
    refused(
        tiny_lm,
        selection,
        edit=edit,
        stats=tmp_path,
        match=f"no statistics of {missing}; collect them first",
    )


def test_patched_edits_need_responses(tiny_lm, world, selection, tmp_path):
    shutil.copytree(world / "stats", tmp_path / "stats")
    for edit in ("pmax", "pmedian"):
        match = "holds no responses of wide; collect them too"
        refused(tiny_lm, selection, edit=edit, stats=tmp_path / "stats", match=match)


def test_a_selection_that_names_no_statistics_needs_their_directory(tiny_lm, selection, world):
    header = {key: value for key, value in selection.header.items() if key != "stats"}
    nameless = Selection(selection.table, header)
    refused(tiny_lm, nameless, match="the selection names no statistics; give their directory")
    with steer(tiny_lm, nameless, "de", edit="scale"):
        pass
    with steer(tiny_lm, nameless, "de", stats=world / "stats"):
        pass


def test_edits_that_read_no_statistics_need_none(tiny_lm, selection, tmp_path):
    for edit in ("scale", "ablate", "times", "constant", "max", "pass-quantile:0.5"):
        with steer(tiny_lm, selection, "de", edit=edit):
            expected = logits(tiny_lm)
        with steer(tiny_lm, selection, "de", edit=edit, stats=tmp_path):
            assert torch.equal(logits(tiny_lm), expected)


def test_an_sae_that_has_changed_since_is_refused(tiny_lm, world, selection, tmp_path):
    save_sae(make_sae(seed=5), tmp_path / "wide")
    moved = Selection(selection.table, {**selection.header})
    moved.header["dictionaries"] = {
        "wide": {**selection.dictionaries["wide"], "path": str(tmp_path / "wide")}
    }
    refused(tiny_lm, moved, match="has changed since")
    refused(tiny_lm, selection, dictionaries={"wide": make_sae(seed=5)}, match="has changed since")


def test_statistics_of_another_sae_are_refused(tiny_lm, world, selection, tmp_path, tiny_corpus):
    other = dataclasses.replace(make_sae(seed=5), id="wide")
    collect(tiny_lm, make_plan(tiny_corpus, tiny_lm), [other, Identity(SITE, HIDDEN)], tmp_path)
    refused(tiny_lm, selection, stats=tmp_path, edit="clamp", match="of another dictionary")


def test_an_sae_collected_in_another_dtype_is_opened_in_that_dtype(
    tiny_lm, world, tiny_corpus, tmp_path
):
    half = load_sae(world / "wide", dtype="bfloat16")
    collect(
        tiny_lm, make_plan(tiny_corpus, tiny_lm), [half, Identity(SITE, HIDDEN)], tmp_path / "stats"
    )
    chosen = ranked(tmp_path, "wide")
    with steer(tiny_lm, chosen, "de", edit="ablate"):
        now = vectors(tiny_lm, SITE, ROWS[1])[0, 1:]
    before, units = vectors(tiny_lm, SITE, ROWS[1])[0, 1:], torch.tensor(chosen.units("wide")["de"])
    assert torch.equal(now, before - half.encode(before).of(units) @ half.W_dec[units])


# --------------------------------------------------------------------------- an instruct model


def test_an_instruct_model_is_steered_through_its_chat_template(smollm):
    from saefeat.generation import encode_prompts

    prompts = ["What is the capital of France?", "Name a colour."]
    rows = encode_prompts(smollm, prompts, 4, chat=True)
    layer = smollm.n_layers // 3
    site = smollm.site(f"resid_post@{layer}").name
    path = smollm.site(site).path
    with capture(smollm.model, (path,)) as captured:
        german, english = (
            captured.run(smollm.model, input_ids=torch.tensor(smollm.tokenize([text], 64)))[path][
                0, 1:
            ].mean(0)
            for text in (
                "Die Hauptstadt ist eine sehr schöne Stadt.",
                "The capital is a very beautiful city.",
            )
        )
    changes = {site: [add(german - english)]}
    turn, end = (smollm.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>"))
    assert rows[0].count(turn) >= 2 and rows[0][-1] != end
    decoding = Decoding(max_new_tokens=4, temperature=0)
    plain = generate(smollm, rows, decoding)
    with apply(smollm, changes, 0.0):
        assert generate(smollm, rows[:1], decoding) == plain[:1]
    before = vectors(smollm, site, rows[1])[0]
    with apply(smollm, changes, 2.0, Schedule(first=2, rest=0.3)):
        moved = (vectors(smollm, site, rows[1])[0] - before).norm(dim=1)
        special = torch.tensor([token in smollm.special_ids for token in rows[1]])
        assert special.sum() >= 4 and (moved[special] == 0).all()  # the template's own tokens
        assert moved[~special].tolist() == pytest.approx(
            [2 * float((german - english).norm())] * len(moved[~special]), rel=1e-2
        )
        batched = generate(smollm, rows, decoding)
        assert generate(smollm, rows[1:], decoding) == batched[1:]
        assert [
            smollm.model.generate(
                torch.tensor([row]),
                attention_mask=torch.ones(1, len(row)),
                max_new_tokens=4,
                do_sample=False,
                use_cache=False,
                pad_token_id=end,
            )[0, len(row) :].tolist()[: len(new)]
            for row, new in zip(rows[1:], batched[1:], strict=True)
        ] == batched[1:]
    assert batched != plain
    assert generate(smollm, rows[:1], decoding) == plain[:1]


def test_rows_of_strength_0_are_not_computed():
    seen = []

    def change(x, at):
        seen.append(len(x))
        return x + at

    x = torch.randn(3, 2, 4)
    steps = torch.zeros(3, 2, dtype=torch.int64)
    out = schedule_change(change, torch.tensor([0.0, 2.0, 0.0]), CONSTANT)(x, steps)
    assert seen == [1] and torch.equal(out[[0, 2]], x[[0, 2]]) and torch.equal(out[1], x[1] + 2)
    assert schedule_change(change, 0.0, CONSTANT)(x, steps) is x and seen == [1]
