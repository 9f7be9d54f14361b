"""Several processes write the statistics that one writes; killed, any number of them goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import pytest
from helpers import contents, random_sae, refused

from saefeat import cli, collection, watch
from saefeat.collection import collect as collect_stats
from saefeat.corpora import load_corpus, store
from saefeat.io import UserError, read_header
from saefeat.resume import claim_together
from saefeat.run import collect
from saefeat.sae.store import save_sae
from saefeat.shares import deal, numbers, share_file
from saefeat.watch import Watch
from saefeat.world import LostRank, World, join

LIMIT = 60  # seconds in which every process has to end
EVERYTHING = {
    "neurons": True,
    "bags": True,
    "with_": ("histograms", "halves", "responses", "patterns", "importances", "distributions"),
    "random_tokens": 70,  # three windows
    "table_examples": 40,
}
KILLED, STOPPED = -signal.SIGKILL, 130
pytestmark = pytest.mark.usefixtures("small_windows")


# --------------------------------------------------------------------------- processes


class Running:
    """Forks of this process that are the ranks of a world."""

    def __init__(self, size, work, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.files = [folder / f"said-{rank}" for rank in range(size)]
        worlds = [World(rank, size, rank, size) for rank in range(size)]
        self.pids = [_fork(*each, port, work) for each in zip(worlds, self.files, strict=True)]

    def ends(self):
        """Their exit codes, negative for a signal, and what they have said."""
        codes = [_wait(pid) for pid in self.pids]
        self.pids = []
        return codes, [file.read_text() for file in self.files]

    def wait_for(self, condition):
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() - begun < LIMIT, [file.read_text() for file in self.files]
            time.sleep(0.01)


def _fork(world, file, port, work):
    if pid := os.fork():
        return pid
    code = 1
    try:
        said = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout = sys.stderr = os.fdopen(said, "w")
        names = {"RANK": world.rank, "LOCAL_RANK": world.local_rank, "WORLD_SIZE": world.size}
        names |= {"LOCAL_WORLD_SIZE": world.local_size, "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(
            {name: str(value) for name, value in names.items()}, MASTER_PORT=str(port)
        )
        work(world)
        code = 0
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = STOPPED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _wait(pid):
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


@pytest.fixture
def start(tmp_path):
    """start(size, work): work(world) in the ranks of a world."""
    running = []

    def begin(size, work):
        running.append(Running(size, work, tmp_path))
        return running[-1]

    yield begin
    for each in running:
        for pid in each.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.fixture
def count(tiny_lm, tiny_corpus):
    """count(world, out, **options): collect everything, and write a checkpoint at each window."""

    def call(world, out, corpus=tiny_corpus, saes=None, **options):
        join(world, "cpu", LIMIT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "saefeat.run.stages.collect_stats", partial(collect_stats, checkpoint_seconds=0)
            )
            collect(
                tiny_lm,
                corpus,
                saes or [random_sae()],
                out=out,
                world=world,
                **EVERYTHING | options,
            )

    return call


def stop_after(windows):
    """Say before each window whether so many are done."""
    asked = iter(range(windows))
    return lambda: next(asked, None) is None


def kill_before(operation, folder):
    """Kill this process before an operation on files of the directory, counted from 1."""
    seen = [0]

    def hook(event, given):
        writes = (
            event == "open"
            and isinstance(given[0], str | os.PathLike)
            and (given[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        )
        if (writes or event in ("os.rename", "os.remove")) and str(folder) in str(given[0]):
            seen[0] += 1
            if seen[0] == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def windows_in(folder):
    """Number of a rank's file -> its windows."""
    return {
        number: json.loads(read_header(share_file(folder, number))["values"])["windows"]
        for number in numbers(folder)
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_lm, tiny_corpus):
    """What one process writes."""
    out = tmp_path_factory.mktemp("whole") / "stats"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saefeat.corpora.WINDOW", 32)
        collect(tiny_lm, tiny_corpus, [random_sae()], out=out, **EVERYTHING)
    return contents(out)


# --------------------------------------------------------------------------- the same bytes


@pytest.mark.parametrize("size", [2, 4])  # of four, one has no window of random tokens
def test_ranks_write_the_bytes_of_one_process(tmp_path, whole, start, count, size):
    out = tmp_path / "stats"
    codes, said = start(size, partial(count, out=out)).ends()
    assert codes == [0] * size, said
    assert contents(out) == whole


