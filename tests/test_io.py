"""Directories that take another's place as a whole or not at all; paths."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from helpers import names

from saefeat.io import UserError, cache_dir, replacing, user_path


def test_a_directory_appears_complete_and_readable(tmp_path):
    with replacing(tmp_path / "deep" / "a") as made:
        (made / "x").write_text("new")
        assert made.parent == tmp_path / "deep" and made.name.startswith(".a.")
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
