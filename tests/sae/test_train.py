"""Training on a tiny model: it learns, it resumes bit for bit, and its SAE is in raw units."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from dataclasses import replace
from itertools import count as count_up

import pytest
import torch
from helpers import contents, refused
from pydantic import ValidationError

from saefeat import progress
from saefeat.config import TrainConfig
from saefeat.corpora import load_corpus, make_plan
from saefeat.hooks import capture
from saefeat.io import RunFailed, UserError, load_tensors, read_header, save_tensors
from saefeat.resume import STATE
from saefeat.sae.chunks import Chunk, Draws, fill, plan_chunks, single_chunk
from saefeat.sae.formats.sae_lens import WEIGHTS
from saefeat.sae.formats.values import stated
from saefeat.sae.held_out import HELD_OUT_TOKENS, held_out_plan
from saefeat.sae.objectives.topk import INITIAL_NORM
from saefeat.sae.store import load_sae, load_saes
from saefeat.sae.train import sae_id, train_saes
from saefeat.sae.trainer import Trainer, below

SITES = ["mlp_out@0", "resid_post@1"]
CONFIG = TrainConfig(
    k=4, d_sae=64, batch_size=64, chunk_tokens=900, passes=2, dead_tokens=1500, dtype="float32"
)


@pytest.fixture
def plan(tiny_corpus, tiny_lm, small_windows):
    return make_plan(tiny_corpus, tiny_lm, mixed=True)


def weights(out, site="mlp_out@0"):
    return (out / sae_id(site) / WEIGHTS).read_bytes()


pytestmark = pytest.mark.usefixtures("every_line")


def count(line):
    """Tokens that a line of progress counts."""
    return int(re.search(r"train: ([\d,]+) of", line)[1].replace(",", ""))


class Interrupted:
    """Progress that raises Ctrl-C once so many tokens are read and used."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, line):
        if count(line) >= self.tokens:
            raise KeyboardInterrupt


def counts(plan):
    """Tokens that are read and used up to the end of each chunk."""
    sizes = [chunk.tokens + chunk.steps * CONFIG.batch_size for chunk in plan_chunks(plan, CONFIG)]
    return [sum(sizes[: i + 1]) for i in range(len(sizes))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_corpus, tiny_lm):
    """Two SAEs trained in one go: directory and progress lines."""
    out, lines = tmp_path_factory.mktemp("whole"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saefeat.corpora.WINDOW", 32)
        patch.setattr(progress, "LINE_SECONDS", 0)
        train_saes(
            tiny_lm,
            make_plan(tiny_corpus, tiny_lm, mixed=True),
            SITES,
            out,
            CONFIG,
            say=lines.append,
        )
    return out, lines


def activations(lm, plan, site):
    """Counted vectors of the whole plan in float32, one example at a time."""
    rows = []
    path = lm.site(site).path
    with torch.no_grad(), capture(lm.model, (path,)) as captured:
        for ids in plan.tokens.values():
            vectors = captured.run(lm.model, input_ids=torch.tensor([lm.prefix + ids]))[path][
                0, len(lm.prefix) :
            ]
            rows.append(vectors[[t not in lm.special_ids for t in ids]])
    return torch.cat(rows)


def fvu(sae, x):
    return float((sae.decode(sae.encode(x)) - x).square().sum() / (x - x.mean(0)).square().sum())


@pytest.mark.parametrize("size", [16, 50, 900, 1300, 10**6])
def test_chunks_cover_the_plan_in_its_order_and_are_as_large_as_was_asked(
    plan, tiny_corpus, tiny_lm, size
):
    config = dataclasses.replace(CONFIG, chunk_tokens=size)
    for chosen, order in (
        (plan, plan.order),
        (make_plan(tiny_corpus, tiny_lm), sorted(plan.tokens)),
    ):
        chunks = plan_chunks(chosen, config)
        assert [i for chunk in chunks for i in chunk.positions] == list(order)
        largest = max(plan.counts.values())
        for chunk in chunks:
            assert chunk.tokens == sum(plan.counts[i] for i in chunk.positions)
            assert chunk.steps == max(1, round(chunk.tokens * config.passes / config.batch_size))
            assert chunk.tokens < size * 1.25 + largest
        assert all(chunk.tokens >= size for chunk in chunks[:-1])
        assert len(chunks) == 1 or chunks[-1].tokens >= size / 4
        assert single_chunk(chosen) == Chunk(order, plan.total, 1)


def test_filled_activations_are_those_of_the_examples_in_mixed_order_by_group(
    plan, tiny_lm, monkeypatch
):
    monkeypatch.setattr("saefeat.sae.chunks.WINDOW", 32)
    site = tiny_lm.site("mlp_out@0")
    order = plan.order
    grouped = [
        sorted(order[i : i + 32], key=lambda p: (len(plan.tokens[p]), p))
        for i in range(0, len(order), 32)
    ]
    plan.tokens = {p: plan.tokens[p] for group in grouped for p in group}
    expected = activations(tiny_lm, plan, site.name)
    found = fill(tiny_lm, plan, [site], single_chunk(plan))[site.name]
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)  # bfloat16


