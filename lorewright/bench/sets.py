"""Public data sets as they are published, from a file or the hub: edits; texts with questions.

    counterfact   requested_rewrite {prompt, subject, target_new {str}, target_true {str}},
                  paraphrase_prompts, neighborhood_prompts                       (ROME, MEMIT)
    paperqa       title, introduction, QA [{question, answer, level}]            (one paper a row)
    narrativeqa   document {id, kind, summary {text}, text}, question {text}, answers [{text}]
    quality       article_id, article, questions [{question, options, gold_label, difficult}]; or a
                  question a row

A file is JSON (a list, or an object with ``data``) or JSON lines; rows of one text are joined;
other keys are ignored. Where no file is given, edits are the packaged ones: statements of our own
in CounterFact's shape. Knows shapes; nothing of models or of what is done with texts.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lorewright.errors import ConfigError, DataError
from lorewright.files import digest, jsonl_rows, read_text

HUB = "hub"
PACKAGED = ""
"""Stands for the file of a set that comes along."""
EDITS = Path(__file__).parent / "edits.json"
"""Statements of our own in CounterFact's shape."""
PARTS = ("summary", "text")
"""What is read of a NarrativeQA document: the summary, or the whole book or script."""
EASY, HARD = "easy", "hard"
_MARKUP = re.compile(r"</?(?:p|br|div|span|html|body|i|b)\b[^>]*>", re.IGNORECASE)


@dataclass(frozen=True)
class Edit:
    """A false statement to be written, how else it can be put, and what must stay as it is."""

    id: str
    prompt: str
    """The beginning of the statement, with the subject in it."""
    new: str
    true: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[str, ...]
    """Prompts about other subjects, of which ``true`` holds."""


@dataclass(frozen=True)
class Question:
    """A question on a text."""

    text: str
    answers: tuple[str, ...]
    kind: str = ""
    """Level or difficulty, as the set has it."""
    options: tuple[str, ...] = ()
    right: int = 0
    """Index of the right option."""


@dataclass(frozen=True)
class Text:
    """A text with the questions on it."""

    id: str
    title: str
    text: str
    questions: tuple[Question, ...]


@functools.lru_cache(maxsize=4)
def edits(data: str, limit: int = 0) -> tuple[Edit, ...]:
    """Return the first edits of a file, of the hub or of the packaged file, all with 0.

    Raises DataError for what has another shape, ConfigError for a hub that cannot be reached.
    """
    by_id: dict[str, Edit] = {}
    for edit in map(_edit, islice(_rows("counterfact", data), limit or None)):
        if edit.id in by_id:
            raise DataError(f"{data} holds {edit.id} twice; give each its own case_id.")
        by_id[edit.id] = edit
    return tuple(by_id.values())


@functools.lru_cache(maxsize=4)
def texts(name: str, data: str, limit: int = 0, part: str = PARTS[0]) -> tuple[Text, ...]:
    """Return the first texts of a set from a file or the hub, all with 0; ``part``: see PARTS.

    Raises DataError for what has another shape, ConfigError for an unknown set or part, or a hub
    that cannot be reached.
    """
    if name not in _TEXT_OF:
        raise ConfigError(f"set {name!r} is unknown; use one of {', '.join(_TEXT_OF)}.")
    if part not in PARTS:
        raise ConfigError(f"part {part!r} is unknown; use one of {', '.join(PARTS)}.")
    joined: dict[str, Text] = {}
    for row in _rows(name, data):
        text = _TEXT_OF[name](row, part)
        if text.id in joined:
            before = joined[text.id]
            joined[text.id] = replace(before, questions=before.questions + text.questions)
        elif limit and len(joined) == limit:
            break
        else:
            joined[text.id] = text
    return tuple(joined.values())


def limit_of(data: str, n: int) -> int:
    """Return how much of a set its jobs read: of the hub `n`, of a file, packaged or not, all.

    So that a sweep over a file can be made longer and does only what is new.
    """
    return n if data.partition(":")[0] == HUB else 0


def located(data: str) -> str:
    """Return data as it can be read from any folder: a file by its whole path, others as given."""
    if data == PACKAGED or data.partition(":")[0] == HUB:
        return data
    return str(Path(data).resolve())


