"""The experiments of the published papers, each with the command that runs it on a run.

Commands stand without `saefeat`. `{run}` is the directory of the run, `{out}` the file or directory
of the result, `{inputs}` the options that give a collection the model and text of the run, and
other names in braces are what the user gives: corpora (`CORPORA`) or files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saefeat.config import Inputs, RunConfig
from saefeat.experiments.published import IDENTIFICATION, LAPE, SAE_LAPE, TERNARY, Published

# Where commands write in a run; all others are experiments.
_FOLDERS = {
    "collect": "papers",
    "rank": "selections",
    "lid": "lid",
    "steer sweep": "steering",
    "steer matrix": "steering",
}
# What the user gives that is a corpus; all else is a file.
CORPORA = ("parallel", "texts")


@dataclass(frozen=True)
class Step:
    """An experiment of a paper.

    Attributes:
        name: short, for its result.
        what: what is asked, in a sentence.
        command: words of the command line.
        published: what came out in the paper, with its model and data; "" where no figure is known.
        figures: published figures that are compared with those of a result.
    """

    name: str
    what: str
    command: str
    published: str = ""
    figures: Sequence[Published] = ()

    @property
    def needs(self) -> list[str]:
        """Names of the corpora and files that the user gives."""
        found = dict.fromkeys(re.findall(r"\{(\w+)\}", self.command))
        return [name for name in found if name not in ("run", "out", "inputs")]

    def words(
        self, paper: str, run: Path, given: Mapping[str, str], inputs: Sequence[str] = ()
    ) -> list[str]:
        """The words of the command with all names filled in. Raises KeyError if one is missing.

        `inputs`: options, see `inputs_of`.
        """
        names = {**given, "run": str(run), "out": str(self.result(paper, run))}
        found: list[str] = []
        for word in self.command.split():
            found += inputs if word == "{inputs}" else [word.format(**names)]
        return found

    def result(self, paper: str, run: Path) -> Path:
        """Where the result is."""
        found = (folder for begin, folder in _FOLDERS.items() if self.command.startswith(begin))
        folder = next(found, "experiments")
        kind = {"selections": ".parquet", "papers": ""}.get(folder, ".json")
        return run / folder / f"{paper}-{self.name}{kind}"


@dataclass(frozen=True)
class Paper:
    """A paper: arXiv number, what it is about, its models and data, and its experiments."""

    arxiv: str
    subject: str
    used: str
    steps: Sequence[Step]


def inputs_of(config: RunConfig) -> list[str]:
    """Options that give another command the model and text of a run, without defaults."""
    given = ((field, getattr(config, field.name)) for field in dataclasses.fields(Inputs))
    return [
        word
        for field, value in given
        if value is not None and (field.name in ("model", "corpus") or value != _default(field))
        for word in (
            f"--{field.name.replace('_', '-')}",
            ",".join(value) if isinstance(value, tuple) else str(value),
        )
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    return getattr(field.default, "default", field.default)


def _collect(what: str, options: str, inputs: str = "{inputs}") -> Step:
    """The statistics that a paper's rule reads, where a run lacks them."""
    return Step("statistics", what, f"collect {inputs} {options} --out {{out}}")


def _own(paper: str, name: str) -> str:
    """The selection that another step of the paper writes."""
    return f"{{run}}/selections/{paper}-{name}.parquet"


def _ablate(units: str, options: str = "") -> str:
    return f"steer ablate --run {{run}} --units {units} {options} --out {{out}}"


def _rank(method: str, options: str = "", source: str = "{run}/stats") -> str:
    return f"rank {source} --method {method} {options} --out {{out}}"


def _sweep(methods: str) -> str:
    return f"steer sweep --run {{run}} --methods {methods} --out {{out}}"