def test_a_chunk_without_a_usable_token_fails_the_run():
    with pytest.raises(RunFailed, match="chunk 3 has no usable token"):
        Draws(torch.zeros(0, dtype=torch.int64), CONFIG, 3)


def test_the_loss_falls_and_the_progress_line_says_so(trained):
    lines = [line for line in trained[1] if "FVU" in line]
    found = [[float(x) for x in re.findall(r"FVU ([\d.]+)", line)] for line in lines]
    assert len(found) >= 3 and all(len(row) == 2 for row in found)
    for site in range(2):
        assert found[-1][site] < found[0][site] < 1.0
    for part in ("tokens/s", "left", "L0", "dead"):
        assert all(part in line for line in lines)


def test_progress_counts_tokens_read_and_used(trained, plan):
    total = counts(plan)[-1]
    found = [count(line) for line in trained[1]]
    assert all(f" of {total:,} tokens" in line for line in trained[1])
    assert found == sorted(found) and found[-1] == total
    assert set(counts(plan)) <= set(found)


def test_figures_on_held_out_text_are_those_of_the_saved_sae(trained, plan, tiny_corpus, tiny_lm):
    test = make_plan(tiny_corpus, tiny_lm, split="test")
    for site in SITES:
        sae = load_sae(trained[0] / sae_id(site))
        x = activations(tiny_lm, test, site)
        held = sae.record["held_out"]
        assert held["split"] == "test" and held["tokens"] <= len(x) == test.total < HELD_OUT_TOKENS
        assert held["fvu"] == pytest.approx(
            fvu(sae, x), rel=0.02
        )  # in bfloat16, and without its outliers
        assert stated(sae.record) == {
            **{name: held[name] for name in ("fvu", "l0")},
            "dead": sae.record["dead"],
        }


def test_held_out_text_shares_no_id_with_the_plan_and_is_not_made_up(tiny_lm):
    texts = [(f"der Hund {i} lief", "de") for i in range(60)] + [
        (f"the dog {i} ran", "en") for i in range(60)
    ]
    corpus = load_corpus(texts)
    corpus = replace(corpus, ids=[str(i % 60) for i in range(120)])  # translations
    everything = make_plan(corpus, tiny_lm, split="all", mixed=True)
    assert held_out_plan(tiny_lm, everything) is None
    some = make_plan(corpus, tiny_lm, split="all", mixed=True, max_tokens=60)
    held = held_out_plan(tiny_lm, some)
    assert held is not None and held.total >= 32
    assert not {corpus.ids[i] for i in held.tokens} & {corpus.ids[i] for i in some.tokens}


def test_a_training_on_all_text_states_no_held_out_figures(tiny_lm, tmp_path):
    corpus = load_corpus(
        [(f"der Hund {i} lief", "de") for i in range(90)]
        + [(f"dogs ran {i}", "en") for i in range(90)]
    )
    plan = make_plan(corpus, tiny_lm, split="all", mixed=True)
    (sae,) = train_saes(tiny_lm, plan, SITES[:1], tmp_path, CONFIG)
    assert sae.record["held_out"] == {} and sae.record["training_average"]["fvu"] > 0
    assert set(stated(sae.record)) == {"dead"}


def test_the_saved_sae_reconstructs_raw_activations_as_the_trainer_reports(trained, plan, tiny_lm):
    for site in SITES:
        sae = load_sae(trained[0] / sae_id(site))
        x = activations(tiny_lm, plan, site)
        # The trainer's number is a running mean over the last steps of SGD: near, not equal.
        assert fvu(sae, x) == pytest.approx(sae.record["training_average"]["fvu"], rel=0.15)
        assert fvu(sae, x + 1.0) > 2 * fvu(sae, x)  # a wrong mean would be seen


