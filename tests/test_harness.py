"""A steered model in lm-evaluation-harness: unsteered as lm-eval's own, steered as by hand."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
from helpers import refused

from saefeat.config import CONSTANT, HarnessConfig, Schedule
from saefeat.experiments.harness import lm_eval as measure
from saefeat.experiments.harness import metric_rows
from saefeat.generation import Decoding, generate
from saefeat.models import load_model
from saefeat.run import open_run
from saefeat.steering import add, apply, harness
from saefeat.steering.edits import LOGITS

pytestmark = pytest.mark.usefixtures("one_core", "every_line")
SITE = "resid_post@0"
ITEMS = [
    {"sentence": "the cat sat on the", "choices": [" mat", " dog", " Haus"], "answer": 0},
    {"sentence": "der Hund und die", "choices": [" mat", " Katze sind"], "answer": 1},
    {"sentence": "the dog ran", "choices": [" in dem Haus", " after it"], "answer": 1},
    {"sentence": "die Katze", "choices": [" und der Hund", " on the mat and"], "answer": 0},
]
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files: {file}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{sentence}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""
WRITE = """
task: tiny_write
dataset_path: json
dataset_kwargs:
  data_files: {file}
test_split: train
output_type: generate_until
doc_to_text: "{{{{sentence}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs:
  until: ["###"]
  max_gen_toks: 6
metric_list:
  - metric: exact_match
