"""Which observations of an environment or a dataset a policy's observations are, where the names are not the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ObsMap", "Offer", "map_onto", "obs_map_of"]


@dataclass(frozen=True)
class ObsMap:
    """What an observation is made of; hashable.

    Attributes:
        vectors: (the policy's name, the low-dimensional observations there that are joined for it, in this order).
        images: (the policy's name, the image there, its (height, width)).
    """

    vectors: tuple[tuple[str, tuple[str, ...]], ...] = ()
    images: tuple[tuple[str, str, tuple[int, int]], ...] = ()

    @property
    def obs(self) -> tuple[str, ...]:
        """The low-dimensional observations that are wanted, each once."""
        return tuple(dict.fromkeys(key for _, keys in self.vectors for key in keys))

    def sizes(self) -> dict[str, tuple[int, int]]:
        """The images that are wanted -> (height, width).

        Raises:
            ValueError: one image in two sizes.
        """
        found: dict[str, tuple[int, int]] = {}
        for _, key, size in self.images:
            if found.setdefault(key, size) != size:
                raise ValueError(f"image '{key}' is wanted in two sizes, {found[key]} and {size}")
        return found

    def sources(self) -> dict[str, list[str]]:
        """Name -> what it is made of."""
        return {name: list(keys) for name, keys in self.vectors} | {name: [key] for name, key, _ in self.images}


@dataclass(frozen=True)
class Offer:
    """The observations of an environment or a dataset.

    Attributes:
        where: what gives them, in messages: "task 'lift'".
        vectors: low-dimensional ones -> their lengths.
        joined: of these, in this order, what diffusion_policy's single "obs" is made of.
        images: images.
        any_camera: whether "<camera>_image" may name further ones.
        aliases: what LeRobot calls them: its name -> the one here.
        described: all of them, in messages.
        otherwise: what else can be done where they do not fit, in messages.
    """

    where: str
    vectors: Mapping[str, int]
    joined: Sequence[str] = ()
    images: Collection[str] = ()
    any_camera: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    described: str = ""
    otherwise: str = ""

    def size_of(self, key: str) -> int:
        """Length of one of its low-dimensional observations.

        Raises:
            ValueError: there is none of this name; the message lists those there are.
        """
        if key not in self.vectors:
            known = ", ".join(f"{name} ({size})" for name, size in self.vectors.items())
            raise ValueError(f"{self.where} has no observation {key!r}; it has {known or 'none'}")
        return self.vectors[key]


def obs_map_of(given: Any, task: str, tasks: Sequence[str]) -> Mapping[str, Any]:
    """The part of the setting `obs_map` that is about a task: all of it, or its own where it names the run's tasks.

    Raises:
        ValueError: no mapping.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"obs_map must map the policy's observations to those it is given, got {given!r}")
    if given and set(given) <= set(tasks) and all(isinstance(one, Mapping) for one in given.values()):
        given = given.get(task, {})
    return {str(name): keys for name, keys in given.items()}


def map_onto(
    offer: Offer,
    obs_dims: Mapping[str, int],
    image_shapes: Mapping[str, tuple[int, int, int]],
    given: Mapping[str, Any],
) -> ObsMap:
    """What a policy's observations are made of.

    A low-dimensional observation is, in this order: what `given` says; the one of this name; the one that LeRobot calls
    so; if it is the policy's only one, `offer.joined`, where their lengths add up (diffusion_policy's "obs"). An image
    is: what `given` says; the one of this name; the one that LeRobot calls so; the only one, where both have one.

    Args:
        obs_dims, image_shapes: what the policy observes: its names -> their lengths, and (C, H, W).
        given: the policy's name -> the keys that are joined for it, or one key.

    Raises:
        ValueError: observations that are not there, or of other sizes; the message lists both sides.
    """
    strangers = [name for name in given if name not in obs_dims and name not in image_shapes]
    if strangers:
        wanted = [f"{name} ({size})" for name, size in obs_dims.items()]
        wanted += [f"{name} {shape}" for name, shape in image_shapes.items()]
        raise ValueError(
            f"obs_map names {', '.join(strangers)}, which the policy does not observe; it observes {', '.join(wanted)}"
        )
    vectors: dict[str, tuple[str, ...]] = {}
    wrong: list[str] = []
    for name, size in obs_dims.items():
        if name in given:
            vectors[name] = _keys(name, given[name])
            if sum(offer.size_of(key) for key in vectors[name]) != size:
                told = " + ".join(f"{key} ({offer.vectors[key]})" for key in vectors[name])
                found = sum(offer.vectors[key] for key in vectors[name])
                raise ValueError(f"obs_map: '{name}' has {size} dimensions, {told} make {found}")
        else:
            vectors[name] = _guess(name, obs_dims, offer)
            if sum(offer.vectors[key] for key in vectors[name]) != size:
                wrong.append(f"{name} ({size})")
    images: list[tuple[str, str, tuple[int, int]]] = []
    for name, shape in image_shapes.items():
        key = _image(name, given, len(image_shapes), offer)
        if key is None:
            wrong.append(f"{name} {shape}")
        else:
            images.append((name, key, shape[1:]))
    if wrong:
        raise ValueError(
            f"the policy observes {', '.join(wrong)}; {offer.where} gives {offer.described}: "
            f"say which are which with obs_map={{NAME: [KEY, ...], CAMERA: KEY}}, or {offer.otherwise}"
        )
    return ObsMap(tuple(vectors.items()), tuple(images))


def _keys(name: str, given: Any) -> tuple[str, ...]:
    keys = [given] if isinstance(given, str) else given
    if not isinstance(keys, Sequence) or not keys or not all(isinstance(key, str) for key in keys):
        raise ValueError(f"obs_map: '{name}' must be a key or a list of keys, got {given!r}")
    return tuple(keys)


def _guess(name: str, obs_dims: Mapping[str, int], offer: Offer) -> tuple[str, ...]:
    if name in offer.vectors:
        return (name,)
    if offer.aliases.get(name) in offer.vectors:
        return (offer.aliases[name],)
    if len(obs_dims) == 1 and sum(offer.vectors[key] for key in offer.joined) == obs_dims[name]:
        return tuple(offer.joined)
    return ()


def _image(name: str, given: Mapping[str, Any], cameras: int, offer: Offer) -> str | None:
    if name in given:
        keys = _keys(name, given[name])
        if len(keys) > 1:
            raise ValueError(f"obs_map: '{name}' is one image, got {list(keys)}")
        return keys[0]
    if name in offer.images or (offer.any_camera and name.endswith("_image")):
        return name
    if offer.aliases.get(name) in offer.images:
        return offer.aliases[name]
    return next(iter(offer.images)) if len(offer.images) == cameras == 1 else None