def in_training(x, frame, p, k):
    """Sorted values [n, d_sae] of a trainer's codes in raw units, and its reconstruction of x."""
    inside = (x - frame["mean"]) / frame["scale"]
    norms = p["decoder"].norm(dim=1)
    pre = ((inside - p["b_dec"]) @ p["encoder"].t() + p["b_enc"]).relu()
    chosen = (pre * norms).topk(k, dim=1).indices
    codes = torch.zeros_like(pre).scatter(1, chosen, pre.gather(1, chosen))
    reconstruction = (codes @ p["decoder"] + p["b_dec"]) * frame["scale"] + frame["mean"]
    return (codes * norms * frame["scale"]).sort(1).values, reconstruction


def test_folding_mean_and_scale_gives_the_codes_and_reconstructions_of_the_trainer():
    g = torch.Generator().manual_seed(0)
    x = 40 * torch.randn(512, 16, generator=g) + 300 * torch.randn(16, generator=g)
    config = dataclasses.replace(CONFIG, k=3)
    trainer = Trainer(16, config, 20, "cpu")
    trainer.fit_scaler(x)
    with torch.inference_mode():
        for start in range(0, 512, 64):
            trainer.step(x[start : start + 64])
    sae, frame, p = trainer.sae("a", "mlp_out@0", {}), trainer.scaler, trainer.parameters
    inside = (x - frame["mean"]) / frame["scale"]
    torch.testing.assert_close(inside.mean(0), torch.zeros(16), rtol=0, atol=1e-4)
    torch.testing.assert_close(inside.square().mean(), torch.tensor(1.0), rtol=1e-4, atol=0)
    values, expected = in_training(x, frame, p, 3)
    torch.testing.assert_close(sae.decode(sae.encode(x)), expected, rtol=1e-3, atol=1e-2)
    found = sae.encode(x).dense().sort(1).values  # units are in another order
    torch.testing.assert_close(found, values, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    assert sae.max_norm == pytest.approx(8 * float(x.norm(dim=1).median()))


def test_training_begins_tied_and_at_the_mean_of_the_data():
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0)) + 5
    trainer = Trainer(16, CONFIG, 10, "cpu")
    trainer.fit_scaler(x)
    sae = trainer.sae("a", "mlp_out@0", {})
    torch.testing.assert_close(sae.b_dec, x.mean(0))
    torch.testing.assert_close(sae.W_enc, INITIAL_NORM**2 * sae.W_dec.t())
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(len(sae.W_dec)))


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_run_that_was_interrupted_ends_bit_identical(tmp_path, trained, plan, tiny_lm, done):
    ends = [0, *counts(plan)]
    cut = Interrupted(ends[done] + 100)
    with pytest.raises(KeyboardInterrupt):
        train_saes(tiny_lm, plan, SITES, tmp_path / "o", CONFIG, say=cut)
    assert not (tmp_path / "o" / sae_id(SITES[0])).exists()
    assert (tmp_path / "o" / "training.safetensors").exists() == (done > 0)
    again = []
    train_saes(tiny_lm, plan, SITES, tmp_path / "o", CONFIG, say=again.append)
    assert ends[done] < count(again[0]) < ends[done + 1]  # no chunk is trained on twice
    assert again[0] != trained[1][0] or not done
    for site in SITES:
        assert weights(tmp_path / "o", site) == weights(trained[0], site)
        assert (tmp_path / "o" / sae_id(site) / "cfg.json").read_bytes() == (
            trained[0] / sae_id(site) / "cfg.json"
        ).read_bytes()
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == sorted(map(sae_id, SITES))


def test_a_stop_before_a_step_leaves_the_checkpoint_as_it_is(tmp_path, plan, tiny_lm):
    with pytest.raises(KeyboardInterrupt):
        train_saes(tiny_lm, plan, SITES, tmp_path, CONFIG, say=Interrupted(counts(plan)[0] + 100))
    leftover = tmp_path / "training-9999" / "sae"  # of a save that was killed
    leftover.mkdir(parents=True)

    def files():
        return {path: path.stat().st_ino for path in tmp_path.rglob("*") if path.is_file()}

    before = files()
    with pytest.raises(KeyboardInterrupt):
        train_saes(tiny_lm, plan, SITES, tmp_path, CONFIG, stop=lambda: True)
    assert files() == before and len(before) > 2 * len(SITES)
    assert not leftover.parent.exists()


