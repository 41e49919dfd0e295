"""Every suite by its name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from fast_train.benchmarks.instrument import roofline
from fast_train.benchmarks.instrument.bench import Bench
from fast_train.benchmarks.throughput.suites import (
    accuracy,
    augmentation,
    end_to_end,
    ladder,
    loaders,
    preparation,
    startup,
)

SUITES: dict[str, Callable[[Bench], None]] = {
    roofline.SUITE: roofline.run,
    augmentation.SUITE: augmentation.run,
    loaders.SUITE: loaders.run,
    ladder.SUITE: ladder.run,
    end_to_end.SUITE: end_to_end.run,
    accuracy.SUITE: accuracy.run,
    startup.SUITE: startup.run,
    preparation.SUITE: preparation.run,
}
#: Suites that compare with what another one measured.
NEEDS = {augmentation.SUITE: roofline.SUITE, ladder.SUITE: roofline.SUITE}