def test_more_ranks_than_windows_write_the_bytes_of_one_process(
    tmp_path, tiny_lm, start, count, tiny_corpus
):
    rows = zip(tiny_corpus.texts[:40], tiny_corpus.of[:40], strict=True)
    corpus = load_corpus(list(rows))  # two windows
    options = EVERYTHING | {"random_tokens": 0, "split": "all"}
    collect(tiny_lm, corpus, [random_sae()], out=tmp_path / "whole", **options)
    codes, said = start(3, partial(count, out=tmp_path / "o", corpus=corpus, **options)).ends()
    assert codes == [0] * 3, said
    assert contents(tmp_path / "o") == contents(tmp_path / "whole")


def test_the_ranks_of_a_shard_write_its_bytes(tmp_path, tiny_lm, tiny_corpus, start, count):
    options = EVERYTHING | {"shard": "1/3"}
    collect(tiny_lm, tiny_corpus, [random_sae()], out=tmp_path / "whole", **options)
    codes, said = start(2, partial(count, out=tmp_path / "stats", shard="1/3")).ends()
    assert codes == [0, 0], said
    assert contents(tmp_path / "stats") == contents(tmp_path / "whole")


def test_dictionaries_that_do_not_fit_together_take_several_passes(
    tmp_path, whole, start, count, monkeypatch
):
    monkeypatch.setattr("saefeat.memory.memory_limit", lambda device: 1)
    out = tmp_path / "stats"
    codes, said = start(2, partial(count, out=out, say=print)).ends()
    assert codes == [0, 0], said
    assert "collect: group 1 of 4, wide" in said[0] and said[1] == ""
    assert contents(out) == whole


# --------------------------------------------------------------------------- killed and resumed


def test_stopped_ranks_keep_what_is_done_for_any_number_of_ranks(tmp_path, whole, start, count):
    out = tmp_path / "stats"
    codes, said = start(4, lambda world: count(world, out, stop=stop_after(1))).ends()
    assert codes == [STOPPED] * 4, said
    kept = windows_in(out / "partial")
    assert list(map(len, kept.values())) == [1] * 4
    codes, said = start(2, lambda world: count(world, out, stop=stop_after(1))).ends()
    assert codes == [STOPPED] * 2, said
    then = windows_in(out / "partial")
    for rank in range(2):  # it goes on with the files of two ranks
        assert then[rank][:2] == kept[rank] + kept[rank + 2] and len(then[rank]) == 3
    codes, said = start(1, lambda world: count(world, out, stop=stop_after(1))).ends()
    assert codes == [STOPPED], said
    assert [len(found) for found in windows_in(out / "partial").values()] == [7]
    codes, said = start(3, partial(count, out=out)).ends()
    assert codes == [0] * 3, said
    assert contents(out) == whole


@pytest.mark.parametrize(
    ("sizes", "operations"),
    [((2, 1), (12, 2)), ((4, 2), (9, 3)), ((3, 2), (16, 1)), ((2, 3), (25, 5))],
)
def test_killed_at_any_moment_they_go_on_to_the_same_bytes(
    tmp_path, whole, start, count, sizes, operations
):
    """One rank is killed twice; with the number of ranks the files change hands."""
    out = tmp_path / "stats"

    def work(world, operation):
        if world.rank == world.size - 1:
            kill_before(operation, out)
        count(world, out)

    for size, operation in zip(sizes, operations, strict=True):
        codes, said = start(size, partial(work, operation=operation)).ends()
        assert codes[-1] == KILLED and not set(codes) & {0, None}, (codes, said)
    codes, said = start(2, partial(count, out=out)).ends()
    assert codes == [0, 0], said
    assert contents(out) == whole


# --------------------------------------------------------------------------- what is refused


def test_ranks_that_have_loaded_different_things_are_refused(tmp_path, start, count):
    def work(world):
        try:
            count(world, tmp_path / "stats", saes=[random_sae(seed=world.rank)])
        except UserError as error:
            print(error)
            sys.exit(2)

    codes, said = start(2, work).ends()
    assert codes == [1, 2], said
    assert said[1].startswith("rank 1 has another model, corpus, SAE or setting than the first;")


