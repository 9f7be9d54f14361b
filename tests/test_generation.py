"""Continuations equal those of transformers or follow the k best; losses equal single rows."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from transformers import LlamaForCausalLM

from saefeat import generation
from saefeat.generation import (
    Decoding,
    cut_at_stops,
    distinct_trigrams,
    encode_prompts,
    generate,
    perplexities,
    text_losses,
    texts_of,
    token_losses,
)
from saefeat.io import UserError

ROWS = [
    [0, 40, 41],
    [0, 50, 51, 52, 53, 54, 55],
    [0, 60, 61, 62, 63],
    [70],
    [0, 80, 81, 82, 83, 84, 85, 86],
]
GREEDY = Decoding(max_new_tokens=8, temperature=0)
TURNS = (
    "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)


pytestmark = pytest.mark.usefixtures("no_gradients")


def own_greedy(lm, row, new=8):
    """Greedy tokens, one forward pass each, without cache, batch or `generate`; cut at `</s>`."""
    ids = list(row)
    for _ in range(new):
        ids.append(
            int(lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        )
        if ids[-1] == 1:
            return ids[len(row) : -1]
    return ids[len(row) :]


def naive_losses(lm, row, count):
    """Negative log-likelihoods of the last tokens of one row, alone and in float64."""
    logits = lm.model(input_ids=torch.tensor([row]), use_cache=False).logits[0].double()
    return [
        float(logits[i - 1].logsumexp(0) - logits[i - 1, row[i]])
        for i in range(len(row) - count, len(row))
    ]


# --------------------------------------------------------------------------- prompts


def test_prompts_begin_with_bos(tiny_lm):
    first, second = encode_prompts(tiny_lm, ["the cat", "der Hund und"], 8)
    assert first == tiny_lm.tokenizer("the cat")["input_ids"] and first[0] == 0
    assert tiny_lm.tokenizer.decode(second[1:]) == "der Hund und"
    assert encode_prompts(tiny_lm, [], 8) == []


@pytest.mark.parametrize("prompt", ["", " ", "\n\t"])
@pytest.mark.parametrize("chat", [False, True])
def test_an_empty_prompt_is_refused_by_its_number(make_lm, prompt, chat):
    lm = make_lm()
    lm.tokenizer.chat_template = TURNS
    with pytest.raises(UserError, match="prompt 2 is empty"):
        encode_prompts(lm, ["the cat", prompt], 8, chat=chat)


def test_a_prompt_may_fill_the_context_but_not_exceed_it(tiny_lm):
    length = len(encode_prompts(tiny_lm, ["cat " * 100], 0)[0])
    assert len(encode_prompts(tiny_lm, ["cat " * 100], 512 - length)[0]) == length
    with pytest.raises(
        UserError, match=f"prompt 1 has {length} tokens; with {513 - length} more it exceeds 512"
    ):
        encode_prompts(tiny_lm, ["cat " * 100], 513 - length)


def test_a_chat_template_is_put_around_the_prompt_once(make_lm):
    lm = make_lm()
    lm.tokenizer.chat_template = TURNS
    bare = lm.tokenizer("the cat", add_special_tokens=False)["input_ids"]
    assert encode_prompts(lm, ["the cat"], 8, chat=True) == [[0, *bare, 1, 0]]
    assert encode_prompts(lm, ["the cat"], 8) == [[0, *bare]]


def test_chat_without_a_template_is_refused(tiny_lm):
    with pytest.raises(UserError, match="tiny-llama-0 has no chat template"):
        encode_prompts(tiny_lm, ["the cat"], 8, chat=True)


# --------------------------------------------------------------------------- decoding


def test_greedy_continuations_equal_one_pass_per_token(family_lm):
    wanted = [own_greedy(family_lm, row) for row in ROWS]
    assert generate(family_lm, ROWS, GREEDY) == wanted
    assert [generate(family_lm, [row], GREEDY)[0] for row in ROWS[:2]] == wanted[:2]


def test_greedy_continuations_equal_those_of_transformers(tiny_lm):
    for row in ROWS:
        ids = torch.tensor([row])
        out = tiny_lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=2,
        )
        assert generate(tiny_lm, [row], GREEDY)[0] == [
            t for t in out[0, len(row) :].tolist() if t not in (1, 2)
        ]


def test_top_1_is_greedy(tiny_lm):
    assert generate(tiny_lm, ROWS, Decoding(8, top_k=1)) == generate(tiny_lm, ROWS, GREEDY)


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_a_repetition_penalty_is_that_of_transformers_and_leaves_padding_out(tiny_lm, penalty):
    together = generate(tiny_lm, ROWS, GREEDY, repetition_penalty=penalty)
    for row, found in zip(ROWS, together, strict=True):
        ids = torch.tensor([row])
        out = tiny_lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=2,
            repetition_penalty=penalty,
        )
        assert found == [t for t in out[0, len(row) :].tolist() if t not in (1, 2)]
    assert together != generate(tiny_lm, ROWS, GREEDY)


STOPS = ("}P}", "KK", "do", "H", "Q", "the", "\nA:")  # of one token, of three, and parts of one


@pytest.mark.parametrize("decoding", [Decoding(24, temperature=0), Decoding(24, seed=4)])
def test_texts_end_before_the_first_stop_whether_more_was_generated_or_not(tiny_lm, decoding):
    whole = generate(tiny_lm, ROWS, decoding)
    texts = texts_of(tiny_lm, whole)
    wanted = [text[: min((text.find(x) for x in STOPS if x in text), default=99)] for text in texts]
    assert sum(one != text for one, text in zip(wanted, texts, strict=True)) >= 4
    found = generate(tiny_lm, ROWS, decoding, stops=STOPS)
    rows, cut = cut_at_stops(tiny_lm, found, STOPS)
    assert cut == wanted and (rows, cut) == cut_at_stops(tiny_lm, whole, STOPS)
    parts = 0
    for row, text, before in zip(rows, cut, whole, strict=True):
        assert row == before[: len(row)]
        starts = texts_of(tiny_lm, [before[: n + 1] for n in range(len(before))])
        assert len(row) == max(
            (n for n, x in enumerate(starts, 1) if text.startswith(x)), default=0
        )
        parts += texts_of(tiny_lm, [row]) != [text]
    assert parts  # a token of which a part stands before the stop is left out
    assert cut_at_stops(tiny_lm, whole, ()) == (whole, texts)


def test_nothing_is_generated_after_a_stop(tiny_lm):
    decoding = Decoding(24, temperature=0)
    for row in ROWS:
        (whole,), (found,) = (generate(tiny_lm, [row], decoding, stops=x) for x in ((), STOPS))
        assert found == whole[: len(found)] and len(found) < 24
        last, before = texts_of(tiny_lm, [found, found[:-1]])
        assert any(x in last for x in STOPS) and not any(x in before for x in STOPS)


def test_a_stop_that_begins_in_the_prompt_stops_nothing(tiny_lm):
    (whole,) = generate(tiny_lm, [ROWS[1]], GREEDY)
    start, end = texts_of(tiny_lm, [ROWS[1][-1:], whole[:1]])
    assert start + end not in texts_of(tiny_lm, [whole])[0]
    assert generate(tiny_lm, [ROWS[1]], GREEDY, stops=[start + end]) == [whole]


def test_real_text_is_cut_before_a_stop_wherever_its_tokens_end(tiny_lm):
    text = "der Hund.\nQ: schön แมว\nA: the end"
    row = tiny_lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    for stops, wanted in {
        ("\nQ:", "\nA:"): "der Hund.",
        ("\nA:",): "der Hund.\nQ: schön แมว",
        ("und",): "der H",
        ("ön",): "der Hund.\nQ: sch",
        ("d", "\nQ:"): "",
        ("\nB:",): text,
    }.items():
        assert cut_at_stops(tiny_lm, [row, []], stops)[1] == [wanted, ""]
    (kept, _), _ = cut_at_stops(tiny_lm, [row, []], ["\nA:"])
    assert texts_of(tiny_lm, [kept]) == ["der Hund.\nQ: schön แมว"]


def test_one_seed_gives_one_text_and_another_seed_another(tiny_lm):
    first = generate(tiny_lm, ROWS, Decoding(8, seed=1))
    torch.manual_seed(99)  # the global generator has no say
    assert generate(tiny_lm, ROWS, Decoding(8, seed=1)) == first
    assert generate(tiny_lm, ROWS, Decoding(8, seed=2)) != first


def test_the_text_of_a_prompt_does_not_depend_on_its_batch(family_lm):
    decoding = Decoding(8, seed=3)
    together = generate(family_lm, ROWS, decoding)
    for place, row in enumerate(ROWS):
        others = [ROWS[(place + 2) % len(ROWS)]] * place
        assert generate(family_lm, [*others, row], decoding)[place] == together[place]
    assert (
        len({tuple(row) for row in generate(family_lm, [ROWS[0]] * 4, decoding)}) > 1
    )  # each has its own numbers


def test_prompts_share_their_random_numbers_with_their_repeats(tiny_lm):
    decoding = Decoding(8, seed=3)
    once = generate(tiny_lm, ROWS, decoding)
    assert generate(tiny_lm, ROWS * 3, decoding, repeat=len(ROWS)) == once * 3
    assert generate(tiny_lm, ROWS, decoding, repeat=1) == [
        generate(tiny_lm, [row], decoding)[0] for row in ROWS
    ]


def test_texts_do_not_depend_on_the_batch_size(tiny_lm, monkeypatch):
    wanted = [generate(tiny_lm, ROWS * 2, d, repeat=5) for d in (GREEDY, Decoding(8))]
    monkeypatch.setattr(generation, "BATCH", 3)
    assert [generate(tiny_lm, ROWS * 2, d, repeat=5) for d in (GREEDY, Decoding(8))] == wanted


def test_no_prompts_give_no_text(tiny_lm):
    assert generate(tiny_lm, [], Decoding(8)) == []


@pytest.mark.parametrize("of", ["model", "models", "tokenizer"])
def test_texts_are_cut_at_their_first_end(make_lm, of):
    lm = make_lm()
    lm.model.generation_config.eos_token_id = None
    lm.tokenizer.eos_token = None
    decoding = Decoding(12, seed=5)
    whole = generate(lm, ROWS, decoding)
    assert [len(row) for row in whole] == [12] * 5
    end = Counter(token for row in whole for token in row[1:]).most_common(1)[0][0]
    if of == "tokenizer":
        lm.tokenizer.eos_token = lm.tokenizer.convert_ids_to_tokens(end)
    else:
        lm.model.generation_config.eos_token_id = end if of == "model" else [end, 299]
    stops = {end, 299} if of == "models" else {end}
    found = generate(lm, ROWS, decoding)
    assert found == [row[: next((i for i, t in enumerate(row) if t in stops), 12)] for row in whole]
    assert min(map(len, found)) < 12


def test_samples_follow_the_distribution_of_the_k_best(tiny_lm):
    prompt, n = [0, 40, 41], 4096
    decoding = Decoding(max_new_tokens=2, temperature=0.7, top_k=6, seed=11)
    pairs = generate(tiny_lm, [prompt] * n, decoding)
    pairs = [row for row in pairs if len(row) == 2]
    assert len(pairs) == n  # `</s>` is not among the best here
    first = Counter(row[0] for row in pairs)
    common = first.most_common(1)[0][0]
    for context, seen in (
        (prompt, first),
        ([*prompt, common], Counter(row[1] for row in pairs if row[0] == common)),
    ):
        best = tiny_lm.model(input_ids=torch.tensor([context])).logits[0, -1].double().topk(6)
        expected = dict(
            zip(best.indices.tolist(), (best.values / 0.7).softmax(0).tolist(), strict=True)
        )
        assert set(seen) <= set(expected)
        total = sum(seen.values())
        assert total > 500 and max(expected.values()) < 0.9
        observed = [seen[token] for token in expected]
        assert chisquare(observed, [p * total for p in expected.values()]).pvalue > 1e-3
        flat = [total / 6] * 6
        assert chisquare(observed, flat).pvalue < 1e-3  # the test can tell


def test_special_tokens_are_left_out_of_texts(tiny_lm):
    ids = tiny_lm.tokenizer("der Hund", add_special_tokens=False)["input_ids"]
    assert texts_of(tiny_lm, [[0, *ids, 2, 1], ids, []]) == ["der Hund", "der Hund", ""]


# --------------------------------------------------------------------------- losses


def test_losses_in_a_batch_equal_those_of_single_rows(family_lm):
    rows = [row for row in ROWS if len(row) > 1]
    for counts in ([2, 6, 4, 7], [1, 1, 1, 1], [1, 6, 2, 3]):
        for found, row, count in zip(
            token_losses(family_lm, rows, counts), rows, counts, strict=True
        ):
            assert found == pytest.approx(naive_losses(family_lm, row, count), abs=1e-4)


def test_losses_do_not_depend_on_how_rows_are_grouped(tiny_lm, monkeypatch):
    rows, counts = [row for row in ROWS if len(row) > 1], [2, 3, 4, 7]
    wanted = list(token_losses(tiny_lm, rows, counts))
    passes = []
    handle = tiny_lm.model.register_forward_hook(
        lambda _m, _i, out: passes.append(out.logits.numel())
    )
    try:
        for limit, most in (
            (1, 300 * 8),
            (300 * 10, 300 * 10),
            (300 * 25, 300 * 25),
            (300 * 99, 300 * 32),
        ):
            monkeypatch.setattr(generation, "LOGITS", limit)
            passes.clear()
            for found, row in zip(token_losses(tiny_lm, rows, counts), wanted, strict=True):
                assert found == pytest.approx(row, abs=1e-5)
            assert max(passes) <= most and len(passes) <= len(rows)
        assert len(passes) == 1
    finally:
        handle.remove()


def test_logits_are_computed_only_where_they_are_needed(tiny_lm):
    lengths = []
    handle = tiny_lm.model.lm_head.register_forward_hook(
        lambda _m, _i, out: lengths.append(out.shape[1])
    )
    try:
        list(token_losses(tiny_lm, [ROWS[1], ROWS[4]], [2, 3]))
        generate(tiny_lm, ROWS, Decoding(3))
    finally:
        handle.remove()
    assert lengths == [4, 1, 1, 1]


class Old(LlamaForCausalLM):
    """A model whose forward has neither `logits_to_keep` nor `position_ids`."""

    def forward(
        self, input_ids=None, attention_mask=None, use_cache=None, return_dict=True, **cache
    ):
        return super().forward(input_ids, attention_mask, use_cache=use_cache, **cache)


def test_a_model_without_the_option_of_last_logits_gives_the_same(tiny_lm):
    model = copy.deepcopy(tiny_lm.model)
    model.__class__ = Old
    old = dataclasses.replace(tiny_lm, model=model)
    rows = [row for row in ROWS if len(row) > 1]
    for one, other in zip(
        token_losses(old, rows, [2] * 4), token_losses(tiny_lm, rows, [2] * 4), strict=True
    ):
        assert one == pytest.approx(other, abs=1e-5)
    assert generate(old, [ROWS[0]], GREEDY) == generate(tiny_lm, [ROWS[0]], GREEDY)


def test_perplexity_is_of_the_tokens_after_the_skipped_ones(tiny_lm):
    prompts = [ROWS[0], ROWS[1], ROWS[2], ROWS[3]]
    rows = [list(range(90, 100)), [5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9], []]
    found = perplexities(tiny_lm, prompts, rows)
    assert found[2:] == [None, None]
    for value, prompt, row in zip(found[:2], prompts, rows, strict=False):
        losses = naive_losses(tiny_lm, prompt + row, len(row) - 5)
        assert value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    whole = perplexities(tiny_lm, prompts, rows, skip=0)
    losses = naive_losses(tiny_lm, prompts[2] + rows[2], 5)
    assert whole[2] == pytest.approx(math.exp(sum(losses) / 5), rel=1e-4) and whole[3] is None
    assert perplexities(tiny_lm, [], []) == []


@pytest.mark.parametrize("bos", [True, False])
def test_losses_of_texts_are_means_over_predicted_tokens(family_lm, bos):
    lm = family_lm if bos else dataclasses.replace(family_lm, prefix=[])
    texts = ["the cat sat on the mat", "", "der Hund", "q", "x" * 50]
    found = text_losses(lm, texts, 9)
    for value, text in zip(found, texts, strict=True):
        row = lm.prefix + lm.tokenizer(text, add_special_tokens=False)["input_ids"][:9]
        if len(row) < 2:
            assert math.isnan(value)
        else:
            losses = naive_losses(lm, row, len(row) - 1)
            assert value == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert [math.isnan(value) for value in found] == [False, True, False, not bos, False]
    assert text_losses(lm, [], 9) == []


def test_distinct_trigrams_by_hand():
    assert distinct_trigrams([[1, 2, 3]]) == 1
    assert distinct_trigrams([[1, 1, 1, 1, 1]]) == pytest.approx(1 / 3)
    assert distinct_trigrams([[1, 2, 1, 2, 1, 2]]) == 0.5  # 121, 212, 121, 212
    assert distinct_trigrams([[1, 1, 1, 1, 1], [1, 2, 3, 4], [7, 7]]) == pytest.approx(
        (1 / 3 + 1) / 2
    )
    assert distinct_trigrams([[1, 2], []]) == distinct_trigrams([]) == 0
