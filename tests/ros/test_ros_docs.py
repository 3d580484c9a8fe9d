"""The page's contract is one, and its program is."""

import re
from pathlib import Path

from diffpolicy_spec.ros.contract import SERVICES, parse_contract
from diffpolicy_spec.ros.contract_inputs import INPUT_FIELDS
from diffpolicy_spec.ros.contract_outputs import OUTPUT_TYPES, ROTATIONS
from diffpolicy_spec.ros.images import ENCODINGS

PAGE = (Path(__file__).parents[2] / "docs" / "ros.md").read_text()


def test_the_contract_of_the_page_is_read():
    [text] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    made = parse_contract(text)
    assert made.axis_names == ("shoulder", "elbow", "wrist", "gripper")
    assert made.safety.jerk[:3] == (500, 500, 500)
    assert made.heartbeat is not None


def test_everything_there_is_has_its_place_on_the_page():
    named = [*INPUT_FIELDS, *OUTPUT_TYPES, *ROTATIONS, *ENCODINGS, *(f"/NAME/{service}" for service in SERVICES)]
    assert [name for name in named if name not in PAGE] == []


def test_the_program_of_the_page_is_python():
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    lines = [line for line in code.splitlines() if line.startswith("from ")]
    exec("\n".join(lines), {})
    compile(code, "ros.md", "exec")