# -- rows ----------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """An object and where it stands, with checked access by key."""

    where: str
    shape: str
    values: Mapping[str, Any]

    def refuse(self, wanted: str) -> DataError:
        keys = ", ".join(map(str, self.values)) or "none"
        return DataError(f"{self.where} has the keys {keys}; {self.shape} needs {wanted}.")

    def text(self, key: str) -> str:
        value = self.values.get(key)
        value = str(value) if type(value) is int else value
        if not isinstance(value, str) or not value.strip():
            raise self.refuse(f"{key!r}, a text that is not empty")
        return value.strip()

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
            raise self.refuse(f"{key!r}, a list of texts")
        return tuple(v.strip() for v in value)

    def number(self, key: str) -> int:
        value = self.values.get(key)
        if type(value) is not int:
            raise self.refuse(f"{key!r}, a whole number")
        return value

    def child(self, key: str) -> _Row:
        value = self.values.get(key)
        if not isinstance(value, Mapping):
            raise self.refuse(f"{key!r}, an object")
        return _Row(f"{self.where}, {key}", self.shape, value)

    def children(self, key: str) -> list[_Row]:
        value = self.values.get(key)
        if not isinstance(value, list) or not value:
            raise self.refuse(f"{key!r}, a list of objects that is not empty")
        if not all(isinstance(each, Mapping) for each in value):
            raise self.refuse(f"{key!r}, a list of objects")
        places = (f"{self.where}, {key} {n}" for n in range(1, len(value) + 1))
        return [_Row(place, self.shape, each) for place, each in zip(places, value, strict=True)]


def _rows(name: str, data: str) -> Iterator[_Row]:
    """The rows of a file, or of the hub for ``hub``, ``hub:NAME`` and ``hub:NAME@SPLIT``."""
    kind, _, place = data.partition(":")
    rows = _hub_rows(name, place) if kind == HUB else _file_rows(name, _file(name, data))
    first = next(rows, None)
    if first is None:
        raise DataError(f"{data} holds no rows; give at least one.")
    yield first
    yield from rows


def _file(name: str, data: str) -> Path:
    if data != PACKAGED:
        return Path(data)
    packaged = _SETS[name].packaged
    if packaged is None:
        raise ConfigError(f"{name} is not packaged; give --data FILE.")
    return packaged


def _file_rows(name: str, path: Path) -> Iterator[_Row]:
    text, shape = read_text(path), _SETS[name].spelt
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if path.suffix == ".jsonl" or (error.msg == "Extra data" and text.lstrip()[:1] == "{"):
            for line, values in jsonl_rows(text, path):
                yield _Row(f"{path} line {line}", shape, values)
            return
        raise DataError(
            f"{path} line {error.lineno} is not valid JSON ({error.msg}); give {shape} as JSON or "
            "JSON lines."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); repair it.") from error
    rows = content.get("data", [content]) if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__}; give a list of rows: {shape}.")
    for n, values in enumerate(rows, start=1):
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise DataError(f"{path} item {n} is a {kind}; give an object per item: {shape}.")
        yield _Row(f"{path} item {n}", shape, values)


def _hub_rows(name: str, given: str) -> Iterator[_Row]:
    """Rows as they come over the line, so that no more is fetched than is used."""
    shape = _SETS[name]
    place, _, split = given.partition("@")
    place, split = place or shape.hub, split or shape.split
    if not place:
        raise ConfigError(
            f"{name} is not on the hub; take it from {_ELSEWHERE[name]}, and give --data FILE."
        )
    import httpx

    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigError(
            "the hub is read with `datasets`, which is not installed; run `pip install "
            "lorewright[bench]`, or give --data FILE."
        ) from error
    try:
        for n, values in enumerate(load_dataset(place, split=split, streaming=True), start=1):
            yield _Row(f"{place} row {n}", shape.spelt, values)
    # No network, no such set or split, or a connection that broke.
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"the hub gave no {place!r}, split {split!r}: "
            f"{why[0].rstrip('.')}. Check name and network, or download it and give --data FILE."
        ) from error


# -- shapes --------------------------------------------------------------------------------------


def _edit(row: _Row) -> Edit:
    rewrite = row.child("requested_rewrite")
    prompt, subject = rewrite.text("prompt"), rewrite.text("subject")
    if prompt.count("{}") != 1:
        raise rewrite.refuse(f"one {{}} in 'prompt', for the subject; got {prompt!r}")
    new, true = (rewrite.child(key).text("str") for key in ("target_new", "target_true"))
    if new == true:
        raise rewrite.refuse(f"two targets that differ; both are {new!r}")
    name = row.text("case_id") if "case_id" in row.values else row.where.rpartition(" ")[2]
    paraphrases, neighbours = row.texts("paraphrase_prompts"), row.texts("neighborhood_prompts")
    return Edit(name, prompt.replace("{}", subject), new, true, paraphrases, neighbours)


