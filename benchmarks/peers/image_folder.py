"""How most people load photographs: torchvision's ImageFolder, and RandomResizedCrop on PIL images.

By PyTorch's own example of training on ImageNet (pytorch/examples, imagenet/main.py): ``RandomResizedCrop``,
``RandomHorizontalFlip``, ``ToTensor``, ``Normalize``; a DataLoader with pinned memory whose workers begin anew in each
epoch. Their number is a flag there, and here as everywhere.
"""

from __future__ import annotations

from torchvision.datasets import ImageFolder

from fast_train.benchmarks.instrument.feeds import PILLOW, FeedOptions
from fast_train.benchmarks.peers.dataloader import DataLoaderPeer, pil_transforms
from fast_train.benchmarks.peers.written import class_folders


class ImageFolderPeer(DataLoaderPeer):
    """Reads the set's files, one of each image, from class folders."""

    name = "ImageFolder"
    source = "pytorch/examples, imagenet/main.py"
    augmentation = "RandomResizedCrop, flip on PIL images"
    decoder = PILLOW

    def dataset(self, options: FeedOptions) -> ImageFolder:
        return ImageFolder(str(class_folders(options.prepared, options.scratch) / "train"), pil_transforms(self))
