"""`saefeat sites` and `saefeat labels`."""

from __future__ import annotations

import json

import pytest


def test_sites_of_a_model_in_one_row_a_kind(saefeat, tiny_model_dir):
    code, out, error = saefeat("sites", tiny_model_dir)
    lines = out.splitlines()
    assert (code, error) == (0, "")
    assert [line.split() for line in lines[:5]] == [
        ["site", "width", "module", "sparsify", "TransformerLens"],
        ["mlp_out@0-1", "32", "model.layers.L.mlp", "layers.L.mlp", "blocks.L.hook_mlp_out"],
        ["mlp_act@0-1", "48", "model.layers.L.mlp.act_fn", "layers.L.mlp.act_fn", "-"],
        [
            "mlp_hidden@0-1",
            "48",
            "model.layers.L.mlp.down_proj:input",
            "-",
            "blocks.L.mlp.hook_post",
        ],
        ["resid_post@0-1", "32", "model.layers.L", "layers.L", "blocks.L.hook_resid_post"],
    ]
    assert [line.split(":")[0] for line in lines[5:]] == [
        "mlp_out",
        "mlp_act",
        "mlp_hidden",
        "resid_post",
    ]


def test_sites_of_each_layer_as_a_table_and_for_machines(saefeat, tiny_model_dir):
    _, table, _ = saefeat("sites", tiny_model_dir, "--all")
    _, out, _ = saefeat("sites", tiny_model_dir, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["site"] for row in rows] == [
        f"{k}@{i}" for k in ("mlp_out", "mlp_act", "mlp_hidden", "resid_post") for i in (0, 1)
    ]
    assert [line.split()[0] for line in table.splitlines()[1:9]] == [row["site"] for row in rows]
    assert rows[1] == {
        "site": "mlp_out@1",
        "kind": "mlp_out",
        "layer": 1,
        "module": "model.layers.1.mlp",
        "width": 32,
        "sparsify": "layers.1.mlp",
        "transformer_lens": "blocks.1.hook_mlp_out",
        "refused": None,
        "meaning": "what the feed-forward part adds to the residual stream",
    }


def test_sites_without_gates_have_transformer_lens_neurons(saefeat, save_lm, tmp_path):
    _, out, _ = saefeat("sites", save_lm(tmp_path / "m", "gpt2"))
    assert [
        "mlp_act@0-1",
        "48",
        "transformer.h.L.mlp.act",
        "h.L.mlp.act",
        "blocks.L.mlp.hook_post",
    ] in [line.split() for line in out.splitlines()]


def test_sites_of_a_big_mixture_of_experts_need_its_config_alone(saefeat, tmp_path):
    from transformers import Qwen3MoeConfig

    options = {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 6,
        "num_experts": 128,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "mlp_only_layers": [0, 1],
    }
    Qwen3MoeConfig(**options).save_pretrained(tmp_path)
    code, out, _ = saefeat("sites", tmp_path)
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:5]] == [
        ["mlp_out@0-5", "4096", "model.layers.L.mlp"],
        ["mlp_act@0-1", "12288", "model.layers.L.mlp.act_fn"],
        ["mlp_hidden@0-1", "12288", "model.layers.L.mlp.down_proj:input"],
        ["resid_post@0-5", "4096", "model.layers.L"],
    ]
    assert out.splitlines()[5].startswith(
        "mlp_act@2-5: the site mlp_act@L does not exist: model.layers.L.mlp is a mix"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "holds no model"),
        ("{", "cannot load the model"),
        ('{"model_type": "no-such"}', "cannot load the model"),
        (
            '{"model_type": "llama", "hidden_size": "x"}',
            "field 'hidden_size': TypeError: Field 'hidden_size' expected int",
        ),
        ('{"model_type": "llama", "num_attention_heads": 0}', "cannot load the model"),
        (
            '{"model_type": "mamba", "hidden_size": 8, "num_hidden_layers": 1}',
            "no list of blocks with an `mlp`",
        ),
        (
            '{"model_type": "mamba", "hidden_size": 8, "num_hidden_layers": 3}',
            "by their module path, such as backbone.layers.0, backbone.layers.0.norm, "
            "backbone.layers.0.mixer (of 3 bl",
        ),
    ],
)
def test_sites_of_a_directory_without_a_model_gives_one_sentence_of_error(
    saefeat, tmp_path, config, message
):
    if config:
        (tmp_path / "config.json").write_text(config)
    code, out, error = saefeat("sites", tmp_path)
    assert (code, out) == (2, "") and message in error and error.count("\n") == 1


def test_labels_in_every_system(saefeat):
    code, out, error = saefeat("labels", "de", "zh-Hans", "no", "Thai")
    assert (code, error) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["label", "iso639-1", "iso639-3", "flores", "nllb", "wili", "fasttext", "name"],
        ["de", "de", "deu", "deu_Latn", "deu_Latn", "deu", "de", "German"],
        ["zh-Hans", "zh", "zho", "cmn_Hans", "zho_Hans", "zho", "zh", "Chinese"],
        ["no", "no", "nor", "nno_Latn/nob_Latn", "nno_Latn/nob_Latn", "nno/nob", "no", "Norwegian"],
        ["Thai", "th", "tha", "tha_Thai", "tha_Thai", "tha", "th", "Thai"],
    ]


def test_labels_of_one_system_in_another(saefeat):
    assert saefeat("labels", "als", "als", "--from", "wili", "--to", "iso639-3")[1].split() == [
        *("label", "iso639-3", "als", "gsw", "als", "gsw")
    ]


def test_labels_that_are_unclear_say_so_in_their_row_and_the_others_are_answered(saefeat):
    code, out, error = saefeat("labels", "zh-Hans", "no", "als", "--to", "flores")
    assert code == 2
    assert out.splitlines() == [
        "label    flores",
        "zh-Hans  cmn_Hans",
        "no       no may be nno_Latn or nob_Latn in flores; say which",
        "als      als is Tosk Albanian (als) in iso639-3 or Swiss German (gsw) in fasttext; say "
        "which system it is of (--from)",
    ]
    assert error == "saefeat: no single code in flores for no, als; their rows give the reasons\n"
    code, out, error = saefeat("labels", "de", "KO")
    assert (code, error) == (2, "saefeat: no meaning for KO; their rows give the reasons\n")
    assert out.splitlines()[1].split()[:3] == ["de", "de", "deu"] and out.splitlines()[2].endswith(
        "did you mean ko?"
    )


def test_an_unknown_system_is_refused_once(saefeat):
    for option in ("--to", "--from"):
        code, out, error = saefeat("labels", "de", "fr", option, "iso")
        assert (code, out) == (2, "") and error.startswith("saefeat: unknown code system iso;")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no", "--to", "flores"], "no may be nno_Latn or nob_Latn in flores; say which"),
        (
            ["als"],
            "als is Tosk Albanian (als) in iso639-3 or Swiss German (gsw) in fasttext; say which",
        ),
        (
            ["Frensh"],
            "Frensh is neither a language code nor the English name of a language; did you mean "
            "Fren",
        ),
        (["en", "--to", "iso"], "unknown code system iso; there are iso639-1, "),
        (["en", "--from", "wili"], "en is not a code of wili"),
    ],
)
def test_labels_that_cannot_be_converted_give_one_sentence_of_error(saefeat, arguments, message):
    code, out, error = saefeat("labels", *arguments)
    assert (
        (code, out) == (2, "")
        and error.startswith(f"saefeat: {message}")
        and error.count("\n") == 1
    )