def _paper(row: _Row, part: str) -> Text:
    title = row.text("title")
    questions = tuple(
        Question(
            each.text("question"),
            (each.text("answer"),),
            f"level {each.text('level')}" if "level" in each.values else "",
        )
        for each in row.children("QA")
    )
    name = row.text("id") if "id" in row.values else title
    return Text(name, title, row.text("introduction"), questions)


def _story(row: _Row, part: str) -> Text:
    document, question_row = row.child("document"), row.child("question")
    summary = document.child("summary") if part == PARTS[0] else document
    answers = tuple(dict.fromkeys(each.text("text") for each in row.children("answers")))
    title = document.values.get("summary")
    named = title.get("title") if isinstance(title, Mapping) else None
    kind = document.values.get("kind")
    question = Question(question_row.text("text"), answers, kind if isinstance(kind, str) else "")
    return Text(document.text("id"), str(named or ""), summary.text("text"), (question,))


def _article(row: _Row, part: str) -> Text:
    text = row.text("article")
    if len(_MARKUP.findall(text)) > 1:
        raise row.refuse("an article without HTML; give the files named htmlstripped")
    rows = row.children("questions") if "questions" in row.values else [row]
    title = row.values.get("title")
    questions = tuple(map(_choice, rows))
    return Text(row.text("article_id"), str(title or ""), text, questions)


def _choice(row: _Row) -> Question:
    options = row.texts("options")
    if "gold_label" not in row.values:
        raise row.refuse("'gold_label', from 1 (the test split has none; give train or dev)")
    right = row.number("gold_label") - 1
    if len(options) < 2 or not 0 <= right < len(options):
        raise row.refuse(f"a 'gold_label' from 1 to {len(options)}, of at least two options")
    hard = row.values.get("difficult")
    kind = "" if hard is None else HARD if hard else EASY
    return Question(row.text("question"), (options[right],), kind, options, right)


class _Published(NamedTuple):
    spelt: str
    """The set's name in messages."""
    hub: str = ""
    split: str = ""
    packaged: Path | None = None
    """What is read where no file is given."""


_SETS = {
    "counterfact": _Published("CounterFact", "azhx/counterfact", "test", EDITS),
    "paperqa": _Published("PaperQA"),
    "narrativeqa": _Published("NarrativeQA", "deepmind/narrativeqa", "test"),
    "quality": _Published("QuALITY", "tasksource/QuALITY", "validation"),
}
_ELSEWHERE = {"paperqa": "the repository of 'Understanding LoRA as Knowledge Memory'"}
"""Where those are that the hub does not have."""
_TEXT_OF: dict[str, Callable[[_Row, str], Text]] = {
    "paperqa": _paper,
    "narrativeqa": _story,
    "quality": _article,
}
"""A row, and the part that is read of it, to its text."""


def jobs(
    config: Any, base_digest: str, units: Sequence[Any], *, counted: str, called: str, size: int
) -> list[dict[str, Any]]:
    """Return a job for every few units of a set; ``counted`` is the setting of how many there are.

    A job has the settings, the indices of its units under the name that they are ``called``, and
    their digest.
    """
    how = asdict(config) | {"data": located(config.data), "base": base_digest}
    how |= {counted: limit_of(config.data, how[counted])}
    return [
        how | {called: group, "digest": digest([units[i] for i in group])}
        for group in groups(len(units), size)
    ]


def units_of(job: Mapping[str, Any], units: Sequence[Any], called: str) -> list[Any]:
    """Return the units of a job; raises DataError if they are others than when it was made."""
    own = [units[i] for i in job[called]]
    if digest(own) != job["digest"]:
        where = job["data"] or "the packaged set"
        raise DataError(f"{where} is not as it was when this sweep began; begin a new one.")
    return own


def groups(n: int, size: int) -> list[list[int]]:
    """Return 0 … n - 1 in groups of a size; one left over joins the last, so that none is alone."""
    grouped: list[Sequence[int]] = [range(i, min(i + size, n)) for i in range(0, n, size)]
    if len(grouped) > 1 and len(grouped[-1]) == 1:
        last = grouped.pop()
        grouped[-1] = [*grouped[-1], *last]
    return [list(group) for group in grouped]
