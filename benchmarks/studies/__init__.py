"""Studies by the name that `bench-study` takes: experiments of papers, repeated with this library."""

from __future__ import annotations

from benchmarks.studies.augmentation import AUGMENTATION
from benchmarks.studies.base import Study
from benchmarks.studies.degradation import DEGRADATION
from benchmarks.studies.shortcuts import SHORTCUTS

STUDIES: dict[str, Study] = {study.name: study for study in (DEGRADATION, SHORTCUTS, AUGMENTATION)}
