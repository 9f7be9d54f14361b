"""Options that are made from configurations, and the flags and commands of error messages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer
from pydantic import Field
from pydantic.dataclasses import dataclass

from saefeat.cli import app
from saefeat.cli.common import Fields, with_options
from saefeat.cli.failures import describe_failure
from saefeat.config import DEMO, CollectConfig, Decoding, RunConfig, TrainConfig
from saefeat.io import RunFailed, UserError
from saefeat.schema import STRICT

COMMAND = typer.main.get_command(app)


@dataclass(frozen=True, config=STRICT)
class Sample:
    name: str = Field(description="A name.")
    top_k: int = Field(default=5, ge=1, le=9, description="How many.")
    rate: float | None = Field(default=None, ge=0, description="A rate.")
    fast: bool = Field(default=False, description="Be fast.")
    check: bool = Field(default=True, description="Check first.")
    paths: tuple[str, ...] = Field(default=(), description="Paths.")
    sizes: tuple[float, ...] | None = Field(default=None, description="Sizes.")
    edits: tuple[str, ...] = Field(default=("a", "b"), description="Edits.")
    seed: int = Field(default=0, description="A seed.")


@dataclass(frozen=True, config=STRICT)
class Other:
    seed: int = Field(default=0, description="A seed.")
    size: int = Field(default=3, description="A size.")


@pytest.fixture
def called():
    """called(*words): the configurations that a command with these options is called with."""
    found = []

    @with_options
    def command(
        sample: Sample,
        other: Annotated[Other, Fields("seed", preset={"size": 8})],
        out: Annotated[Path, typer.Option()],
    ) -> None:
        """Do it."""
        found.append((sample, other, out))

    single = typer.Typer(add_completion=False)
    single.command()(command)

    def call(*words):
        found.clear()
        typer.main.get_command(single)([*words, "--out", "x"], standalone_mode=False)
        return found[0]

    return call


def test_the_defaults_of_a_configuration_are_those_of_its_options(called):
    assert called("--name", "n") == (Sample(name="n"), Other(seed=0, size=8), Path("x"))


def test_every_kind_of_field_can_be_given(called):
    words = ["--name", "n", "--top-k", "9", "--rate", "0.5", "--fast", "--no-check", "--seed", "7"]
    words += ["--paths", "a,b", "--paths", "c", "--sizes", "1, 2.5", "--edits", "b"]
    sample, other, _ = called(*words)
    assert sample == Sample("n", 9, 0.5, True, False, ("a,b", "c"), (1.0, 2.5), ("b",), 7)
    assert other == Other(seed=7, size=8)


@pytest.mark.parametrize("words", [["--top-k", "0"], ["--top-k", "10"], ["--rate", "-1"], []])
def test_bounds_and_required_fields_are_checked_in_parsing(called, words):
    name = [] if not words else ["--name", "n"]
    with pytest.raises(typer.BadParameter):
        called(*name, *words)


@pytest.mark.parametrize(
    ("words", "message", "option"),
    [
        (["--sizes", "1,nan"], "each of the sizes should be a finite number, not nan", "sizes"),
        (["--rate", "inf"], "^the rate should be a finite number, not inf$", "rate"),
        (["--sizes", "1,x"], "'x' is not a number", "sizes"),
        (["--sizes", " ,"], "separated by commas is empty", "sizes"),
    ],
)
def test_a_value_that_the_configuration_refuses_is_a_user_error(called, words, message, option):
    with pytest.raises(UserError, match=message) as caught:
        called("--name", "n", *words)
    assert caught.value.options == (option,)


def options(*words):
    command = COMMAND
    for word in words:
        command = command.commands[word]
    return {parameter.name: parameter for parameter in command.params}


@pytest.mark.parametrize(
    ("command", "configuration"),
    [
        (["run"], RunConfig),
        (["train"], TrainConfig),
        (["collect"], CollectConfig),
        (["steer", "generate"], Decoding),
    ],
)
def test_the_commands_have_the_defaults_and_help_of_the_configurations(command, configuration):
    shared = options(*command).keys() & configuration.__pydantic_fields__.keys()
    assert len(shared) >= 3
    for name in shared - {"dtype", "sites"}:  # `train --dtype` is the model's
        field, option = configuration.__pydantic_fields__[name], options(*command)[name]
        assert option.help.startswith(field.description.rstrip("."))
        if not field.is_required() and field.default != ():
            assert option.default == field.default


def test_the_demo_shows_its_own_defaults_and_few_options():
    found = options("demo")
    assert found["model"].default == DEMO["model"]
    names = {"out", "model", "labels", "seed", "device", "dtype", "dry_run"}
    assert found.keys() - {"help"} == names


# --------------------------------------------------------------------------- failures


def message(error, *words):
    return describe_failure(error, COMMAND, words, 0.0)


def test_an_error_gets_the_flags_of_its_parameters_that_the_command_has():
    error = UserError("this is too large", "max_tokens", "out", "temperature")
    words = ["collect", "--model", "M", "--out", "x"]
    assert message(error, *words) == ("this is too large (--max-tokens, --out)", 2)
    assert message(error, "report", "x") == ("this is too large", 2)


def test_a_flag_that_is_on_by_default_is_named_by_its_negation():
    assert message(UserError("no fit", "gate"), "run").message == "no fit (--no-gate)"


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["lid", "predict", "--run", "a b"], "lid fit --run 'a b'"),
        (["lid", "predict", "--run=r"], "lid fit --run r"),
        (["rank", "stats"], "lid fit --run RUN"),
    ],
)
def test_the_command_to_run_first_takes_what_was_given(words, command):
    error = UserError("there are no heads", command="lid fit")
    assert message(error, *words) == (f"there are no heads; run `saefeat {command}` first", 2)


def test_the_command_to_run_first_does_not_write_where_this_one_does():
    error = UserError("nothing was collected", command="collect --with responses")
    found = message(error, "rank", "stats", "--out", "s.parquet").message
    assert "run `saefeat collect --with responses " in found
    assert "--out OUT" in found and "s.parquet" not in found


def test_the_exit_codes_are_those_of_the_contract():
    words = ["collect", "--out", "a b"]
    resume = "run: saefeat collect --out 'a b'"
    for error, code in (
        (RunFailed("a loss is NaN"), 1),
        (MemoryError(), 1),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
    ):
        found = message(error, *words)
        assert found.code == code
        assert found.message.endswith(resume)
    assert message(PermissionError(13, "Permission denied", "f"), *words).code == 2
    assert message(KeyError("a bug"), *words) is None
