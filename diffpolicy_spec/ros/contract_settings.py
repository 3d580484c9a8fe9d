"""The `control` and `safety` sections of a contract; limits by the names of joints and axes."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from diffpolicy_spec.control.config import SafetyConfig
from diffpolicy_spec.ros.yaml_lines import Entry, Section

__all__ = ["LIMITS", "read_safety", "read_settings"]

LIMITS = ("low", "high", "velocity", "acceleration", "jerk")
RATES = LIMITS[2:]


def read_settings(kind: Any, entry: Entry | None, /, **more: Any) -> Any:
    """A dataclass of settings from a mapping of them.

    Args:
        kind: the dataclass. entry: the section, None where there is none. more: values that are not read.

    Raises:
        ContractError: a setting there is not, or the dataclass's own ValueError with the line it is about.
    """
    if entry is None:
        return kind(**more)
    section = Section(entry)
    given = {item.name: taken for item in fields(kind) if (taken := section.take(item.name)) is not None}
    section.finish()
    for name, taken in given.items():
        # Tried alone first, so that the line is that of the setting.
        try:
            kind(**{name: taken.plain()})
        except (ValueError, TypeError) as error:
            if name != "on_deadline":  # needs deadline_ms beside it
                raise taken.error(str(error)) from None
    try:
        return kind(**more, **{name: taken.plain() for name, taken in given.items()})
    except (ValueError, TypeError) as error:
        raise entry.error(str(error)) from None


def read_safety(
    entry: Entry | None, names: tuple[str, ...], keys: tuple[str, ...], twists: Collection[int] = ()
) -> SafetyConfig:
    """Limits and the rest of `safety`.

    Args:
        entry: the section. names: (Da,) of the axes. keys: of the observations that are numbers.
        twists: axes that are sent as a Twist: velocities, said or not.

    Raises:
        ContractError: what is wrong, with its line.
    """
    implied = tuple("velocity" if i in twists else "position" for i in range(len(names)))
    if entry is None:
        return SafetyConfig(names=names, kind=implied) if twists else SafetyConfig(names=names)
    values = dict(Section(entry).rest())
    limits = values.pop("limits", None)
    if (own := values.get("names")) is not None:
        raise own.error("axes are named by `joints` and `names` of the topics; leave it out")
    more: dict[str, Any] = {"names": names}
    kind_entry = values.get("kind", limits or entry)
    if twists and "kind" not in values:
        more["kind"] = implied
    if limits is not None and limits.value is not None:
        more |= _limits(limits, values, names, implied)
    rest = Entry(values, entry.line, entry.path, entry.file)
    key = values.get("position_from")
    if key is not None and key.value is not None and key.text() not in keys:
        raise key.error(f"no topic gives numbers for {key.value!r}; there are {', '.join(keys)}")
    made = read_settings(SafetyConfig, rest, **more)
    kinds = [made.kind] * len(names) if isinstance(made.kind, str) else made.kind
    for i in twists:
        if i < len(kinds) and kinds[i] not in ("velocity", "delta"):
            raise kind_entry.error(
                f"{names[i]} is sent as a Twist, which is a velocity: with kind {kinds[i]} to hold would be to drive on"
            )
    return made


def _limits(entry: Entry, beside: dict[str, Entry], names: tuple[str, ...], implied: tuple[str, ...]) -> dict[str, Any]:
    """Limits by axis: an axis or a limit that is not named has none; `kind` of those is the section's, or implied."""
    table: dict[str, list[Any]] = {}
    default = beside["kind"].value if "kind" in beside else None
    kinds: list[Any] = list(implied) if default is None else [default] * len(names)
    if isinstance(default, list):
        kinds = [item.value for item in default]
        kinds += [None] * (len(names) - len(kinds))  # which the settings refuse
    section = Section(entry)
    for i, name in enumerate(names):
        axis = section.take(name)
        if axis is None:
            continue
        limits = Section(axis)
        for limit in (*LIMITS, "kind"):
            if (given := limits.take(limit)) is None:
                continue
            if limit in beside and limit != "kind":
                raise given.error(f"`{limit}` is given for all axes in line {beside[limit].line} as well: keep one")
            blank = -math.inf if limit == "low" else math.inf
            row = table.setdefault(limit, kinds if limit == "kind" else [blank] * len(names))
            row[i] = given.text() if limit == "kind" else given.number()
        limits.finish()
        rates = [limit for limit in RATES if limit in table and table[limit][i] < math.inf]
        if rates and kinds[i] == "free":
            raise axis.error(f"a free axis has no {rates[0]}: give it another kind, or low and high only")
        low, high = (
            table[side][i] if side in table else blank for side, blank in (("low", -math.inf), ("high", math.inf))
        )
        if low >= high:
            raise axis.error(f"low must be below high, got {low:g} and {high:g}")
    section.finish()
    if "kind" in table and "kind" in beside:
        if not isinstance(default, str):
            raise entry.error("`kind` is given as a list for all axes and by axis as well: keep one")
        # The settings' reader would see it twice.
        beside.pop("kind")
    return {limit: tuple(row) for limit, row in table.items()}
