"""Directories are replaced completely or not at all, and claimed by one process at a time."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from saefeat.io import UserError, atomic_path, cache_dir, replacing, user_path
from saefeat.resume import claim


def names(directory):
    return sorted(p.name for p in directory.iterdir())


def test_a_directory_appears_complete_and_readable(tmp_path):
    with replacing(tmp_path / "deep" / "a") as made:
        (made / "x").write_text("new")
        assert made.parent == tmp_path / "deep" and made.name.startswith(".a-")
        assert not (tmp_path / "deep/a").exists()
    assert names(tmp_path / "deep") == ["a"] and names(tmp_path / "deep/a") == ["x"]
    assert stat.S_IMODE((tmp_path / "deep/a").stat().st_mode) == 0o755


@pytest.mark.parametrize("old", [{}, {"y": "old", "z": "old"}])
def test_the_old_directory_stays_until_the_new_one_is_complete(tmp_path, old):
    (tmp_path / "a").mkdir()
    for name, text in old.items():
        (tmp_path / "a" / name).write_text(text)
    with replacing(tmp_path / "a") as made:
        (made / "x").write_text("new")
        assert names(tmp_path / "a") == sorted(old)
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["x"]


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt, OSError(28, "No space left on device"), UserError("no")]
)
def test_a_failure_leaves_the_old_directory_and_nothing_else(tmp_path, failure):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/y").write_text("old")
    before = (tmp_path / "a").stat()
    with (
        pytest.raises(type(failure) if isinstance(failure, Exception) else failure),
        replacing(tmp_path / "a") as made,
    ):
        (made / "x").write_text("half")
        raise failure
    after = (tmp_path / "a").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (tmp_path / "a/y").read_text() == "old" and names(tmp_path) == ["a"]


def test_the_directory_may_be_the_current_one_or_a_link(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    os.symlink(tmp_path / "a", tmp_path / "link")
    monkeypatch.chdir(tmp_path / "a")
    for place in (tmp_path / "link", tmp_path / "a" / ".." / "a"):
        with replacing(place) as made:
            (made / "x").write_text(str(place))
        assert names(tmp_path) == ["a", "link"] and (tmp_path / "a/x").read_text() == str(place)
    assert (tmp_path / "link").is_symlink()


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="choose another directory"),
        replacing(tmp_path / "file" / "a"),
    ):
        raise AssertionError("never reached")


def test_the_home_of_an_unknown_user_is_a_user_error(monkeypatch):
    assert user_path("~/x") == Path.home() / "x"
    monkeypatch.setenv("SAEFEAT_CACHE", "~no-such-user/cache")
    for call in (cache_dir, lambda: user_path("~no-such-user/x")):
        with pytest.raises(
            UserError,
            match=r'cannot expand "~" in ~no-such-user/.*: there is no such user; give an',
        ):
            call()


def test_the_old_directory_comes_back_if_the_last_rename_fails(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old").touch()
    rename, calls = os.rename, []

    def once(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", once)
    with pytest.raises(OSError, match="no"), replacing(tmp_path / "a") as made:
        (made / "new").touch()
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["old"]


def test_the_old_directory_comes_back_after_an_interrupt_between_the_renames(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old").touch()
    rename, calls = os.rename, []

    def stopped_after_the_first(source, target):
        calls.append(target)
        rename(source, target)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", stopped_after_the_first)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as made:
        (made / "new").touch()
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["old"]


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


def test_a_directory_is_claimed_by_one_process_at_a_time(tmp_path):
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


def test_a_claim_removes_the_unfinished_files_of_a_killed_process_only(tmp_path):
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


def test_the_old_directory_comes_back_after_a_kill_between_the_renames(tmp_path, monkeypatch):
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


def test_a_claim_works_on_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with claim(tmp_path / "a"):
        assert (tmp_path / "a").is_dir()
