"""A report: sections of text, tables and pictures, written as markdown and as one HTML file that opens offline.

The HTML loads nothing: styles stand in it, pictures are inlined as SVG, once for the light and once for the dark
scheme, and the reader's system chooses.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from fast_train.benchmarks.present.picture import DARK, LIGHT, Picture, Theme
from fast_train.benchmarks.present.tables import Table, inline_html, inline_markdown
from fast_train.common.files import whole_file
from fast_train.common.text import one_line


@dataclass(frozen=True)
class Notice:
    """A box that stands out. lines: one statement each."""

    kind: Literal["warning", "note"]
    lines: Sequence[str]


#: A paragraph of plain text (with ``code`` between backticks), a table, a picture or a box.
Block = str | Table | Picture | Notice
_Ready: TypeAlias = "str | Table | Drawn | Notice"
_NOTICES = {"warning": "Warning", "note": "Note"}


@dataclass(frozen=True)
class Drawn:
    """A picture's files. Drawing takes most of a report's time, so each is drawn once."""

    picture: Picture
    png: bytes
    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Document:
    """A whole report. lead: a sentence below the title, that says what was found. sections: what stands below which
    heading; None stands for what there is not, and empty sections are left out. warnings: what is to be read first."""

    title: str
    lead: str
    sections: Mapping[str, Sequence[Block | None]]
    warnings: Sequence[str] = ()


def write_document(folder: Path, document: Document) -> list[str]:
    """Write report.md, each picture as PNG and SVG, and report.html; returns a line on each picture that can't be
    drawn.

    A report is worth having without its pictures: whatever goes wrong with one, the rest is written.
    """
    first = {"Read this first": [Notice("warning", document.warnings)]} if document.warnings else {}
    undrawn = list[str]()
    sections: dict[str, list[_Ready]] = {}
    for heading, blocks in {**first, **document.sections}.items():
        if ready := [_drawn(block, undrawn) for block in blocks if block is not None]:
            sections[heading] = ready
    files = {"report.md": _markdown(document, sections)}
    for drawn in (block for blocks in sections.values() for block in blocks if isinstance(block, Drawn)):
        files |= {f"{drawn.picture.name}.png": drawn.png, f"{drawn.picture.name}.svg": drawn.light}
    write_files(folder, {**files, "report.html": _html(document, sections)})
    return undrawn


def _drawn(block: Block, undrawn: list[str]) -> _Ready:
    """A picture with its files, or a box in its place."""
    if not isinstance(block, Picture):
        return block
    try:
        return Drawn(block, block.render(LIGHT, "png"), block.render(LIGHT, "svg"), block.render(DARK, "svg"))
    except Exception as error:
        undrawn.append(f"the picture '{block.title}' can't be drawn: {one_line(error)}")
        return Notice("warning", undrawn[-1:])


def _markdown(document: Document, sections: Mapping[str, Sequence[_Ready]]) -> bytes:
    """Markdown that refers to the pictures' PNG files beside it."""
    parts = [f"# {inline_markdown(document.title)}", inline_markdown(document.lead)]
    for heading, blocks in sections.items():
        parts += [f"## {inline_markdown(heading)}", *map(_markdown_block, blocks)]
    return ("\n\n".join(part.strip() for part in parts if part) + "\n").encode()


def _html(document: Document, sections: Mapping[str, Sequence[_Ready]]) -> bytes:
    """One HTML file with all that it shows inside."""
    body = "\n".join(
        f'<section id="{_anchor(heading)}">\n<h2>{html.escape(heading)}</h2>\n'
        + "\n".join(map(_html_block, blocks))
        + "\n</section>"
        for heading, blocks in sections.items()
    )
    links = " ".join(f'<a href="#{_anchor(heading)}">{html.escape(heading)}</a>' for heading in sections)
    title = html.escape(document.title)
    style = _STYLE.replace("LIGHT", _variables(LIGHT)).replace("DARK", _variables(DARK))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n'
        f"<header>\n<h1>{title}</h1>\n<p>{inline_html(document.lead)}</p>\n<nav>{links}</nav>\n</header>\n"
        f"{body}\n</main>\n</body>\n</html>\n"
    ).encode()


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, one after the other; the folder is made if it is not there. Each is whole or not
    there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with whole_file(folder / name) as file:
            file.write(content)


def _markdown_block(block: _Ready) -> str:
    if isinstance(block, Table):
        return block.to_markdown()
    if isinstance(block, Drawn):
        picture = block.picture
        return f"![{inline_markdown(picture.title)}]({picture.name}.png)\n\n{inline_markdown(picture.caption)}"
    if isinstance(block, Notice):
        lines = [f"**{_NOTICES[block.kind]}**", *map(inline_markdown, block.lines)]
        return "\n".join(f"> {line}  " for line in lines)
    return inline_markdown(block)


def _html_block(block: _Ready) -> str:
    if isinstance(block, Table):
        return block.to_html()
    if isinstance(block, Drawn):
        picture, light, dark = block.picture, _inline(block.light), _inline(block.dark)
        return (
            f'<figure>\n<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
            f'<img src="{light}" alt="{html.escape(picture.title)}. {html.escape(picture.caption)}" '
            f'width="{picture.size[0] * 96:.0f}">\n</picture>\n'
            f"<figcaption>{inline_html(picture.caption)}</figcaption>\n</figure>"
        )
    if isinstance(block, Notice):
        items = "".join(f"<li>{inline_html(line)}</li>" for line in block.lines)
        return f'<aside class="{block.kind}"><strong>{_NOTICES[block.kind]}</strong><ul>{items}</ul></aside>'
    return f"<p>{inline_html(block)}</p>"


def _inline(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _anchor(title: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


def _variables(theme: Theme) -> str:
    names = ("background", "surface", "text", "muted", "grid", "highlight")
    return " ".join(f"--{name}: {getattr(theme, name)};" for name in names)


_STYLE = """\
:root { LIGHT --link: #0059A0; }
@media (prefers-color-scheme: dark) { :root { DARK --link: #7CC4F5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--background); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 2.75rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--grid); }
header p { font-size: 1.1rem; color: var(--muted); max-width: 50rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .92rem; }
a { color: var(--link); }
p { max-width: 50rem; }
code { font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .88em;
  background: var(--surface); border-radius: 3px; padding: .1em .3em; overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding-bottom: .4rem; }
th, td { text-align: left; padding: .35rem .8rem; border-bottom: 1px solid var(--grid); vertical-align: top; }
th { border-bottom: 2px solid var(--muted); font-weight: 600; }
th.number, td.number { text-align: right; white-space: nowrap; }
tr.strong td { font-weight: 650; background: var(--surface); }
figure { margin: 1.25rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--muted); font-size: .92rem; max-width: 50rem; margin-top: .4rem; }
aside { background: var(--surface); border-left: 4px solid var(--muted); padding: .7rem 1rem; margin: 1rem 0; }
aside.warning { border-left-color: var(--highlight); }
aside ul { margin: .3rem 0 0; padding-left: 1.2rem; }
"""