@pytest.mark.filterwarnings("ignore:the SAE in .*its training is not finished")
def test_a_checkpoint_opens_as_saes_that_give_the_codes_of_the_trainers(tmp_path, plan, tiny_lm):
    chunks = plan_chunks(plan, CONFIG)
    done, total = (sum(chunk.steps for chunk in some) for some in (chunks[:2], chunks))
    with pytest.raises(KeyboardInterrupt):
        train_saes(tiny_lm, plan, SITES, tmp_path, CONFIG, say=Interrupted(counts(plan)[1] + 100))
    kept = tmp_path / f"training-{done}"
    with refused(f"unfinished training; run it again to finish it, or give .* such as {kept}$"):
        load_saes(str(tmp_path))
    saes = load_saes(str(kept), tiny_lm)
    assert [sae.site for sae in saes] == SITES
    for sae in saes:
        assert sae.record["unfinished"] == {"steps": done, "of": total}
        with pytest.warns(UserWarning, match=rf"not finished \({done} of {total} steps\)"):
            assert load_sae(kept / sae.id).id == sae_id(sae.site)
        state, _ = load_tensors(kept / sae.id / STATE)
        x = activations(tiny_lm, plan, sae.site)
        expected = in_training(x, below("scaler.", state), below("parameter.", state), CONFIG.k)
        found = sae.encode(x).dense()
        torch.testing.assert_close(found.sort(1).values, expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sae.reconstruct(x), expected[1], rtol=1e-4, atol=1e-4)
        theirs = pytest.importorskip("sae_lens").SAE.load_from_disk(kept / sae.id)
        torch.testing.assert_close(theirs.encode(x), found, rtol=1e-4, atol=1e-4)


@pytest.fixture
def stopped(tmp_path, plan, tiny_lm):
    """A training that was stopped in its second chunk: its directory, and its checkpoint."""
    cut, out = Interrupted(counts(plan)[0] + 100), tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train_saes(tiny_lm, plan, SITES, out, CONFIG, say=cut)
    (kept,) = out.glob("training-*")
    return out, kept


def test_a_training_that_diverges_after_a_checkpoint_keeps_it(stopped, trained, plan, tiny_lm):
    out, kept = stopped
    path = kept / sae_id(SITES[1]) / STATE
    good, steps = path.read_bytes(), plan_chunks(plan, CONFIG)[0].steps
    tensors, header = load_tensors(path)
    tensors["parameter.b_enc"][3] = torch.nan
    save_tensors(path, tensors, header)
    before = contents(out)
    with pytest.raises(
        RunFailed, match=rf"diverged at {SITES[1]} before step {steps + 1}: its error"
    ):
        train_saes(tiny_lm, plan, SITES, out, CONFIG)
    assert contents(out) == before
    path.write_bytes(good)
    train_saes(tiny_lm, plan, SITES, out, CONFIG)
    assert contents(out) == contents(trained[0])


def test_a_weight_that_is_not_finite_is_seen_before_the_error_is():
    trainer = Trainer(16, CONFIG, 10, "cpu")
    assert trainer.is_finite()
    trainer.parameters["decoder"][3, 5] = torch.inf
    assert not trainer.is_finite() and torch.isfinite(trainer.fvu)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-100])


def renumber(path):
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, header | {"request": [99, *header["request"][1:]]})


