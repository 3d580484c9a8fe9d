"""The `actions` of a contract: which numbers of an action go to which topic."""

from __future__ import annotations

from dataclasses import dataclass

from diffpolicy_spec.ros.contract_inputs import topic_of, type_of
from diffpolicy_spec.ros.yaml_lines import Entry, Section

__all__ = ["OUTPUT_TYPES", "POINTS", "ROTATIONS", "STAMPS", "TWIST_FIELDS", "Output", "read_outputs"]

OUTPUT_TYPES = (
    "trajectory_msgs/JointTrajectory",
    "std_msgs/Float64MultiArray",
    "geometry_msgs/PoseStamped",
    "geometry_msgs/Twist",
)
POINTS = ("chunk", "one")
ROTATIONS = {"rot6d": 6, "axis_angle": 3, "quaternion": 4, "none": 0}
"""How an action has an orientation, and in how many numbers; quaternions are (x, y, z, w)."""
STAMPS = ("time", "zero")
TWIST_FIELDS = ("linear.x", "linear.y", "linear.z", "angular.x", "angular.y", "angular.z")


@dataclass(frozen=True)
class Output:
    """A topic that is commanded.

    Attributes:
        topic, type: type is one of OUTPUT_TYPES.
        start, stop: the numbers of the action that go there.
        names: of these axes; of a JointTrajectory the joints.
        points: of a JointTrajectory: "chunk": all that is planned, a trajectory a chunk; "one": one point a command.
        velocities: whether its points have velocities, too (differences of the positions, zero at the end).
        stamp: of a JointTrajectory: "time": its points have times of the robot's clock; "zero": it begins on
            arrival.
        tolerance: units of the action: a command so far from what the last trajectory says replaces it.
        frame_id: of headers. rotation: of a PoseStamped, one of ROTATIONS.
        orientation: (x, y, z, w) of a PoseStamped without a rotation.
        fields: of a Twist, which of TWIST_FIELDS the numbers are; the others are zero.
        scale, offset: sent is scale * action + offset; clip: then within these.
        queue_length: of the topic.
    """

    topic: str
    type: str
    start: int
    stop: int
    names: tuple[str, ...]
    points: str = "chunk"
    velocities: bool = False
    stamp: str = "time"
    tolerance: float = 1e-6
    frame_id: str = ""
    rotation: str = "none"
    orientation: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    fields: tuple[str, ...] = TWIST_FIELDS
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0
    clip: tuple[float, float] | None = None
    queue_length: int = 1

    @property
    def dim(self) -> int:
        """How many numbers."""
        return self.stop - self.start

    @property
    def promised(self) -> bool:
        """Whether its messages say what will be commanded later, too."""
        return self.type == "trajectory_msgs/JointTrajectory" and self.points == "chunk"


def read_outputs(entry: Entry) -> tuple[Output, ...]:
    """The list under `actions`; together they take every number of the action.

    Raises:
        ContractError: what is wrong, with its line.
    """
    outputs: list[Output] = []
    for item in entry.items("a list of topics"):
        made = _output(item, max((output.stop for output in outputs), default=0))
        if made.topic in [other.topic for other in outputs]:
            raise item.error(f"{made.topic} is commanded twice")
        outputs.append(made)
    if not outputs:
        raise entry.error("names no topic: nothing would move")
    taken = {i for output in outputs for i in range(output.start, output.stop)}
    missing = sorted(set(range(max(taken) + 1)) - taken)
    if missing:
        raise entry.error(
            f"numbers {', '.join(map(str, missing))} of the action go nowhere: see the `slice` of each topic"
        )
    return tuple(outputs)


