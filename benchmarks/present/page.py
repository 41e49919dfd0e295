"""A report: sections of text, tables and pictures, written as markdown and as one HTML file that opens offline.

The HTML loads nothing: styles stand in it, pictures are inlined as SVG, once for the light and once for the dark
scheme, and the reader's system chooses.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fast_train.benchmarks.present.picture import DARK, LIGHT, Picture, Theme
from fast_train.benchmarks.present.tables import Table, inline_html, inline_markdown
from fast_train.common.files import whole_file
from fast_train.common.text import one_line


@dataclass(frozen=True)
class Notice:
    """A box that stands out. kind: ``warning`` or ``note``. lines: one statement each."""

    kind: str
    lines: Sequence[str]

    def __post_init__(self) -> None:
        if self.kind not in _NOTICES:
            raise ValueError(f"unknown kind '{self.kind}' of a notice; give {' or '.join(_NOTICES)}")


#: A paragraph of plain text (with ``code`` between backticks), a table, a picture or a box.
Block = str | Table | Picture | Notice
_NOTICES = {"warning": "Warning", "note": "Note"}


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Drawn:
    """A picture's SVG in both themes. Drawing takes most of a report's time, so each is drawn once."""

    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Document:
    """A whole report. lead: a sentence below the title, that says what was found."""

    title: str
    lead: str
    sections: Sequence[Section]

    @classmethod
    def of(
        cls, title: str, lead: str, sections: Mapping[str, Sequence[Block | None]], warnings: Sequence[str]
    ) -> Document:
        """A report that begins with its warnings. None stands for what there is not; empty sections are left out."""
        first = [Notice("warning", warnings)] if warnings else []
        kept = {
            heading: [block for block in blocks if block is not None]
            for heading, blocks in {"Read this first": first, **sections}.items()
        }
        return cls(title, lead, [Section(heading, blocks) for heading, blocks in kept.items() if blocks])

    def pictures(self) -> list[Picture]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Picture)]

    def without(self, reasons: Mapping[str, str]) -> Document:
        """The same with a box in place of each picture that could not be drawn. reasons: by the picture's name."""

        def kept(block: Block) -> Block:
            reason = reasons.get(block.name) if isinstance(block, Picture) else None
            return block if reason is None else Notice("warning", [reason])

        return replace(self, sections=[replace(s, blocks=[kept(block) for block in s.blocks]) for s in self.sections])

    def to_markdown(self) -> str:
        """Markdown that refers to the pictures' PNG files beside it."""
        parts = [f"# {inline_markdown(self.title)}", inline_markdown(self.lead)]
        for section in self.sections:
            parts.append(f"## {inline_markdown(section.title)}")
            parts += [_markdown_block(block) for block in section.blocks]
        return "\n\n".join(part.strip() for part in parts if part) + "\n"

    def to_html(self, drawn: Mapping[str, Drawn]) -> str:
        """One HTML file with all that it shows inside. drawn: of each picture by its name."""
        body = "\n".join(
            f'<section id="{_anchor(s.title)}">\n<h2>{html.escape(s.title)}</h2>\n'
            + "\n".join(_html_block(block, drawn) for block in s.blocks)
            + "\n</section>"
            for s in self.sections
        )
        links = " ".join(f'<a href="#{_anchor(s.title)}">{html.escape(s.title)}</a>' for s in self.sections)
        title = html.escape(self.title)
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="color-scheme" content="light dark">\n<style>\n{_css()}</style>\n</head>\n<body>\n<main>\n'
            f"<header>\n<h1>{title}</h1>\n<p>{inline_html(self.lead)}</p>\n<nav>{links}</nav>\n</header>\n"
            f"{body}\n</main>\n</body>\n</html>\n"
        )


def write_document(folder: Path, document: Document, name: str = "report") -> list[str]:
    """Write NAME.md, each picture as PNG and SVG, and NAME.html; returns a line on each picture that can't be drawn.

    A report is worth having without its pictures: whatever goes wrong with one, the rest is written.
    """
    drawn: dict[str, Drawn] = {}
    reasons: dict[str, str] = {}
    pictures: dict[str, bytes] = {}
    for picture in document.pictures():
        try:
            made = Drawn(light=picture.render(LIGHT, "svg"), dark=picture.render(DARK, "svg"))
            pictures |= {f"{picture.name}.png": picture.render(LIGHT, "png"), f"{picture.name}.svg": made.light}
            drawn[picture.name] = made
        except Exception as error:
            reasons[picture.name] = f"the picture '{picture.title}' can't be drawn: {one_line(error)}"
    document = document.without(reasons)
    text, page = document.to_markdown().encode(), document.to_html(drawn).encode()
    write_files(folder, {f"{name}.md": text, **pictures, f"{name}.html": page})
    return list(reasons.values())


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, one after the other; the folder is made if it is not there. Each is whole or not
    there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with whole_file(folder / name) as file:
            file.write(content)


def _markdown_block(block: Block) -> str:
    if isinstance(block, Table):
        return block.to_markdown()
    if isinstance(block, Picture):
        return f"![{inline_markdown(block.title)}]({block.name}.png)\n\n{inline_markdown(block.caption)}"
    if isinstance(block, Notice):
        lines = [f"**{_NOTICES[block.kind]}**", *map(inline_markdown, block.lines)]
        return "\n".join(f"> {line}  " for line in lines)
    return inline_markdown(block)


def _html_block(block: Block, drawn: Mapping[str, Drawn]) -> str:
    if isinstance(block, Table):
        return block.to_html()
    if isinstance(block, Picture):
        light, dark = _inline(drawn[block.name].light), _inline(drawn[block.name].dark)
        return (
            f'<figure>\n<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
            f'<img src="{light}" alt="{html.escape(block.title)}. {html.escape(block.caption)}" '
            f'width="{block.size[0] * 96:.0f}">\n</picture>\n<figcaption>{inline_html(block.caption)}</figcaption>\n'
            "</figure>"
        )
    if isinstance(block, Notice):
        items = "".join(f"<li>{inline_html(line)}</li>" for line in block.lines)
        return f'<aside class="{block.kind}"><strong>{_NOTICES[block.kind]}</strong><ul>{items}</ul></aside>'
    return f"<p>{inline_html(block)}</p>"


def _inline(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _anchor(title: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


def _css() -> str:
    return _STYLE.replace("LIGHT", _variables(LIGHT)).replace("DARK", _variables(DARK))


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
