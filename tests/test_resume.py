"""Claims of output directories, and the state of unfinished work: with real kills."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from helpers import names

from saefeat.io import UserError, atomic_path, replacing, save_tensors
from saefeat.resume import Checkpoint, check_same, claim, clear_finished, resume, saved_request

# --------------------------------------------------------------------------- claims


def in_another_process(work):
    """Exit code of a fork in which `work` is called: 0 done, 7 a user error, -9 killed."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except UserError:
            os._exit(7)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_process_at_a_time_holds_a_directory(tmp_path):
    def take():
        with claim(tmp_path / "a"):
            pass

    with (
        claim(tmp_path / "a"),
        claim(tmp_path / "a" / ".." / "a"),
    ):  # inside one another they are one
        assert in_another_process(take) == 7
        assert names(tmp_path / "a") == []  # nothing is left to show it
    assert in_another_process(take) == 0
    take()


def test_a_claim_ends_with_a_failure_and_with_a_kill(tmp_path):
    def die_inside():
        with claim(tmp_path):
            die()

    with pytest.raises(KeyboardInterrupt), claim(tmp_path):
        raise KeyboardInterrupt
    assert in_another_process(die_inside) == -signal.SIGKILL
    with claim(tmp_path):
        pass


def test_a_claim_clears_what_a_kill_left_and_nothing_else(tmp_path):
    kept = {".hidden", ".x.tmp", ".y.123.tmp.json", "z.saefeat-tmp"}
    for name in kept:
        (tmp_path / name).touch()

    def killed_while_writing():
        with atomic_path(tmp_path / "deep" / "a.parquet") as path:
            path.write_bytes(b"half")
            die()

    def killed_while_replacing():
        with replacing(tmp_path / "b-c") as made:
            (made / "x").touch()
            die()

    for work in (killed_while_writing, killed_while_replacing):
        assert in_another_process(work) == -signal.SIGKILL
    assert names(tmp_path / "deep") and len(names(tmp_path)) == len(kept) + 2
    with claim(tmp_path):
        pass
    assert names(tmp_path / "deep") == [] and set(names(tmp_path)) == kept | {"deep"}


