"""A trained network as a file for other programs."""

from __future__ import annotations

import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fast_train.common.files import whole_file
from fast_train.common.version import VERSION
from fast_train.data_prep.images import Reading
from fast_train.data_prep.keep import Keeping
from fast_train.pipeline.engine.augmentation import normalisation
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.models import build_model
from fast_train.pipeline.paths import make_folder
from fast_train.pipeline.run.predict import stored_shape
from fast_train.pipeline.run.record import Saved, fitting

# The network is traced with two images and compared with five, so that it holds for any number.
_TRACED, _COMPARED = 2, 5
#: The largest difference of a logit from PyTorch's that is let pass, as a part of the largest logit, or of 1.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """path: the file. metadata: what it says of itself, docs/commands.md. difference: the largest of its logits from
    PyTorch's, of random images; None where it was not compared."""

    path: Path
    metadata: Mapping[str, str]
    difference: float | None


class _OfBytes(nn.Module):
    """A network with the normalisation of its input: uint8 [N, H, W, C] to logits float32 [N, K]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        centre, deviation = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
        self.register_buffer("scale", (1 / (255 * deviation)).float())
        self.register_buffer("shift", (-centre / deviation).float())

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.permute(0, 3, 1, 2).float() * self.scale + self.shift)
        return logits


def export(saved: Saved, to: str, path: Path) -> Exported:
    """Write a checkpoint's network, in float32 and with the weights that an evaluation takes, as ``onnx``, ``pt2`` or
    ``weights`` (`pipeline.paths.EXPORTS`). ConfigError for a checkpoint that does not fit its network, and where the
    written network's logits differ from PyTorch's by more than `TOLERANCE`; nothing is left then."""
    network = build_model(saved.config.model)
    with fitting(saved.path):
        network.load_state_dict(saved.weights)
        mean, std = normalisation(saved.state["mean"], saved.state["std"], saved.config.data.normalise)
    shape, metadata = _described(saved)
    difference = None
    if to == "weights":
        metadata["input"] = "float32 [N, {2}, {0}, {1}], (byte / 255 - mean) / std".format(*shape)
        metadata |= {"mean": json.dumps(mean), "std": json.dumps(std)}
        weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        data = safetensors.torch.save(weights, metadata)
    else:
        model = _OfBytes(network, mean, std).requires_grad_(False).eval()
        images = torch.randint(0, 256, (_COMPARED, *shape), generator=torch.Generator().manual_seed(0)).byte()
        any_number = ({0: torch.export.Dim("N", min=1)},)
        program = torch.export.export(model, (images[:_TRACED],), dynamic_shapes=any_number)
        data, run = (_as_onnx if to == "onnx" else _as_pt2)(program, metadata)
        difference = None if run is None else _difference(run(images), model(images))
    make_folder(path.parent)
    with whole_file(path) as file:
        file.write(data)
    return Exported(path, metadata, difference)


def _described(saved: Saved) -> tuple[tuple[int, ...], dict[str, str]]:
    """(H, W, C) of the network's images, and what a file says of itself: text or JSON. ``resize``: how evaluation
    brings an image to that size, step by step; a centre_square is a part of the shorter side."""
    crop, stored = saved.config.evaluated_crop, stored_shape(saved)
    size: tuple[int, ...] = stored or ()
    steps: list[dict[str, Any]] = []
    if stored is None:
        keeping = Keeping.from_dict(saved.state.get("keeping", {}))
        steps.append({"shorter_side_at_most": keeping.shorter_side, "filter": "lanczos"})
    else:
        reading = Reading.from_dict(saved.state.get("reading", {}))
        steps.append({"size": size, "fit": reading.fit, "background": reading.background, "filter": "lanczos"})
    if crop is not None:
        size = (crop.size, crop.size)
        steps.append({"centre_square": crop.centre, "size": size, "filter": "bilinear, antialiased"})
    shape, classes = (*size, saved.config.model.in_channels), saved.state["classes"]
    return shape, {
        "fast_train": VERSION,
        "arch": saved.config.model.arch,
        "classes": json.dumps(classes, ensure_ascii=False),
        "image_shape": json.dumps(shape),
        "resize": json.dumps(steps),
        "input": f"images: uint8 [N, {', '.join(map(str, shape))}]",
        "output": f"logits: float32 [N, {len(classes)}], in the order of the classes",
    }


#: A file's content, and what runs the network in it, where that can be run here.
_Written = tuple[bytes, Callable[[Tensor], Tensor] | None]


def _as_pt2(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> _Written:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    file.seek(0)
    return file.getvalue(), torch.export.load(file).module()


def _as_onnx(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> _Written:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"])
    assert onnx is not None
    onnx.model.metadata_props.update(metadata)
    data = onnx.model_proto.SerializeToString()
    if importlib.util.find_spec("onnxruntime") is None:
        return data, None
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _difference(logits: Tensor, expected: Tensor) -> float:
    """The largest one; ConfigError where it is above `TOLERANCE`, or logits are no finite numbers."""
    found = float((logits - expected).abs().max())
    if not found <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ConfigError(
            f"the exported network's logits differ from PyTorch's by up to {found:.3g}, so nothing was written; try "
            "other versions of the packages, or another --to"
        )
    return found
