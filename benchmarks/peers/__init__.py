"""Other people's recipes, one file each with its source, measured beside our loaders."""

from __future__ import annotations

from fast_train.benchmarks.instrument.bench import Bench
from fast_train.benchmarks.instrument.feeds import Entry, Feed, Peer
from fast_train.benchmarks.peers.dali_stock import DaliStock
from fast_train.benchmarks.peers.ffcv_readme import FfcvReadme
from fast_train.benchmarks.peers.notes_dataloader import NotesDataLoader
from fast_train.benchmarks.peers.tuned_dataloader import TunedDataLoader
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.runtime import Runtime

PEERS: tuple[type[Peer], ...] = (NotesDataLoader, TunedDataLoader, FfcvReadme, DaliStock)


def peer_entries() -> list[Entry]:
    """Every peer."""
    return [_entry(peer) for peer in PEERS]


def _entry(peer: type[Peer]) -> Entry:
    def open_feed(bench: Bench, config: Config, runtime: Runtime, workers: int, raw: bool) -> Feed:
        return peer(
            bench.prepared,
            batch_size=config.data.batch_size,
            workers=workers,
            device=runtime.device,
            augment=not raw,
            dtype=runtime.image_dtype,
        )

    return Entry(
        name=peer.name,
        open=open_feed,
        augmentation=peer.augmentation,
        source=peer.source,
        workers=peer.fixed_workers,
    )
