"""The examples of docs/library.md, as a reader would run them: one after the other, in one folder."""

import re
from pathlib import Path

from pipeline.checkpoint import load_checkpoint

DOCUMENT = Path(__file__).parents[2] / "docs" / "library.md"


def test_the_examples_run_as_they_stand(prepared, prepared_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/cifar10").symlink_to(prepared_path)
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        exec(compile(example, str(DOCUMENT), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d+\.\d\d%", printed[-2])
    assert printed[-1] in prepared.manifest.classes
    assert load_checkpoint(Path("runs/example/last.pt"))["history"]
