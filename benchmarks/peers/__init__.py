"""Other people's recipes, one file each with its source, measured beside our loaders."""

from __future__ import annotations

from fast_train.benchmarks.instrument.feeds import Entry, Peer
from fast_train.benchmarks.peers.dali_resnet50 import DaliResnet50
from fast_train.benchmarks.peers.dali_stock import DaliStock
from fast_train.benchmarks.peers.decode_jpeg import DecodeJpegPeer
from fast_train.benchmarks.peers.ffcv_imagenet import FfcvImagenet
from fast_train.benchmarks.peers.ffcv_readme import FfcvReadme
from fast_train.benchmarks.peers.image_folder import ImageFolderPeer
from fast_train.benchmarks.peers.mosaic_streaming import StreamingPeer
from fast_train.benchmarks.peers.notes_dataloader import NotesDataLoader
from fast_train.benchmarks.peers.tuned_dataloader import TunedDataLoader
from fast_train.benchmarks.peers.webdataset_shards import WebdatasetPeer

_ONE_SHAPE: tuple[type[Peer], ...] = (NotesDataLoader, TunedDataLoader, FfcvReadme, DaliStock)
_PHOTOGRAPHS: tuple[type[Peer], ...] = (
    *(ImageFolderPeer, DecodeJpegPeer, FfcvImagenet, DaliResnet50),
    *(WebdatasetPeer, StreamingPeer),
)
#: How most people load: what others are compared with.
BASELINES = (NotesDataLoader.name, ImageFolderPeer.name)


def peer_entries(*, ragged: bool) -> list[Entry]:
    """The recipes for images of one shape, or for images that keep their own."""
    return [peer.entry() for peer in (_PHOTOGRAPHS if ragged else _ONE_SHAPE)]