@pytest.mark.parametrize(
    ("damage", "place", "message"),
    [
        (shorten, STATE, "is not a readable safetensors file"),
        (lambda path: path.unlink(), STATE, "does not exist"),
        (lambda path: path.write_bytes(b""), "index", "is not a readable safetensors file"),
        (renumber, "index", "was written by another version of saefeat; finish the training with"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_refused_and_left(
    stopped, plan, tiny_lm, damage, place, message
):
    out, kept = stopped
    damage(out / "training.safetensors" if place == "index" else kept / sae_id(SITES[0]) / STATE)
    before = contents(out)
    with pytest.raises(UserError, match=message):
        train_saes(tiny_lm, plan, SITES, out, CONFIG)
    assert contents(out) == before


def test_a_checkpoint_of_another_model_is_refused(stopped, plan, make_lm):
    other = make_lm("llama", 1)
    with refused("holds the state of the training of something else", "out"):
        train_saes(other, plan, SITES, stopped[0], CONFIG)


def test_what_a_finished_training_has_left_over_is_removed(
    tmp_path, stopped, trained, plan, tiny_lm
):
    """A process was killed after it had written the SAEs, and before it removed the checkpoint."""
    out, kept = stopped
    for each in trained[0].iterdir():
        shutil.copytree(each, out / each.name)
    shutil.copytree(out, tmp_path / "other")
    train_saes(tiny_lm, plan, SITES, out, CONFIG)
    assert contents(out) == contents(trained[0])
    (other := tmp_path / "other" / kept.name).rename(other.with_name("training-data"))
    before = contents(tmp_path / "other")
    renumber(tmp_path / "other" / "training.safetensors")  # it is of another training
    train_saes(tiny_lm, plan, SITES, tmp_path / "other", CONFIG)
    assert contents(tmp_path / "other").keys() == before.keys()


def test_a_checkpoint_is_kept_as_long_as_an_sae_cannot_be_read(stopped, trained, plan, tiny_lm):
    out, _ = stopped
    for each in trained[0].iterdir():
        shutil.copytree(each, out / each.name)
    path = out / sae_id(SITES[1]) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-3])
    before = contents(out)
    with refused(f"{path} cannot be read"):
        train_saes(tiny_lm, plan, SITES, out, CONFIG)
    assert contents(out) == before
    shutil.rmtree(path.parent)
    train_saes(tiny_lm, plan, SITES, out, CONFIG)
    assert contents(out) == contents(trained[0])


@pytest.mark.parametrize("after", [1, 4, 11, 14])
def test_a_training_that_is_told_to_stop_saves_within_a_chunk(
    tmp_path, trained, plan, tiny_lm, after
):
    looks = count_up()

    def stop():
        return next(looks) >= after

    def train(**options):
        train_saes(tiny_lm, plan, SITES, tmp_path, CONFIG, checkpoint_seconds=1000, **options)

    with pytest.raises(KeyboardInterrupt):
        train(stop=stop)
    saved = (tmp_path / "training.safetensors").exists()
    if saved:
        position = json.loads(read_header(tmp_path / "training.safetensors")["values"])
        assert position["steps"] > 0
    train()
    for site in SITES:
        assert weights(tmp_path, site) == weights(trained[0], site)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(map(sae_id, SITES))
    assert saved == (after > 1)


def test_several_sites_in_one_stream_equal_single_site_runs(tmp_path, trained, plan, tiny_lm):
    for site in SITES:
        train_saes(tiny_lm, plan, [site], tmp_path / "single", CONFIG)
        assert weights(tmp_path / "single", site) == weights(trained[0], site)


def test_another_seed_gives_another_sae(tmp_path, trained, plan, tiny_lm):
    train_saes(tiny_lm, plan, SITES[:1], tmp_path, dataclasses.replace(CONFIG, seed=1))
    assert weights(tmp_path) != weights(trained[0])


def test_a_finished_training_is_not_done_again(trained, plan, tiny_lm):
    before, lines = weights(trained[0]), []
    saes = train_saes(tiny_lm, plan, SITES, trained[0], CONFIG, say=lines.append)
    assert [sae.site for sae in saes] == SITES and "complete already" in lines[0]
    assert weights(trained[0]) == before


def test_the_directory_names_what_it_was_trained_on(trained, tiny_lm, plan):
    record = load_sae(trained[0] / sae_id(SITES[1])).record
    assert record["model"] == tiny_lm.identity and record["module"] == "model.layers.1"
    assert record["policy"] == {**plan.policy, "outlier_factor": 8.0}
    assert record["corpus"]["fingerprint"] == plan.corpus.fingerprint
    assert record["training"]["tokens"] == plan.total and record["training"]["k"] == 4


def test_out_of_another_training_is_a_user_error(tmp_path, trained, plan, tiny_lm):
    with pytest.raises(UserError, match="holds an SAE of something else"):
        train_saes(tiny_lm, plan, SITES, trained[0], dataclasses.replace(CONFIG, lr=1e-2))
    with pytest.raises(KeyboardInterrupt):
        train_saes(tiny_lm, plan, SITES, tmp_path, CONFIG, say=Interrupted(counts(plan)[0] + 100))
    with pytest.raises(UserError, match="the state of the training of something else"):
        train_saes(tiny_lm, plan, SITES, tmp_path, dataclasses.replace(CONFIG, k=3))


@pytest.mark.parametrize(
    ("sites", "config", "message"),
    [
        (["mlp_out@0", "mlp_out@9"], CONFIG, "mlp_out@9"),
        (["mlp_out@0", "mlp_out@0"], CONFIG, "named twice"),
        (["mlp_out@0", "model.layers.0.mlp"], CONFIG, "named twice"),
        (["mlp_out@0"], dataclasses.replace(CONFIG, d_sae=72), "d_sae 72 must be a multiple of 16"),
        (["mlp_out@0"], dataclasses.replace(CONFIG, d_sae=64, k=17), "d_sae 64 must be"),
        (
            ["mlp_out@0"],
            dataclasses.replace(CONFIG, batch_size=10_000),
            "4752 counted tokens, used 2 times, are fewer than the 10000 of a step; give more text",
        ),
        (
            ["mlp_out@0"],
            dataclasses.replace(CONFIG, architecture="tree"),
            "unknown SAE architecture 'tree'; choose from topk",
        ),
    ],
)
def test_bad_arguments_are_user_errors_before_anything_is_written(
    tmp_path, plan, tiny_lm, sites, config, message
):
    with pytest.raises(UserError, match=message):
        train_saes(tiny_lm, plan, sites, tmp_path / "o", config)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("wrong", [{"k": 0}, {"passes": "2"}, {"lr": 0.0}, {"dtype": "float16"}])
def test_a_configuration_is_strict(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        dataclasses.replace(CONFIG, **wrong)


def test_constant_activations_fail_the_run(tmp_path, make_lm, plan):
    lm = make_lm()
    with torch.no_grad():
        lm.model.model.layers[0].mlp.down_proj.weight.zero_()
    with pytest.raises(RunFailed, match="constant or not finite"):
        train_saes(lm, plan, ["mlp_out@0"], tmp_path, CONFIG)


@pytest.mark.parametrize("chunk", [0, 1])
def test_activations_that_are_not_finite_fail_the_run(tmp_path, make_lm, plan, chunk):
    lm = make_lm()
    first, second = plan_chunks(plan, CONFIG)[:2]
    early = {t for i in first.positions for t in plan.tokens[i]}
    late = {t for i in second.positions for t in plan.tokens[i]} - early
    token = min(early if chunk == 0 else late)
    with torch.no_grad():
        lm.model.model.embed_tokens.weight[token] = torch.nan
    with pytest.raises(RunFailed, match=r"not finite|infinite or not a number"):
        train_saes(lm, plan, ["mlp_out@0"], tmp_path, CONFIG)


def test_outliers_stay_out_of_the_frame_and_of_training():
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    wild = x.clone()
    wild[7] *= 1000
    calm, trainer = Trainer(16, CONFIG, 10, "cpu"), Trainer(16, CONFIG, 10, "cpu")
    calm.fit_scaler(torch.cat([x[:7], x[8:]]))
    trainer.fit_scaler(wild)
    torch.testing.assert_close(trainer.scaler["mean"], calm.scaler["mean"])
    torch.testing.assert_close(trainer.scaler["scale"], calm.scaler["scale"])
    assert trainer.usable(wild).tolist() == [i for i in range(400) if i != 7]


def test_dead_units_are_counted_in_tokens_and_revived():
    x = torch.randn(4096, 16, generator=torch.Generator().manual_seed(0))
    shares = {}
    for aux in (0.0, 1 / 32):
        config = dataclasses.replace(CONFIG, k=2, aux=aux, dead_tokens=256, lr=1e-2)
        trainer = Trainer(16, config, 250, "cpu")
        trainer.fit_scaler(x)
        trainer.parameters["b_enc"][:32] = -2.5 * INITIAL_NORM  # half of them never fire at first
        with torch.inference_mode():
            for step in range(250):
                trainer.step(x[(step * 64) % 4096 :][:64])
                if step == 3:
                    assert trainer.dead_share == 0  # 256 tokens are not more than 256
        shares[aux] = trainer.dead_share
    assert shares[0.0] > 0.2 and shares[1 / 32] < shares[0.0] / 2
