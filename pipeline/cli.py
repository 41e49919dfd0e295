"""The command `fast-train`: parse, check, run, end.

What can be refused without torch, which takes seconds to import, is refused before that.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from fast_train.common.command import run_command
from fast_train.common.phases import begin_phases
from fast_train.common.processes import world
from fast_train.common.signals import exit_status, ignore_requests_to_save
from fast_train.common.startup import quick_imports
from fast_train.pipeline.config.convert import build
from fast_train.pipeline.config.recipe import Given, check_evaluated, check_given
from fast_train.pipeline.config.settings import DataConfig, RunConfig
from fast_train.pipeline.errors import ConfigError, RankLost, TrainingDiverged
from fast_train.pipeline.flags import PROGRAM, Actions, as_typed, check_flags, check_paths, parse_flags


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status. arguments: None for those that the process was started with, which ends
    with the command."""
    if arguments is not None:
        begin_phases()
    given, actions = parse_flags(arguments)
    ignore_requests_to_save()
    return run_command(
        _program(),
        lambda: _run_as_rank(given, actions),
        debug=actions.debug,
        ends_process=arguments is None,
        on_ranks=True,
        statuses={TrainingDiverged: 1, RankLost: 1},
        explain=partial(_explain, given),
    )


def _program() -> str:
    """What begins a line about an error."""
    with suppress(ValueError):
        place = world()
        if place is not None and place.rank:
            return f"{PROGRAM} (rank {place.rank})"
    return PROGRAM


def _explain(given: Given, error: Exception) -> Exception | None:
    """What to tell of an error in its place. given: settings by flags."""
    if isinstance(error, ConfigError):
        told = ConfigError(as_typed(str(error), given))
        told.__cause__ = error
        return told
    # Where it is not imported, torch has raised no error.
    memory = sys.modules.get("fast_train.pipeline.engine.memory")
    return memory.memory_error(error) if memory else None


def _run_as_rank(given: Given, actions: Actions) -> int:
    try:
        return _run(given, actions)
    except RankLost as lost:
        if lost.told:
            return lost.status
        raise
    except KeyboardInterrupt as stop:
        if _program() == PROGRAM:
            raise
        # The first of several processes speaks for all.
        return exit_status(stop)


def _run(given: Given, actions: Actions) -> int:
    place = world()
    if place is not None and place.rank:
        try:
            given = _check_settings(given, actions, place.size)
        except ValueError:
            # The first of several processes, of the same flags, speaks for all.
            return 2
    else:
        given = _check_settings(given, actions, place.size if place else 1)
        check_paths(actions)
        _check_set(given, actions)
    with quick_imports():
        from fast_train.pipeline import commands
    return commands.run(given, actions)


def _check_settings(given: Given, actions: Actions, ranks: int) -> Given:
    given = check_flags(given, actions)
    alone = {"evaluate": actions.evaluate is not None, "show-batch": actions.show_batch,
             "list-loaders": actions.list_loaders}  # fmt: skip
    for name in (name for name, given in alone.items() if given and ranks > 1):
        raise ConfigError(f"{ranks} processes were started, and --{name} is the work of one; start it without torchrun")
    return given


def _check_set(given: Given, actions: Actions) -> None:
    if actions.evaluate is not None:
        check_evaluated(given, Path(actions.evaluate))
    if actions.evaluate is not None or actions.resume not in (None, "auto"):
        # Which settings these are merged over, and which set, the checkpoint says: torch reads it.
        build(RunConfig, given.get("run", {}), "run")
    elif not actions.list_loaders:
        config = check_given(actions.recipe, given)
        # NumPy, which reading a set needs, takes a tenth of a second to import.
        from fast_train.data_prep.manifest import PreparedSet

        data = config.data if config is not None else build(DataConfig, given.get("data", {}), "data")
        PreparedSet.open(data.path).entries("train", data.format)


if __name__ == "__main__":
    sys.exit(main())
