"""The `observations` of a contract: which field of which topic is which key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from diffpolicy_spec.ros.transport import type_name
from diffpolicy_spec.ros.yaml_lines import Entry, Section

__all__ = ["IMAGE_TYPES", "INPUT_FIELDS", "SIGNS", "Field", "Input", "read_inputs", "topic_of", "type_of"]

INPUT_FIELDS: Mapping[str, tuple[str, ...]] = {
    "sensor_msgs/JointState": ("position", "velocity", "effort"),
    "geometry_msgs/PoseStamped": ("position", "orientation"),
    "std_msgs/Float64MultiArray": ("data",),
    "sensor_msgs/Image": ("image",),
    "sensor_msgs/CompressedImage": ("image",),
}
"""What can be observed of which type of message."""

IMAGE_TYPES = ("sensor_msgs/Image", "sensor_msgs/CompressedImage")
SIGNS = ("keep", "w_positive")


@dataclass(frozen=True)
class Field:
    """A part of a message that is (a part of) an observation.

    Attributes:
        key: of the observation. field: one of INPUT_FIELDS of the topic's type.
        joints: of a JointState: which, in this order.
        start, stop: which numbers of `data`; None: from the first, to the last.
        scale, offset: observed is scale * number + offset; one for all or one each.
        sign: of an orientation (x, y, z, w): "keep", or "w_positive": q and -q are one rotation, w >= 0 is taken.
        size: of an image (H, W): it is resized to that. None: as it comes.
    """

    key: str
    field: str
    joints: tuple[str, ...] = ()
    start: int | None = None
    stop: int | None = None
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0
    sign: str = "keep"
    size: tuple[int, int] | None = None

    @property
    def dim(self) -> int | None:
        """How many numbers; None where only the message tells."""
        fixed = {"orientation": 4, "image": None, "data": None if self.stop is None else self.stop - (self.start or 0)}
        return len(self.joints) if self.joints else fixed.get(self.field, 3)


@dataclass(frozen=True)
class Input:
    """A topic that is observed: its type, and what of it. queue_length, throttle_ms: see `Transport.subscribe`."""

    topic: str
    type: str
    fields: tuple[Field, ...]
    queue_length: int = 1
    throttle_ms: int = 0


def topic_of(entry: Entry) -> str:
    """A topic's or service's name."""
    name = entry.text("a name, as /joint_states")
    if not re.fullmatch(r"[~/]?[A-Za-z_]\w*(/[A-Za-z_]\w*)*", name, re.ASCII) or len(name) > 200:
        raise entry.error(f"{name!r} is no name in ROS: letters, digits and _ between slashes, as /arm/joint_states")
    return name


def type_of(entry: Entry, allowed: tuple[str, ...]) -> str:
    """A message's type, written as ROS 1 or ROS 2 does."""
    try:
        short = type_name(entry.text("a type, as sensor_msgs/JointState"), ros=1)
    except ValueError as error:
        raise entry.error(str(error)) from None
    if short not in allowed:
        raise entry.error(f"{short} cannot be used here; one of {', '.join(allowed)} can")
    return short


def read_inputs(entry: Entry) -> tuple[Input, ...]:
    """The list under `observations`.

    Raises:
        ContractError: what is wrong, with its line.
    """
    inputs: list[Input] = []
    image_keys: dict[str, int] = {}
    for item in entry.items("a list of topics"):
        made = _input(item)
        if made.topic in [other.topic for other in inputs]:
            raise item.error(f"{made.topic} is observed twice: name all its keys in one place")
        for field in made.fields:
            # Numbers of several topics make one key, one after another; images cannot.
            image = field.field == "image"
            known = image_keys.setdefault(field.key, int(image))
            if known != int(image) or (image and any(f.key == field.key for other in inputs for f in other.fields)):
                raise item.error(f"key {field.key!r} is an image, and comes from one topic only")
        inputs.append(made)
    if not inputs:
        raise entry.error("names no topic: a policy has to observe something")
    return tuple(inputs)


def _input(entry: Entry) -> Input:
    section = Section(entry)
    topic = topic_of(section.need("topic", "the topic's name"))
    type_ = type_of(section.need("type", "the message's type"), tuple(INPUT_FIELDS))
    joints = section.take("joints")
    names = joints.texts() if joints else ()
    if names and type_ != "sensor_msgs/JointState":
        assert joints is not None
        raise joints.error(f"a {type_} has no joints; leave it out")
    keys = section.need("keys", "which key is what of the message, as {joint_pos: position}")
    size = section.take("size")
    queue, throttle = section.take("queue_length"), section.take("throttle_ms")
    section.finish()
    shape = _size(size) if size else None
    if size and type_ not in IMAGE_TYPES:
        raise size.error(f"a {type_} is no image; leave it out")
    taken = Section(keys).rest()
    if not taken:
        raise keys.error("names no key")
    fields = tuple(_field(key, value, type_, names, shape) for key, value in taken.items())
    return Input(
        topic,
        type_,
        fields,
        queue_length=queue.integer(1, 1000) if queue else 1,
        throttle_ms=throttle.integer(0, 10_000) if throttle else 0,
    )


def _field(key: str, entry: Entry, type_: str, names: tuple[str, ...], size: tuple[int, int] | None) -> Field:
    allowed = INPUT_FIELDS[type_]
    if not isinstance(entry.value, dict):
        made = Field(key, entry.choice(allowed), joints=names, size=size)
        return _checked(made, entry, type_)
    section = Section(entry)
    field = section.need("field", f"one of {', '.join(allowed)}").choice(allowed)
    joints, slice_, sign = section.take("joints"), section.take("slice"), section.take("sign")
    scale, offset = section.take("scale"), section.take("offset")
    section.finish()
    for unfit, needed in ((joints, "sensor_msgs/JointState"), (slice_, "std_msgs/Float64MultiArray")):
        if unfit and type_ != needed:
            raise unfit.error(f"is for a {needed}, this is a {type_}")
    if sign and field != "orientation":
        raise sign.error("is for an orientation")
    if (scale or offset) and field in ("image", "orientation"):
        raise entry.error(f"an {field} takes no scale and no offset")
    start, stop = _slice(slice_) if slice_ else (None, None)
    made = Field(
        key,
        field,
        joints=joints.texts() if joints else names,
        start=start,
        stop=stop,
        scale=scale.numbers() if scale else 1.0,
        offset=offset.numbers() if offset else 0.0,
        sign=sign.choice(SIGNS) if sign else "keep",
        size=size,
    )
    return _checked(made, entry, type_)


def _checked(made: Field, entry: Entry, type_: str) -> Field:
    if type_ == "sensor_msgs/JointState" and not made.joints:
        raise entry.error("`joints` is missing: the names of the joints, in the order the policy observes them")
    for name in ("scale", "offset"):
        values = getattr(made, name)
        if isinstance(values, tuple) and made.dim is not None and len(values) != made.dim:
            raise entry.error(f"{name} has {len(values)} numbers for {made.dim}; give one, or one each")
    return made


def _slice(entry: Entry) -> tuple[int, int]:
    bounds = [part.integer(0, 100_000) for part in entry.items("[first, one after the last]")]
    if len(bounds) != 2 or bounds[0] >= bounds[1]:
        raise entry.error("must be [first, one after the last], as [0, 7]")
    return bounds[0], bounds[1]


def _size(entry: Entry) -> tuple[int, int]:
    sides = [part.integer(1, 8192) for part in entry.items("[height, width]")]
    if len(sides) != 2:
        raise entry.error("must be [height, width], as [96, 96]")
    return sides[0], sides[1]
