"""Settings of a loop that cannot be are refused by name."""

import pytest
from loop_world import Setting

from diffpolicy_spec.control import ControlConfig, SafetyConfig


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"control_hz": 0}, "control_hz must be a positive number, got 0"),
        ({"control_hz": None}, "control_hz must be a positive number, got None"),
        ({"control_hz": "20"}, "control_hz must be a positive number, got '20'"),
        ({"control_hz": 5000}, "1 to 1000 commands a second"),
        ({"policy_hz": float("nan")}, "policy_hz"),
        ({"lead_ms": -1}, "lead_ms must be 0 or more, got -1"),
        ({"lead_ms": None}, "lead_ms must be 0 or more, got None"),
        ({"n_action_steps": 0}, "n_action_steps must be a whole number of at least 1, got 0"),
        ({"freeze_steps": 1.5}, "freeze_steps must be a whole number"),
        ({"blend_steps": True}, "blend_steps must be a whole number"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"blend": "smooth"}, "blend must be one of newest, crossfade, ensemble, got 'smooth'"),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest, linear"),
        ({"on_deadline": "finish"}, "on_deadline=finish needs deadline_ms"),
        ({"deadline_ms": 0}, "deadline_ms must be a positive number"),
        ({"meanwhile": "panic"}, "meanwhile must be one of continue, hold"),
        ({"max_clock_jump_ms": float("inf")}, "max_clock_jump_ms"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        ControlConfig(**settings)


def test_settings_that_can():
    config = ControlConfig(100, policy_hz=20, seed=0, deadline_ms=80, on_deadline="finish")
    assert config.dt == pytest.approx(0.05)
    assert ControlConfig(50.0).dt == pytest.approx(0.02)


def test_holding_while_chunks_are_made_is_no_reason_to_stop_for_good():
    with pytest.raises(ValueError, match="meanwhile=hold takes the safety action"):
        Setting(meanwhile="hold", safety=SafetyConfig(action="stop"))
