"""docs/control.md: its program runs, its table of settings is the settings."""

import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from diffpolicy_spec.control import ControlConfig, ControlLoop

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "control.md").read_text()


def test_the_program_runs(tmp_path):
    """The shipped policy moves the arm until Ctrl-C."""
    (program,) = re.findall(r"<!-- example: runs -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "arm.py").write_text(program)
    chunks, said = 0, []
    command = [sys.executable, "arm.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            for line in process.stdout:
                said.append(line)
                chunks += bool(re.fullmatch(r"chunk \d+: \d+ ms, \d+ calls\n", line))
                if chunks == 3:
                    break
            process.send_signal(signal.SIGINT)
            said += process.stdout.readlines()
            assert process.wait(60) == 0, "".join(said)
        finally:
            process.kill()
    assert chunks == 3, "".join(said)
    assert any(line.startswith("stop SIGINT") for line in said), "".join(said)


def test_every_setting_is_in_the_table():
    table = re.search(r"<!-- settings -->\n(.*?)\n\n", PAGE, re.DOTALL).group(1)
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.MULTILINE))
    settings = {field.name: field.default for field in fields(ControlConfig)}
    assert list(rows) == list(settings)
    for name, default in settings.items():
        if isinstance(default, bool):
            assert rows[name] == str(default).lower()
        elif isinstance(default, str):
            assert rows[name] == default
        elif default is not None and default != 0:
            assert float(rows[name]) == default


@pytest.mark.parametrize(
    "name", re.findall(r"`(\w+)(?=[(`,])", re.search(r"## What happens.*?## Time", PAGE, re.DOTALL).group())
)
def test_what_is_named_there_is_there(name):
    known = {"lead_ms", "loop_overrun", "read", "duration", "n"}
    assert name in known or hasattr(ControlLoop, name), name
