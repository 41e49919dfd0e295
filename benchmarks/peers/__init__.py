"""Other people's recipes, one file each with its source, measured beside our loaders."""

from __future__ import annotations

from fast_train.benchmarks.instrument.feeds import Entry
from fast_train.benchmarks.peers.dali_stock import DaliStock
from fast_train.benchmarks.peers.ffcv_readme import FfcvReadme
from fast_train.benchmarks.peers.notes_dataloader import NotesDataLoader
from fast_train.benchmarks.peers.tuned_dataloader import TunedDataLoader


def peer_entries() -> list[Entry]:
    return [peer.entry() for peer in (NotesDataLoader, TunedDataLoader, FfcvReadme, DaliStock)]
