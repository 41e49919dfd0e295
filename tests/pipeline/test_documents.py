"""What the documents say of the library: their examples run, and every setting is described."""

import dataclasses
import re
from pathlib import Path

from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.checkpoint import load_checkpoint

DOCUMENTS = Path(__file__).parents[2] / "docs"
_FROM_THE_DATA = {"num_classes", "image_size", "in_channels"}


def test_the_examples_run_as_they_stand(prepared, prepared_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/cifar10").symlink_to(prepared_path)
    # As a reader would run them: one after the other, in one folder.
    document = DOCUMENTS / "library.md"
    examples = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        exec(compile(example, str(document), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d+\.\d\d%", printed[-2])
    assert printed[-1] in prepared.manifest.classes
    assert load_checkpoint(Path("runs/example/last.pt"))["history"]


def test_every_setting_is_described_with_its_section():
    document = (DOCUMENTS / "recipes.md").read_text(encoding="utf-8")
    described = set()
    for section, first, others in re.findall(r"^\| `(\w+)\.(\w+)`((?:, `\w+`)*) \|", document, re.MULTILINE):
        described |= {f"{section}.{name}" for name in (first, *re.findall(r"\w+", others))}
    settings = {
        f"{section.name}.{setting.name}"
        for section in dataclasses.fields(Config)
        if dataclasses.is_dataclass(value := getattr(Config(), section.name))
        for setting in dataclasses.fields(value)
        if setting.name not in _FROM_THE_DATA
    }
    assert described == settings
