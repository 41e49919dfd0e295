"""The baseline's loading: a DataLoader of four workers, PIL images, torchvision's first transforms.

The study notes that this project grew out of train so: ``RandomHorizontalFlip``, ``ToTensor``, ``Normalize`` by a half,
batches moved to the device in the loop. They follow PyTorch's tutorial "Training a classifier"
(pytorch.org, tutorials/beginner/blitz/cifar10_tutorial).
"""

from __future__ import annotations

from PIL import Image
from torchvision import transforms

from fast_train.benchmarks.instrument.feeds import FeedOptions
from fast_train.benchmarks.peers.dataloader import DataLoaderPeer, ImageDataset


class NotesDataLoader(DataLoaderPeer):
    """New workers each epoch, as in the notes."""

    name = "baseline DataLoader"
    source = "PyTorch's tutorial 'Training a classifier', with four workers"
    augmentation = "flip on PIL images"
    fixed_workers = 4
    pinned = False

    def dataset(self, options: FeedOptions) -> ImageDataset:
        if options.raw:
            raise ValueError("its transforms make normalised floats on the CPU; it has no way to give bytes")
        packed = self.prepared.packed("train")
        if packed.images.shape[3] != 3:
            raise ValueError(f"its transforms take RGB images, these have {packed.images.shape[3]} channels")
        half = (0.5,) * 3
        steps = [Image.fromarray, transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        return ImageDataset(
            packed.images, packed.labels, transforms.Compose([*steps, transforms.Normalize(half, half)])
        )
