"""Events as lines of JSON: nothing is lost on the way, and what cannot be written never stops the loop."""

import dataclasses
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_events import a_run

from diffpolicy_spec.control import Intervention, JsonLines, Recorder
from diffpolicy_spec.control.__main__ import main
from diffpolicy_spec.control.jsonl import summary_of
from diffpolicy_spec.control.lines import RecordError, read_records
from diffpolicy_spec.control.records import replay


def same(one: Any, other: Any) -> bool:
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other, equal_nan=True)
    if isinstance(one, float) and one != one:
        return bool(other != other)
    return bool(one == other) or (isinstance(one, dict) and dict(one) == dict(other)) or list(one) == list(other)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    events = list(a_run())
    with JsonLines(tmp_path / "new" / "run.jsonl") as log:
        replay(events, log)
    assert log.lost == 0
    back = list(read_records(log.path))
    assert len(back) == len(events)
    for one, other in zip(events, back, strict=True):
        assert same(one, other), (one, other)
    recorder = Recorder()
    replay(events, recorder)
    assert summary_of(log.path).data() == recorder.summary().data()
    first = json.loads(log.path.read_text().splitlines()[0])
    assert (first["event"], first["version"]) == ("log", 1)
    assert first["wall"] == pytest.approx(time.time(), abs=60)


def test_chunks_that_are_not_numbers_are_written_and_read(tmp_path: Path) -> None:
    chunk = next(event for event in a_run() if type(event).__name__ == "ChunkArrived")
    actions = chunk.actions.copy()
    actions[2, 1] = np.nan
    with JsonLines(tmp_path / "run.jsonl") as log:
        log.on_chunk(dataclasses.replace(chunk, actions=actions))
    (back,) = read_records(log.path)
    assert np.array_equal(back.actions, actions, equal_nan=True)


def test_without_ticks_and_appended(tmp_path: Path) -> None:
    for _ in range(2):
        with JsonLines(tmp_path / "run.jsonl", ticks=False) as log:
            replay(a_run(), log)
    names = [type(event).__name__ for event in read_records(log.path)]
    assert names.count("LoopStarted") == 2
    assert "Tick" not in names


def test_files_are_rotated_and_each_can_be_read(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "run.jsonl", rotate_mb=0.01, keep=2) as log:
        for _ in range(3):
            replay(a_run(), log)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["run.jsonl", "run.jsonl.1", "run.jsonl.2"]
    for name in names:
        assert (tmp_path / name).stat().st_size < 13_000
        list(read_records(tmp_path / name))
    assert next(read_records(tmp_path / "run.jsonl.1"))


def test_a_line_that_was_cut_off_costs_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with JsonLines(path) as log:
        replay(a_run(), log)
    whole = len(list(read_records(path)))
    path.write_bytes(path.read_bytes()[:-20])
    with JsonLines(path) as log:
        log.on_intervention(Intervention(1.0, "stop", "later"))
    lost: list[Any] = []
    back = list(read_records(path, lost=lost))
    assert len(back) == whole
    assert back[-1].message == "later"
    assert [one.reason for one in lost] == [f"line {whole + 1} is broken"]


def test_a_full_queue_drops_counts_and_says_so(tmp_path: Path) -> None:
    busy, go = threading.Event(), threading.Event()

    class Slow(JsonLines):
        def work(self, event: Any) -> None:
            busy.set()
            go.wait(30)
            super().work(event)

    with Slow(tmp_path / "run.jsonl", capacity=10) as log:
        log.on_intervention(Intervention(0.0, "stop", "first"))
        assert busy.wait(30)
        for n in range(50):
            log.on_intervention(Intervention(float(n), "stop", str(n)))
        assert log.lost == 40
        go.set()
    lost: list[Any] = []
    assert len(list(read_records(log.path, lost=lost))) == 11
    assert (sum(one.count for one in lost), lost[0].reason) == (40, "more events than could be written")


FULL = """
import resource, sys, time
from diffpolicy_spec.control import Intervention, JsonLines
log = JsonLines(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
begun = time.monotonic()
for n in range(200):
    log.on_intervention(Intervention(float(n), "stop", "x" * 50))
assert time.monotonic() - begun < 1
deadline = time.monotonic() + 60
while not log.lost and time.monotonic() < deadline:
    time.sleep(0.01)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
while time.monotonic() < deadline:
    before = log.lost
    log.on_intervention(Intervention(1e3, "stop", "room again"))
    time.sleep(0.3)
    if log.lost == before:
        break
log.close()
print(log.lost)
"""


def test_a_full_disk_drops_counts_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    count = int(done.stdout)
    assert count > 100
    lost: list[Any] = []
    back = list(read_records(path, lost=lost))
    assert [event.time for event in back[:5]] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert back[-1].message == "room again"
    assert sum(one.count for one in lost) == count
    assert "no room" in lost[0].reason


def test_a_folder_that_cannot_be_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        JsonLines(tmp_path / "file" / "run.jsonl")
    with pytest.raises(ValueError, match="rotate_mb"):
        JsonLines(tmp_path / "run.jsonl", rotate_mb=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "first line is not one of a control loop's record"),
        ('{"event": "tick"}\n', "begins with 'tick'"),
        ('{"event": "log", "version": 99}\n', "version 99 is not known"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.jsonl").write_text(text)
    with pytest.raises(RecordError, match=message):
        list(read_records(tmp_path / "run.jsonl"))


def test_a_log_is_summed_up_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with JsonLines(tmp_path / "run.jsonl") as log:
        replay(a_run(), log)
    assert main([str(log.path)]) == 0
    assert "198 periods at 100 Hz, 2 skipped" in capsys.readouterr().out
    assert main([str(log.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chunks"] == 10
    assert main([str(tmp_path / "none.jsonl")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_unknown_events_and_members_are_skipped(tmp_path: Path) -> None:
    lines = [{"event": "log", "version": 1}, {"event": "new"}, {"event": "stop", "time": 1, "reason": "x", "more": 1}]
    (tmp_path / "run.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (event,) = read_records(tmp_path / "run.jsonl")
    assert (event.time, event.reason) == (1, "x")
