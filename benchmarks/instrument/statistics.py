"""What repeats say: medians and means with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

CONFIDENCE = 0.95
_RESAMPLES = 10_000


def bootstrap(values: Sequence[float], statistic: str = "median") -> tuple[float, float] | None:
    """The percentile bootstrap's interval (Efron and Tibshirani 1993, chapter 13) of the median or the mean; None for
    fewer than two values. The same values always give the same interval."""
    if len(values) < 2:
        return None
    return _ends(_resampled(values, statistic, seed=0))


def bootstrap_ratio(
    over: Sequence[float], under: Sequence[float], statistic: str = "median"
) -> tuple[float, float] | None:
    """The interval of statistic(over) / statistic(under), both resampled; None where either has but one value."""
    if min(len(over), len(under)) < 2:
        return None
    return _ends(_resampled(over, statistic, seed=0) / _resampled(under, statistic, seed=1))


def estimate(values: Sequence[float], statistic: str = "median") -> float:
    return float(STATISTICS[statistic](np.asarray(values, dtype=np.float64)))


def spread(values: Sequence[float]) -> float:
    """Largest minus smallest, as a part of the median; 0 for one value."""
    middle = estimate(values)
    return (max(values) - min(values)) / middle if middle else 0.0


STATISTICS: dict[str, Callable[..., np.ndarray]] = {"median": np.median, "mean": np.mean}


def _resampled(values: Sequence[float], statistic: str, *, seed: int) -> np.ndarray:
    """The statistic of each of many samples drawn with replacement: float64 [_RESAMPLES]."""
    array = np.asarray(values, dtype=np.float64)
    chosen = np.random.default_rng(seed).integers(0, len(array), size=(_RESAMPLES, len(array)))
    return np.asarray(STATISTICS[statistic](array[chosen], axis=1))


def _ends(estimates: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)
