"""Checkpoints: written beside their place, flushed and renamed; read without executing anything from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.files import whole_file

FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that can't be read or doesn't fit the run."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values to ``path``; at any moment it holds the old file or the whole new one."""
    with whole_file(path) as file:
        torch.save({"format_version": FORMAT_VERSION, **state}, file)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The dictionary that `save_checkpoint` wrote, tensors on ``device``; CheckpointError in one line if not."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; give the path of a .pt file that fast-train wrote")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is no readable checkpoint ({reason}); use another one") from error
    if not isinstance(state, dict) or "format_version" not in state:
        raise CheckpointError(f"{path} is no checkpoint of fast-train; use one that it wrote")
    if state["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {state['format_version']}, this program reads {FORMAT_VERSION}; use the "
            "version of fast-train that wrote it"
        )
    return state