"""


def test_without_lm_eval_one_sentence_says_what_to_install(tiny_run, tiny_lm, monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with refused(r"need the library lm-eval; install saefeat\[lm-eval\]"):
        measure(open_run(tiny_run), HarnessConfig(label="de", tasks=("tiny_choice",)))
    harness._steered_class.cache_clear()
    with refused(r"need the library lm-eval; install saefeat\[lm-eval\]"):
        harness.harness_model(tiny_lm, {})


def test_metrics_are_read_by_name_and_filter():
    values = {
        "alias": "x",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "exact_match,strict": 1,
        "exact_match_stderr,strict": "N/A",
        "sample_len": 4,
    }
    assert list(metric_rows(values)) == [
        {"metric": "acc", "value": 0.5, "stderr": 0.1},
        {"metric": "exact_match,strict", "value": 1.0, "stderr": None},
    ]


# --------------------------------------------------------------------------- with the library

needs_library = pytest.mark.skipif(
    not (find_spec("lm_eval") and find_spec("accelerate")), reason="needs saefeat[lm-eval]"
)


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A directory with two tasks on a local file, and a cache of data sets of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    file = tmp_path / "items.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    for name, text in (("choice", CHOICE), ("write", WRITE)):
        (folder / f"{name}.yaml").write_text(text.format(file=file))
    return folder


def evaluate(model, folder, names=("tiny_choice", "tiny_write")):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(model=model, tasks=list(names), task_manager=manager)
    assert found is not None
    samples = {
        name: [(one["doc"], one["arguments"], one["resps"]) for one in rows]
        for name, rows in found["samples"].items()
    }
    return found["results"], samples


def random_vector(width, size):
    return torch.randn(width, generator=torch.Generator().manual_seed(0)) * size


def a_change(lm):
    return {SITE: [add(random_vector(32, 4))]}


def changed_logits(lm):
    return {LOGITS: [add(random_vector(lm.unembedding().shape[0], 2))]}


CHANGES = [a_change, changed_logits]


@needs_library
@pytest.mark.parametrize("change", CHANGES)
def test_the_unsteered_model_gives_what_lm_eval_gives_for_the_same_directory(
    tiny_model_dir, tasks, change
):
    from lm_eval.models.huggingface import HFLM

    lm = load_model(str(tiny_model_dir), dtype="float32", device="cpu")
    theirs = evaluate(
        HFLM(pretrained=str(tiny_model_dir), device="cpu", dtype="float32", batch_size=2), tasks
    )
    ours = evaluate(harness.harness_model(lm, {}, batch_size=2), tasks)
    assert ours == theirs
    assert ours == evaluate(harness.harness_model(lm, change(lm), 0.0, batch_size=2), tasks)
    steered = evaluate(harness.harness_model(lm, change(lm), 1.0, batch_size=2), tasks)
    assert steered[1] != ours[1]
    assert evaluate(harness.harness_model(lm, {}, batch_size=2), tasks) == ours  # nothing is left


@needs_library
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("make", CHANGES)
def test_likelihoods_and_texts_are_those_of_a_steered_model(tiny_lm, tasks, batch, make):
    change, lm = make(tiny_lm), tiny_lm
    schedule = Schedule(first=1, rest=0.2)
    model = harness.harness_model(lm, change, 0.8, schedule, batch_size=batch)
    _, samples = evaluate(model, tasks)

    def ids_of(text):
        return lm.tokenizer(text)["input_ids"]

    for (_, arguments, responses), item in zip(samples["tiny_choice"], ITEMS, strict=True):
        for request, response in zip(arguments, responses, strict=True):
            context, continuation = request
            assert context == item["sentence"]
            whole, start = ids_of(context + continuation), len(ids_of(context))
            with torch.no_grad(), apply(lm, change, 0.8, CONSTANT):  # a text is all prompt
                logits = lm.model(input_ids=torch.tensor([whole]), use_cache=False).logits[0]
            if make is changed_logits:  # by hand: a call of the model does not see them
                logits = logits + 0.8 * random_vector(logits.shape[1], 2)
            log = logits.double().log_softmax(1)
            wanted = sum(float(log[at - 1, whole[at]]) for at in range(start, len(whole)))
            assert float(response[0][0]) == pytest.approx(wanted, abs=1e-4)
    decoding = Decoding(max_new_tokens=6, temperature=0)
    for (_, _, responses), item in zip(samples["tiny_write"], ITEMS, strict=True):
        with apply(lm, change, 0.8, schedule):
            (row,) = generate(lm, [ids_of(item["sentence"])], decoding)
        assert responses[0][0] == lm.tokenizer.decode(row, skip_special_tokens=True)


@needs_library
@pytest.mark.parametrize("method", ["features", "boost"])
def test_the_command_measures_unsteered_steered_and_random(run_copy, tasks, saefeat, method):
    options = ("--label", "de", "--tasks", "tiny_choice", "--include-path", tasks)
    options += ("--method", method)
    code, out, error = saefeat("steer", "lm-eval", "--run", run_copy, *options)
    assert code == 0, error
    assert out.startswith("Tasks of lm-eval, steered towards de\n")
    result = json.loads((run_copy / "experiments" / "lm-eval.json").read_text())
    assert [(row["method"], row["metric"]) for row in result["rows"]] == [
        (method, metric) for method in ("none", method, "random") for metric in ("acc", "acc_norm")
    ]
    opened = open_run(run_copy)
    assert (
        saefeat("steer", "lm-eval", "--run", run_copy, *options)[2].count("complete already") == 1
    )
    (sae,) = (sae.id for sae in opened.saes if sae.site == "resid_post@0")
    stats = opened.files.load_stats(sae)
    stats.header["chosen"] |= {"tokens": 99}  # as if they were collected anew
    stats.save(opened.files.stats_file(sae))
    error = saefeat("steer", "lm-eval", "--run", run_copy, *options)[2]
    assert ("complete already" in error) is (method == "boost")  # which reads no features
    plain, _ = evaluate(harness.harness_model(opened.lm, {}, batch_size=8), tasks, ["tiny_choice"])
    assert result["rows"][0]["value"] == plain["tiny_choice"]["acc,none"]


@needs_library
def test_bad_tasks_are_one_sentence(tiny_run, tasks, tmp_path, saefeat):
    (tasks / "gone.yaml").write_text(
        CHOICE.format(file=tmp_path / "gone.jsonl").replace("tiny_choice", "tiny_gone")
    )
    cases = [
        (["--tasks", "no_such_task"], "lm-eval has no task no_such_task"),
        (["--tasks", "tiny_gone"], "the task tiny_gone cannot be loaded"),
        (["--tasks", "tiny_choice", "--include-path", "none"], "none is not a directory of tasks"),
        (["--tasks", "tiny_choice", "--label", "fr"], "no label 'fr' in this run"),
        (["--tasks", "tiny_choice", "--strength", "nan"], "strength"),
    ]
    for options, message in cases:
        given = ["--run", tiny_run, "--label", "de", "--include-path", tasks, *options]
        code, _, error = saefeat("steer", "lm-eval", *given)
        last = error.splitlines()[-1]
        assert code == 2 and message in last and last.startswith("saefeat: "), error
