import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from PIL import Image

from fast_train.benchmarks.present.page import Document, Notice, write_document
from fast_train.benchmarks.present.picture import DARK, LIGHT, Picture
from fast_train.benchmarks.present.tables import Table, interval, number, percent


def _draw(figure: Figure, theme) -> None:
    axes = figure.subplots()
    for k, colour in enumerate(theme.series):
        axes.plot([0, 1], [k, k + 1], color=colour)
    axes.set_xlabel("images")


PICTURE = Picture(name="lines", title="Lines", caption="Seven lines <rising>.", size=(5, 3), draw=_draw)
TABLE = Table(["loader", "images/s"], [["resident", "1,000"], ["`a|b` <c>", "20"]], caption="Rates", strong=[0])
DOCUMENT = Document(
    "Report & more",
    "It is `fast`.",
    {"Loaders": ["Some text.", TABLE, PICTURE, Notice("warning", ["spread of 7 %", "a < b"])], "Nothing": [None]},
)


def _luminance(colour):
    """WCAG 2.1's relative luminance."""
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one, other):
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_text_and_lines_stand_out_from_the_background(theme):
    for ground in (theme.background, theme.surface):
        assert _contrast(theme.text, ground) > 7
        assert _contrast(theme.muted, ground) > 4.5
    assert len(set(theme.series)) == len(theme.series)
    assert min(_contrast(colour, theme.background) for colour in theme.series) > 2


def test_pictures_follow_the_theme():
    for theme, grey in ((LIGHT, 255), (DARK, 0x14)):
        with Image.open(io.BytesIO(PICTURE.render(theme, "png"))) as image:
            assert image.size == (650, 390)
            assert image.convert("RGB").getpixel((2, 2))[0] == grey


def test_the_same_picture_is_the_same_file():
    assert PICTURE.render(DARK, "svg") == PICTURE.render(DARK, "svg")


def test_each_theme_and_format_is_drawn_once(tmp_path):
    drawn = []

    def draw(figure, theme):
        drawn.append(theme.name)
        _draw(figure, theme)

    write_document(tmp_path, Document("Report", "", {"Lines": [replace(PICTURE, draw=draw)]}))
    assert sorted(drawn) == ["dark", "light", "light"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a report."""
    folder = tmp_path_factory.mktemp("deep") / "report"
    assert write_document(folder, DOCUMENT) == []
    return folder


def test_html_is_one_file_that_loads_nothing(written):
    page = (written / "report.html").read_text()
    assert not re.search(r"""(?:src|srcset|href)\s*=\s*["'](?!data:|#)""", page)
    assert not re.search(r"https?://|url\(|@import|<script", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "Report &amp; more" in page
    assert "&lt;rising&gt;" in page
    assert "<code>fast</code>" in page
    assert 'href="#loaders"' in page
    assert "Nothing" not in page
    assert 'id="loaders"' in page


def test_markdown_and_html_have_the_same_cells():
    markdown = [re.split(r"(?<!\\)\|", line)[1:-1] for line in TABLE.to_markdown().splitlines() if "|" in line]
    assert [cell.strip() for cell in markdown[1]] == ["---", "---:"]
    assert [cell.strip() for cell in markdown[2]] == ["**resident**", "**1,000**"]
    assert markdown[3][0].strip() == r"`a\|b` \<c\>"
    rows = ET.fromstring(TABLE.to_html()).findall(".//tr")
    assert ["".join(cell.itertext()) for cell in rows[2]] == ["a|b <c>", "20"]
    assert rows[1].get("class") == "strong"


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="row 1 of the table has 1 cells for 2 columns"):
        Table(["a", "b"], [["1", "2"], ["3"]])


def test_names_mean_nothing_to_markdown(tmp_path):
    name = r"a|b <i>c</i> [x](http://y) *d* _e_ f_g # h \ ~~i~~ &lt; `j`" + "\n# k"
    table = Table(["a_b", "- c"], [[name, "-"], ["# d", "1"]], caption=name, strong=[1])
    texts = [name, "# one", "- two", "+ three", "> four"]
    write_document(tmp_path, Document(name, name, {name: [*texts, table, Notice("note", texts)]}))
    tokens = MarkdownIt("commonmark").enable("table").parse((tmp_path / "report.md").read_text())
    lines = [token for token in tokens if token.type == "inline"]
    said = ["".join(part.content for part in line.children) for line in lines]
    plain = name.replace("`", "").replace("\n", " ")
    assert said == [
        *[plain] * 3, *[text.replace(name, plain) for text in texts], plain, "a_b", "- c", plain, "-", "# d", "1",
        "Note" + "".join(text.replace(name, plain) for text in texts),
    ]  # fmt: skip
    kinds = {part.type for line in lines for part in line.children}
    # Our own marks: code, a strong row, a caption, the lines of a note.
    assert kinds <= {
        "text",
        "code_inline",
        "strong_open",
        "strong_close",
        "em_open",
        "em_close",
        "hardbreak",
        "text_special",
    }
    assert {token.tag for token in tokens if token.type == "heading_open"} == {"h1", "h2"}


def test_files_of_a_report(written):
    assert {path.name for path in written.iterdir()} == {"lines.png", "lines.svg", "report.md", "report.html"}
    text = (written / "report.md").read_text()
    assert "![Lines](lines.png)" in text
    assert "> **Warning**" in text
    ET.parse(written / "lines.svg")


def test_a_picture_that_can_not_be_drawn_costs_the_report_nothing_else(tmp_path):
    def fail(figure, theme):
        raise RuntimeError("no font\nfound")

    bad = replace(PICTURE, name="bad", title="Worst", draw=fail)
    document = replace(DOCUMENT, sections={**DOCUMENT.sections, "More": [bad]})
    assert write_document(tmp_path, document) == ["the picture 'Worst' can't be drawn: no font found"]
    assert {path.name for path in tmp_path.iterdir()} == {"lines.png", "lines.svg", "report.md", "report.html"}
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "no font found" in text
        assert "bad.png" not in text


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (1234567, "1,234,567"), (12.345, "12.3"), (0.01234, "0.0123"), (None, "-"), (float("nan"), "-")],
)
def test_numbers_are_written_with_three_digits(value, text):
    assert number(value) == text


def test_intervals_and_shares():
    assert interval(1000.4, 2000.0) == "1,000 to 2,000"
    assert interval(None, 2.0) == ""
    assert percent(0.1234) == "12.3%"
    assert percent(None) == "-"
