"""The command `fast-train`: parse, check, run, end.

What can be refused without torch, which takes seconds to import, is refused before that.
"""

from __future__ import annotations

import sys

from fast_train.common.command import run_command
from fast_train.common.startup import quick_imports
from fast_train.pipeline.config.convert import build
from fast_train.pipeline.config.processes import check_alone, rank
from fast_train.pipeline.config.recipe import Given, check_given
from fast_train.pipeline.config.settings import DataConfig
from fast_train.pipeline.errors import TrainingDiverged
from fast_train.pipeline.flags import PROGRAM, Actions, check_flags, check_paths, parse_flags


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status. arguments: None for those that the process was started with, which ends
    with the command."""
    given, actions = parse_flags(arguments)
    if rank():
        # The first of several processes speaks for all.
        return 2
    return run_command(
        PROGRAM,
        lambda: _run(given, actions),
        debug=actions.debug,
        ends_process=arguments is None,
        statuses={TrainingDiverged: 1},
        explain=_explain,
    )


def _explain(error: Exception) -> Exception | None:
    # Where it is not imported, torch has raised no error.
    memory = sys.modules.get("fast_train.pipeline.engine.memory")
    return memory.memory_error(error) if memory else None


def _run(given: Given, actions: Actions) -> int:
    check_alone()
    given = check_flags(given, actions)
    check_paths(actions)
    if not (actions.list_loaders or actions.evaluate is not None or actions.resume not in (None, "auto")):
        config = check_given(actions.recipe, given)
        # NumPy, which reading a set needs, takes a tenth of a second to import.
        from fast_train.data_prep.manifest import PreparedSet

        data = config.data if config is not None else build(DataConfig, given.get("data", {}), "data")
        PreparedSet.open(data.path).entries("train", data.format)
    with quick_imports():
        from fast_train.pipeline import commands
    return commands.run(given, actions)


if __name__ == "__main__":
    sys.exit(main())
