"""How a robot is driven: the settings of a control loop and of its safety layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from diffpolicy_spec.control.timing import MEANWHILE

__all__ = ["BLENDS", "INTERPOLATIONS", "KINDS", "ON_DEADLINE", "ON_LIMIT", "SAFETY_ACTIONS", "ControlConfig",
           "SafetyConfig"]  # fmt: skip

INTERPOLATIONS = ("nearest", "linear")
BLENDS = ("newest", "crossfade", "ensemble")
ON_DEADLINE = ("continue", "finish")
SAFETY_ACTIONS = ("hold", "zero", "stop")
ON_LIMIT = ("clamp", "stop")
KINDS = ("position", "velocity", "delta", "free")


@dataclass(frozen=True)
class ControlConfig:
    """How a loop runs.

    Attributes:
        control_hz: commands a second, 10 to 200.
        policy_hz: steps a second of chunks and of the policy's observation history; None: control_hz.
        n_action_steps: a chunk is made from the observation that many policy steps after the one before's (receding
            horizon); None: the policy's Ta.
        lead_ms: a command is sent so long before its time: what it takes until the robot acts on it.
        interpolation: of a chunk's actions at times between them, one of INTERPOLATIONS. Linear is for actions that may
            be averaged: joint positions, not gripper commands of {-1, 1}.
        blend: of the chunks that have an action for the same time. "newest" takes the newest; "crossfade" moves over
            from the one before within blend_steps policy steps; "ensemble" weighs all by exp(-ensemble_decay i), i = 0
            the oldest (Zhao et al. 2023, ACT's temporal ensembling).
        freeze: real-time chunking: the actions that will be executed before the chunk can be there are given to the
            sampler as known (inpainting), so the chunk continues them. The law is then the inpainted one.
        freeze_steps: how many; None: what chunks took of late, and one.
        deadline_ms: of a chunk, from the request; None: none.
        on_deadline: "continue": chunks stay exact, the old one goes on until the new one is there, however late;
            "finish": a chain that would be late is finished by finish_steps DDIM steps, marked inexact and counted.
        meanwhile: one of MEANWHILE: what is done while a chunk is late.
        history_tolerance: how far, in policy steps, an observation may be from the time it stands for in the policy's
            history; where there is none as near, the nearest older one stands for it and this is counted.
        max_clock_jump_ms: how far a robot's clock may run off the loop's between two observations.
        seed: of the chunks' noise; None: another each time.
        realtime: the loop's thread goes before all that is not real-time (SCHED_FIFO), where the system permits it.

    Raises:
        ValueError: a setting that cannot be.
    """

    control_hz: float = 20.0
    policy_hz: float | None = None
    n_action_steps: int | None = None
    lead_ms: float = 0.0
    interpolation: str = "nearest"
    blend: str = "newest"
    blend_steps: int = 4
    ensemble_decay: float = 0.01
    freeze: bool = False
    freeze_steps: int | None = None
    deadline_ms: float | None = None
    on_deadline: str = "continue"
    finish_steps: int = 4
    meanwhile: str = "continue"
    history_tolerance: float = 0.5
    max_clock_jump_ms: float = 100.0
    seed: int | None = None
    realtime: bool = False

    def __post_init__(self) -> None:
        _positive(self, "control_hz", "policy_hz", "deadline_ms", "history_tolerance", "max_clock_jump_ms")
        if self.control_hz is None:
            raise ValueError("control_hz must be a positive number, got None")
        _among(self, interpolation=INTERPOLATIONS, blend=BLENDS, on_deadline=ON_DEADLINE, meanwhile=MEANWHILE)
        if not 1 <= self.control_hz <= 1000:
            raise ValueError(f"control_hz must be 1 to 1000 commands a second, got {self.control_hz}")
        for name in ("lead_ms", "ensemble_decay"):
            if not (_is_number(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)!r}")
        least = {"n_action_steps": 1, "freeze_steps": 1, "blend_steps": 1, "finish_steps": 1, "seed": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and int(value) == value and value >= smallest):
                raise ValueError(f"{name} must be a whole number of at least {smallest}, got {value!r}")
        if self.on_deadline == "finish" and self.deadline_ms is None:
            raise ValueError("on_deadline=finish needs deadline_ms")

    @property
    def dt(self) -> float:
        """s, of a policy step."""
        return 1 / (self.policy_hz or self.control_hz)


@dataclass(frozen=True)
class SafetyConfig:
    """What a command must never be, and what is sent where there is none.

    Limits are one number for all axes, or one each; None: no limit, of all axes or of one. Times are s, units the
    action's own. What does not fit the policy's actions is refused when their number is known.

    Attributes:
        kind: what an action's axes are, one of KINDS for all or each: "position" targets, "velocity", "delta" (what is
            added to the position in one command), "free" (no motion: a gripper's command; only `low` and `high` hold).
            Of a policy whose actions are "delta", "position" for all means "delta", with grippers "free".
        low, high: limits of the command of "position" and "free" axes. Of "velocity" and "delta" axes limits of the
            position, which `position_from` has to tell then.
        velocity: |rate of the position|, units / s; acceleration: units / s^2; jerk: units / s^3.
        on_limit: "clamp": the command is the nearest one within the limits; "stop": the robot stops.
        position_from: key of the observation that has the axes' position (the first Da numbers, or those of
            `position_index`): what the first command is held against, and where "velocity" and "delta" axes are.
        position_index: (Da,) which numbers of it, None for an axis whose position it does not tell; None: 0 ... Da - 1.
        max_observation_age_ms: the newest observation may be so old before the safety action.
        watchdog_ms: a command is sent at least so often, whatever hangs.
        action: the safety action, one of SAFETY_ACTIONS. "hold": stay (the last target, or no motion), and go on when
            there is a chunk again; "zero": send zeros, and go on; "stop": come to rest within the limits, tell the
            robot to stop, and stay so until `resume`.

    Raises:
        ValueError: a setting that cannot be.
    """

    kind: str | Sequence[str] = "position"
    low: float | Sequence[float | None] | None = None
    high: float | Sequence[float | None] | None = None
    velocity: float | Sequence[float | None] | None = None
    acceleration: float | Sequence[float | None] | None = None
    jerk: float | Sequence[float | None] | None = None
    on_limit: str = "clamp"
    position_from: str | None = None
    position_index: Sequence[int | None] | None = None
    max_observation_age_ms: float = 500.0
    watchdog_ms: float = 200.0
    action: str = "hold"
    names: Sequence[str] = field(default_factory=tuple)
    """Of the axes, for messages."""

    def __post_init__(self) -> None:
        _positive(self, "max_observation_age_ms", "watchdog_ms")
        _among(self, on_limit=ON_LIMIT, action=SAFETY_ACTIONS)
        for kind in [self.kind] if isinstance(self.kind, str) else self.kind:
            if kind not in KINDS:
                raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not (_is_number(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _among(config: object, **allowed: Sequence[str] | Mapping[str, object]) -> None:
    for name, values in allowed.items():
        if getattr(config, name) not in values:
            raise ValueError(f"{name} must be one of {', '.join(values)}, got {getattr(config, name)!r}")
