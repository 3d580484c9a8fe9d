"""Damaged and hostile files of every format: each a specific error that names it, no code run, no memory or time lost.

The files are in tests/hostile_files.py and what it imports; they are read in processes of their own
(tests/hostile_child.py), by load_policy or read_dataset and by dps-inspect's describe.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
FORMATS = ("dp", "dp_transformer", "lerobot", "lerobot_old", "robomimic", "native", "hdf5", "zarr", "zarr_zip")

EXPECTED = ("CheckpointError", "DataError", "FileNotFoundError", "PermissionError")
MOST_MB = 400
MOST_S = 15  # the machine may be busy; a reader that does not end is stopped after 20


@functools.cache
def results(folder: Path, format: str, every: int = 1) -> tuple[list[dict], str | None]:
    """What came of each case, and the case in which the process died, if it did."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(TESTS / "hostile_child.py"),
        str(folder / format),
        format,
        str(every),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    begun = [line["begins"] for line in lines if "begins" in line]
    found = [line for line in lines if "name" in line]
    if done.returncode == 0 and len(begun) == len(found):
        return found, None
    return found, f"{begun[-1] if begun else 'the beginning'}: exit {done.returncode}: {done.stderr[-2000:]}"


def faults(case: dict) -> Iterator[str]:
    """What is wrong with how a case was taken."""
    if case["ran"]:
        yield "code was run"
    for way in ("read", "look"):
        outcome = case[way]
        told = f"{way}: {outcome['raised']}: {outcome['text'][:300]}"
        if outcome["raised"] is None:
            # dps-inspect does not read every weight, and lists the problems of a dataset in its report.
            if way == "read" and not case["may_be_valid"]:
                yield f"{told} - was read without an error"
        elif outcome["raised"] not in EXPECTED:
            yield f"{told} - is not a specific error"
        elif case["path"] not in outcome["text"]:
            yield f"{told} - does not name the file"
        if len(outcome["text"]) > 1500:
            yield f"{told} - is {len(outcome['text'])} characters long"
        if outcome["mb"] > MOST_MB:
            yield f"{told} - took {outcome['mb']:.0f} MB"
        if outcome["seconds"] > MOST_S:
            yield f"{told} - took {outcome['seconds']:.0f} s"


def check(found: list[dict], died: str | None) -> None:
    """Every case is refused by a specific error that names the file."""
    assert died is None, f"the process ended in case {died}"
    wrong = [f"{case['format']}: {case['name']}: {fault}" for case in found for fault in faults(case)]
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


def test_each_fifth_is_refused_by_name(folder):
    found, died = results(folder, "all", every=5)
    check(found, died)
    assert {case["format"] for case in found} == set(FORMATS)
    assert sum(case["read"]["raised"] is not None for case in found) >= 200


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_every_file_is_refused_by_name(format, folder):
    check(*results(folder, format))


@pytest.mark.slow
def test_there_are_enough_of_them(folder):
    """Refused ones alone; a flipped bit that leaves a valid file does not count."""
    refused = {f: sum(case["read"]["raised"] is not None for case in results(folder, f)[0]) for f in FORMATS}
    assert sum(refused.values()) >= 200, refused
    assert min(refused.values()) >= 15, refused


def test_the_canary_would_be_seen(tmp_path):
    """The same opcodes, unpickled as PyTorch's old default did, leave it: the corpus is not harmless by mistake."""
    sys.path.insert(0, str(TESTS))
    from hostile_pickles import code

    program = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    for name in ("os.system", "builtins.exec", "STACK_GLOBAL", "INST", "OBJ", "subprocess.Popen", "pickle.loads"):
        place = tmp_path / name
        place.mkdir()
        subprocess.run([sys.executable, "-c", program], input=b"\x80\x04" + code()[name] + b".", cwd=place,
                       capture_output=True)  # fmt: skip
        for _ in range(100):  # subprocess.Popen does not wait
            if (place / "canary").exists():
                break
            time.sleep(0.05)
        assert (place / "canary").exists(), name
