"""On a GPU: counts as on the CPU, training that resumes, and NCCL. Skipped without a GPU.

`DEVICE=cuda pytest tests/sae/test_ranks.py -k every_layout` trains on ranks that share a GPU.
"""

from __future__ import annotations

import dataclasses

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from helpers import Interrupt, random_sae

from saefeat import progress
from saefeat.collection import collect
from saefeat.config import TrainConfig
from saefeat.corpora import make_plan
from saefeat.dictionaries import Identity
from saefeat.models import wrap
from saefeat.run import neurons
from saefeat.sae.formats.sae_lens import WEIGHTS
from saefeat.sae.formats.values import stated
from saefeat.sae.train import sae_id, train_saes
from saefeat.sae.trainer import Trainer
from saefeat.statistics import Stats
from saefeat.statistics.files import collected_beside
from saefeat.statistics.histograms import Histograms
from saefeat.world import World

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICE = "cuda"
CONFIG = TrainConfig(
    k=4, d_sae=64, batch_size=64, chunk_tokens=900, passes=2, dead_tokens=1500, dtype="float32"
)


@pytest.fixture
def gpu_lm(make_lm):
    lm = make_lm()
    return wrap(lm.model.to(DEVICE), lm.tokenizer, lm.name)


def dictionaries():
    """On the CPU, as they are loaded."""
    sae = random_sae()
    rows = {"W_enc": sae.W_enc.bfloat16(), "W_dec": sae.W_dec.bfloat16()}
    half = dataclasses.replace(sae, id="half", activation="relu", **rows)
    return [sae, half, Identity("mlp_act@1", 48)]


def test_the_counts_are_those_of_the_cpu(tmp_path, tiny_corpus, tiny_lm, gpu_lm, small_windows):
    places = {"cpu": tiny_lm, DEVICE: gpu_lm}
    for device, lm in places.items():
        out = tmp_path / device
        wanted = {name: out / name for name in ("bags", "histograms")}
        collect(lm, make_plan(tiny_corpus, lm), dictionaries(), out, places=wanted)
    for name in ("wide", "half", "mlp_act@1"):
        cpu, gpu = (Stats.load(tmp_path / device / f"{name}.safetensors") for device in places)
        assert torch.equal(cpu.tokens, gpu.tokens) and torch.equal(cpu.examples, gpu.examples)
        assert cpu.tensors.keys() == gpu.tensors.keys()
        for field in ("fired", "fired_examples"):
            # The last bits of a product may decide at 0, or between two units.
            mine, theirs = getattr(cpu, field), getattr(gpu, field)
            assert (mine - theirs).abs().sum() <= mine.sum() / 1000
        torch.testing.assert_close(gpu.mean(), cpu.mean(), rtol=1e-2, atol=1e-2)
    for name in ("wide", "half"):
        cpu, gpu = (
            Histograms.load(tmp_path / device / f"histograms/{name}.safetensors")
            for device in places
        )
        assert cpu.tokens == gpu.tokens
        assert (cpu.counts - gpu.counts).abs().sum() <= cpu.counts.sum() / 100
        top, other = (
            pq.read_table(tmp_path / device / f"examples/{name}.parquet").to_pandas()
            for device in places
        )
        assert (top["position"] == other["position"]).mean() > 0.95


def test_tables_and_distributions_are_those_of_the_cpu(
    tmp_path, tiny_corpus, tiny_lm, gpu_lm, small_windows
):
    names = ("responses", "patterns", "importances", "distributions")
    for device, lm in {"cpu": tiny_lm, DEVICE: gpu_lm}.items():
        out = tmp_path / device
        made = [*dictionaries(), *neurons(lm, [0], "mlp_hidden")]
        places = {name: out / name for name in names}
        collect(lm, make_plan(tiny_corpus, lm), made, out, places=places)

    def both(dictionary, name):
        for device in ("cpu", DEVICE):
            header = Stats.read_header(tmp_path / device / f"{dictionary}.safetensors")
            yield collected_beside(tmp_path / device, name, [header])[0]

    fields = {"responses": "mean", "patterns": "any", "importances": "importance"}
    for dictionary in ("wide", "half", "mlp_act@1", "mlp_hidden@0"):
        for name, field in fields.items():
            if (dictionary, name) != ("mlp_act@1", "importances"):
                cpu, gpu = (table.read(field).double() for table in both(dictionary, name))
                assert torch.isclose(cpu, gpu, rtol=1e-2, atol=1e-3).double().mean() > 0.99
        cpu, gpu = (found.shares() for found in both(dictionary, "distributions"))
        assert (cpu - gpu).abs().sum() < 0.02 * cpu.sum()


def test_a_collection_that_was_killed_goes_on_to_the_same_bytes(
    tmp_path, tiny_corpus, gpu_lm, small_windows, monkeypatch
):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    plan = make_plan(tiny_corpus, gpu_lm)
    made = dictionaries()
    collect(gpu_lm, plan, made, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        collect(gpu_lm, plan, made, tmp_path / "cut", say=Interrupt(3), checkpoint_seconds=0)
    for path in collect(gpu_lm, plan, made, tmp_path / "cut"):
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_a_training_that_was_killed_goes_on(tmp_path, tiny_corpus, gpu_lm, monkeypatch):
    monkeypatch.setattr("saefeat.progress.LINE_SECONDS", 0)
    plan = make_plan(tiny_corpus, gpu_lm, mixed=True)
    site, lines = "mlp_out@0", []
    (whole,) = train_saes(gpu_lm, plan, [site], tmp_path / "whole", CONFIG, say=lines.append)
    late = Interrupt(len(lines) * 4 // 5)
    with pytest.raises(KeyboardInterrupt):
        train_saes(gpu_lm, plan, [site], tmp_path / "cut", CONFIG, say=late)
    assert (tmp_path / "cut" / "training.safetensors").exists()
    (cut,) = train_saes(gpu_lm, plan, [site], tmp_path / "cut", CONFIG)
    assert (tmp_path / "cut" / sae_id(site) / WEIGHTS).exists()
    assert stated(cut.record)["fvu"] == pytest.approx(
        stated(whole.record)["fvu"], rel=0.02
    )  # sums on a GPU have no fixed order


def test_a_restored_trainer_is_on_the_device():
    config = dataclasses.replace(CONFIG, aux=0.0)
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    first, second = Trainer(32, config, 10, DEVICE), Trainer(32, config, 10, DEVICE)
    with torch.inference_mode():
        first.fit_scaler(x)
        first.step(x[:64])
        second.restore(
            {name: value.cpu() for name, value in first.state().items()}, first.completed
        )
        assert {value.device.type for value in second.state().values()} == {DEVICE}
        second.step(x[64:128])


@pytest.fixture
def nccl():
    """One process that is connected to itself, because NCCL wants a GPU for each."""
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int64", "int32"])
def test_nccl_takes_what_ranks_exchange(nccl, dtype):
    world = World(0, 2)  # as if there were another, which adds nothing
    x = torch.arange(6, device=DEVICE).to(getattr(torch, dtype))
    total = x.clone()
    world.add(total)
    assert torch.equal(total, x) and torch.equal(world.concat(x), x)
    (sent,) = world.exchange([x], [len(x)])
    assert torch.equal(sent, x) and sent.dtype == x.dtype
    assert world.any(True, False) == (True, False)
    found = x.new_empty(1, 6)
    dist.all_gather(list(found.view(torch.uint8)), x.view(torch.uint8))  # as in `World.gather`
    assert torch.equal(found[0], x)
