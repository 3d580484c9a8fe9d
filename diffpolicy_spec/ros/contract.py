"""What connects a policy to a robot's topics: a YAML file, read strictly into frozen dataclasses.

name: panda
ros: 2
observations:
  - topic: /joint_states
    type: sensor_msgs/JointState
    joints: [panda_joint1, panda_joint2]
    keys: {joint_pos: position, joint_vel: velocity}
actions:
  - topic: /arm_controller/joint_trajectory
    type: trajectory_msgs/JointTrajectory
    joints: [panda_joint1, panda_joint2]
safety:
  limits:
    panda_joint1: {low: -2.8973, high: 2.8973, velocity: 2.175}
    panda_joint2: {low: -1.7628, high: 1.7628, velocity: 2.175}
  position_from: joint_pos
control: {control_hz: 20, n_action_steps: 8}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from diffpolicy_spec.control.config import ControlConfig, SafetyConfig
from diffpolicy_spec.control.protocols import PolicyInfo
from diffpolicy_spec.control.safety import Limits
from diffpolicy_spec.ros.contract_inputs import Field, Input, read_inputs, topic_of
from diffpolicy_spec.ros.contract_outputs import Output, read_outputs
from diffpolicy_spec.ros.contract_settings import read_safety, read_settings
from diffpolicy_spec.ros.yaml_lines import ContractError, Entry, Section, read_yaml

__all__ = ["SERVICES", "STAMPS_FROM", "Contract", "ContractError", "Diagnostics", "Heartbeat", "load_contract",
           "mismatches", "parse_contract"]  # fmt: skip

SERVICES = ("start", "stop", "reset", "emergency_stop")
STAMPS_FROM = ("header", "receipt")
MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Diagnostics:
    """Where and how often the node says how it is; hardware_id: of its status."""

    topic: str = "/diagnostics"
    hz: float = 1.0
    hardware_id: str = ""


@dataclass(frozen=True)
class Heartbeat:
    """A std_msgs/Header that is published as long as commands are: what a robot's own watchdog can listen to."""

    topic: str
    hz: float = 10.0