def test_an_output_that_a_rank_does_not_see_is_refused(tmp_path):
    with refused("rank 1 does not see .*; all ranks need it", "out"):  # noqa: SIM117
        with claim_together(tmp_path / "a", World(1, 1)):
            pass


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_windows_are_dealt_out_by_their_tokens(size):
    sizes = {window: 1 + window * 37 % 11 for window in range(3, 40, 2)}
    parts = [deal(set(sizes), sizes, World(rank, size)) for rank in range(size)]
    assert sorted(window for part in parts for window in part) == sorted(sizes)
    assert all(part == sorted(part) for part in parts)
    loads = [sum(sizes[window] for window in part) for part in parts]
    assert max(loads) - min(loads) <= max(sizes.values())


# --------------------------------------------------------------------------- the command line


@pytest.fixture
def command(tmp_path, tiny_model_dir, tiny_jsonl, monkeypatch):
    """command(world): `saefeat collect` of everything, as torchrun starts it."""
    monkeypatch.setattr(watch, "SILENT_SECONDS", 2.5)
    words = ["--model", tiny_model_dir, "--corpus", tiny_jsonl, "--dtype", "float32"]
    words += ["--neurons", "--bags", "--with", "responses", "--random-tokens", "70"]
    words += ["--out", tmp_path / "stats"]

    def call(world, *more, slow=0.0):
        patch = pytest.MonkeyPatch()
        patch.setattr("saefeat.collection.CHECKPOINT_SECONDS", 0)
        patch.setattr(
            "saefeat.run.stages.collect_stats", partial(collect_stats, checkpoint_seconds=0)
        )
        patch.setattr("os.sched_getaffinity", lambda _: {*range(world.size)})  # a thread each
        observe = collection.observe
        patch.setattr(collection, "observe", lambda *of: (time.sleep(slow), observe(*of))[1])
        patch.setattr(sys, "argv", ["saefeat", "collect", *map(str, [*words, *more])])
        cli.main()

    return call


@pytest.fixture
def collected(command, start, tmp_path):
    """What the command writes alone."""
    codes, said = start(1, command).ends()
    assert codes == [0], said
    found = contents(tmp_path / "stats")
    shutil.rmtree(tmp_path / "stats")
    return found


def test_the_command_on_ranks_writes_the_bytes_of_one_process(tmp_path, command, collected, start):
    codes, said = start(2, command).ends()
    assert codes == [0, 0], said
    assert contents(tmp_path / "stats") == collected
    assert "2 processes of 1 threads" in said[0] and "mlp_act@1.safetensors" in said[0]
    assert said[1] == ""  # the first speaks


