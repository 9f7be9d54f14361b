"""`saefeat export` on a real run: the files, the card, and one sentence for what cannot be."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from saefeat.io import read_json, write_json
from saefeat.sae.store import load_saes, save_sae
from saefeat.statistics import Stats


@pytest.mark.parametrize("form", ["sae-lens", "sparsify"])
def test_a_run_is_exported_and_read_again(saefeat, tmp_path, tiny_run, form):
    code, out, error = saefeat("export", tiny_run, "--format", form, "--out", tmp_path / "out")
    assert (code, error) == (0, "")
    ours = load_saes(str(tiny_run / "saes"))
    folders = {
        "sae-lens": [sae.id for sae in ours],
        "sparsify": [str(sae.record["module"]).removeprefix("model.") for sae in ours],
    }[form]
    assert out.split() == [str(tmp_path / "out" / folder) for folder in folders]
    back = {Path(sae.record["path"]).name: sae for sae in load_saes(str(tmp_path / "out"))}
    for sae, folder in zip(ours, folders, strict=True):
        assert all(
            torch.equal(back[folder].tensors[name], tensor) for name, tensor in sae.tensors.items()
        )
        if form == "sae-lens":
            assert back[folder].identity["fingerprint"] == sae.identity["fingerprint"]
            assert back[folder].site == sae.site


def test_the_card_of_a_run(saefeat, tmp_path, tiny_run):
    saefeat("export", tiny_run, "--format", "sae-lens", "--out", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    model = read_json(tiny_run / "run.json")["model"]
    assert (
        f"- Base model: `{model['name']}`, revision –, fingerprint of the weights "
        f"{model['fingerprint']}" in text
    )
    assert (
        "Special tokens (BOS, EOS, padding) are fed to the model and left out of training" in text
    )
    head = (
        next(line for line in text.splitlines() if line.startswith("| label |"))
        .strip("| ")
        .split(" | ")
    )
    for sae in load_saes(str(tiny_run / "saes")):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {sae.id} |")]
        record, held = sae.record, sae.record["held_out"]
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert cells[1:3] == [sae.site, record["module"].removeprefix("model.")]
        assert cells[4:8] == ["64", "topk 4", f"{held['fvu']:.3f}", f"{held['l0']:.1f}"]
        assert cells[8:] == [f"{record['dead']:.1%}", f"{sae.max_norm:.2f}"]
        stats = Stats.load(tiny_run / "stats" / f"{sae.id}.safetensors")
        for label, texts, tokens in zip(
            stats.labels, stats.examples.tolist(), stats.tokens.tolist(), strict=True
        ):
            (row,) = [line for line in text.splitlines() if line.startswith(f"| {label} |")]
            cells = row.strip("| ").split(" | ")
            assert (cells[1], cells[head.index(sae.id)]) == (f"{texts:,}", f"{tokens:,}")
    assert "train split); tokens beyond" in text and "\n\n\n" not in text


def test_a_run_tells_what_the_files_of_the_saes_given_to_it_do_not(saefeat, tmp_path, tiny_run):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    for path in run.glob("saes/*/cfg.json"):
        text = path.read_text()
        for sae in load_saes(str(path.parent)):
            hook = f"blocks.{sae.site[-1]}.hook_{sae.site[:-2]}"
            text = (
                text.replace(f'"{sae.record["module"]}"', f'"{hook}"')
                .replace('"fvu"', '"_"')
                .replace('"l0"', '"-"')
            )
        path.write_text(text.replace('"dead"', '"."'))
    shutil.move(run / "saes", tmp_path / "given")
    index = read_json(run / "run.json")
    index["arguments"]["saes"] = [str(tmp_path / "given")]
    write_json(run / "run.json", index)
    ours = load_saes(str(tiny_run / "saes"))
    measured = {"fvu": 0.5, "l0": 1.0, "silent": 0.0, "tokens": 9}
    rest = {"better": {}, "stated": {}, "doubt": None, "revisions": [], "bos": ""}
    reports = [{"id": sae.id, "site": sae.site, **measured, **rest} for sae in ours]
    write_json(run / "gate.json", {"schema": 1, "request": "", "saes": reports})
    code, out, _ = saefeat("export", run, "--format", "sparsify", "--out", tmp_path / "out")
    assert code == 0
    assert out.split() == [
        str(tmp_path / "out" / sae.record["module"].removeprefix("model.")) for sae in ours
    ]
    text = (tmp_path / "out" / "README.md").read_text()
    for sae in ours:
        stats = Stats.load(tiny_run / "stats" / f"{sae.id}.safetensors")
        silent = float((stats.fired.sum(0) == 0).float().mean())
        assert f"| 0.500 | {stats.fired.sum() / stats.tokens.sum():.1f} | {silent:.1%} |" in text


@pytest.fixture
def run_of_given(tmp_path, tiny_run):
    """A run of SAEs that were given to it by their folder, and the folder."""
    run, folder = tmp_path / "run", tmp_path / "given"
    shutil.copytree(tiny_run, run)
    shutil.move(run / "saes", folder)
    index = read_json(run / "run.json")
    index["arguments"]["saes"] = [str(folder)]
    write_json(run / "run.json", index)
    return run, folder


def test_other_saes_than_the_run_used_are_refused(saefeat, tmp_path, run_of_given):
    run, folder = run_of_given
    sae = load_saes(str(folder))[0]
    save_sae(replace(sae, b_enc=sae.b_enc + 1), folder / sae.id)
    for words in (
        ["--format", "sae-lens", "--out", tmp_path / "out"],
        ["--feature", f"{sae.id}:1", "--out", tmp_path / "v.npy"],
    ):
        code, _, error = saefeat("export", run, *words)
        assert code == 2 and error.count("\n") == 1
        assert (
            f"the SAE {sae.id} of {folder / sae.id} is not the one that {run} used; put that one "
            "back" in error
        )
    assert not (tmp_path / "out").exists() and not (tmp_path / "v.npy").exists()


@pytest.mark.parametrize("named", ["{folder}", "some/folder"])
def test_a_folder_of_saes_that_is_gone_is_not_sought_on_the_hub(
    saefeat, tmp_path, run_of_given, monkeypatch, named
):
    run, folder = run_of_given
    shutil.rmtree(folder)
    index = read_json(run / "run.json")
    index["arguments"]["saes"] = [named.format(folder=folder)]
    write_json(run / "run.json", index)
    monkeypatch.setattr("saefeat.sae.hub.download", lambda *_: pytest.fail("the hub was asked"))
    code, _, error = saefeat("export", run, "--format", "sae-lens", "--out", tmp_path / "out")
    assert code == 2 and error.count("\n") == 1
    assert (
        f"{named.format(folder=folder)}, whose SAEs the run {run} used, does not exist any more; "
        "put it back" in error
    )


def test_one_feature(saefeat, tmp_path, tiny_run):
    sae = load_saes(str(tiny_run / "saes"))[0]
    code, out, _ = saefeat(
        "export", tiny_run, "--feature", f"{sae.id}:5", "--out", tmp_path / "v.safetensors"
    )
    assert (code, out.strip()) == (
        0,
        f"{tmp_path}/v.safetensors: unit 5 of {sae.id} at {sae.site}, norm 1.0000",
    )
    assert torch.equal(load_file(tmp_path / "v.safetensors")["direction"], sae.W_dec[5])
    assert (
        saefeat(
            "export", tiny_run, "--feature", f"{sae.id}:6", "--out", tmp_path / "v.safetensors"
        )[0]
        == 0
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["RUN", "--out", "OUT"],
            "give either --format (sae-lens or sparsify) or --feature SAE:UNIT",
        ),
        (
            ["RUN", "--format", "sae-lens", "--feature", "a:1", "--out", "OUT"],
            "give either --format",
        ),
        (["RUN", "--format", "gguf", "--out", "OUT"], "unknown export format 'gguf'"),
        (["RUN", "--feature", "no:1", "--out", "OUT.npy"], "has no SAE no; it has sae-"),
        (
            ["RUN", "--feature", "sae-resid_post@0:64", "--out", "OUT.npy"],
            "sae-resid_post@0 has the units 0 to 63, and no 64",
        ),
        (
            ["RUN", "--format", "sae-lens", "--out", "RUN"],
            "exists and is no export (it holds bags); choose another output",
        ),
        (["OUT", "--format", "sae-lens", "--out", "OUT"], "does not exist; give a directory"),
        (["RUN", "--feature", "a:" + "9" * 5000, "--out", "OUT.npy"], "should be SAE:UNIT"),
        (["OUT", "--feature", "a:1", "--out", "OUT.npy"], "does not exist; give a directory"),
    ],
)
def test_an_export_that_is_impossible_gives_one_sentence_of_error(
    saefeat, tmp_path, tiny_run, arguments, message
):
    places = {
        "RUN": str(tiny_run),
        "OUT": str(tmp_path / "out"),
        "OUT.npy": str(tmp_path / "out.npy"),
    }
    code, out, error = saefeat("export", *(places.get(word, word) for word in arguments))
    assert (code, out) == (2, "") and message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 1}',
        '{"schema": 1, "model": [], "arguments": {"saes": []}}',
        '{"schema": 1, "model": {"name": 1}, "arguments": {"saes": []}}',
        '{"schema": 1, "model": {"name": "m"}, "arguments": null}',
        '{"schema": 1, "model": {"name": "m"}, "arguments": {"saes": [5]}}',
        '{"schema": 1, "model": {"name": "m"}, "arguments": {"saes": "saes"}}',
    ],
)
def test_a_damaged_run_gives_one_sentence_of_error(saefeat, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    code, _, error = saefeat("export", tmp_path, "--format", "sae-lens", "--out", tmp_path / "out")
    assert (
        code == 2
        and "run.json is not what saefeat writes there" in error
        and error.count("\n") == 1
    )
