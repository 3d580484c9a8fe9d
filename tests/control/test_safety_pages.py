"""docs/safety.md and docs/records.md say what there is."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_events import a_run

from diffpolicy_spec.control.config import KINDS, SAFETY_ACTIONS
from diffpolicy_spec.control.events import INTERVENTIONS
from diffpolicy_spec.control.lines import line_of
from diffpolicy_spec.control.records import Summary, replay
from diffpolicy_spec.control.safety import Safety

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_the_examples_of_the_safety_page_run() -> None:
    first, alone = blocks("safety.md")
    names: dict[str, Any] = {}
    exec(first.rpartition("ControlLoop(")[0], names)
    assert Safety(names["safety"], 7, 100).state == "ready"
    exec(alone, names)
    assert names["command"].source == "hold"
    assert names["command"].action.tolist() == [0, 0]


def test_the_examples_of_the_records_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rerun")

    class Loop:
        def __init__(self, robot: None, planner: None, subscribers: list[Any]) -> None:
            self.subscribers = subscribers

        def run(self) -> None:
            for subscriber in self.subscribers:
                replay(a_run(), subscriber)

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"robot": None, "planner": None}
    run, read = blocks("records.md")
    exec(run.replace("import ControlLoop, ", "import "), {**names, "ControlLoop": Loop})
    exec(read, names)
    assert names["slow"] == []
    assert (tmp_path / "runs" / "today.rrd").stat().st_size > 1000


def test_everything_is_named() -> None:
    safety, records = (DOCS / "safety.md").read_text(), (DOCS / "records.md").read_text()
    for name in (*KINDS, *SAFETY_ACTIONS, *(set(INTERVENTIONS) - {"emergency_stop"})):
        named = name in safety or name.removesuffix("_limit") in safety
        assert named, name
    for name in set(Summary.__dataclass_fields__) - {"control_hz", "policy", "sampler", "seconds", "stopped"}:
        assert f"`{name}`" in records, name


def test_a_line_is_as_long_as_the_page_says() -> None:
    tick = next(event for event in a_run() if type(event).__name__ == "Tick")
    tick = dataclasses.replace(tick, action=np.random.default_rng(0).normal(size=10), source="chunk", chunk=3, step=4.0)
    assert 250 <= len(line_of(tick)) <= 420
