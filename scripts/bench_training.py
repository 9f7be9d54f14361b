"""Speed and held-out FVU of SAE training by saefeat and by sae-lens on the same activations.

    python scripts/bench_training.py --steps 120 --seeds 3 --out scripts/results/bench_training.json

Both trainers read the same float32 activations of one site, scaled to mean 0 and unit variance, in
the same batches, with the same allocator and threads. Each takes its best peak learning rate of a
grid on the first seed. sae-lens has its defaults for TopK (AuxK, rescaling by decoder norm) and
runs with autocast and without. On processors without fast bfloat16, autocast is many times slower;
its speed is measured on a few steps then, and its FVU is that of the float32 run.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import torch
from common import by_commas, options, parse, record, show
from torch import Tensor

from saefeat.config import TrainConfig
from saefeat.corpora import PAPER_LABELS, load_corpus, make_plan
from saefeat.models import load_model, native_bf16
from saefeat.sae.chunks import fill, single_chunk
from saefeat.sae.trainer import Trainer

K, BATCH = 32, 2048


def activations(model: str, site: str, tokens: int) -> tuple[Tensor, Tensor]:
    """Training and held-out vectors float32 of mean 0 and variance 1, without outliers."""
    lm = load_model(model)
    corpus = load_corpus("embedded:eld", labels=PAPER_LABELS)
    parts = []
    for split, budget in (("train", tokens // 15), ("test", 1500)):
        plan = make_plan(corpus, lm, split=split, max_tokens=budget, mixed=True)
        parts.append(fill(lm, plan, [lm.site(site)], single_chunk(plan))[site].float())
    train, test = parts
    limit = train.norm(dim=1).median() * 8
    train, test = train[train.norm(dim=1) <= limit], test[test.norm(dim=1) <= limit]
    mean = train.mean(0)
    scale = (train - mean).square().mean().sqrt()
    return (train - mean) / scale, (test - mean) / scale


def batches(x: Tensor, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            if len(rows) == BATCH:
                yield x[rows]


def fvu(x: Tensor, reconstruction: Tensor) -> float:
    return float((x - reconstruction).square().sum() / (x - x.mean(0)).square().sum())


def ours(
    train: Tensor, test: Tensor, d_sae: int, steps: int, lr: float, seed: int
) -> dict[str, float]:
    config = TrainConfig(k=K, d_sae=d_sae, batch_size=BATCH, lr=lr, seed=seed)
    with torch.inference_mode():
        trainer = Trainer(train.shape[1], config, steps, "cpu")
        trainer.scaler = {
            "mean": torch.zeros(train.shape[1]),
            "scale": torch.ones(()),
            "max_norm": torch.tensor(1e9),
        }
        rows = batches(train, seed)
        start = time.monotonic()
        for _ in range(steps):
            trainer.step(next(rows))
        seconds = time.monotonic() - start
        sae = trainer.sae("ours", "site", {})
        return {
            "tokens_per_s": steps * BATCH / seconds,
            "fvu": fvu(test, sae.decode(sae.encode(test))),
        }


def theirs(
    train: Tensor,
    test: Tensor,
    d_sae: int,
    steps: int,
    lr: float,
    seed: int,
    *,
    autocast: bool,
    planned: int,
) -> dict[str, float]:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=train.shape[1], d_sae=d_sae, k=K))
    config = SAETrainerConfig(
        total_training_samples=planned * BATCH,
        train_batch_size_samples=BATCH,
        lr=lr,
        lr_end=0.0,
        lr_warm_up_steps=int(0.05 * planned),
        lr_decay_steps=int(0.4 * planned),
        autocast=autocast,
    )
    trainer = SAETrainer(config, sae, batches(train, seed))
    rows = batches(train, seed)
    start = time.monotonic()
    for _ in range(steps):
        trainer._train_step(sae=sae, sae_in=next(rows))
        trainer.n_training_samples += BATCH
        trainer.n_training_steps += 1
    seconds = time.monotonic() - start
    with torch.no_grad():
        error = fvu(test, sae(test))
    return {"tokens_per_s": steps * BATCH / seconds, "fvu": error}


def sparsify_steps(x: Tensor, d_sae: int, batch: int, device: str) -> Callable[[], None]:
    """A function that makes one training step of EleutherAI's sparsify.

    The step is that of its `Trainer.fit`, with Adam and TF32 products. Raises ImportError if
    sparsify is not installed.

    Args:
        x: vectors [n, d_in] on the device, used in order.
        d_sae: width of the SAE.
        batch: vectors per step.
        device: of the SAE.
    """
    from sparsify import SparseCoder, SparseCoderConfig

    torch.set_float32_matmul_precision("high")
    coder = SparseCoder(
        x.shape[1], SparseCoderConfig(num_latents=d_sae, k=K), device, dtype=torch.float32
    )
    adam = torch.optim.Adam(coder.parameters(), lr=2e-4 / (d_sae / 2**14) ** 0.5)
    fired, silent = (
        torch.zeros(d_sae, dtype=kind, device=device) for kind in (torch.bool, torch.int64)
    )
    turns = itertools.cycle(x.split(batch))

    def step() -> None:
        rows = next(turns)
        if coder.cfg.normalize_decoder:
            coder.set_decoder_norm_to_unit_norm()
        # AuxK is off by default.
        found = coder(rows, total_variance=(rows - rows.mean(0)).pow(2).sum())
        fired[found.latent_indices.flatten()] = True
        found.fvu.backward()
        if coder.cfg.normalize_decoder:
            coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        silent.add_(len(rows))
        silent[fired] = 0
        fired.zero_()

    return step


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="embedded:gemma-3-270m")
    parser.add_argument("--site", default="resid_post@8")
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--d-sae", type=int, default=5120)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--autocast-steps", type=int, default=3)
    parser.add_argument(
        "--lrs",
        default="2e-3,4e-3,6e-3",
        help="each trainer takes the best of these on the first seed",
    )
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parse(parser)
    train, test = activations(arguments.model, arguments.site, arguments.tokens)
    rows, steps, shape = [], arguments.steps, (train, test, arguments.d_sae)
    autocast_steps = steps if native_bf16("cpu") else arguments.autocast_steps
    grid = [float(lr) for lr in by_commas(arguments.lrs)]
    tried = {
        "saefeat": {lr: ours(*shape, steps, lr, 0) for lr in grid},
        "sae_lens": {
            lr: theirs(*shape, steps, lr, 0, autocast=False, planned=steps) for lr in grid
        },
    }
    show(tried)
    lr = {side: min(found, key=lambda value: found[value]["fvu"]) for side, found in tried.items()}
    for seed in range(arguments.seeds):
        mine, other = tried["saefeat"][lr["saefeat"]], tried["sae_lens"][lr["sae_lens"]]
        if seed:
            mine = ours(*shape, steps, lr["saefeat"], seed)
            other = theirs(*shape, steps, lr["sae_lens"], seed, autocast=False, planned=steps)
        cast = theirs(*shape, autocast_steps, lr["sae_lens"], seed, autocast=True, planned=steps)
        if autocast_steps != steps:
            cast.pop("fvu")
        rows.append({"seed": seed, "saefeat": mine, "sae_lens": other, "sae_lens_autocast": cast})
        show(rows[-1])
    mean = {
        side: sum(row[side]["tokens_per_s"] for row in rows) / len(rows)
        for side in ("saefeat", "sae_lens", "sae_lens_autocast")
    }
    error = {
        side: sum(row[side]["fvu"] for row in rows) / len(rows) for side in ("saefeat", "sae_lens")
    }
    result = {
        "lr": lr,
        "tried": tried,
        "tokens_per_s": mean,
        "speed_ratio": {
            side: mean["saefeat"] / mean[side] for side in ("sae_lens", "sae_lens_autocast")
        },
        "fvu": error,
        "fvu_ratio": error["saefeat"] / error["sae_lens"],
        "rows": rows,
    }
    record(arguments, result)


if __name__ == "__main__":
    main()
