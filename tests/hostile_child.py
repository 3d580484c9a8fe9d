"""Reads hostile files one after the other in a process of its own, and says of each what came of it.

    python hostile_child.py FOLDER FORMAT [EVERY]

FORMAT "all" is every format, EVERY 7 each seventh case.

One JSON line before a case ({"begins": name}) and one after it: what was raised, the peak of memory above what there
was before, the time, and whether code was run. Memory is limited, so that a reader that takes all of it ends here and
not the machine.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

LIMIT_S = 20
MEMORY = 3 << 30  # bytes beyond what the interpreter and its libraries have mapped


def status(key: str) -> int:
    """A line of /proc/self/status, bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def read(case, path: Path) -> None:
    """What a user would call."""
    from diffpolicy_spec import load_policy
    from diffpolicy_spec.data import DataError, observation_shapes, read_dataset

    if case.reader == "policy":
        load_policy(path)
        return
    with suppress(DataError, FileNotFoundError, PermissionError):  # dps-calibrate looks at these first
        observation_shapes(path)
    if case.format == "hdf5":
        dims = {"object": 10, "robot0_eef_pos": 3}
        read_dataset(path, dims, action_repr="absolute_rot6d", filter_key="train" if "mask" in case.name else None)
    else:
        read_dataset(path, {"state": 5}, action_repr="raw")


def look(case, path: Path) -> None:
    """dps-inspect."""
    from diffpolicy_spec.tools import describe

    describe(path, every_weight=False)


def attempt(call, case, path: Path) -> dict[str, object]:
    """Class, bases and text of what is raised; memory and time it took."""
    found: dict[str, object] = {"raised": None, "bases": [], "text": ""}
    signal.alarm(LIMIT_S)
    before, start = status("VmRSS"), time.monotonic()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM begins again
    try:
        if case.unprivileged and os.geteuid() == 0:
            os.seteuid(65534)
        call(case, path)
    except BaseException as error:
        found = {
            "raised": type(error).__name__,
            "bases": [c.__name__ for c in type(error).__mro__],
            "text": str(error)[:2000],
        }
    finally:
        if case.unprivileged and os.getuid() == 0:
            os.seteuid(0)
        signal.alarm(0)
    return {**found, "mb": (status("VmHWM") - before) / 1e6, "seconds": time.monotonic() - start}


def stop(*_: object) -> None:
    """What ends a case that takes too long."""
    raise TimeoutError(f"took longer than {LIMIT_S} s")


def main() -> None:
    """Run the cases of one format."""
    import torch
    from hostile_files import CANARY, Case, cases, valid_files

    torch.set_num_threads(1)
    folder, wanted = Path(sys.argv[1]), sys.argv[2]
    every = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    signal.signal(signal.SIGALRM, stop)
    chosen = [case for case in cases(folder / "valid") if wanted in ("all", case.format)]
    for format, path in valid_files(folder / "warm").items():  # first readings load code and grow pools
        if wanted in ("all", format):
            case = Case(format, "valid", lambda _, path=path: path)
            for call in (read, look):
                call(case, path)
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + MEMORY,) * 2)
    for i, case in enumerate(chosen[::every]):
        print(json.dumps({"begins": case.name}), flush=True)
        place = folder / f"case{i}"
        place.mkdir()
        place.chmod(0o755)
        path = case.make(place)
        results = {"read": attempt(read, case, path), "look": attempt(look, case, path)}
        ran = [str(p) for p in folder.rglob(CANARY)]
        for found in ran:
            os.unlink(found)
        told = {"format": case.format, "name": case.name, "path": str(path), "may_be_valid": case.may_be_valid}
        print(json.dumps({**told, "ran": ran, **results}), flush=True)
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
