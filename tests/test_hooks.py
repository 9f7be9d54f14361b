"""Steps of an edit: 0 on the prompt, n at the n-th generated token, -1 where nothing is edited."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import padded
from transformers import DynamicCache, LogitsProcessor

from saefeat.hooks import capture, intervene
from saefeat.io import UserError

SPECIAL = frozenset({0, 1, 2})
SHORT, LONG = [0, 40, 41], [0, 50, 51, 52, 53, 54]
NEW = 5
MODES = {"cached": {}, "uncached": {"use_cache": False}}


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(params=MODES)
def mode(request):
    """Options of `generate` with and without a cache."""
    return MODES[request.param]


class Watch:
    """An edit that changes nothing and keeps the steps of every forward pass."""

    def __init__(self):
        self.passes = []

    def __call__(self, x, steps):
        self.passes.append(steps)
        return x

    def taken(self, new=NEW):
        """Steps of the tokens of the last `generate`, prompt included: [rows][tokens]."""
        last = self.passes[-new:]
        return (torch.cat(last, 1) if last[-1].shape[1] == 1 else last[-1]).tolist()


def go(model, rows, new=NEW, **options):
    ids, mask = padded(rows)
    options = {
        "max_new_tokens": new,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 2,
        **options,
    }
    return model.generate(ids, attention_mask=mask, **options)


def watched(model):
    path = next(name for name, module in model.named_modules() if name.endswith(".0.mlp"))
    watch = Watch()
    return watch, intervene(model, {path: watch}, SPECIAL)


def test_steps_count_generated_tokens_and_skip_special_ones_and_padding(family_model, mode):
    watch, steering = watched(family_model)
    with steering:
        go(family_model, [SHORT, LONG], **mode)
    assert watch.taken() == [[-1, -1, -1, -1, 0, 0, 1, 2, 3, 4], [-1, 0, 0, 0, 0, 0, 1, 2, 3, 4]]
    assert len(watch.passes) == NEW


@pytest.mark.parametrize(("prompt", "step"), [([40], 0), ([0], -1)])
def test_a_prompt_of_one_token_is_a_prompt(tiny_lm, mode, prompt, step):
    watch, steering = watched(tiny_lm.model)
    with steering:
        for _ in range(2):
            go(tiny_lm.model, [prompt], **mode)
            assert watch.taken() == [[step, 1, 2, 3, 4]]


def test_padding_of_one_token_prompts_beside_a_longer_one(tiny_lm, mode):
    watch, steering = watched(tiny_lm.model)
    with steering:
        go(tiny_lm.model, [[40], [41, 42]], **mode)
    assert watch.taken() == [[-1, 0, 1, 2, 3, 4], [0, 0, 1, 2, 3, 4]]


def test_every_generation_in_one_context_begins_anew(tiny_lm, mode):
    watch, steering = watched(tiny_lm.model)
    with steering:
        longer = [*LONG, 61, 62, 63], [0, *range(60, 73)]  # by one token than the pass before
        for rows in (
            [SHORT],
            [SHORT],
            [LONG],
            [SHORT, LONG],
            [LONG, SHORT],
            [LONG[:4]],
            [longer[0]],
            [longer[1]],
        ):
            go(tiny_lm.model, rows, **mode)
            longest = max(map(len, rows))
            expected = [
                [-1] * (longest - len(row))
                + [-1 if token in SPECIAL else 0 for token in row]
                + [1, 2, 3, 4]
                for row in rows
            ]
            assert watch.taken() == expected, rows


@pytest.mark.parametrize("new", [1, 3])
def test_with_a_cache_a_prompt_that_begins_with_the_last_text_is_a_prompt(tiny_lm, new):
    watch, steering = watched(tiny_lm.model)
    with steering:
        out = go(tiny_lm.model, [SHORT], new).tolist()
        go(tiny_lm.model, out)
    assert watch.taken() == [[-1, 0, 0] + [0] * new + [1, 2, 3, 4]]


@pytest.mark.parametrize("first", [True, False])
def test_a_prompt_with_a_cache_does_not_go_on_from_a_text_without_one_nor_the_other_way(
    tiny_lm, first
):
    watch, steering = watched(tiny_lm.model)
    with steering:
        go(tiny_lm.model, [SHORT], 1, use_cache=first)
        go(tiny_lm.model, [[*SHORT, 60]], use_cache=not first)
    assert watch.taken() == [[-1, 0, 0, 0, 1, 2, 3, 4]]


def test_a_text_that_grows_token_by_token_without_a_cache_is_a_generation(tiny_lm):
    watch, steering = watched(tiny_lm.model)
    with steering:
        for end in (3, 4, 5, 6):
            tiny_lm.model(input_ids=torch.tensor([LONG[:end]]))
        tiny_lm.model(input_ids=torch.tensor([SHORT]))
    assert [steps.tolist() for steps in watch.passes] == [
        [[-1, 0, 0]],
        [[-1, 0, 0, 1]],
        [[-1, 0, 0, 1, 2]],
        [[-1, 0, 0, 1, 2, 3]],
        [[-1, 0, 0]],
    ]


def test_a_text_whose_beginning_is_in_a_cache_made_outside_counts_from_its_first_token(tiny_lm):
    watch, steering = watched(tiny_lm.model)
    caches = [DynamicCache(config=tiny_lm.model.config) for _ in range(2)]
    for cache, length in zip(caches, (2, 8), strict=True):
        tiny_lm.model(input_ids=torch.tensor([(LONG * 2)[:length]]), past_key_values=cache)
    with steering:
        go(tiny_lm.model, [SHORT])  # has a length of its own
        for cache in caches:
            watch.passes.clear()
            for token in (60, 61, 62):
                tiny_lm.model(input_ids=torch.tensor([[token]]), past_key_values=cache)
            assert torch.cat(watch.passes, 1).tolist() == [[1, 2, 3]]


def test_a_second_turn_with_the_cache_of_the_first_is_a_prompt(tiny_lm):
    watch, steering = watched(tiny_lm.model)
    cache = DynamicCache(config=tiny_lm.model.config)
    with steering:
        first = go(tiny_lm.model, [SHORT], past_key_values=cache).tolist()[0]
        watch.passes.clear()
        go(tiny_lm.model, [[*first, 60, 0, 61]], past_key_values=cache)
    steps = [step.tolist() for step in watch.passes]
    assert steps == [
        [[0, 0, -1, 0]],
        [[1]],
        [[2]],
        [[3]],
        [[4]],
    ]  # the last token of the first turn is fed here


def test_prompts_given_as_vectors_are_edited_and_steps_count_on(tiny_lm):
    vectors = tiny_lm.model.get_input_embeddings()(torch.tensor([LONG]))
    watch, steering = watched(tiny_lm.model)
    with steering:
        for before in (0, 4):  # passes on another text; after 4 it is as long as the prompt
            if before:
                go(tiny_lm.model, [SHORT], before)
            tiny_lm.model.generate(
                inputs_embeds=vectors,
                attention_mask=torch.ones(1, 6),
                max_new_tokens=NEW,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=2,
            )
            assert watch.taken() == [[0, 0, 0, 0, 0, 0, 1, 2, 3, 4]]


def test_a_static_cache_has_the_same_steps_and_tokens(family_model):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    path = next(name for name, module in family_model.named_modules() if name.endswith(".0.mlp"))
    found = []
    for options in ({}, {"cache_implementation": "static"}):
        passes = []

        def edit(x, steps, passes=passes):
            passes.append(steps)
            return x + vector * (steps[..., None] < 3)

        with intervene(family_model, {path: edit}, SPECIAL):
            tokens = go(family_model, [SHORT, LONG], **options)
        found.append((tokens.tolist(), torch.cat(passes, 1).tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "use_cache": False}])
def test_beam_search_runs_and_its_steps_count(tiny_lm, options):
    watch, steering = watched(tiny_lm.model)
    with steering:
        out = go(tiny_lm.model, [SHORT, LONG], **options)
    assert out.shape == (2, len(LONG) + NEW)
    for row in watch.taken()[:3]:
        assert row == [-1, -1, -1, -1, 0, 0, 1, 2, 3, 4]


def test_several_continuations_of_a_prompt_have_the_same_steps(tiny_lm, mode):
    watch, steering = watched(tiny_lm.model)
    with steering:
        torch.manual_seed(0)
        go(tiny_lm.model, [SHORT], do_sample=True, num_return_sequences=3, **mode)
    assert watch.taken() == [[-1, 0, 0, 1, 2, 3, 4]] * 3


class Only(LogitsProcessor):
    """Makes a generation of certain tokens."""

    def __init__(self, tokens, start):
        self.tokens, self.start = tokens, start

    def __call__(self, ids, scores):
        chosen = self.tokens[(ids.shape[1] - self.start) % len(self.tokens)]
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([chosen]), 0.0)


def test_generated_special_tokens_are_edited_with_and_without_a_cache(tiny_lm):
    layers = tiny_lm.model.model.layers
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    found = []
    for options in MODES.values():
        watch, steering = watched(tiny_lm.model)
        after = []
        handle = layers[1].register_forward_hook(
            lambda _m, _i, out, after=after: after.append(out[:, -1])
        )
        try:
            with (
                steering,
                intervene(
                    tiny_lm.model, {"model.layers.0.mlp": lambda x, _steps: x + vector}, SPECIAL
                ),
            ):
                go(
                    tiny_lm.model,
                    [SHORT, LONG],
                    logits_processor=[Only([1, 2, 0, 70], len(LONG))],
                    **options,
                )
        finally:
            handle.remove()
        assert watch.taken() == [
            [-1, -1, -1, -1, 0, 0, 1, 2, 3, 4],
            [-1, 0, 0, 0, 0, 0, 1, 2, 3, 4],
        ]
        found.append(torch.stack(after))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def test_rows_that_have_ended_are_padded_alike_with_and_without_a_cache(tiny_lm):
    first = go(tiny_lm.model, [SHORT, LONG])[0, len(LONG)].item()
    found = []
    for options in MODES.values():
        watch, steering = watched(tiny_lm.model)
        with steering:
            found.append(go(tiny_lm.model, [SHORT, LONG], eos_token_id=first, **options).tolist())
        assert watch.taken()[1] == [-1, 0, 0, 0, 0, 0, 1, 2, 3, 4]
    assert found[0] == found[1] and found[0][0][-1] == 2  # the first row has ended at once


def test_nested_edits_are_made_from_the_outside_in(tiny_lm):
    path, ids = "model.layers.0.mlp", torch.tensor([LONG])
    seen = []

    def result(*edits):
        handle = tiny_lm.model.model.layers[1].register_forward_pre_hook(
            lambda _m, args: seen.append(args[0])
        )
        try:
            if len(edits) == 1:
                with intervene(tiny_lm.model, {path: edits[0]}):
                    tiny_lm.model(input_ids=ids)
            else:
                with (
                    intervene(tiny_lm.model, {path: edits[0]}),
                    intervene(tiny_lm.model, {path: edits[1]}),
                ):
                    tiny_lm.model(input_ids=ids)
        finally:
            handle.remove()
        return seen[-1]

    def double(x, _steps):
        return 2 * x

    def more(x, _steps):
        return x + 1

    assert torch.equal(result(double, more), result(lambda x, _steps: 2 * x + 1))
    assert torch.equal(result(more, double), result(lambda x, _steps: 2 * (x + 1)))
    assert not torch.equal(result(more, double), result(double, more))


def test_an_edit_may_stand_beside_capture(tiny_lm):
    path = "model.layers.0.mlp"
    with (
        intervene(tiny_lm.model, {path: lambda x, _steps: torch.full_like(x, 7.0)}),
        capture(tiny_lm.model, (path,)) as captured,
    ):
        seen = captured.run(tiny_lm.model, input_ids=torch.tensor([LONG]))[path]
    assert (seen == 7).all()


def test_an_interrupted_generation_leaves_no_hook_and_no_trace(tiny_lm, mode):
    plain = go(tiny_lm.model, [SHORT, LONG], **mode)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny_lm.model.modules()]

    def broken(x, steps):
        if steps.max() > 2:
            raise KeyboardInterrupt
        return x + 1

    with pytest.raises(KeyboardInterrupt), intervene(tiny_lm.model, {"model.layers.0.mlp": broken}):
        go(tiny_lm.model, [SHORT, LONG], **mode)
    assert [
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny_lm.model.modules()
    ] == hooks
    assert torch.equal(go(tiny_lm.model, [SHORT, LONG], **mode), plain)


# --------------------------------------------------------------------------- ways of decoding


def weights_by_step(model, watch_to=None):
    """An edit whose effect depends on the step, so that tokens differ where steps do."""
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    path = next(name for name, module in model.named_modules() if name.endswith(".0.mlp"))

    def edit(x, steps):
        if watch_to is not None:
            watch_to.append(steps)
        return x + vector * (1 + steps[..., None] % 3)

    return intervene(model, {path: edit}, SPECIAL)


def steered(model, rows, passes=None, **options):
    with weights_by_step(model, passes):
        return go(model, rows, **options).tolist()


REPEATED = [0, *[40, 41, 42, 43] * 4]


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 4},  # leaves a chunk of one token
        {"prefill_chunk_size": 1},
        {"prefill_chunk_size": 4, "use_cache": True, "num_beams": 1},
        {"cache_implementation": "static"},
        {"assistant": True},
    ],
    ids=str,
)
def test_every_way_of_decoding_gives_the_tokens_of_plain_steered_decoding(
    tiny_lm, make_lm, options
):
    new = 12
    plain = steered(tiny_lm.model, [REPEATED], new=new)
    if options.pop("assistant", False):
        options["assistant_model"] = make_lm("llama", seed=3).model
    passes = []
    assert steered(tiny_lm.model, [REPEATED], passes, new=new, **options) == plain
    seen = sorted({step for steps in passes for step in steps.flatten().tolist()})
    assert seen[:2] == [-1, 0] and seen[-1] >= new - 1
    assert plain != steered(tiny_lm.model, [REPEATED], new=new - 1) and plain != go(
        tiny_lm.model, [REPEATED], new=new
    )


def test_candidates_have_the_steps_of_their_places(tiny_lm):
    passes = []
    steered(tiny_lm.model, [REPEATED], passes, new=12, prompt_lookup_num_tokens=3)
    for steps in passes[1:]:
        row = steps[0].tolist()
        assert row == list(range(row[0], row[0] + len(row))) and row[0] >= 1
    assert any(steps.shape[1] > 1 for steps in passes[1:])


def test_a_draft_by_the_models_own_first_layers_goes_on_from_the_same_prompt(tiny_lm):
    passes = []
    plain = steered(tiny_lm.model, [SHORT], new=6)
    assert steered(tiny_lm.model, [SHORT], passes, new=6, assistant_early_exit=1) == plain
    assert all(steps[0, -1] >= 1 for steps in passes[1:])


def test_two_threads_count_their_own_steps(tiny_lm):
    prompts = [SHORT, LONG, [*LONG, *SHORT[1:]]]
    alone = [steered(tiny_lm.model, [prompt], new=8) for prompt in prompts]
    together = threading.Barrier(len(prompts))

    def run(prompt):
        together.wait()
        with torch.no_grad():
            return [go(tiny_lm.model, [prompt], new=8).tolist() for _ in range(5)]

    with weights_by_step(tiny_lm.model), ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(run, prompts))
    assert found == [[rows] * 5 for rows in alone]


def test_continuous_batching_is_refused_and_comes_back(tiny_lm):
    with weights_by_step(tiny_lm.model):
        for name in ("generate_batch", "init_continuous_batching"):
            with pytest.raises(UserError, match="continuous batching"):
                getattr(tiny_lm.model, name)([SHORT])
        go(tiny_lm.model, [SHORT])
    assert "generate" not in vars(tiny_lm.model) and "generate_batch" not in vars(tiny_lm.model)


def test_nested_edits_give_back_the_generate_that_they_found(tiny_lm):
    with weights_by_step(tiny_lm.model):
        found = tiny_lm.model.generate
        with weights_by_step(tiny_lm.model):
            assert tiny_lm.model.generate is not found
            go(tiny_lm.model, [SHORT])
        assert tiny_lm.model.generate is found
        go(tiny_lm.model, [SHORT])


class Opaque:
    """A cache of a remote model: it does not tell how many tokens it holds."""


@pytest.mark.parametrize("name", ["past_key_values", "cache", "cache_params"])
def test_a_cache_that_does_not_tell_its_length_is_refused(tiny_lm, name):
    _, steering = watched(tiny_lm.model)
    with steering, pytest.raises(UserError, match="does not tell how many tokens it holds"):
        tiny_lm.model(input_ids=torch.tensor([SHORT]), **{name: Opaque()})


def test_positions_come_from_the_signature_and_not_from_names_of_keywords(tiny_lm):
    ids, mask = padded([SHORT, LONG])
    watch, steering = watched(tiny_lm.model)
    with steering:
        tiny_lm.model(ids, mask)
        cache = DynamicCache(config=tiny_lm.model.config)
        tiny_lm.model(ids, mask, None, cache)  # the fourth argument, whatever its name
        tiny_lm.model(ids[:, -1:], torch.ones(2, 7), None, cache)
    assert (
        watch.passes[0].tolist()
        == watch.passes[1].tolist()
        == [[-1, -1, -1, -1, 0, 0], [-1, 0, 0, 0, 0, 0]]
    )
    assert watch.passes[2].tolist() == [[1], [1]]


@pytest.mark.parametrize("length", [1, 3])
def test_a_generation_whose_cache_cannot_be_read_is_refused(tiny_lm, length, monkeypatch):
    """Some remote models hide their cache: each decoded token looks like a prompt of one token."""
    model = copy.deepcopy(tiny_lm.model)
    plain = model.prepare_inputs_for_generation

    def last_token(ids, attention_mask=None, **options):
        given = plain(ids, attention_mask=attention_mask, **options)
        return {"input_ids": ids[:, -1:] if ids.shape[1] > length else given["input_ids"]}

    monkeypatch.setattr(model, "prepare_inputs_for_generation", last_token)
    _, steering = watched(model)
    with steering, pytest.raises(UserError, match="no cache that can be read"):
        go(model, [[0, 40, 41][:length]])


# --------------------------------------------------------------------------- compiled models


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")


def compiled_call(model):
    model.compile(backend="eager")


def compiled_layer(model):
    model.model.layers[0].compile(backend="eager")


@pytest.fixture
def own_model(tiny_lm):
    torch._dynamo.reset()
    yield copy.deepcopy(tiny_lm.model)
    torch._dynamo.reset()


COMPILED = [compiled_forward, compiled_call, compiled_layer]


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_compiled_model_is_refused_before_any_work(own_model, compiled):
    compiled(own_model)
    go(own_model, [SHORT], new=2)
    with (
        pytest.raises(UserError, match=r"is compiled \(torch\.compile\)"),
        weights_by_step(own_model),
    ):
        raise AssertionError
    with pytest.raises(UserError, match="is compiled"), capture(own_model, ("model.layers.0",)):
        raise AssertionError


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_model_compiled_inside_a_block_is_steered_or_refused(own_model, compiled):
    plain, expected = go(own_model, [SHORT]).tolist(), steered(own_model, [SHORT])
    assert plain != expected
    try:
        with weights_by_step(own_model):
            compiled(own_model)
            assert go(own_model, [SHORT]).tolist() == expected
    except UserError as error:
        assert "compiled" in str(error)
    vars(own_model).pop("forward", None)
    for module in own_model.modules():
        module._compiled_call_impl = None
    assert go(own_model, [SHORT]).tolist() == plain
    assert (
        steered(own_model, [SHORT]) == expected
    )  # a later block does not run the first one's trace


@pytest.mark.parametrize("before", [True, False])
def test_a_compiled_copy_is_steered_or_noticed(own_model, before):
    ids = torch.tensor([LONG])
    plain = own_model(ids).logits
    with weights_by_step(own_model):
        expected = own_model(ids).logits
    compiled = torch.compile(own_model, backend="eager")
    if before:
        compiled(ids)
    try:
        with weights_by_step(own_model):
            torch.testing.assert_close(compiled(ids).logits, expected)
    except UserError as error:
        assert "compiled" in str(error)
    torch.testing.assert_close(compiled(ids).logits, plain)


def test_a_compiled_copy_is_noticed_after_a_pass_that_was_edited(own_model):
    ids = torch.tensor([LONG])
    compiled = torch.compile(own_model, backend="eager")
    compiled(ids)
    with weights_by_step(own_model):
        expected = own_model(ids).logits
        try:
            torch.testing.assert_close(compiled(ids).logits, expected)
        except UserError as error:
            assert "compiled" in str(error)


def test_generate_does_not_compile_under_an_edit(own_model, monkeypatch):
    """As it does by itself on a GPU with a static cache."""
    from transformers import CompileConfig, GenerationConfig

    everywhere = CompileConfig(backend="eager", fullgraph=False)
    everywhere._compile_all_devices = True
    expected = steered(own_model, [SHORT])
    monkeypatch.setattr(own_model, "get_compiled_call", lambda _: pytest.fail("compiled"))
    options = {"cache_implementation": "static", "compile_config": everywhere}
    assert steered(own_model, [SHORT], **options) == expected
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=2, **options)
    with weights_by_step(own_model):
        assert (
            own_model.generate(torch.tensor([SHORT]), generation_config=config).tolist() == expected
        )
    assert not config.disable_compile


def test_an_edit_that_does_not_run_is_an_error(tiny_lm):
    model = copy.deepcopy(tiny_lm.model)
    model.never = torch.nn.Identity()
    with (
        intervene(model, {"never": lambda x, _: x}),
        pytest.raises(UserError, match="edit of never did not run"),
    ):
        go(model, [SHORT])


def test_a_block_without_a_forward_pass_warns(tiny_lm):
    with pytest.warns(RuntimeWarning, match="no forward pass"), weights_by_step(tiny_lm.model):
        pass


def test_a_part_of_the_model_that_is_run_alone_is_refused(tiny_lm):
    with (
        weights_by_step(tiny_lm.model),
        pytest.raises(UserError, match="outside a forward pass of the model"),
    ):
        tiny_lm.model.model(input_ids=torch.tensor([SHORT]))
