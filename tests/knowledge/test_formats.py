"""Claims about documents people have: PDF, Office, web pages, books, notebooks, RST."""

import io
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorewright.errors import DataError, Unreadable
from lorewright.knowledge import markdown
from lorewright.knowledge.data import Knowledge
from lorewright.knowledge.markdown import with_tables_as_sentences
from lorewright.knowledge.readers.read import READERS, read_knowledge

for package in ("pypdfium2", "mammoth", "pptx", "openpyxl", "markdownify", "docutils"):
    pytest.importorskip(package, reason="pip install 'lorewright[documents]'")

TITLE = "Harbour handbook"
PROSE = "The backup runs at three every night. It is stored in Bergen by Aoife Byrne."
LAST = "Whoever needs a copy of last week writes to the office before noon."
PRICES = (("Berth", "Price"), ("Small", "20 EUR"), ("Large", "45 EUR"))
ITEMS = ("Ropes are in shed four.", "Keys are in shed nine.")


# --- the same document in every format


def docx(path: Path) -> None:
    import docx as word

    document = word.Document()
    document.add_heading(TITLE, 0)
    document.add_heading("Backups", 1)
    document.add_paragraph(PROSE)
    for item in ITEMS:
        document.add_paragraph(item, style="List Bullet")
    table = document.add_table(0, 2)
    for row in PRICES:
        for cell, text in zip(table.add_row().cells, row, strict=True):
            cell.text = text
    document.add_heading("How do I reset it?", 2)
    document.add_paragraph("Press the red knob.")
    document.save(str(path))


def pptx(path: Path) -> None:
    from pptx import Presentation
    from pptx.util import Inches

    presentation = Presentation()
    title = presentation.slides.add_slide(presentation.slide_layouts[5])
    title.shapes.title.text = TITLE
    title.shapes.add_textbox(0, 0, Inches(3), Inches(3)).text_frame.text = PROSE
    title.notes_slide.notes_text_frame.text = "The budget is 40 crowns."
    slide = presentation.slides.add_slide(presentation.slide_layouts[1])
    slide.shapes.title.text = "Backups"
    frame = slide.placeholders[1].text_frame
    frame.text = ITEMS[0]
    frame.add_paragraph().text = ITEMS[1]
    grid = slide.shapes.add_table(3, 2, 0, 0, Inches(3), Inches(3)).table
    for n, row in enumerate(PRICES):
        for m, text in enumerate(row):
            grid.cell(n, m).text = text
    question = presentation.slides.add_slide(presentation.slide_layouts[5])
    question.shapes.title.text = "How do I reset it?"
    question.shapes.add_textbox(0, 0, Inches(3), Inches(3)).text_frame.text = "Press the red knob."
    presentation.save(str(path))


def pdf(path: Path) -> None:
    from fpdf import FPDF

    document = FPDF()
    document.set_auto_page_break(False)
    for n in range(4):
        document.add_page()
        lines = [("", 9, "Port of Skelby"), *(PDF_PAGES[n])]
        for style, size, text in lines:
            document.set_font("helvetica", style, size)
            document.multi_cell(0, 6, text=text, new_x="LMARGIN", new_y="NEXT")
            document.ln(5)
        if n == 1:
            with document.table() as table:
                for cells in PRICES:
                    row = table.row()
                    for cell in cells:
                        row.cell(cell)
        document.set_y(-15)
        document.set_font("helvetica", size=9)
        document.cell(text=f"page {n + 1} of 4")
    document.output(str(path))


PDF_PAGES = (
    [("B", 22, TITLE), ("B", 15, "Backups"), ("", 11, f"{PROSE} {LAST}")],
    [("", 11, "Prices of berths follow.")],
    [("", 11, f"- {item}") for item in ITEMS],
    [("B", 11, "How do I reset it?"), ("", 11, "Press the red knob.")],
)


def html(path: Path) -> None:
    path.write_text(f"<!doctype html><html><head><title>{TITLE}</title></head><body>{BODY}</body>")


LIST = "".join(f"<li>{item}</li>" for item in ITEMS)
ROWS = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in PRICES)
BODY = f"""<nav><ul><li><a href="/">Imprint</a></li></ul></nav><script>let secret = 1</script>
<main><h1>{TITLE}</h1><h2>Backups</h2><p>{PROSE}</p><ul>{LIST}</ul>
<table>{ROWS}</table>
<!-- comment --><h3>How do I reset it?</h3><p>Press the red knob.</p>
<img src="data:image/png;base64,AAAA" alt=""><p hidden>hidden</p></main>"""