@dataclass(frozen=True)
class Contract:
    """A robot's topics, limits and rates.

    Attributes:
        name: of the node; ros: 1 or 2, how types are named.
        inputs, outputs: topics observed and commanded.
        tolerance_ms: messages of several topics make one observation if their times are within it.
        stamps: "header": times of messages are those of their headers where they have one; "receipt": when they came.
        services: of SERVICES -> its name.
        autostart: whether the robot moves as soon as a chunk is there, or after `start` is called.
        diagnostics, heartbeat, control, safety: see there.
        source: where it was read.
    """

    name: str
    ros: int
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    tolerance_ms: float = 50.0
    stamps: str = "header"
    services: Mapping[str, str] = field(default_factory=dict)
    autostart: bool = False
    diagnostics: Diagnostics = Diagnostics()
    heartbeat: Heartbeat | None = None
    control: ControlConfig = field(default_factory=ControlConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    source: str = ""

    @property
    def action_dim(self) -> int:
        """Da."""
        return max(output.stop for output in self.outputs)

    @property
    def axis_names(self) -> tuple[str, ...]:
        """(Da,), the first topic's where several take an axis."""
        names = [""] * self.action_dim
        for output in reversed(self.outputs):
            names[output.start : output.stop] = output.names
        return tuple(names)

    @property
    def keys(self) -> Mapping[str, tuple[Field, ...]]:
        """Key -> the fields that make it, in order."""
        made: dict[str, tuple[Field, ...]] = {}
        for topic in self.inputs:
            for part in topic.fields:
                made[part.key] = (*made.get(part.key, ()), part)
        return made


def load_contract(path: str | Path) -> Contract:
    """Read a contract.

    Raises:
        OSError: the file cannot be read.
        ContractError: what is wrong with it, in which line, and what to do.
    """
    path = Path(path)
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ContractError(f"{path}: is larger than {MAX_BYTES} bytes: this is no contract")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ContractError(f"{path}:{line}: is no text in UTF-8") from None
    return parse_contract(text, str(path))


def parse_contract(text: str, source: str = "contract") -> Contract:
    """A contract from YAML text; source: a name for messages.

    Raises:
        ContractError: what is wrong, in which line, and what to do.
    """
    section = Section(read_yaml(text, source))
    name_entry = section.need("name", "of the node, as panda")
    name = name_entry.text("a name, as panda")
    if not name.isidentifier() or not name.isascii():
        raise name_entry.error(f"{name!r} is no name in ROS: letters, digits and _")
    ros = section.need("ros", "1 or 2, which ROS the robot has").choice((1, 2))
    inputs = read_inputs(section.need("observations", "a list of topics and what is observed of them"))
    actions = section.need("actions", "a list of topics and what is commanded there")
    outputs = read_outputs(actions)
    rest = {key: section.take(key) for key in ("synchronise", "services", "diagnostics", "heartbeat", "autostart")}
    control, safety = section.take("control"), section.take("safety")
    section.finish()
    settings = read_settings(ControlConfig, control)
    if control and settings.policy_hz not in (None, settings.control_hz) and any(o.promised for o in outputs):
        raise control.error(
            "a JointTrajectory's controller goes from point to point by itself: leave policy_hz out (control_hz is "
            "the policy's rate), or give the topic `points: one`"
        )

    made = Contract(name, ros, inputs, outputs)
    _check_names(made, actions)
    twists = {i for o in outputs if o.type == "geometry_msgs/Twist" for i in range(o.start, o.stop)}
    limits = read_safety(safety, made.axis_names, _number_keys(made), twists)
    if control and settings.meanwhile == "hold" and limits.action == "stop":
        raise control.error("meanwhile: hold takes the safety action while a chunk is made: with action: stop for good")
    _check_limits(limits, made.action_dim, settings.control_hz, safety or actions)
    autostart, heartbeat = rest["autostart"], rest["heartbeat"]
    tolerance, stamps = _synchronise(rest["synchronise"])
    return Contract(
        name,
        ros,
        inputs,
        outputs,
        tolerance_ms=tolerance,
        stamps=stamps,
        services=MappingProxyType(_services(rest["services"], name)),
        autostart=autostart.flag() if autostart else False,
        diagnostics=_diagnostics(rest["diagnostics"], name),
        heartbeat=_heartbeat(heartbeat) if heartbeat else None,
        control=settings,
        safety=limits,
        source=source,
    )


def mismatches(contract: Contract, info: PolicyInfo) -> list[str]:
    """What of a contract does not fit a policy, in words; empty: it fits as far as can be told without messages."""
    told = []
    keys = contract.keys
    wanted = {**dict.fromkeys(info.obs_dims), **dict.fromkeys(info.image_shapes)}
    for key in wanted:
        if key not in keys:
            told.append(
                f"the policy observes {key!r}, which no topic of the contract gives (it gives {', '.join(keys)})"
            )
            continue
        image = keys[key][0].field == "image"
        if image != (key in info.image_shapes):
            told.append(f"{key!r} is {'an image' if image else 'numbers'} in the contract, and not to the policy")
        elif image:
            size, shape = keys[key][0].size, info.image_shapes[key]
            if size is not None and size != tuple(shape[1:]):
                told.append(f"{key!r} is resized to {size[0]} x {size[1]}, the policy observes {shape[1]} x {shape[2]}")
        else:
            dims = [part.dim for part in keys[key]]
            total = sum(dim for dim in dims if dim is not None)
            if None not in dims and total != info.obs_dims[key]:
                told.append(f"{key!r} has {total} numbers in the contract, the policy observes {info.obs_dims[key]}")
    if contract.action_dim != info.action_dim:
        told.append(
            f"the contract's topics take {contract.action_dim} numbers, the policy's actions have {info.action_dim}"
        )
    return told


def _check_names(made: Contract, entry: Entry) -> None:
    names = made.axis_names
    for i, name in enumerate(names):
        if name in names[:i]:
            raise entry.error(f"two axes are called {name!r}: give them other `names` (limits are told by them)")


def _check_limits(safety: SafetyConfig, action_dim: int, hz: float, entry: Entry) -> None:
    """What the loop would refuse when it knows the policy is told with its line, before anything is connected."""
    problem: ValueError | None = None
    for meant in ("raw", "delta"):  # what actions are, the policy says
        try:
            Limits.of(safety, action_dim, hz, meant)
        except ValueError as error:
            problem = problem or error
        else:
            return
    raise entry.error(str(problem))


def _synchronise(entry: Entry | None) -> tuple[float, str]:
    if entry is None:
        return 50.0, "header"
    section = Section(entry)
    tolerance, stamps = section.take("tolerance_ms"), section.take("stamps")
    section.finish()
    return tolerance.number(0.1, 10_000) if tolerance else 50.0, stamps.choice(STAMPS_FROM) if stamps else "header"


def _services(entry: Entry | None, name: str) -> dict[str, str]:
    names = {service: f"/{name}/{service}" for service in SERVICES}
    if entry is not None:
        section = Section(entry)
        for service in SERVICES:
            if (given := section.take(service)) is not None:
                names[service] = topic_of(given)
        section.finish()
        if len(set(names.values())) < len(names):
            raise entry.error("two services have one name")
    return names


def _diagnostics(entry: Entry | None, name: str) -> Diagnostics:
    if entry is None:
        return Diagnostics(hardware_id=name)
    section = Section(entry)
    topic, hz, hardware = section.take("topic"), section.take("hz"), section.take("hardware_id")
    section.finish()
    return Diagnostics(
        topic_of(topic) if topic else "/diagnostics",
        hz.number(0.1, 50) if hz else 1.0,
        hardware.text() if hardware else name,
    )


def _heartbeat(entry: Entry) -> Heartbeat:
    section = Section(entry)
    topic, hz = section.need("topic", "where it is published"), section.take("hz")
    section.finish()
    return Heartbeat(topic_of(topic), hz.number(0.1, 1000) if hz else 10.0)


def _number_keys(made: Contract) -> tuple[str, ...]:
    return tuple(key for key, parts in made.keys.items() if parts[0].field != "image")
