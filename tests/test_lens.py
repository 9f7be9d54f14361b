"""The logit lens, the stream by layer, MEXA, keywords and scripts, against brute force."""

from __future__ import annotations

import keyword
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, make_tokenizer
from helpers import refused
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from saefeat.labels.scripts import known_scripts, script_of, scripts_of_label
from saefeat.lens.alignment import aligned, aligned_otherwise, cosines, embed_texts
from saefeat.lens.keywords import languages_of, pygments_keywords
from saefeat.lens.logits import (
    before_projection,
    check_decoding,
    logits,
    set_probabilities,
    top_probabilities,
    top_tokens,
)
from saefeat.lens.stream import EMBEDDINGS, read_means, read_places, spread, stream_sites
from saefeat.models import wrap

pytestmark = pytest.mark.usefixtures("no_gradients")
ROWS = [[40, 41, 42, 43, 290, 44], [50], [60, 61, 1, 62, 291, 70, 71, 72]]  # 1 is special


def hidden(lm, row):
    """What transformers gives as hidden states of one row, BOS included: layer -> [tokens, d].

    The stream after the last block is the input of the final norm.
    """
    last, ids = [], torch.tensor([[*lm.prefix, *row]])
    layers = stream_sites(lm)
    block = lm.model.get_submodule(lm.site(layers[max(layers)]).path)
    handle = block.register_forward_hook(
        lambda _m, _i, out: last.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    out = lm.model(input_ids=ids, output_hidden_states=True)
    handle.remove()
    states = [*out.hidden_states[:-1], last[0]]
    return dict(zip(layers, (state[0] for state in states), strict=True)), out.logits[0]


def other_lm(name, **options):
    """A tiny model of a family that scales its logits, or has a bias in its output projection."""
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCABULARY, **sizes, **heads, **ends, **options
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    for weight in model.parameters():
        weight.add_(torch.randn(weight.shape), alpha=0.15)
    return wrap(model, make_tokenizer(), name)


# --------------------------------------------------------------------------- decoding


def check_own_logits(lm):
    states, own = hidden(lm, ROWS[0])
    last = states[max(states)]
    assert torch.allclose(logits(lm, last), own, atol=1e-4)
    assert torch.equal(top_tokens(lm, last, 5), own.topk(5).indices)
    check_decoding(lm)


def test_the_last_layer_with_the_final_norm_gives_the_models_own_logits(family_lm):
    check_own_logits(family_lm)


@pytest.mark.parametrize(
    ("name", "options"),
    [("Cohere", {"logit_scale": 0.25}), ("Granite", {"logits_scaling": 8.0}), ("Phi", {})],
)
def test_so_in_families_that_scale_logits_or_add_a_bias(name, options):
    check_own_logits(other_lm(name, **options))


def test_the_last_hidden_states_of_transformers_are_behind_the_final_norm(family_lm):
    states, _ = hidden(family_lm, ROWS[0])
    ids = torch.tensor([[*family_lm.prefix, *ROWS[0]]])
    last = family_lm.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    assert torch.allclose(before_projection(family_lm, states[max(states)]), last, atol=1e-5)


def test_without_the_final_norm_vectors_go_straight_to_the_output_projection(tiny_lm):
    x = torch.randn(70, 32)
    expected = x @ tiny_lm.model.lm_head.weight.t()
    assert torch.allclose(logits(tiny_lm, x, norm=False), expected, atol=1e-5)
    assert not torch.allclose(logits(tiny_lm, x), expected, atol=0.1)
    assert torch.equal(top_tokens(tiny_lm, x, 4, norm=False), expected.topk(4).indices)


def test_probabilities_of_the_top_tokens_are_those_of_a_softmax(tiny_lm):
    x = torch.cat([torch.randn(69, 32), 1e3 * torch.randn(1, 32)])  # one of a sharp distribution
    ids, chances = top_probabilities(tiny_lm, x, 4, norm=False)
    assert torch.equal(ids, top_tokens(tiny_lm, x, 4, norm=False))
    expected = logits(tiny_lm, x, norm=False).double().softmax(-1).gather(1, ids)
    assert torch.allclose(chances.double(), expected, atol=1e-6)


def test_a_model_whose_logits_are_made_otherwise_is_refused(make_lm):
    lm = make_lm("llama")
    lm.model.config.logits_scaling = 3.0  # which a Llama does not read
    with refused("does not know what tiny-llama-0 does", "kinds"):
        check_decoding(lm)


def test_probabilities_of_sets_are_sums_over_different_tokens(tiny_lm):
    x = torch.randn(70, 32)
    sets = [[[1, 2, 1], [], [i]] for i in range(70)]
    found = set_probabilities(tiny_lm, x, sets, norm=True)
    own = tiny_lm.model.lm_head(tiny_lm.model.model.norm(x)).double().softmax(-1)
    for i in range(70):
        assert found[i].tolist() == pytest.approx([float(own[i, 1:3].sum()), 0, float(own[i, i])])


# --------------------------------------------------------------------------- the stream


def test_all_layers_are_the_hidden_states_of_transformers(family_lm):
    sites = stream_sites(family_lm)
    assert list(sites) == [EMBEDDINGS, 0, 1]
    rows, places = dict(enumerate(ROWS)), {0: [1, 5], 1: [0], 2: [0, 3, 7]}
    seen = set()
    for batch, vectors in list(read_places(family_lm, rows, places, sites.values())):
        start = 0
        for i in batch.positions:
            states, _ = hidden(family_lm, ROWS[i])
            at = [place + len(family_lm.prefix) for place in places[i]]
            for layer, site in sites.items():
                mine = vectors[site][start : start + len(at)]
                assert torch.allclose(mine, states[layer][at], atol=1e-4)
            start += len(at)
            seen.add(i)
    assert seen == {0, 1, 2}


def test_means_leave_special_tokens_out(tiny_lm):
    sites = stream_sites(tiny_lm)
    found = dict(read_means(tiny_lm, dict(enumerate(ROWS)), sites.values()))
    for i, row in enumerate(ROWS):
        states, _ = hidden(tiny_lm, row)
        kept = [place + 1 for place, token in enumerate(row) if token != 1]
        for layer, site in sites.items():
            assert torch.allclose(found[i][site], states[layer][kept].mean(0), atol=1e-5)


def test_some_layers_and_layers_that_do_not_exist(tiny_lm):
    assert list(stream_sites(tiny_lm, [1, -1, 1])) == [-1, 1]
    for layer in (2, -2):
        with refused(
            f"the layer {layer} does not exist: the model has the layers 0 to 1", "layers"
        ):
            stream_sites(tiny_lm, [0, layer])


@given(st.integers(1, 60), st.integers(1, 20))
def test_places_are_spread_evenly_and_end_with_the_last(count, n):
    places = [3 * i for i in range(count)]
    found = spread(places, n)
    assert len(found) == min(n, count) and found[-1] == places[-1]
    gaps = {b - a for a, b in pairwise([-3, *found])}
    assert max(gaps) - min(gaps) <= 3


# --------------------------------------------------------------------------- MEXA


def test_alignment_by_hand():
    # Pair 0 is the best of its row and column; pair 1 is tied in its row; pair 2 loses its column.
    similarity = np.array([[0.9, 0.1, 0.2], [0.3, 0.5, 0.5], [0.1, 0.2, 0.4]])
    assert aligned(similarity).tolist() == [True, False, False]
    assert aligned(similarity[:2, :2]).tolist() == [True, True]


@given(
    st.integers(2, 6).flatmap(lambda n: st.lists(st.integers(0, 4), min_size=n * n, max_size=n * n))
)
def test_alignment_is_the_published_loop(values):
    n = int(len(values) ** 0.5)
    c = np.array(values, float).reshape(n, n)
    for i in range(n):
        others = [c[i, j] for j in range(n) if j != i] + [c[j, i] for j in range(n) if j != i]
        assert aligned(c)[i] == (c[i, i] > max(others))


@given(
    st.integers(3, 6).flatmap(lambda n: st.lists(st.integers(0, 4), min_size=n * n, max_size=n * n))
)
def test_the_control_of_alignment_leaves_translations_out(values):
    n = int(len(values) ** 0.5)
    c = np.array(values, float).reshape(n, n)
    for i in range(n):
        k = (i + 1) % n  # text i stands beside the translation of text k
        others = [c[i, j] for j in range(n) if j not in (i, k)]
        others += [c[j, k] for j in range(n) if j not in (i, k)]
        assert aligned_otherwise(c)[i] == (c[i, k] > max(others))


def test_the_control_of_alignment_is_no_rest_of_the_score():
    # All translations are aligned, and each text is also near to the translation of the next.
    near = 0.9 * np.eye(5) + 0.5 * np.roll(np.eye(5), 1, axis=1)
    assert aligned(near).all() and aligned_otherwise(near).all()


def test_embeddings_and_cosines_by_a_plain_loop(tiny_lm):
    sites = stream_sites(tiny_lm)
    found = embed_texts(tiny_lm, ROWS, list(sites.values()))
    for layer, site in sites.items():
        weighted, last = [], []
        for row in ROWS:
            states = hidden(tiny_lm, row)[0][layer].double().numpy()
            if layer == max(sites):  # as in the last hidden states of transformers
                states = tiny_lm.model.model.norm(torch.tensor(states).float()).double().numpy()
            t = np.arange(1, len(states) + 1)  # BOS is the first
            weighted.append((states * t[:, None]).sum(0) / t.sum())
            last.append(states[-1])
        for pooling, expected in (("weighted mean", weighted), ("last token", last)):
            x = found[site, pooling]
            assert x.dtype == np.float64
            assert np.allclose(x, expected, atol=1e-4)
            assert np.allclose(cosines(x, x), cosine_similarity(np.array(x)))


# --------------------------------------------------------------------------- strings


@pytest.mark.parametrize(
    ("text", "script"),
    [
        (" hello", "Latn"),
        ("привет!", "Cyrl"),
        ("東京都の", "Hani"),
        ("ひらがな漢", "Hira"),
        ("a привет", "Cyrl"),
        ("हिन्दी", "Deva"),
        ("12, \ufffd", None),
        ("", None),
    ],
)
def test_script_of_a_string(text, script):
    assert script_of(text) == script
    assert script is None or script in known_scripts()


def test_scripts_of_labels():
    expected = {"de": "Latn", "ru": "Cyrl", "zh": "Hani", "ja": "Hani Hira Kana", "ko": "Hang"}
    expected |= {"srp_Latn": "Latn", "zho_Hant": "Hani", "python": "", "th": "Thai"}
    assert {x: " ".join(sorted(scripts_of_label(x))) for x in expected} == expected


def test_pygments_knows_all_keywords_of_python():
    is_keyword = pygments_keywords(["python"])["python"]
    assert all(map(is_keyword, keyword.kwlist))
    assert not any(map(is_keyword, ["foo", "", "(", "def f", "print", "самолёт"]))


def test_a_string_is_of_the_languages_that_half_of_its_words_are_keywords_of():
    keywords = pygments_keywords(["python", "go", "rust"])
    expected = {
        " def": ("python",),
        "fn": ("rust",),
        "func": ("go",),
        "def x": ("python",),
        "def x y": (),
        "return": ("python", "go", "rust"),
        "  ": (),
    }
    assert {text: languages_of(text, keywords) for text in expected} == expected


def test_a_language_without_keywords_is_refused():
    with refused("Pygments has no keywords of html", "keywords"):
        pygments_keywords(["html"])
    with refused("Pygments does not know the programming language klingon", "keywords"):
        pygments_keywords(["klingon"])