def epub(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml",
            '<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>',
        )
        archive.writestr(
            "OPS/book.opf",
            '<package xmlns:dc="d"><metadata><dc:title>Book</dc:title></metadata><manifest>'
            '<item id="n" href="nav.xhtml" properties="nav"/><item id="a" href="a%20b.xhtml"/>'
            '</manifest><spine><itemref idref="n"/><itemref idref="a"/></spine></package>',
        )
        archive.writestr("OPS/nav.xhtml", "<nav>Imprint</nav>")
        archive.writestr("OPS/a b.xhtml", f"<html><body>{BODY}</body></html>")


def ipynb(path: Path) -> None:
    table = markdown.table(PRICES)
    cells = [
        {"cell_type": "markdown", "source": [f"# {TITLE}\n", "\n", "## Backups\n", "\n", PROSE]},
        {"cell_type": "markdown", "source": "\n".join(f"- {item}" for item in ITEMS)},
        {"cell_type": "markdown", "source": table},
        {"cell_type": "markdown", "source": "### How do I reset it?\n\nPress the red knob."},
        {
            "cell_type": "code",
            "source": "print(6 * 7)",
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["42\n"]},
                {"output_type": "stream", "name": "stderr", "text": "warning"},
                {"output_type": "display_data", "data": {"image/png": "AA", "text/plain": "<F>"}},
                {"output_type": "error", "traceback": ["\x1b[0;31mE"]},
            ],
        },
    ]
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}))


def rst(path: Path) -> None:
    rows = "\n".join(f"{a:8}{b}" for a, b in PRICES[1:])
    path.write_text(
        f"{TITLE}\n================\n\n.. comment\n\nBackups\n-------\n\n"
        f"{PROSE.replace('Bergen', ':ref:`Bergen <b>`')}\n\n"
        + "\n".join(f"- {item}" for item in ITEMS)
        + f"\n\n======  ======\nBerth   Price\n======  ======\n{rows}\n======  ======\n\n"
        "How do I reset it?\n..................\n\nPress the red knob.\n\n"
        ".. toctree::\n\n   imprint\n"
    )


def xlsx(path: Path) -> None:
    from openpyxl import Workbook

    book = Workbook()
    sheet = book.active
    sheet.title = "Prices"
    for row in PRICES:
        sheet.append(row)
    facts = book.create_sheet("Questions")
    facts.append(["Question", "Answer"])
    facts.append(["How do I reset it?", "Press the red knob."])
    notes = book.create_sheet("Notes")
    for text in (PROSE, *ITEMS):
        notes.append([text])
    book.save(path)


