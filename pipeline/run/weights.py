"""Weights that a training begins with: of a run of this project, or of a file with torchvision's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from fast_train.common.files import naming
from fast_train.common.text import show_path
from fast_train.data_prep.whole import sha256_of
from fast_train.pipeline.config.architectures import SPEEDNETS
from fast_train.pipeline.config.settings import ModelConfig
from fast_train.pipeline.engine.checkpoint import says_sum
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.models import build_model
from fast_train.pipeline.paths import checkpoints
from fast_train.pipeline.run.record import fitting, load

# torchvision's older files lack the counts of batches, which no arithmetic depends on.
_COUNT = ".num_batches_tracked"
_CLASSIFIER = "fc."
_GIVE = "give a run's folder, a checkpoint, or a .pth or .safetensors file of a network's state_dict()"


@dataclass(frozen=True)
class Weights:
    """A file's tensors by name, and its SHA-256. model, classes: of a file of this project, as far as it says them.
    notes: what there is to say of the file, a line each."""

    given: Path
    sha256: str
    tensors: Mapping[str, Tensor]
    model: ModelConfig | None = None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def network(self) -> dict[str, str | None]:
        """The settings of the network that they are of, as far as the file says; empty for one that does not."""
        if self.model is None:
            return {}
        if self.model.arch in SPEEDNETS:
            return {"arch": self.model.arch}
        return {
            "arch": self.model.arch,
            "stem": self.model.first_layers,
            "shortcut": self.model.shortcut,
            "activation": self.model.activation,
        }

    def fitted(self, model: ModelConfig, classes: tuple[str, ...]) -> dict[str, Tensor]:
        """Those that a network of ``model`` for ``classes`` begins with: all but the classifier's, and these too where
        the classes, or of an unknown file their number, are the same. ConfigError where one is missing, left over or of
        another shape, and for another file than ``model`` says."""
        if model.weights_sha256 not in (None, self.sha256):
            raise ConfigError(
                f"{show_path(self.given)} is another file: its SHA-256 is {self.sha256}, not {model.weights_sha256}; "
                "give the right --weights"
            )
        with torch.device("meta"):
            wanted = {name: tensor.shape for name, tensor in build_model(model).state_dict().items()}
        tensors = self.tensors
        if not self._same(classes):
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_CLASSIFIER)}
            wanted = {name: shape for name, shape in wanted.items() if not name.startswith(_CLASSIFIER)}
        for name in (*wanted, *tensors):
            shapes = [tuple(tensors[name].shape) if name in tensors else None, wanted.get(name)]
            if shapes[0] != shapes[1] and not name.endswith(_COUNT):
                raise ConfigError(self._misfit(name, model, *shapes))
        return {name: tensor for name, tensor in tensors.items() if name in wanted}

    def _same(self, classes: tuple[str, ...]) -> bool:
        return self._outputs == len(classes) if self.classes is None else self.classes == classes

    @property
    def _outputs(self) -> int | None:
        weight = self.tensors.get(f"{_CLASSIFIER}weight")
        return len(weight) if weight is not None and weight.dim() else None

    def _misfit(
        self, name: str, model: ModelConfig, here: tuple[int, ...] | None, wanted: tuple[int, ...] | None
    ) -> str:
        path, advice = show_path(self.given), "give the --arch that the weights are of"
        if name == "conv1.weight" and here and wanted and here[2:] != wanted[2:]:
            stem = "imagenet" if here[-1] == 7 else "cifar"
            advice = f"add --set model.stem={stem}, or {advice}"
        elif name == "conv1.weight" and here and wanted and here[1:2] != wanted[1:2]:
            advice = f"give weights of images of {wanted[1]} channels"
        has = _words(model)
        if here is None:
            return f"{path} lacks {name}, which {has} has; {advice}"
        if wanted is None:
            return f"{path} holds {name}, which {has} lacks; {advice}"
        return f"{path} holds {name} of shape {list(here)}, and {has} has it of {list(wanted)}; {advice}"

    def note(self, model: ModelConfig, classes: tuple[str, ...]) -> str:
        """What a training takes of them, in a line; ConfigError as of `fitted`."""
        taken = self.fitted(model, classes)
        line = f"weights: {len(taken)} tensors of {show_path(self.given)}"
        if self.model is not None:
            line += f", {_words(model)}"
        if any(name.startswith(_CLASSIFIER) for name in taken):
            return line
        if self._outputs is None:
            why = "there is none"
        elif self._outputs == len(classes):
            why = "other classes, or in another order"
        else:
            why = f"{len(classes)} classes instead of {self._outputs}"
        return f"{line}; fc starts anew: {why}"


def _words(model: ModelConfig) -> str:
    return model.arch if model.arch in SPEEDNETS else f"{model.arch} with {model.first_layers} stem"


def no_weights(given: Path) -> ConfigError:
    return ConfigError(f"no weights at {show_path(given)}; {_GIVE}")


def read_weights(given: Path) -> Weights:
    """Read a run's folder or a checkpoint as `load` does, and take its averaged weights where it has such; or a state
    dict that `torch.save` or safetensors wrote.

    Raises ConfigError or CheckpointError, in one line, for what is not there or can't be read. Nothing in the file is
    executed.
    """
    if not (checkpoints(given) if given.is_dir() else given.is_file()):
        raise no_weights(given)
    if given.is_dir() or says_sum(given):
        return _of_run(given)
    with naming(given), open(given, "rb") as file:
        digest = sha256_of(file)
        file.seek(0)
        try:
            if given.suffix == ".safetensors":
                return _of_safetensors(given, digest)
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # both libraries raise many kinds for a damaged file
            raise ConfigError(f"{show_path(given)} is damaged, or holds more than tensors by name; {_GIVE}") from error
    if isinstance(state, dict) and "format_version" in state:
        # Of an earlier version.
        return _of_run(given)
    return Weights(given, digest, _tensors(state, given))


def _tensors(state: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise ConfigError(f"{show_path(path)} holds more than tensors by name; {_GIVE}")
    return {str(name): tensor for name, tensor in state.items()}


def _of_safetensors(path: Path, digest: str) -> Weights:
    with safe_open(path, "pt") as file:
        # Those of `fast-export` say which classes they are for.
        classes = json.loads((file.metadata() or {}).get("classes", "null"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return Weights(path, digest, tensors, classes=None if classes is None else tuple(classes))


def _of_run(given: Path) -> Weights:
    saved = load(given)
    with naming(saved.path), open(saved.path, "rb") as file:
        digest = sha256_of(file)
    with fitting(saved.path):
        tensors = _tensors(saved.weights, saved.path)
    return Weights(given, digest, tensors, saved.config.model, tuple(saved.state["classes"]), saved.notes)
