"""Arm controller settings of any age, in the form robosuite 1.5 takes.

robosuite up to 1.4 had one flat dict per robot ({"type": "OSC_POSE", "damping": 1, "control_delta": true, ...}); its
commands were in the world frame. robosuite 1.5 has a composite per robot ({"type": "BASIC", "body_parts": {"right":
{...}}}), has renamed some settings and ignores the old names without a word; its commands are in the frame of the
robot's base by default. robomimic's files for 1.5 hold composites that still use old names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffpolicy_spec.envs.suite import load_robosuite

__all__ = ["ControllerError", "action_repr_of", "modern_controllers", "with_action_repr"]

Config = dict[str, Any]

_ARMS = ("right", "left")
_RENAMED = {"damping": "damping_ratio", "damping_limits": "damping_ratio_limits"}
_KNOWN = "known controllers: OSC_POSE with fixed impedance, alone (robosuite up to 1.4) or as an arm of BASIC (1.5)"


class ControllerError(ValueError):
    """Controller settings under which an action would not be the pose or the step that an environment here takes."""


def modern_controllers(configs: Any, robots: Sequence[str]) -> list[Config]:
    """One composite config per robot; what is given is not changed.

    Args:
        configs: a config for all robots or a list with one for each, flat or composite; None: robosuite's defaults.
        robots: robosuite's names, e.g. ("Panda", "Panda").

    Raises:
        ControllerError: an unknown controller, or settings that contradict each other.
    """
    each = list(configs) if isinstance(configs, list | tuple) else [configs] * len(robots)
    if len(each) != len(robots):
        raise ControllerError(f"there are {len(each)} controller configs for {len(robots)} robots")
    return [_modern(config, robot) for config, robot in zip(each, robots, strict=True)]


def action_repr_of(composites: Sequence[Config]) -> str:
    """ "absolute" or "delta": what `modern_controllers` configs make of an action.

    Raises:
        ControllerError: some arms take poses and others steps.
    """
    kinds = {part.get("input_type", "delta") for config in composites for part in _arm_parts(config).values()}
    if len(kinds) != 1:
        raise ControllerError(f"every arm needs the same input_type; here are {', '.join(sorted(kinds)) or 'no arms'}")
    return str(kinds.pop())


def with_action_repr(composites: Sequence[Config], action_repr: str) -> list[Config]:
    """The configs with "absolute" actions (in the world frame) or "delta" ones; those that already are stay as is."""
    return [_with_arms(config, lambda part: _with_input_type(part, action_repr)) for config in composites]


def _modern(config: Any, robot: str) -> Config:
    if config is None:
        loaded: Config = load_robosuite().load_composite_controller_config(robot=robot)
        return loaded
    if not isinstance(config, Mapping):
        raise ControllerError(f"a controller config must be a mapping, got {config!r}; {_KNOWN}")
    if "body_parts" not in config:
        part = _modern_part({"control_delta": True, "input_ref_frame": "world", **config})
        factory = load_robosuite().controllers.composite.composite_controller_factory
        wrapped: Config = factory.refactor_composite_controller_config(part, robot, ["right"])
        return wrapped
    if config.get("type") != "BASIC":
        raise ControllerError(f"unknown controller {config.get('type')!r}; {_KNOWN}")
    return _with_arms(config, _modern_part)


def _arm_parts(config: Mapping[str, Any]) -> Config:
    # In robosuite's own files the arms stand one level deeper.
    parts = config["body_parts"]
    return {name: part for name, part in {**parts, **parts.get("arms", {})}.items() if name in _ARMS}


def _with_arms(config: Mapping[str, Any], change: Any) -> Config:
    arms = _arm_parts(config)
    if not arms:
        there = ", ".join(config["body_parts"]) or "nothing"
        raise ControllerError(f"the controller has no arm, only {there}; {_KNOWN}")
    others = {name: part for name, part in config["body_parts"].items() if name not in (*_ARMS, "arms")}
    return {**config, "body_parts": {**others, **{name: change(part) for name, part in arms.items()}}}


def _modern_part(part: Mapping[str, Any]) -> Config:
    if part.get("type") != "OSC_POSE" or part.get("impedance_mode", "fixed") != "fixed":
        impedance = f" with impedance_mode {part['impedance_mode']!r}" if "impedance_mode" in part else ""
        raise ControllerError(f"unknown controller {part.get('type')!r}{impedance}; {_KNOWN}")
    out = {_RENAMED.get(name, name): value for name, value in part.items() if name != "control_delta"}
    # Where both names stand, the new one is what robosuite 1.5 has read.
    out.update({name: part[name] for name in _RENAMED.values() if name in part})
    if "control_delta" in part:
        wanted = "delta" if part["control_delta"] else "absolute"
        if wanted == "delta" and part.get("input_type") == "absolute":
            raise ControllerError("control_delta is true and input_type is 'absolute': remove one of them")
        out["input_type"] = wanted
        if wanted == "absolute":
            out.setdefault("input_ref_frame", "world")
    # Without these robosuite fails with a KeyError.
    return {"interpolation": None, "gripper": {"type": "GRIP"}} | out


def _with_input_type(part: Mapping[str, Any], action_repr: str) -> Config:
    if part.get("input_type", "delta") == action_repr:
        return dict(part)
    frame = {"input_ref_frame": "world"} if action_repr == "absolute" else {}
    return {**part, "input_type": action_repr, **frame}
