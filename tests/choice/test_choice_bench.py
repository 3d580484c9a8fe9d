"""dps-bench: the stored choice beside what is measured now, from a network whose times are known."""

import json

import pytest
from known_policy import STEPS, Known, known_time, moments
from tiny_policy import tiny_policy

from diffpolicy_spec.choice.bench import PARTS, measure
from diffpolicy_spec.choice.candidates import FAMILIES
from diffpolicy_spec.choice.choose import choose
from diffpolicy_spec.runtime import RuntimeConfig

ONE = RuntimeConfig(threads=1)


@pytest.fixture(scope="module")
def measured():
    """A choice, and measurements on a machine that is as quick, and on one whose calls take three times as long."""
    policy = tiny_policy()
    policy.network = network = Known(0.1, 0.004, 0.0)
    nearest = tuple(family for family in FAMILIES if family.name == "nearest")
    with known_time():
        choice = choose(
            policy, moments(), tried=(ONE,), families=nearest, num_inference_steps=STEPS, timed=4, probes=1, finalists=2
        )
        same = measure(policy, moments(), choice, range(5))
        network.call = 0.012
        return choice, same, measure(policy, moments(), choice, range(5))


def test_auto_the_sequential_sampler_and_ddim_are_measured_with_their_runtime(measured):
    choice, same, _ = measured
    auto, sequential, ddim = same.lines
    assert (auto.name, sequential.name, ddim.name) == ("auto", "sequential", "DDIM-10")
    assert (auto.expected_ms, sequential.expected_ms) == (choice.latency_ms, choice.sequential_ms)
    assert ddim.expected_ms == pytest.approx(choice.sequential_ms * 10 / STEPS)
    assert {line.runtime for line in same.lines} == {ONE}
    assert [line.exact for line in same.lines] == [True, True, False]
    assert sequential.timed.calls.tolist() == [STEPS] * 5
    assert ddim.timed.calls.tolist() == [10] * 5
    assert auto.timed.calls.mean() == pytest.approx(choice.calls, abs=2)
    for line in same.lines:
        assert line.row()["mean_ms"] == pytest.approx(4 * line.timed.calls.mean(), rel=0.01)
    for line in (sequential, ddim):
        assert line.row()["mean_ms"] == pytest.approx(line.expected_ms, rel=0.01)
    (chosen,) = (r for r in choice.candidates if (r["name"], r["options"]) == (choice.name, choice.options))
    assert auto.expected_ms == pytest.approx(4 * chosen["measured_calls"], rel=0.01)


def test_parts_add_up_to_the_whole(measured):
    for line in measured[1].lines:
        row = line.row()
        assert set(row["parts_ms"]) == {*PARTS, "other"}
        assert sum(row["parts_ms"].values()) == pytest.approx(row["mean_ms"])
        assert row["parts_ms"]["network"] > 0.5 * row["mean_ms"]
        assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]


def test_what_takes_longer_than_expected_is_told(measured):
    _, _, slower = measured
    text = slower.text()
    for name in ("auto", "sequential", "DDIM-10"):
        line = next(x for x in text.splitlines() if x.startswith(f"{name} took"))
        assert "% more than the" in line
        assert "dps-calibrate" in line
    cost = slower.data()["call_cost_ms"]
    assert list(cost["now"]) == list(cost["recorded"]) == ["eager, 1 thread"]
    ratio = cost["now"]["eager, 1 thread"]["8"] / cost["recorded"]["eager, 1 thread"]["8"]
    assert ratio == pytest.approx(3, rel=0.01)
    assert "| rows of a call | eager, 1 thread: recorded, ms | eager, 1 thread: now, ms |" in text
    json.dumps(slower.data(), allow_nan=False)


def test_captured_rounds_have_no_parts(measured):
    line = measured[1].lines[0]
    line.timed.parts[:] = float("nan")
    assert set(line.row()["parts_ms"].values()) == {None}
    assert measured[1].text().splitlines()[2].endswith("| - | - | - | - | - |")
