"""The table of settings in docs/recipes.md, from their docstrings: ``python scripts/settings.py`` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fast_train.pipeline.config.settings import OF_THE_DATA, settings

DOCUMENT = Path(__file__).parents[1] / "docs" / "recipes.md"
_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


def table() -> str:
    """The table as markdown."""
    lines = ["| setting | default | values | meaning |", "| --- | --- | --- | --- |"]
    for setting in settings().values():
        if setting.place not in OF_THE_DATA:
            values = ", ".join(f"`{name}`" for name in setting.choices)
            cells = (f"`{setting.place}`", _default(setting.default), values, setting.text.replace("|", "\\|"))
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    if value is None or value == ():
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def document() -> str:
    """docs/recipes.md with the table as it should be: the first one below the heading Settings."""
    before, heading, after = DOCUMENT.read_text(encoding="utf-8").partition("\n## Settings\n")
    return before + heading + _TABLE.sub(lambda _: table(), after, count=1)


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