def test_files_of_another_host_stay_as_long_as_they_may_be_written(tmp_path, monkeypatch):
    """Locks of some file systems do not reach other hosts."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "old").touch()
    rename = os.rename

    def killed_while_replacing():
        monkeypatch.setattr(os, "rename", lambda *names: (rename(*names), die()))
        with replacing(tmp_path / "c") as made:
            (made / "new").touch()

    with monkeypatch.context() as patch:
        patch.setattr("saefeat.io.host_mark", lambda: "0123abcd")
        assert in_another_process(killed_while_replacing) == -signal.SIGKILL
        with atomic_path(tmp_path / "a.json") as written, atomic_path(tmp_path / "a.json") as other:
            assert written != other
            written.write_text("whole")
            other.touch()
            with claim(tmp_path):
                assert len(names(tmp_path)) == 4
    assert (tmp_path / "a.json").read_text() == "whole"
    with claim(tmp_path):
        assert len(names(tmp_path)) == 3
    monkeypatch.setattr("saefeat.resume._ABANDONED", -1)
    with claim(tmp_path):
        assert names(tmp_path) == ["a.json", "c"] and names(tmp_path / "c") == ["old"]


def test_a_directory_that_was_being_replaced_at_a_kill_comes_back(tmp_path, monkeypatch):
    (tmp_path / "b-c").mkdir()
    (tmp_path / "b-c" / "old").touch()
    rename = os.rename

    def killed_after_one():
        monkeypatch.setattr(os, "rename", lambda *names: (rename(*names), die()))
        with replacing(tmp_path / "b-c") as made:
            (made / "new").touch()

    assert in_another_process(killed_after_one) == -signal.SIGKILL
    assert not (tmp_path / "b-c").exists()
    with claim(tmp_path):
        pass
    assert names(tmp_path) == ["b-c"] and names(tmp_path / "b-c") == ["old"]


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with claim(tmp_path / "a"):
        assert (tmp_path / "a").is_dir()


# --------------------------------------------------------------------------- outputs, checkpoints


REQUEST = {"model": "m", "sites": ("a", "b"), "limit": None}


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoint(tmp_path, said):
    def make(request=REQUEST, threads=1, restart=False):
        path = tmp_path / "deep" / "state.safetensors"
        return Checkpoint(path, request, "the training", threads, restart, said.append)

    return make


def test_the_same_request_passes_whether_it_has_lists_or_tuples(tmp_path):
    check_same(tmp_path, {"a": [1, [2]]}, {"a": (1, (2,))}, "statistics")
    for other in ({"a": [1]}, {}, None):
        with pytest.raises(UserError, match="holds statistics of something else") as caught:
            check_same(tmp_path, other, {"a": (1, (2,))}, "statistics")
        assert caught.value.options == ("out",)


def test_a_state_comes_back_as_it_was_saved_until_it_is_cleared(checkpoint, said):
    state = checkpoint()
    assert state.load() is None and saved_request(state.path) is None
    for step in (1, 2):
        state.save({"step": step, "nested": {"x": [1.5]}}, {"w": torch.arange(3) * step})
    values, tensors = checkpoint().load()
    assert values == {"step": 2, "nested": {"x": [1.5]}}
    assert torch.equal(tensors["w"], torch.tensor([0, 2, 4]))
    assert saved_request(state.path) == {"model": "m", "sites": ["a", "b"], "limit": None}
    assert names(state.path.parent) == ["state.safetensors"] and not said
    state.clear()
    state.clear()
    assert checkpoint().load() is None and names(state.path.parent) == []


def test_a_state_without_tensors_comes_back_too(checkpoint):
    checkpoint().save({"done": ["de"]})
    assert checkpoint().load() == ({"done": ["de"]}, {})


def test_a_state_survives_a_kill_in_the_middle_of_the_next_save(checkpoint, monkeypatch):
    checkpoint().save({"step": 1})

    def killed_before_the_rename():
        monkeypatch.setattr(os, "replace", lambda *_: die())
        checkpoint().save({"step": 2})

    assert in_another_process(killed_before_the_rename) == -signal.SIGKILL
    folder = checkpoint().path.parent
    assert len(names(folder)) == 2  # the half-written file is there
    with claim(folder):
        assert names(folder) == ["state.safetensors"]
        assert checkpoint().load() == ({"step": 1}, {})


def test_the_state_of_another_request_is_an_error_or_dropped(checkpoint):
    checkpoint().save({"step": 1})
    other = {**REQUEST, "model": "n"}
    with pytest.raises(UserError, match="holds the state of the training of something else"):
        checkpoint(other).load()
    assert checkpoint(other, restart=True).load() is None
    assert checkpoint().path.exists()


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, None), (None, 1)])
def test_another_number_of_threads_is_reported(checkpoint, said, before, now):
    checkpoint(threads=before).save({"step": 1})
    assert checkpoint(threads=now).load() == ({"step": 1}, {})
    assert f"the training goes on with {now} threads after {before}" in said.pop()
    assert checkpoint(threads=now, restart=True).load() is None
    assert "the training starts again" in said.pop() and not said


DAMAGE = {
    "bytes": lambda path: path.write_bytes(b"damaged"),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "another header": lambda path: save_tensors(path, {}, {"labels": ["de"]}),
    "a list for a header": lambda path: save_tensors(path, {}, ["request"]),
    "a list for values": lambda path: save_tensors(
        path, {}, {"request": None, "threads": 1, "values": []}
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_an_error_or_the_work_starts_again(checkpoint, damage):
    state = checkpoint()
    state.save({"step": 1}, {"w": torch.ones(3)})
    DAMAGE[damage](state.path)
    with pytest.raises(UserError, match=r"state\.safetensors"):
        state.load()
    assert checkpoint(restart=True).load() is None


def test_the_request_of_a_damaged_state_is_an_error_and_none_in_one_of_an_older_version(checkpoint):
    checkpoint().save({})
    DAMAGE["bytes"](checkpoint().path)
    with pytest.raises(UserError, match=r"state\.safetensors"):
        saved_request(checkpoint().path)
    DAMAGE["another header"](checkpoint().path)
    assert saved_request(checkpoint().path) is None


def test_values_keep_the_order_of_their_keys(checkpoint):
    checkpoint().save({"z": {"y": 1, "a": 2}, "b": 3})
    values, _ = checkpoint().load()
    assert list(values) == ["z", "b"] and list(values["z"]) == ["y", "a"]


def test_work_on_a_file_goes_on_after_a_failure_and_leaves_nothing_at_its_end(tmp_path, said):
    out = tmp_path / "metrics.json"

    def work(request, *, fails):
        with resume(out, request, "the sweep", 1, said.append) as state:
            before = state.load()
            state.save({"done": 1 + (before[0]["done"] if before else 0)})
            if fails:
                raise KeyboardInterrupt
            return before

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            work({"a": 1}, fails=True)
    assert work({"a": 1}, fails=False) == ({"done": 2}, {}) and names(tmp_path) == []
    with pytest.raises(KeyboardInterrupt):
        work({"a": 1}, fails=True)
    assert work({"a": 2}, fails=False) is None  # of something else: begun again


def test_the_state_of_finished_work_is_removed_and_other_states_stay(tmp_path):
    out = tmp_path / "metrics.json"

    def killed():
        with resume(out, {"a": (1,)}, "the sweep", 1) as state:
            state.save({})
            die()

    assert in_another_process(killed) == -signal.SIGKILL
    clear_finished(out, {"a": (2,)})
    assert names(tmp_path) == ["metrics-partial"]
    state = tmp_path / "metrics-partial" / "state.safetensors"
    whole = state.read_bytes()
    state.write_bytes(b"damaged")
    clear_finished(out, {"a": (1,)})
    assert state.exists()
    state.write_bytes(whole)
    clear_finished(out, {"a": (1,)})
    clear_finished(out, {"a": (1,)})
    assert names(tmp_path) == []