def _output(entry: Entry, begin: int) -> Output:
    section = Section(entry)
    topic = topic_of(section.need("topic", "the topic's name"))
    type_ = type_of(section.need("type", "the message's type"), OUTPUT_TYPES)
    given: dict[str, object] = {}
    read = _READERS[type_]
    names = read(section, given)
    slice_, own, queue = section.take("slice"), section.take("names"), section.take("queue_length")
    scale, offset, clip = section.take("scale"), section.take("offset"), section.take("clip")
    section.finish()
    if own and type_ == "trajectory_msgs/JointTrajectory":
        raise own.error("a JointTrajectory's axes are its `joints`")
    dim = len(names)
    if slice_:
        bounds = [part.integer(0, 100_000) for part in slice_.items("[first, one after the last]")]
        if len(bounds) != 2 or bounds[0] >= bounds[1]:
            raise slice_.error("must be [first, one after the last], as [0, 7]")
        begin, width = bounds[0], bounds[1] - bounds[0]
        if names and width != dim:
            raise slice_.error(f"is {width} numbers, and there are {dim}: {', '.join(names)}")
        dim = width
    if own:
        names = own.texts()
        if dim and len(names) != dim:
            raise own.error(f"has {len(names)} names for {dim} numbers")
        dim = len(names)
    if not dim:
        raise entry.error("`slice` is missing: which numbers of the action, as [0, 7]")
    names = names or tuple(f"{topic.strip('~/')}[{i}]" for i in range(dim))
    if type_ in ("geometry_msgs/PoseStamped",) and (scale or offset or clip):
        raise entry.error("a PoseStamped takes no scale, offset or clip")
    for name, values in (("scale", scale), ("offset", offset)):
        if values:
            given[name] = values.numbers()
            if isinstance(values.value, list) and len(values.value) != dim:
                raise values.error(f"has {len(values.value)} numbers for {dim}; give one, or one each")
    if clip:
        bounds_ = [part.number() for part in clip.items("[low, high]")]
        if len(bounds_) != 2 or bounds_[0] > bounds_[1]:
            raise clip.error("must be [low, high]")
        given["clip"] = (bounds_[0], bounds_[1])
    if queue:
        given["queue_length"] = queue.integer(1, 1000)
    return Output(topic, type_, begin, begin + dim, names, **given)  # type: ignore[arg-type]


def _trajectory(section: Section, given: dict[str, object]) -> tuple[str, ...]:
    names = section.need("joints", "the names of the joints, in the order of the action").texts()
    for key, choices in (("points", POINTS), ("stamp", STAMPS)):
        if (entry := section.take(key)) is not None:
            given[key] = entry.choice(choices)
    if (entry := section.take("velocities")) is not None:
        given["velocities"] = entry.flag()
    if (entry := section.take("tolerance")) is not None:
        given["tolerance"] = entry.number(0.0)
    _frame(section, given)
    return names


def _pose(section: Section, given: dict[str, object]) -> tuple[str, ...]:
    rotation = section.need("rotation", f"how the action has it, one of {', '.join(ROTATIONS)}").choice(
        tuple(ROTATIONS)
    )
    given["rotation"] = rotation
    if (entry := section.take("orientation")) is not None:
        if rotation != "none":
            raise entry.error("is for `rotation: none`")
        parts = [part.number(-1, 1) for part in entry.items("[x, y, z, w]")]
        if len(parts) != 4 or abs(sum(part**2 for part in parts) - 1) > 1e-3:
            raise entry.error("must be a unit quaternion [x, y, z, w]")
        given["orientation"] = tuple(parts)
    _frame(section, given)
    turn = {"quaternion": "xyzw", "axis_angle": "xyz"}.get(rotation, "012345"[: ROTATIONS[rotation]])
    return ("x", "y", "z", *(f"{rotation}_{axis}" for axis in turn))


def _twist(section: Section, given: dict[str, object]) -> tuple[str, ...]:
    entry = section.take("fields")
    fields = tuple(part.choice(TWIST_FIELDS) for part in entry.items()) if entry else TWIST_FIELDS
    if entry and (not fields or len(set(fields)) != len(fields)):
        raise entry.error("names a field twice, or none")
    given["fields"] = fields
    return fields


def _array(section: Section, given: dict[str, object]) -> tuple[str, ...]:
    joints = section.take("joints")
    return joints.texts() if joints else ()


def _frame(section: Section, given: dict[str, object]) -> None:
    if (entry := section.take("frame_id")) is not None:
        given["frame_id"] = entry.text()


_READERS = dict(zip(OUTPUT_TYPES, (_trajectory, _array, _pose, _twist), strict=True))