MAKERS: dict[str, Callable[[Path], None]] = {
    ".docx": docx,
    ".epub": epub,
    ".html": html,
    ".ipynb": ipynb,
    ".pdf": pdf,
    ".pptx": pptx,
    ".rst": rst,
    ".xlsx": xlsx,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file a format, all with the same content."""
    folder = tmp_path_factory.mktemp("formats")
    made = {suffix: folder / f"a{suffix}" for suffix in MAKERS}
    for suffix, path in made.items():
        MAKERS[suffix](path)
    return made


@pytest.mark.parametrize("suffix", MAKERS)
def test_prose_lists_tables_and_question_headings_come_out_of_every_format(
    files: dict[str, Path], suffix: str
) -> None:
    knowledge = read_knowledge(files[suffix])
    (document,) = knowledge.documents
    (fact,) = knowledge.facts
    assert PROSE in document.text
    assert all(f"- {item}\n" in f"{document.text}\n" or suffix == ".xlsx" for item in ITEMS)
    assert all(item in document.text for item in ITEMS)
    assert "The price of Large is 45 EUR." in with_tables_as_sentences(document.text)
    assert (fact.question, fact.answer) == ("How do I reset it?", "Press the red knob.")
    assert document.title == ("a" if suffix == ".xlsx" else TITLE)


@pytest.mark.parametrize("suffix", MAKERS)
def test_what_is_no_knowledge_stays_out(files: dict[str, Path], suffix: str) -> None:
    text = read_knowledge(files[suffix]).documents[0].text
    for word in ("imprint", "secret", "comment", "hidden", "base64", "port of", "page 2"):
        assert word not in text.lower()
    assert "\x1b" not in text and "warning" not in text


@pytest.mark.parametrize("suffix", [s for s in MAKERS if s not in (".xlsx", ".pdf")])
def test_headings_have_their_level(files: dict[str, Path], suffix: str) -> None:
    assert "\n## Backups\n" in read_knowledge(files[suffix]).documents[0].text


def test_headings_of_a_pdf_are_its_larger_and_bold_lines(files: dict[str, Path]) -> None:
    text = read_knowledge(files[".pdf"]).documents[0].text
    assert f"# {TITLE}\n\n## Backups\n" in text and "### How do I reset it?\n" in text


def test_a_notebook_gives_its_code_and_what_it_printed(files: dict[str, Path]) -> None:
    knowledge = read_knowledge(files[".ipynb"])
    assert "```\nprint(6 * 7)\n```\n\n```\n42\n```" in knowledge.documents[0].text
    assert "pictures, errors and long outputs of cells are not read (3)" in knowledge.notes[-1]


def test_notes_of_a_speaker_are_read(files: dict[str, Path]) -> None:
    assert "The budget is 40 crowns." in read_knowledge(files[".pptx"]).documents[0].text


def test_what_is_left_out_is_named(files: dict[str, Path]) -> None:
    assert "directives that docutils does not know are not read: toctree" in notes_of(files[".rst"])
    assert "navigation" in notes_of(files[".html"])
    assert "lines that its pages begin or end with are not read" in notes_of(files[".pdf"])


def notes_of(path: Path) -> str:
    """All notes on a file as one text."""
    return " ".join(read_knowledge(path).notes)


# --- sheets


def test_merged_cells_dates_formulas_and_hidden_sheets(tmp_path: Path) -> None:
    import datetime

    from openpyxl import Workbook

    book = Workbook()
    sheet = book.active
    sheet.title = "Fees"
    rows = (
        ["Fees of the port"],
        ["Berth", "2024", None, "Since", "Sum"],
        [None, "Low", "High", None, None],
        ["Small", 20.0, 0.25, datetime.datetime(2024, 3, 1), "=B4+1"],
        ["Large", 45.5, 0.5, True, None],
    )
    for row in rows:
        sheet.append(row)
    sheet["C4"].number_format = "0%"
    sheet.merge_cells("A1:E1")
    sheet.merge_cells("B2:C2")
    book.create_sheet("Secret").append(["x", "y"])
    book["Secret"].sheet_state = "hidden"
    book.create_sheet("Empty")
    book.save(tmp_path / "fees.xlsx")
    knowledge = read_knowledge(tmp_path / "fees.xlsx")
    text = knowledge.documents[0].text
    assert text.startswith("## Fees\n\nFees of the port\n\n| Berth | 2024 Low | 2024 High | Since ")
    assert "| Small | 20 | 25 % | 2024-03-01 |  |" in text
    assert "| Large | 45.5 | 0.5 | yes |" in text
    notes = " ".join(knowledge.notes)
    assert "1 formulas have no stored value" in notes
    assert "hidden sheets are not read (Secret)" in notes


def test_a_table_of_any_columns_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "berths.csv"
    path.write_text("Berth;Price\nSmall;20 | 21 EUR\n")
    knowledge = read_knowledge(path)
    assert "The price of Small is 20 | 21 EUR." in with_tables_as_sentences(
        knowledge.documents[0].text
    )
    assert "read as a table" in knowledge.notes[0]
    path.write_text("Question,Reply\nWho?,Ada\n")
    with pytest.raises(DataError, match="no known shape"):
        read_knowledge(path)


# --- pages


def page(tmp_path: Path, content: str | bytes) -> Knowledge:
    """What is read of a web page."""
    path = tmp_path / "page.html"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_knowledge(path)


def test_cells_that_span_stand_in_every_row_and_column(tmp_path: Path) -> None:
    table = (
        "<table><tr><th rowspan=2>Berth<th colspan=2>2024<tr><th>Low<th>High"
        "<tr><td rowspan=2>Small<td>1<td>2<tr><td>3<td>4</table>"
    )
    text = page(tmp_path, table).documents[0].text
    assert text.split("\n") == [
        "| Berth | 2024 Low | 2024 High |",
        "|---|---|---|",
        "| Small | 1 | 2 |",
        "| Small | 3 | 4 |",
    ]


@pytest.mark.parametrize(
    "content",
    [
        '<meta charset="windows-1251"><p>Смотритель порта — Мария</p>'.encode("cp1251"),
        "<html><p>Смотритель порта — Мария</p>".encode("utf-16"),
        "<html><p>Смотритель порта — Мария</p>".encode(),
        '<meta charset="nonsense"><p>Смотритель порта — Мария</p>'.encode(),
    ],
)
def test_a_page_is_read_in_the_encoding_that_it_has(tmp_path: Path, content: bytes) -> None:
    assert page(tmp_path, content).documents[0].text == "Смотритель порта — Мария"


def test_a_page_without_body_and_with_open_elements_is_read(tmp_path: Path) -> None:
    assert page(tmp_path, "Words <p>and <b>more").documents[0].text == "Words\n\nand more"


def test_a_long_text_in_another_encoding_is_read_with_a_note(tmp_path: Path) -> None:
    text = "Смотритель порта живёт у старой мельницы и каждое утро открывает ворота. " * 8
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode("cp1251"))
    assert read_knowledge(path).documents[0].text == text
    assert "read as CP1251" in notes_of(path)
    path.write_bytes(text.encode()[:-3] + "я".encode()[:1] + b" end")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_knowledge(path)


def test_text_that_was_saved_in_a_wrong_encoding_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("The keeper is Zoë Müller – since May.".encode().decode("cp1252"))
    assert read_knowledge(path).documents[0].text == "The keeper is Zoë Müller – since May."
    assert "saved in a wrong encoding" in notes_of(path)
    path.write_text("Âme, Ãngel and 20 € – plain.")
    assert not read_knowledge(path).notes
    rows = tmp_path / "a.csv"
    rows.write_text("question,answer\nq,Â¡\n")
    assert read_knowledge(rows).facts[0].answer == "Â¡"


# --- what ends in a sentence


def refusal(path: Path) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(Unreadable) as caught:
        read_knowledge(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_scan_says_what_to_do(tmp_path: Path) -> None:
    from fpdf import FPDF
    from PIL import Image

    document = FPDF()
    document.add_page()
    document.image(Image.new("RGB", (20, 20), "red"))
    document.output(str(tmp_path / "scan.pdf"))
    assert "1 page and pictures only" in refusal(tmp_path / "scan.pdf")


def test_pages_without_text_are_named(tmp_path: Path, files: dict[str, Path]) -> None:
    from fpdf import FPDF

    document = FPDF()
    document.add_page()
    document.add_page()
    document.set_font("helvetica", size=11)
    document.cell(text="Text of the second page.")
    document.output(str(tmp_path / "a.pdf"))
    assert "no text is on page 1" in notes_of(tmp_path / "a.pdf")


def test_passwords_are_named(tmp_path: Path) -> None:
    from fpdf import FPDF

    document = FPDF()
    document.add_page()
    document.set_font("helvetica", size=11)
    document.cell(text="Secret text.")
    document.set_encryption(owner_password="a", user_password="b")
    document.output(str(tmp_path / "a.pdf"))
    assert "encrypted with a password" in refusal(tmp_path / "a.pdf")
    (tmp_path / "a.docx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600)
    assert "encrypted, or of Office 2003" in refusal(tmp_path / "a.docx")


@pytest.mark.parametrize("suffix", [s for s in MAKERS if s not in (".html", ".rst")])
def test_cut_off_files_are_refused(tmp_path: Path, files: dict[str, Path], suffix: str) -> None:
    content = files[suffix].read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content[: len(content) // 3])
    refusal(path)


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx", ".epub", ".pdf", ".html"])
@pytest.mark.parametrize(
    ("content", "kind"), [(b"\x89PNG\r\n\x1a\n" + b"\0" * 90, "a picture"), (b"%PDF-1.7", "a PDF")]
)
def test_a_renamed_file_is_called_what_it_is(
    tmp_path: Path, suffix: str, content: bytes, kind: str
) -> None:
    if suffix == ".pdf" and kind == "a PDF":
        pytest.skip("that is what it is")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert f"is {kind}" in refusal(path)


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx", ".epub"])
def test_one_archive_is_no_other(tmp_path: Path, files: dict[str, Path], suffix: str) -> None:
    other = files[".epub" if suffix != ".epub" else ".docx"]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(other.read_bytes())
    assert "is an archive and no" in refusal(path) or "is a ZIP archive and no" in refusal(path)


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx", ".epub"])
def test_what_unpacks_to_too_much_is_refused_unread(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bomb{suffix}"
    block = bytes(1 << 20)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("word/document.xml", "w") as part,
    ):
        for _ in range(65):
            part.write(block)
    assert "unpacks to" in refusal(path)


def test_entities_that_multiply_are_refused(tmp_path: Path) -> None:
    lines = ['<!ENTITY a0 "ha">']
    lines += [f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12)]
    content = f"<!DOCTYPE w [{''.join(lines)}]><w:document>&a11;</w:document>"
    for suffix, part in ((".docx", "word/document.xml"), (".xlsx", "xl/workbook.xml")):
        path = tmp_path / f"a{suffix}"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(part, content)
        refusal(path)


@pytest.mark.parametrize("suffix", READERS)
def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"large{suffix}"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(DataError, match="bytes; at most"):
        read_knowledge(path)


@pytest.mark.parametrize("suffix", READERS)
def test_an_empty_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.touch()
    with pytest.raises(DataError, match="is empty"):
        read_knowledge(path)


BEGINNINGS = (b"", b"PK\x03\x04", b"%PDF-1.7\n", b"<html><table>", b'{"cells": [', b"=\nA\n=\n.. ")


@pytest.mark.parametrize("suffix", READERS)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(start=st.sampled_from(BEGINNINGS), content=st.binary(max_size=300))
def test_no_reader_raises_anything_but_data_errors(
    tmp_path: Path, suffix: str, start: bytes, content: bytes
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(start + content)
    try:
        read_knowledge(path)
    except DataError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("suffix", MAKERS)
def test_a_damaged_file_is_read_or_refused(
    tmp_path: Path, files: dict[str, Path], suffix: str
) -> None:
    whole = files[suffix].read_bytes()
    chance = random.Random(7)
    path = tmp_path / f"a{suffix}"
    for _ in range(6):
        content = bytearray(whole)
        for _ in range(8):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            read_knowledge(path)
        except DataError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("suffix", [".docx", ".epub", ".pptx", ".xlsx"])
def test_damaged_markup_inside_an_archive_is_read_or_refused(
    tmp_path: Path, files: dict[str, Path], suffix: str
) -> None:
    chance = random.Random(7)
    path = tmp_path / f"a{suffix}"
    with zipfile.ZipFile(files[suffix]) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    names = [name for name in parts if name.endswith(("ml", ".rels", ".opf")) and parts[name]]
    for name in chance.choices(names, k=6):
        content = bytearray(parts[name])
        content[chance.randrange(len(content))] = chance.randrange(256)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for each, part in parts.items():
                archive.writestr(each, bytes(content) if each == name else part)
        path.write_bytes(packed.getvalue())
        try:
            read_knowledge(path)
        except DataError as error:
            assert str(path) in str(error)


# --- folders


def test_a_folder_reads_what_it_can_and_names_the_rest(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    for suffix in (".docx", ".pdf"):
        (tmp_path / f"report{suffix}").write_bytes(files[suffix].read_bytes())
    (tmp_path / "broken.docx").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "~$report.docx").write_bytes(b"lock")
    for n in range(30):
        (tmp_path / f"note{n:02}.txt").write_text(f"Note {n} says {n}.")
    knowledge = read_knowledge(tmp_path)
    assert {"report-docx", "report-pdf"} < {document.id for document in knowledge.documents}
    read, broken, others, hidden, *_ = knowledge.notes
    assert "note29.txt (1 document), report.docx (1 document, 1 fact)" in read
    assert "broken.docx is damaged or cut off" in broken and broken.startswith("not read: ")
    assert "photo.png" in others and "~$report.docx" in hidden


def test_a_folder_of_unreadable_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.docx").write_bytes(b"PK\x03\x04 no archive")
    assert "holds no file that can be read" in refusal(tmp_path)


def test_without_the_packages_the_sentence_names_the_extra(files: dict[str, Path]) -> None:
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("pypdfium2", "mammoth", "pptx", "openpyxl", "bs4", "docutils"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from lorewright.errors import Unreadable
from lorewright.knowledge.readers.read import read_knowledge
from pathlib import Path
for path in {[str(path) for path in files.values()]}:
    try:
        read_knowledge(Path(path))
    except Unreadable as error:
        assert "pip install 'lorewright[documents]'" in str(error), error
    else:
        assert path.endswith(".ipynb"), path
"""
    subprocess.run([sys.executable, "-c", code], check=True)
