"""The source stays in the prompt: readers beside each other, which are no memories.

    plain              the base reads the source and the question
    qttt               query projections are tuned on the prompt before it answers
    qttt, text gone    the same projections, and the question alone: what was written, if anything
    memory             a LoRA adapter of the source and the question alone
    memory throughout  the adapter reads the source and the question
    memory, answer     the base reads, the adapter answers

Knows readers and replies; nothing of sweeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lorewright.bench.sources import sources
from lorewright.bench.tables import NOTHING, spelt
from lorewright.bench.written import ANSWER_TOKENS, Spec, replies, score, written
from lorewright.models.model import Model
from lorewright.reports.tables import Table
from lorewright.writers.queries import Tuning
from lorewright.writers.reading import (
    Answering,
    answering,
    plain,
    prefilled,
    read,
    reply,
    tuned_queries,
    using_queries,
)

PLAIN, QTTT, GONE = "plain", "qttt", "qttt, text gone"
MEMORY, THROUGHOUT, ANSWER = "memory", "memory throughout", "memory, answer only"
READINGS = (PLAIN, QTTT, GONE, MEMORY, THROUGHOUT, ANSWER)
WITHOUT = (GONE, MEMORY)
"""Where the source is not in the prompt."""
WRITTEN = "gradient@8"
MEANING = (
    "The same questions in a form that was not trained. plain: the base with the source in its "
    "prompt; qttt: query projections tuned on each prompt; text gone: the same projections, the "
    "question alone; memory: an adapter of the source; throughout: it reads and answers; answer "
    "only: the base reads, it answers. No row but those without the text is a memory."
)


def attempt(model: Model, job: Mapping[str, Any]) -> dict[str, Any]:
    """Answer all questions on a source in every way."""
    source = sources(job["data"], job["facts"], job["skip"])[job["source"]]
    how = {"seed": job["seed"], "epochs": job["epochs"]}
    state, _ = written(model, Spec.of(WRITTEN), source, **how)
    questions = [fact.held for fact in source.facts]
    prompts = [f"{source.text}\n\n{question}" for question in questions]
    tuning = Tuning(steps=job["steps"], lr=job["lr"], seed=job["seed"])

    def by(answers_with: Answering) -> list[str]:
        return [read(model, each, answers_with, max_new_tokens=ANSWER_TOKENS) for each in prompts]

    both = [_tuned(model, *pair, tuning) for pair in zip(prompts, questions, strict=True)]
    outputs: dict[str, Callable[[], Sequence[str]]] = {
        PLAIN: lambda: by(plain),
        QTTT: lambda: [with_text for with_text, _ in both],
        GONE: lambda: [alone for _, alone in both],
        MEMORY: lambda: replies(model, questions, state),
        THROUGHOUT: lambda: replies(model, prompts, state),
        ANSWER: lambda: by(answering(state.on)),
    }
    return {
        name: [
            score(model, output, (answer,))
            for output, answer in zip(answered(), source.answers, strict=True)
        ]
        for name, answered in outputs.items()
    }


def _tuned(model: Model, prompt: str, question: str, tuning: Tuning) -> tuple[str, str]:
    """Replies by projections tuned on a prompt: to the prompt, and to the question alone."""
    whole = prefilled(model, model.render(prompt).prompt_ids)
    with using_queries(model, tuned_queries(model, whole, tuning)):
        # The question is read with the same projections: nothing of the text is in the cache.
        alone = prefilled(model, model.render(question).prompt_ids)
        return reply(model, whole, ANSWER_TOKENS), reply(model, alone, ANSWER_TOKENS)


def table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """A row for every reading; against reading plainly and the memory, on the same questions."""
    rows = tuple(
        (
            *(entry["reading"], "no" if entry["reading"] in WITHOUT else "yes"),
            *(str(entry["facts"]), str(entry["held"]["n"]), spelt(entry["held"])),
            *(_against(entry["compared"].get(other)) for other in (PLAIN, MEMORY)),
        )
        for entry in entries
    )
    head = (
        "reading",
        "text in the prompt",
        "facts",
        "n",
        "right",
        "against plain",
        "against memory",
    )
    return Table("With the source in the prompt", head, rows, (MEANING,), n_keys=4)


def _against(compared: Mapping[str, Any] | None) -> str:
    if not compared or compared["difference"] is None:
        return NOTHING
    return (
        f"{compared['difference']:+.3f} ({compared['gained']} gained, {compared['lost']} lost, "
        f"p {compared['p']:.2g})"
    )