def test_a_large_corpus_is_converted_once(tmp_path, command, collected, start, monkeypatch):
    monkeypatch.setenv("SAEFEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "MANY", 50)
    write = store._write
    monkeypatch.setattr(store, "_write", lambda *of: (print("converts"), write(*of)))
    codes, said = start(3, command).ends()
    assert codes == [0] * 3, said
    assert "".join(said).count("converts") == 1
    assert contents(tmp_path / "stats") == collected


def test_torchrun_writes_the_bytes_of_one_process(
    tmp_path, tiny_corpus, tiny_model_dir, saefeat, monkeypatch, one_core
):
    monkeypatch.setattr("saefeat.corpora.WINDOW", 1024)
    texts = [f"{text} {i}" for i in range(10) for text in tiny_corpus.texts]  # in three windows
    rows = zip(texts, [*tiny_corpus.of] * 10, strict=True)
    corpus = tmp_path / "c.jsonl"
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    corpus.write_text("\n".join(lines))
    words = ["collect", "--model", tiny_model_dir, "--corpus", corpus, "--dtype", "float32"]
    words += ["--neurons", "--with", "responses", "--out"]
    code, _, error = saefeat(*words, tmp_path / "one")
    assert code == 0, error
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "-m", "saefeat", *words, tmp_path / "two"]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(
        [*map(str, torchrun)], capture_output=True, text=True, timeout=LIMIT, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes of 1 threads" in done.stderr and done.stdout.count("mlp_act@") == 2
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_rank_that_is_killed_is_named_and_one_that_is_told_to_stop_stops_all(
    tmp_path, command, collected, start
):
    out = tmp_path / "stats"
    slow = partial(command, slow=0.3)
    running = start(2, slow)
    running.wait_for(lambda: len(numbers(out / "partial")) == 2)
    os.kill(running.pids[1], signal.SIGKILL)
    begun = time.monotonic()
    codes, said = running.ends()
    assert codes == [1, KILLED] and time.monotonic() - begun < LIMIT
    assert f"rank 1 on {socket.gethostname()} has" in said[0]
    kept = windows_in(out / "partial")

    running = start(2, slow)
    running.wait_for(
        lambda: any(
            len(windows) > len(kept[rank]) for rank, windows in windows_in(out / "partial").items()
        )
    )
    os.kill(running.pids[1], signal.SIGTERM)
    codes, said = running.ends()
    assert codes == [STOPPED, STOPPED], said
    assert "".join(said).count("interrupted after") == 1 and "Traceback" not in "".join(said)
    assert "to go on, run: torchrun --nproc-per-node 2 -m saefeat collect" in "".join(said)
    assert sum(map(len, windows_in(out / "partial").values())) < 8

    codes, said = start(1, command).ends()
    assert codes == [0], said
    assert contents(out) == collected


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_is_named_and_the_others_keep_what_is_done(
    tmp_path, command, collected, start, monkeypatch, rank
):
    """A read that never ends, as on a dead disk; the other rank waits for it and is not named."""
    monkeypatch.setattr("saefeat.cli.statistics.PATIENCE", 3)
    os.mkfifo(tmp_path / "dead")
    out, observe = tmp_path / "stats", collection.observe

    def work(world):
        windows = iter(range(3))

        def read(*of):
            if world.rank == rank and next(windows, None) is None:
                os.close(os.open(tmp_path / "dead", os.O_RDONLY))
            return observe(*of)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(collection, "observe", read)
            command(world)

    begun = time.monotonic()
    codes, said = start(2, work).ends()
    assert codes == [1, 1] and time.monotonic() - begun < LIMIT, said
    message = f"rank {rank} on {socket.gethostname()} has done nothing for "
    (seconds,) = re.findall(re.escape(message) + r"(\d+) s", said[1 - rank])
    assert 3 <= int(seconds) < 30 and message not in said[rank]
    assert len(windows_in(out / "partial")[rank]) == 3
    codes, said = start(1, command).ends()
    assert codes == [0], said
    assert contents(out) == collected


def test_where_an_exchange_takes_too_long_the_rank_that_hangs_is_named(
    tmp_path, start, monkeypatch
):
    monkeypatch.setattr(watch, "_LOST_BEATS", 1)
    os.mkfifo(tmp_path / "dead")

    def work(world):
        watches = []
        join(world, "cpu", 4, lambda store: watches.append(Watch(world, store, print)))
        if world.rank == 1:
            os.close(os.open(tmp_path / "dead", os.O_RDONLY))
        try:
            world.barrier()
        except LostRank:
            watches[0].fail(watches[0].find_lost(), 1)

    codes, said = start(2, work).ends()
    assert codes == [1, 1] and said[1] == "", said
    assert re.match(rf"rank 1 on {socket.gethostname()} has done nothing for \d+ s", said[0])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_is_named(tmp_path, command, start, rank):
    running = start(2, partial(command, slow=0.6))
    folder = tmp_path / "stats" / "partial"
    running.wait_for(lambda: sum(map(len, windows_in(folder).values())) >= 4)  # after two looks
    os.kill(running.pids[rank], signal.SIGSTOP)
    begun = time.monotonic()
    assert _wait(running.pids.pop(1 - rank)) == 1 and time.monotonic() - begun < LIMIT
    said = running.files[1 - rank].read_text()
    assert f"rank {rank} on {socket.gethostname()} has given no sign for 2 s" in said


def test_bad_input_of_one_rank_ends_all_with_one_sentence(tmp_path, command, start, tiny_lm):
    save_sae(random_sae(), tmp_path / "saes/wide")
    codes, said = start(2, lambda world: command(world, "--saes", tmp_path / "saes")).ends()
    assert codes == [2, 2], said
    assert "".join(said).count("the SAE wide does not fit mlp_out@0") == 1
    assert not list((tmp_path / "stats").glob("*"))


def test_other_commands_are_refused_on_several_processes(start, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["saefeat", "rank", "stats", "--out", "s.parquet"])
    codes, said = start(2, lambda world: cli.main()).ends()
    assert codes == [2, 2]
    assert said == [
        "saefeat: `saefeat rank` runs on one process, without torchrun; `saefeat collect` and "
        "train/sae.py run on several\n",
        "",
    ]
