"""How mkdocstrings reads this package's docstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe


class OneNameALine(griffe.Extension):
    """Docstrings list names that share a description together, `v, xi: (..., D)`; the page lists them one by one."""

    ITEM = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n {5,}\S.*)*)", re.MULTILINE)

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Write the items of a docstring once for each name."""
        if obj.docstring is not None:
            obj.docstring.value = self.ITEM.sub(
                lambda item: "\n".join(f"    {name}: {item[2]}" for name in item[1].split(", ")), obj.docstring.value
            )
