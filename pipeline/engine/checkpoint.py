"""Checkpoints: written beside their place, flushed and renamed; read without executing anything from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fast_train.common.files import whole_file

FORMAT_VERSION = 1
_RUN_STATE = {"config", "classes", "step", "loader", "schedule", "rng", "done_steps", "train_seconds", "history"}


class CheckpointError(ValueError):
    """A checkpoint that can't be read or doesn't fit the run."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values to ``path``; at any moment it holds the old file or the whole new one."""
    with whole_file(path) as file:
        try:
            torch.save({"format_version": FORMAT_VERSION, **state}, file)
        except RuntimeError as error:
            # What torch makes of a disk that is full.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The dictionary that `save_checkpoint` wrote, on the CPU; CheckpointError in one line if not."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; give the path of a .pt file that fast-train wrote")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise CheckpointError(f"{path} is damaged, or no checkpoint of fast-train; use another one") from error
    if not isinstance(state, dict) or "format_version" not in state:
        raise CheckpointError(f"{path} is no checkpoint of fast-train; use one that it wrote")
    if state["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {state['format_version']}, this program reads {FORMAT_VERSION}; use the "
            "version of fast-train that wrote it"
        )
    return state


def load_run_state(path: Path) -> dict[str, Any]:
    """`load_checkpoint` of one that a training wrote; CheckpointError where it lacks something of that."""
    state = load_checkpoint(path)
    lacking = sorted(_RUN_STATE - state.keys())
    if lacking:
        raise CheckpointError(f"{path} lacks {', '.join(lacking)}; use a checkpoint that fast-train wrote")
    return state


CHECKPOINT = "last.pt"
