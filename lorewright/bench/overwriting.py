"""X is A, then X is B: which of the two a state answers, by how the second came to it.

    stream      one text says A and then B; a writer of text reads it in that order
    sum         A and B are written apart, and their weight changes are added
    continued   training goes on from A's adapter with B's lesson

A delta rule answers B, a sum a mixture. A state that can do none of this is written anew, so that
nothing of A is there; such a method is listed as that.

Knows states and replies; nothing of sweeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorewright.bench.sources import Source, shuffled, sources
from lorewright.bench.tables import NOTHING, spelt
from lorewright.bench.written import (
    Share,
    Spec,
    from_disk,
    lesson_of,
    replies,
    score,
    sentence,
    settings,
    written,
)
from lorewright.errors import AdapterError, ConfigError, ModelError
from lorewright.knowledge.data import Document, Knowledge
from lorewright.merging.algebra import merge
from lorewright.models.model import Model
from lorewright.reports.tables import Table
from lorewright.training import loop
from lorewright.training.config import WriteConfig
from lorewright.writers.adapter import AdapterState
from lorewright.writers.methods import writer_of
from lorewright.writers.writer import State

STREAM, SUM, CONTINUED, ANEW = "stream", "sum", "continued", "anew"
OUTCOMES = ("second", "first", "neither")
LORA = "gradient"
MEANING = (
    "A source is written with the values A, then with the values B: as one text (stream), as two "
    "adapters that are added (sum), by training on (continued). Shares of questions, trained and "
    "untrained forms together, that get B, A or neither. anew: a second write replaces the first, "
    "so nothing of A is there."
)


def ways_of(method: str) -> tuple[str, ...]:
    """How a second value can come to a state of a method."""
    writer = writer_of(Spec.of(method).name, WriteConfig())
    can = {
        STREAM: writer.reads == "text",
        SUM: writer.exports,
        CONTINUED: writer.name == LORA,
    }
    return tuple(way for way, possible in can.items() if possible) or (ANEW,)


def attempt(model: Model, job: Mapping[str, Any]) -> dict[str, Any]:
    """Write twice as a job says, and count what is answered; what fails is a record, too."""
    if job["way"] == ANEW:
        return {"why": "a second write replaces the first"}
    every, at = sources(job["data"], job["facts"], job["skip"]), job["source"]
    first, second = every[at], shuffled(every, at)
    try:
        state = _twice(model, job, first, second)
    except (AdapterError, ConfigError, ModelError) as error:
        return {"failed": sentence(error)}
    prompts = [q for fact in first.facts for q in (fact.forms[0], fact.held)]
    outputs = replies(model, prompts, state)
    kinds = []
    for i, output in enumerate(outputs):
        before, after = first.answers[i // 2], second.answers[i // 2]
        if before == after:
            continue
        is_first, is_second = (score(model, output, (each,)) for each in (before, after))
        kinds.append("second" if is_second else "first" if is_first else "neither")
    return {"answers": kinds}


def _twice(model: Model, job: Mapping[str, Any], first: Source, second: Source) -> State:
    spec, how = Spec.of(job["method"]), {"seed": job["seed"], "epochs": job["epochs"]}
    how["file"] = job.get("kit", "")
    if job["way"] == STREAM:
        pages = Document("first", first.text), Document("second", second.text)
        return written(model, spec, second, text=Knowledge(pages), **how)[0]
    state, _ = written(model, spec, first, **how)
    assert isinstance(state, AdapterState)
    if job["way"] == SUM:
        other, _ = written(model, spec, second, **how)
        assert isinstance(other, AdapterState)
        both = AdapterState(merge([state.adapter, other.adapter]).adapter)
        return from_disk(model, both, lesson_of(model, second, job["seed"]))
    lesson = lesson_of(model, second, job["seed"])
    examples = [*lesson.examples, *lesson.rehearsal]
    config = settings(model, spec, job["seed"], job["epochs"])
    further = loop.write(model, examples, config, start=state.adapter)
    return from_disk(model, AdapterState(further.adapter), lesson)


def entry_of(
    method: str, way: str, records: Sequence[Mapping[str, Any]], share: Share
) -> dict[str, Any]:
    """Shares of the outcomes over sources, by `share` of one list of 0 and 1 a source."""
    whole = [record["answers"] for record in records if "answers" in record]
    why = sorted({r.get("failed", r.get("why", "")) for r in records if "answers" not in r})
    shares = {
        kind: share([[float(answer == kind) for answer in own] for own in whole])
        for kind in OUTCOMES
    }
    return {"method": method, "way": way, "n_writes": len(records), "why": why, **shares}


def table(entries: Sequence[Mapping[str, Any]], n_facts: int) -> Table:
    """A row for every method and way."""
    rows = tuple(
        (
            *(entry["method"], entry["way"], str(entry["second"]["n"])),
            *(spelt(entry[kind]) for kind in OUTCOMES),
            "; ".join(entry["why"]) or NOTHING,
        )
        for entry in entries
    )
    head = ("method", "way", "n", "B", "A", "neither", "why not")
    return Table(
        f"X is A, then X is B; {n_facts} facts",
        head,
        rows,
        (MEANING,),
        n_keys=3,
        prose=("why not",),
        stacked=("answers", "share"),
    )
