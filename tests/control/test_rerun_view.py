"""The live view, into a file that rerun itself reads back."""

import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_events import a_run

from diffpolicy_spec.control import Observation, RerunView
from diffpolicy_spec.control.records import replay

pytest.importorskip("rerun")


def test_a_run_is_written_for_the_viewer(tmp_path: Path) -> None:
    import rerun.dataframe

    path = tmp_path / "views" / "run.rrd"
    with RerunView(save=path, names=["x", "y"]) as view:
        replay(a_run(), view)
        for dtype, size in ((np.uint8, 3), (np.float32, 1)):
            image = np.zeros((size, 8, 8), dtype)
            view.see(Observation(0.0, {"q": np.arange(3.0), f"front{size}": image}), 1000.5)
    assert (view.dropped, view.problem) == (0, None)
    recording = rerun.dataframe.load_recording(path)
    columns = {column.entity_path for column in recording.schema().component_columns()}
    assert {
        "/action", "/plan/0", "/plan/1", "/timing/jitter_ms", "/timing/latency_ms", "/timing/observation_age_ms",
        "/acceptance", "/log", "/observation/q", "/camera/front3", "/camera/front1",
    } <= columns  # fmt: skip

    def of(path: str, what: str) -> list[Any]:
        table = recording.view(index="loop", contents=path).select().read_all()
        (name,) = [name for name in table.column_names if name.endswith(what)]
        column = table[name]
        if what == "loop":
            return list(column.to_numpy() / np.timedelta64(1, "s"))
        return [row for row in column.to_pylist() if row is not None]

    sent = of("/action", "Scalar")
    assert len(sent) == 188
    assert sent[-1] == pytest.approx([1.99, 1.0, -1.0])
    times = of("/plan/1", "loop")
    assert times[0] == pytest.approx(0.2 - 0.06, abs=1e-6)
    assert times[1] - times[0] == pytest.approx(0.01, abs=1e-6)
    said = [text[0] for text in of("/log", "Text")]
    assert any(text.startswith("late_inference: a chunk is late") for text in said)
    assert "velocity_limit: x: 3 was wanted, 1 sent (7 times)" in said
    assert "commands: nothing -> chunk" in said


def test_without_a_viewer_events_are_dropped_and_counted() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        with RerunView(connect=f"rerun+http://127.0.0.1:{taken.getsockname()[1]}/proxy") as view:
            replay(a_run(), view)
    assert view.dropped == len(list(a_run()))
    assert "refused" in str(view.problem)
    with pytest.raises(ValueError, match="connect must be an address"):
        RerunView(connect="desk")


def test_a_viewer_that_connects_is_served(tmp_path: Path) -> None:
    with RerunView(serve=0) as server, RerunView(connect=str(server.url)) as view:
        replay(a_run(), view)
    assert (view.dropped, view.problem) == (0, None)


def test_one_destination_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one of save"):
        RerunView()
    with pytest.raises(ValueError, match="exactly one of save"):
        RerunView(save=tmp_path / "x.rrd", spawn=True)


def test_without_rerun_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ImportError, match=r"diffpolicy-spec\[rerun\]"):
        RerunView(save=tmp_path / "x.rrd")