PAPERS: Mapping[str, Paper] = {
    "lape": Paper(
        "2402.16438",
        "Language-Specific Neurons: the key to multilingual capabilities",
        "LLaMA-2, BLOOM, OPT, Mistral, Phi-2; Wikipedia in six or seven languages",
        [
            _collect("How often does each neuron fire, in all layers?", "--neurons"),
            Step(
                "neurons",
                "Which neurons are specific to a language?",
                _rank("lape", source="{run}/papers/lape-statistics"),
                "LLaMA-2-7B: 3,523 neurons, English 95 to Indonesian 1,068 per language",
                LAPE,
            ),
            Step(
                "ablation",
                "Does the loss of a language's text rise without its neurons?",
                _ablate(_own("lape", "neurons")),
                "the loss of the language rises most, that of others little",
            ),
            Step(
                "generation",
                "Which language does the model write without them?",
                f"steer arithmetic --run {{run}} --units {_own('lape', 'neurons')} "
                "--activate none --out {out}",
            ),
        ],
    ),
    "sae-lape": Paper(
        "2507.11230",
        "SAE-LAPE: language-specific features of sparse autoencoders",
        "Llama-3.2-1B, EleutherAI/sae-Llama-3.2-1B-131k; XNLI, PAWS-X, FLORES+, 15 languages",
        [
            Step(
                "features",
                "Which features are specific to a language?",
                _rank("sae-lape"),
                "1,043 features, 540 of one language (with BOS counted)",
                SAE_LAPE,
            ),
            Step(
                "perplexity",
                "Does the perplexity of a language rise when its features are edited?",
                "steer matrix --run {run} --out {out}",
                "own 156, others 2.6 on average (all features, -0.1 times the maximum)",
            ),
            Step(
                "identification",
                "How well do the features identify languages?",
                "lid evaluate --run {run} --out {out}",
                "sae-count .972, sae-min-max .961, neuron-count .617, fastText .983 (accuracy)",
                IDENTIFICATION,
            ),
            Step(
                "steering",
                "Does adding the features change the language of the output?",
                _sweep("features,neurons,random"),
            ),
        ],
    ),
    "ternary": Paper(
        "2505.21505",
        "Specific, related and general neurons under alignment",
        "MistralMathOctopus-7B, MetaMathOctopus-7B; MGSM, MSVAMP, ten languages",
        [
            Step(
                "neurons",
                "Which neurons are specific, related or general?",
                _rank("ternary"),
                "3,219 neurons at 1 %; N = 1: 1,866, 2: 617, 3: 310 (Mistral, MGSM)",
                TERNARY,
            ),
            Step(
                "deactivation",
                "What does the loss do without each class?",
                "steer categories --run {run} --classes ternary --out {out}",
            ),
        ],
    ),
    "sharing": Paper(
        "2406.09265",
        "Sharing matters: neurons across languages and tasks",
        "BLOOMZ-7b1 and others; XNLI, mParaRel, MzsRE in nine languages",
        [
            Step(
                "attribution",
                "What do shared, partly shared and specific units contribute?",
                "steer attribute --run {run} --out {out}",
                "all-shared: under 30 % of the neurons, 91.6 % of the contribution (German XNLI)",
            ),
            Step(
                "deactivation",
                "What does the loss do without each class?",
                "steer categories --run {run} --out {out}",
                "without the all-shared neurons the accuracy falls most",
            ),
            Step(
                "accuracy",
                "And what does the accuracy of a task do?",
                "steer categories --run {run} --table {table} --out {out}",
            ),
        ],
    ),
    "amplification": Paper(
        "2507.22581",
        "Amplification of language neurons and Language Steering Shift",
        "Gemma-2, Qwen2.5, SeaLLMs; FLORES-200, mLAMA, 18 languages",
        [
            Step(
                "lss",
                "Does the model prefer facts in the amplified language?",
                "steer lss --run {run} --out {out}",
                "patched factors steer best, towards nearly all of 18 languages",
            ),
            Step(
                "loss",
                "What does amplification do to the language's own text, and to others?",
                "steer amplify --run {run} --out {out}",
                "sometimes better in the language itself, usually worse in others",
            ),
        ],
    ),
    "culture": Paper(
        "2508.02241",
        "Culture neurons apart from language neurons (CAPE)",
        "Llama-2-7b, Llama-3.1-8B, Qwen2.5-7B, Gemma-3-12b; MUREL, six cultures",
        [
            _collect("How often does each neuron fire in text of cultures?", "--neurons"),
            Step(
                "cultures",
                "Which neurons are specific to a culture?",
                _rank("lape", source="{run}/papers/culture-statistics"),
            ),
            Step(
                "ablation",
                "Do pure culture neurons matter for cultural text, and little for the language?",
                _ablate(_own("culture", "cultures"), "--apart-from {language} --texts {texts}"),
                "culture neurons are separable, mostly in upper layers",
            ),
        ],
    ),
    "arithmetic": Paper(
        "2507.22608",
        "Language arithmetics: deactivate one language, activate another",
        "Llama-3.1-8B, Mistral-Nemo, Aya-Expanse; CulturaX, FLORES-200, 21 languages",
        [
            Step(
                "additive",
                "Does the output change from the source to the target language? Published with "
                "--temperature 0 --repetition-penalty 1.1 --max-new-tokens 256.",
                "steer arithmetic --run {run} --out {out}",
                "additive beats replacement; large languages are easier targets",
            ),
            Step(
                "replacement",
                "The same with the means in place of the activations.",
                "steer arithmetic --run {run} --activate replacement --out {out}",
            ),
            Step(
                "diffmean",
                "The same with the difference of means.",
                "steer arithmetic --run {run} --activate diffmean --out {out}",
            ),
            Step(
                "fallback",
                "Which language comes next when dominant ones are switched off? Published with "
                "--temperature 0 --repetition-penalty 1.1 --max-new-tokens 128 and, after prompts "
                r"in the frame 'Q: ...A: ', --stops '\nQ:' --stops '\nA:'.",
                "steer fallback --run {run} --out {out}",
                "fallback languages follow a hierarchy",
            ),
            Step(
                "lens",
                "Which language do the decoded tokens have, layer by layer? (The paper sums the "
                "probabilities of the five tokens; here they are counted.)",
                "lens --run {run} --kinds languages --norm with --positions 1 --top 5 --out {out}",
            ),
        ],
    ),
    "plnd": Paper(
        "2402.18815",
        "How do LLMs handle multilingualism? (PLND, MWork)",
        "Vicuna-7b, Mistral-7b; XLSum, MGSM, XQuAD",
        [
            Step(
                "lens",
                "Does the model think in English between input and output? (The paper judges "
                "tokens by cld3, here by fastText.)",
                "lens --run {run} --kinds languages --generated --texts 5 --positions 64 "
                "--max-new-tokens 64 --norm without --out {out}",
                "English in the middle layers",
            ),
            _collect(
                "What does the model lose without each neuron, in each document?",
                "--neurons --neuron-site mlp_hidden --with importances --table-examples 50",
            ),
            Step(
                "neurons",
                "Which neurons matter in all documents of a language?",
                _rank("plnd", source="{run}/papers/plnd-statistics"),
            ),
            Step(
                "ablation",
                "What does the loss do without a language's neurons?",
                _ablate(_own("plnd", "neurons")),
                "0.13 % of the neurons off: XLSum ROUGE-L 26.6 to 0.37 (random 26.7)",
            ),
        ],
    ),
    "aya": Paper(
        "2507.20279",
        "How Aya-23 works: languages of layers, code-mixing, neurons",
        "Aya-23-8B, Llama-3.1-8B, Chinese-LLaMA-2-7B; WMT24++, 13 languages",
        [
            Step(
                "words",
                "In which language is the next word, layer by layer?",
                "lens --run {run} --kinds words --out {out}",
                "Aya: typologically close languages in the middle; Llama: English",
            ),
            Step(
                "overlap",
                "Which neurons make up 95 % of a language's firing?",
                _rank("neuron-overlap"),
            ),
            Step(
                "mixing",
                "Whose units fire in code-mixed text?",
                "mix --run {run} --out {out}",
                "the base language outweighs the one that is mixed in",
            ),
        ],
    ),
    "code": Paper(
        "2506.01074",
        "Neurons of programming languages",
        "Llama-3.1-8B, CodeLlama-7b; codeparrot/github-code, MuST-CoST",
        [
            _collect("How often does each neuron fire, in all layers?", "--neurons"),
            Step(
                "neurons",
                "Which 400 neurons are most specific to a programming language?",
                _rank("lape", "-p per_label=400", "{run}/papers/code-statistics"),
                "specific neurons in layers 0 to 4, those of one language in layers 29 to 31",
            ),
            Step(
                "keywords",
                "Whose keywords do the decoded tokens of plain test texts belong to, by layer?",
                "lens --run {run} --kinds keywords --out {out}",
            ),
            Step(
                "programs",
                "And where the model reads translations of programs, after four others? (The "
                "paper's list of keywords is of 23 languages, here Pygments', and English is what "
                "fastText reads as English.)",
                "lens --run {run} --kinds keywords --programs {programs} --texts 100 --norm with "
                "--out {out}",
                "English and keywords in the second half",
            ),
            Step(
                "alignment",
                "Where are translations of one program closest?",
                "lens --run {run} --kinds alignment --parallel {parallel} --out {out}",
                "C# and C++ are pivots",
            ),
            Step(
                "ablation",
                "What does the loss do without a language's neurons?",
                _ablate(_own("code", "neurons")),
            ),
        ],
    ),
    "mexa": Paper(
        "2410.05873",
        "MEXA: alignment of languages to English by layer",
        "many models; FLORES-200",
        [
            Step(
                "alignment",
                "How often is a sentence nearest to its translation, layer by layer?",
                "lens --run {run} --kinds alignment --parallel {parallel} --out {out}",
            )
        ],
    ),
    "average-precision": Paper(
        "2404.02431",
        "Neurons whose mean response tells a language's sentences from others",
        "XGLM, BLOOM, Llama-2; six languages, 500 sentences of each",
        [
            _collect(
                "What is the mean of each neuron in each sentence?", "--neurons --with responses"
            ),
            Step(
                "neurons",
                "Which neurons have the highest and the lowest average precision?",
                _rank("average-precision", source="{run}/papers/average-precision-statistics"),
                "less than 5 % of a language's neurons are another's, in the first and last layers",
            ),
            Step(
                "forcing",
                "What does the loss do when they are set to the median of a language?",
                f"steer amplify --run {{run}} --units {_own('average-precision', 'neurons')} "
                "--edits pmedian --out {out}",
                "the model writes the language more often",
            ),
        ],
    ),
    "monolinguality": Paper(
        "2505.05111",
        "Monolinguality of features, ablation and gated steering",
        "Gemma-2-2B and 9B, Llama-3.1-8B; FLORES-10",
        [
            Step(
                "features",
                "Which features are higher in a language than in the others?",
                _rank("monolinguality"),
            ),
            Step(
                "ablation",
                "Does the loss rise in the feature's own language only?",
                _ablate("monolinguality", "--edit erase"),
            ),
            Step(
                "steering",
                "Do features steer better as a gate of a vector?",
                _sweep("gated,ablation,diffmean"),
                "Gemma-2-2B gated against plain: es 95.8/92.1, fr 96.7/92.6 per cent",
            ),
        ],
    ),
    "clas-bench": Paper(
        "2601.08331",
        "CLaS-Bench: steering methods compared",
        "Llama-3.1-8B-Instruct, Aya-Expanse-8B; 70 questions in 32 languages",
        [
            Step(
                "steering",
                "Which method controls the language at the least cost?",
                _sweep("diffmean,neurons,pca,codes,random,random-vector,prompting"),
                "the difference of means is best: 84.5 against prompting 67.7 (Llama)",
            )
        ],
    ),
    "directions": Paper(
        "2509.14814",
        "Steering at every layer (ReCoVeR), sparse dimensions (2510.07213), one axis (2510.13849)",
        "Qwen2-7B-Instruct, Llama-2, Llama-3.2 and others",
        [
            Step(
                "steering",
                "Which of these directions change the language?",
                _sweep("recover,overwrite,pca,clamp,one-sided,diffmean,random"),
                "overwriting: .985 forcing (Llama-2-7B); one axis: 95 to 99 % identified",
            )
        ],
    ),
    "logits": Paper(
        "2606.08994",
        "Rivals at the logits, which need no units (with 2601.10960)",
        "several chat models",
        [
            Step(
                "steering",
                "How far do boosted tokens of the target language go?",
                _sweep("boost,boost-adaptive,log-odds,diffmean"),
            )
        ],
    ),
    "probe": Paper(
        "2511.16693",
        "Linear probes for the language by layer",
        "six models, five languages",
        [
            Step(
                "probe",
                "At which layer is the language linearly separable?",
                "lens --run {run} --kinds probe --out {out}",
                "from the first block on: +73.5 to +80.7 points from layer 0 to 1",
            )
        ],
    ),
}
