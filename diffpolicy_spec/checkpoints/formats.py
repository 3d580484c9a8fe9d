"""Which format a checkpoint has, seen from its content, and its reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffpolicy_spec.checkpoints.diffusion_policy import is_diffusion_policy, read_diffusion_policy
from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.fields import read_json
from diffpolicy_spec.checkpoints.lerobot import read_lerobot
from diffpolicy_spec.checkpoints.native import CONFIG, FORMAT, read_native
from diffpolicy_spec.checkpoints.parts import Parts
from diffpolicy_spec.checkpoints.pickles import read_pickled
from diffpolicy_spec.checkpoints.robomimic import read_robomimic

__all__ = ["FORMATS", "ZARR_FILES", "Found", "detect", "look", "read_parts"]

FORMATS = ("native", "diffusion_policy", "lerobot", "robomimic")
"""What `detect` returns."""

ZARR_FILES = (".zgroup", ".zmetadata", "zarr.json")
"""One of them lies in the folder of a zarr store."""


@dataclass(frozen=True)
class Found:
    """A checkpoint whose format is known.

    Attributes:
        path: file or folder.
        format: one of FORMATS.
        payload: what a pickled file holds, its tensors unread; {} for a folder.
    """

    path: Path
    format: str
    payload: Mapping[str, Any] = field(default_factory=dict, repr=False)


def detect(path: str | Path) -> str:
    """The format of a checkpoint: one of FORMATS.

    Raises:
        CheckpointError: it is none of them; the message says what it is, as far as that can be seen.
    """
    return look(path).format


def look(path: str | Path) -> Found:
    """As `detect`, with what had to be read for it."""
    path = Path(path)
    try:
        if path.is_dir():
            return Found(path, _folder(path))
        if not path.exists():
            raise CheckpointError(f"checkpoint {path} does not exist")
        if not path.is_file():
            raise CheckpointError(f"{path} is neither a file nor a folder")
        with path.open("rb") as file:
            _check_file(path, file.read(16))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    payload = read_pickled(path)
    if is_diffusion_policy(payload):
        return Found(path, "diffusion_policy", payload)
    if "algo_name" in payload and "model" in payload:
        return Found(path, "robomimic", payload)
    keys = ", ".join(ascii(key)[:40] for key in list(payload)[:8])
    raise CheckpointError(
        f"{path} is a PyTorch file that neither diffusion_policy (cfg, state_dicts) nor robomimic (model, config, "
        f"algo_name) wrote: it holds {keys or 'nothing'}"
    )


def read_parts(source: str | Path | Found, weights: str = "auto") -> Parts:
    """Read a checkpoint of any format.

    Args:
        source: its path, or what `look` found there.
        weights: for files that hold several: "ema_model" (the running average), "model" (those that were trained),
            or "auto": the average where there is one.

    Raises:
        CheckpointError: as `detect`; damaged; or a setting that has no counterpart here.
    """
    found = source if isinstance(source, Found) else look(source)
    if found.format == "diffusion_policy":
        return read_diffusion_policy(found.path, weights, payload=found.payload)
    if found.format == "robomimic":
        return read_robomimic(found.path, weights, payload=found.payload)
    if weights != "auto":
        raise CheckpointError(f"{found.path} holds one set of weights: leave weights='auto' as it is, got '{weights}'")
    return read_native(found.path) if found.format == "native" else read_lerobot(found.path)


def _folder(path: Path) -> str:
    if (path / CONFIG).is_file():
        config = read_json(path / CONFIG)
        if config.get("format", None) == FORMAT:
            return "native"
        if isinstance(config.get("type", None), str):
            return "lerobot"
        raise CheckpointError(f"{path / CONFIG} is not of format '{FORMAT}', nor LeRobot's, which has a 'type'")
    if any((path / name).is_file() for name in ZARR_FILES) or (path / "meta" / "info.json").is_file():
        raise CheckpointError(f"{path} is a dataset, not a policy")
    if (path / "pretrained_model" / CONFIG).is_file():
        raise CheckpointError(f"{path} holds LeRobot's training state; the policy is {path / 'pretrained_model'}")
    files = sorted(file.name for file in (path / "checkpoints").glob("*.ckpt"))
    if files:
        raise CheckpointError(f"{path} is the folder of a run; it holds {path / 'checkpoints' / files[-1]}")
    raise CheckpointError(f"{path} is not a checkpoint folder: it has no {CONFIG}")


def _check_file(path: Path, start: bytes) -> None:
    """Refuse what is seen from its first bytes to be something else than a pickled checkpoint."""
    if start.startswith(b"\x89HDF"):
        raise CheckpointError(f"{path} is an hdf5 file: a dataset, not a policy")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        raise CheckpointError(f"{path} is a safetensors file: give the folder that it belongs to, with its {CONFIG}")
    if start.startswith(b"{"):
        raise CheckpointError(f"{path} is a JSON file: give the folder that it belongs to")
    if start.startswith(b"PK") and _is_zarr(path):
        raise CheckpointError(f"{path} is a zipped zarr store: a dataset, not a policy")


def _is_zarr(path: Path) -> bool:
    """Whether the first name in a zip file is one of zarr's; its directory is not looked at yet."""
    with path.open("rb") as file:
        head = file.read(30 + 512)
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return name.rpartition(b"/")[2] in (b".zgroup", b".zarray", b".zattrs", b".zmetadata", b"zarr.json")
