"""Edits of the logits: exact in every batch, at each row's own strength, and only in a block."""

from __future__ import annotations

import pytest
import torch

from saefeat.generation import Decoding, edited_logits, generate, perplexities, text_losses
from saefeat.io import UserError
from saefeat.steering import Schedule, add, apply
from saefeat.steering.edits import LOGITS
from saefeat.steering.logits import boost

ROWS = [[0, 40, 41], [0, 50, 51, 52, 53, 54, 55], [0, 60, 61, 62, 63]]
VOCABULARY, NEW = 300, 8
GREEDY, SAMPLED = Decoding(max_new_tokens=NEW, temperature=0), Decoding(max_new_tokens=NEW, seed=3)
TOKENS = torch.zeros(VOCABULARY, dtype=torch.bool)
TOKENS[100:160] = True
TABLE = 3 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0))
CHANGES = {"boost": boost(TOKENS, 5), "boost, adaptive": boost(TOKENS, 5, 0.3), "table": add(TABLE)}

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(params=CHANGES)
def change(request):
    return CHANGES[request.param]


def plain(lm, row, decoding, edit, noise=None):
    """Decode one row token by token without a cache; `edit`: (logits [V], step) -> logits."""
    ids, ends = list(row), {1}
    for step in range(decoding.max_new_tokens):
        logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        logits = edit(logits, step)
        if noise is None:
            token = int(logits.argmax())
        else:
            best = logits.topk(decoding.top_k)
            token = int(best.indices[(best.values / decoding.temperature + noise[step]).argmax()])
        if token in ends:
            break
        ids.append(token)
    return ids[len(row) :]


def noise_of(decoding, rows):
    generator = torch.Generator().manual_seed(decoding.seed)
    shape = (rows, decoding.max_new_tokens, decoding.top_k)
    uniform = torch.rand(shape, generator=generator).clamp(min=1e-20)
    return -(-uniform.log()).log()


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_decoding_under_an_edit_equals_a_plain_loop(family_lm, decoding):
    """With a cache and padding, the edit is what a loop without either makes of the logits."""
    schedule = Schedule(first=2, rest=0.3)
    noise = noise_of(decoding, len(ROWS)) if decoding.temperature else [None] * len(ROWS)

    def edit(logits, step):
        return logits + (1.2 if step <= 2 else 0.3) * 5 * TOKENS

    with apply(family_lm, {LOGITS: [CHANGES["boost"]]}, 1.2, schedule):
        found = generate(family_lm, ROWS, decoding)
    wanted = [plain(family_lm, r, decoding, edit, n) for r, n in zip(ROWS, noise, strict=True)]
    assert found == wanted != generate(family_lm, ROWS, decoding)


def test_each_row_has_its_own_strength_batched_and_alone(family_lm, change):
    strengths = [0.0, 1.5, -0.7]
    with apply(family_lm, {LOGITS: [change]}, torch.tensor(strengths)):
        together = generate(family_lm, ROWS, SAMPLED, repeat=1)
    for row, strength, tokens in zip(ROWS, strengths, together, strict=True):
        with apply(family_lm, {LOGITS: [change]}, strength):
            assert generate(family_lm, [row], SAMPLED) == [tokens]
    assert together[:1] == generate(family_lm, ROWS[:1], SAMPLED)


def test_strength_0_changes_nothing_and_no_edit_outlives_its_block(tiny_lm, change):
    before = generate(tiny_lm, ROWS, SAMPLED)
    losses = text_losses(tiny_lm, ["the cat sat on the mat"], 32)
    with apply(tiny_lm, {LOGITS: [change]}, 0.0):
        assert generate(tiny_lm, ROWS, SAMPLED) == before
        assert text_losses(tiny_lm, ["the cat sat on the mat"], 32) == losses
    with pytest.raises(ZeroDivisionError), apply(tiny_lm, {LOGITS: [change]}, 1.0):
        assert generate(tiny_lm, ROWS, SAMPLED) != before
        raise ZeroDivisionError
    assert generate(tiny_lm, ROWS, SAMPLED) == before


def test_an_edit_of_one_model_leaves_others_alone(tiny_lm, make_lm):
    other = make_lm("llama", 3)
    before = generate(other, ROWS, GREEDY)
    with apply(tiny_lm, {LOGITS: [CHANGES["boost"]]}, 2.0):
        assert generate(other, ROWS, GREEDY) == before


def test_edits_of_the_logits_and_of_vectors_nest(tiny_lm):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(4))
    both = {"resid_post@0": [add(vector)], LOGITS: [CHANGES["boost"], CHANGES["table"]]}
    with apply(tiny_lm, both, 1.0):
        together = generate(tiny_lm, ROWS, SAMPLED)
    with (
        apply(tiny_lm, {"resid_post@0": both["resid_post@0"]}, 1.0),
        apply(tiny_lm, {LOGITS: [CHANGES["boost"]]}, 1.0),
        apply(tiny_lm, {LOGITS: [CHANGES["table"]]}, 1.0),
    ):
        assert generate(tiny_lm, ROWS, SAMPLED) == together


def test_an_adaptive_boost_acts_where_the_model_is_unsure():
    sure, unsure = torch.zeros(2, VOCABULARY)
    sure[3], unsure[3] = 20.0, 1.0
    x = torch.stack([sure, unsure])[None]
    found = boost(TOKENS, 5, 0.8)(x, torch.full((1, 2, 1), 2.0))
    assert torch.equal(found[0, 0], sure)
    assert torch.equal(found[0, 1], unsure + 10.0 * TOKENS)


def test_losses_are_those_of_the_edited_logits(tiny_lm, change):
    text = "the cat sat on the mat and the dog"
    ids = torch.tensor([tiny_lm.prefix + tiny_lm.tokenize([text], 32)[0]])
    logits = change(
        tiny_lm.model(input_ids=ids).logits.float(), torch.full((1, ids.shape[1], 1), 0.6)
    )
    wanted = -logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).mean()
    with apply(tiny_lm, {LOGITS: [change]}, 0.6):
        assert text_losses(tiny_lm, [text], 32)[0] == pytest.approx(float(wanted), rel=1e-5)
        edited = perplexities(tiny_lm, ROWS[:1], [list(range(40, 50))])
    assert edited != perplexities(tiny_lm, ROWS[:1], [list(range(40, 50))])


def test_strengths_of_another_number_of_rows_are_refused(tiny_lm):
    with (
        apply(tiny_lm, {LOGITS: [CHANGES["boost"]]}, torch.ones(2)),
        pytest.raises(UserError, match=r"2 .*3"),
    ):
        generate(tiny_lm, ROWS, GREEDY)


def test_steps_of_the_logits_count_new_tokens(tiny_lm):
    seen = []

    def watch(logits, steps):
        seen.append(steps.tolist())
        return logits

    with edited_logits(tiny_lm, [watch]):
        generate(tiny_lm, ROWS[:2], Decoding(max_new_tokens=3, temperature=0))
    assert seen == [[[0], [0]], [[1], [1]], [[2], [2]]]
