"""Studies by the name that `bench-study` takes: experiments of papers, repeated with this library."""

from __future__ import annotations

from fast_train.benchmarks.studies.augmentation import AUGMENTATION
from fast_train.benchmarks.studies.base import Study
from fast_train.benchmarks.studies.degradation import DEGRADATION
from fast_train.benchmarks.studies.shortcuts import SHORTCUTS

STUDIES: dict[str, Study] = {study.name: study for study in (DEGRADATION, SHORTCUTS, AUGMENTATION)}
