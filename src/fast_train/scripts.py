"""The commands, as the scripts that pip installs call them: Ctrl-C ends each silently while it is still being imported.

It raises KeyboardInterrupt from `common.command.run_command` on.
"""

from __future__ import annotations

import importlib

from fast_train.common.signals import end_at_once_by_ctrl_c


def prep_data() -> int:
    return _run("data_prep.cli")


def fast_train() -> int:
    return _run("pipeline.cli")


def fast_predict() -> int:
    return _run("pipeline.predict_cli")


def fast_export() -> int:
    return _run("pipeline.export_cli")


def bench_throughput() -> int:
    return _run("benchmarks.throughput.cli")


def bench_study() -> int:
    return _run("benchmarks.studies.cli")


def _run(module: str) -> int:
    end_at_once_by_ctrl_c()
    return int(importlib.import_module(f"fast_train.{module}").main())
