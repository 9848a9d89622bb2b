"""Texts written into memories, then questions without the text: PaperQA, NarrativeQA, QuALITY.

Each text is written once in every format: raw (the text itself), qa (questions and answers that a
language model writes on it), summary, rewrite, or several joined by +. The set's own questions are
put afterwards and never trained; where a written question has the same words, it is counted. All
formats, ranks and seeds of a text are written from the same written questions.

    free answer   greedy, scored by words (F1 as in SQuAD, ROUGE-L, exact, contains), or by a judge
    choice        of the options (QuALITY) the one with the least mean loss per token

Departures from the papers: QuALITY's options do not stand in the prompt; a NarrativeQA memory holds
the summary unless --part text; controls and intervals are ours.

Papers: "Understanding LoRA as Knowledge Memory", arXiv 2603.01097 (PaperQA, formats); NarrativeQA
(Kočiský et al. 2018); QuALITY (Pang et al. 2022).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lorewright.bench import arms, exact, judge, sets
from lorewright.bench.tables import HEAD, MEANING, arm_cells, counted, named
from lorewright.bench.task import Done, Summary, Task, sweep
from lorewright.errors import ConfigError, DataError
from lorewright.knowledge.data import Document, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, LessonConfig, prepare
from lorewright.knowledge.scoring import METRICS, normalise
from lorewright.knowledge.selfstudy import AskLLM
from lorewright.knowledge.teacher import connect
from lorewright.models.model import Model
from lorewright.models.replies import write_about
from lorewright.recall.traces import trace
from lorewright.recall.verify import answer
from lorewright.reports.tables import Table
from lorewright.routing.ask import Reading, prompt_of
from lorewright.training.config import Diverged, Job, Written
from lorewright.training.loop import write_all

TEXTS = 2
"""Texts of a job: each has another to be compared with."""
STACK = 12
"""Memories written at once."""
VIEWS = {"raw": "verbatim", "qa": "qa", "summary": "summary", "rewrite": "rewrite"}
"""Parts of a format and the views that make them."""
FORMATS = {
    "paperqa": ("raw", "qa", "qa+summary", "qa+rewrite", "raw+qa+summary+rewrite"),
    "narrativeqa": ("qa",),
    "quality": ("qa",),
}
"""What is written by default."""
FREE = ("token_f1", "rouge_l", "exact_match", "contains")
TITLES = {"paperqa": "PaperQA", "narrativeqa": "NarrativeQA", "quality": "QuALITY"}
HEADLINES = {"paperqa": "token_f1", "narrativeqa": "rouge_l", "quality": "choice"}
"""The metric that is shown by kind of question."""
CHOICES = ("choice", "choice, whole")
"""By mean loss per token, and by the loss of the whole option, which favours short ones."""


@dataclass(frozen=True, kw_only=True)
class ClosedBook(exact.Recipe):
    """A sweep over texts."""

    bench: str
    """paperqa, narrativeqa or quality."""
    data: str
    """A file, or hub, hub:NAME, hub:NAME@SPLIT."""
    documents: int = 0
    """The first so many; 0 = all."""
    questions: int = 0
    """The first so many of each; 0 = all."""
    part: str = sets.PARTS[0]
    """Of NarrativeQA: summary or text."""
    formats: tuple[str, ...] = ()
    """raw, qa, summary, rewrite, or several joined by +; empty = those of the paper."""
    ranks: tuple[int, ...] = (8,)
    """Ranks of the adapters."""
    seeds: int = 3
    """Writes of every memory."""
    method: str = "sft"
    """sft, threshold, window, curriculum, window+curriculum."""
    answer_tokens: int = 64
    """Longest free answer."""
    sets: int = len(LessonConfig().train_sets)
    """Times that questions are written on each passage, in other words each time."""
    teacher: str = ""
    """Address of the model that writes questions, summaries and rewrites; empty = the base."""
    judge: str = ""
    """Address of the model that scores free answers; empty = none does."""
    margin: float = 0.6
    """A write ends early when every p exceeds this."""

    def __post_init__(self) -> None:
        """Fill in the formats; refuse unknown ones and numbers out of range."""
        if self.bench not in FORMATS:
            raise ConfigError(f"set {self.bench!r} is unknown; use one of {', '.join(FORMATS)}.")
        exact.settings(self.ranks, (self.method,), (0,))
        object.__setattr__(self, "formats", self.formats or FORMATS[self.bench])
        for name in self.formats:
            views_of(name)
        if self.part != sets.PARTS[0] and self.bench != "narrativeqa":
            raise ConfigError(f"part {self.part!r} is for narrativeqa; {self.bench} has no parts.")
        least = {"documents": 0, "questions": 0, "seeds": 1, "sets": 1, "answer_tokens": 1}
        for name, bound in least.items():
            if vars(self)[name] < bound:
                raise ConfigError(f"{name} is {vars(self)[name]}; give at least {bound}.")


def quick(config: ClosedBook) -> ClosedBook:
    """Return a sweep of a minute that shows that everything works, and no result."""
    few = replace(config, documents=2, questions=4, seeds=2, epochs=min(config.epochs, 5), sets=1)
    return replace(few, formats=config.formats[:2])


def views_of(name: str) -> tuple[str, ...]:
    """Return the views of a format such as ``qa+summary``; raises ConfigError for unknown parts."""
    parts = [part.strip() for part in name.split("+")]
    unknown = [part for part in parts if part not in VIEWS]
    if unknown or len(set(parts)) < len(parts):
        raise ConfigError(f"format {name!r} is unknown; join some of {', '.join(VIEWS)} by +.")
    return tuple(VIEWS[part] for part in parts)


def jobs(config: ClosedBook, base_digest: str) -> list[dict[str, Any]]:
    """Return a job for every few texts; all formats, ranks and seeds of them are in it."""
    texts = _texts(asdict(config))[: config.documents or None]
    every = sets.jobs(config, base_digest, texts, counted="documents", called="texts", size=TEXTS)
    return [{k: v for k, v in job.items() if k != "judge"} for job in every]


def _texts(how: Mapping[str, Any]) -> list[sets.Text]:
    """The texts of a sweep, each with at most `questions` questions."""
    limit = sets.limit_of(how["data"], how["documents"])
    every = sets.texts(how["bench"], sets.located(how["data"]), limit, how["part"])
    n = how["questions"] or None
    return [replace(text, questions=text.questions[:n]) for text in every]


def task(job: dict[str, Any]) -> dict[str, Any]:
    """Write the texts of a job in all formats; ask every question of all arms."""
    model = exact.base_model(job["model"], job["base"])
    texts: list[sets.Text] = sets.units_of(job, _texts(job), "texts")
    lessons = [lessons_of(model, text, job) for text in texts]
    rows = [row for text in texts for row in base_rows(model, text, job)]
    settings = exact.settings(job["ranks"], (job["method"],), range(job["seeds"]))
    for name in job["formats"]:
        written = _written(model, [own[name] for own in lessons], settings, job)
        for setting, made in zip(settings, written, strict=True):
            about = {"format": name, "rank": setting.rank, "seed": setting.seed}
            rows += _own_rows(model, texts, made, about, job)
    return {
        "kinds": {text.id: [question.kind for question in text.questions] for text in texts},
        "asked": {text.id: [asdict(question) for question in text.questions] for text in texts},
        "lessons": {
            text.id: {name: _about(text, lesson) for name, lesson in own.items()}
            for text, own in zip(texts, lessons, strict=True)
        },
        "rows": rows,
    }


# -- what is written -----------------------------------------------------------------------------


def lessons_of(model: Model, text: sets.Text, job: Mapping[str, Any]) -> dict[str, Lesson | str]:
    """What is trained in each format, from the same written questions; or why nothing is."""
    teacher = job["teacher"]
    ask = each_once(connect(teacher) if teacher else partial(write_about, model))
    known = Knowledge((Document(text.id, text.text, text.title),))
    probes = [
        Probe(f"{text.id}-{n}", question.text, question.answers, "paraphrase", text.id)
        for n, question in enumerate(text.questions, 1)
    ]
    numbers = LessonConfig().train_sets[: job["sets"]]
    lessons: dict[str, Lesson | str] = {}
    for name in job["formats"]:
        try:
            lessons[name] = prepare(
                known,
                ask_llm=ask,
                closed_book=model.generate,
                config=LessonConfig(views_of(name), train_sets=numbers, probe_sets=()),
                phrasing="general" if teacher else model.phrasing,
                given_probes=probes,
            )
        except DataError as error:  # nothing came out to learn: counted and shown
            lessons[name] = str(error)
    return lessons


def each_once(ask: AskLLM) -> AskLLM:
    """The same, each prompt once."""
    known: dict[str, str] = {}

    def ask_new(prompts: list[str]) -> list[str]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        known.update(zip(new, ask(new) if new else [], strict=True))
        return [known[prompt] for prompt in prompts]

    return ask_new


def _written(
    model: Model,
    lessons: Sequence[Lesson | str],
    settings: Sequence[exact.Setting],
    job: Mapping[str, Any],
) -> list[list[Written | str]]:
    """For every setting a memory of every lesson, written in stacks; or why there is none."""
    works = [
        Job(own.examples, exact.config_of(model, job, setting))
        for setting in settings
        for own in lessons
        if isinstance(own, Lesson)
    ]
    stacks = [works[start : start + STACK] for start in range(0, len(works), STACK)]
    done = (
        each.why if isinstance(each, Diverged) else each
        for stack in stacks
        for each in write_all(model, stack)
    )
    return [[own if isinstance(own, str) else next(done) for own in lessons] for _ in settings]


def _about(text: sets.Text, lesson: Lesson | str) -> dict[str, Any]:
    """How many examples there are, and how many questions of the set have the words of one."""
    if isinstance(lesson, str):
        return {"why": lesson}
    kinds = Counter(example.kind for example in lesson.examples)
    trained = {normalise(example.prompt) for example in lesson.examples}
    n_seen = sum(normalise(question.text) in trained for question in text.questions)
    return {"n_examples": dict(kinds), "n_seen": n_seen, "notes": list(lesson.notes)}


# -- questions and answers -------------------------------------------------------------------------


def base_rows(model: Model, text: sets.Text, job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the base says without the text, and with all of it in the prompt."""
    about = {"unit": text.id, "format": "", "rank": 0, "seed": 0}
    yield about | {"arm": "base"} | put(model, text, job["answer_tokens"])
    if fits(model, text, job["answer_tokens"]):
        row = put(model, text, job["answer_tokens"], before=text.text)
        yield about | {"arm": "full"} | row
    else:
        yield about | {"arm": "full", "why": f"it does not fit into {model.context} tokens"}


def _own_rows(
    model: Model,
    texts: Sequence[sets.Text],
    made: Sequence[Written | str],
    about: Mapping[str, Any],
    job: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """What every text's memory says of it, and what the next text's memory does."""
    n = len(texts)
    for i, text in enumerate(texts):
        for arm, which in (("memory", i), *([("wrong", (i + 1) % n)] if n > 1 else [])):
            own, row = made[which], {**about, "unit": text.id, "arm": arm}
            if isinstance(own, str):
                yield row | {"why": own}
                continue
            with model.using(own.adapter):
                yield row | put(model, text, job["answer_tokens"])


def put(model: Model, text: sets.Text, n_tokens: int, *, before: str = "") -> dict[str, Any]:
    """Put a text's questions to whoever is attached: outputs, and scores by metric."""
    probes = [Probe(f"{n}", q.text, q.answers, "paraphrase") for n, q in enumerate(text.questions)]
    outputs = answer(model, probes, context=before, max_new_tokens=n_tokens)
    scores: dict[str, list[float]] = {
        name: [METRICS[name](o, q.answers) for o, q in zip(outputs, text.questions, strict=True)]
        for name in FREE
    }
    if any(question.options for question in text.questions):
        scores |= chosen(model, text.questions, before)
    return {"outputs": outputs, "scores": scores}


def chosen(model: Model, questions: Sequence[sets.Question], before: str) -> dict[str, list[float]]:
    """Return whether the right option is the likeliest, by the mean loss per token and in all."""
    rows = [
        model.render(_prompt(question, before), option)
        for question in questions
        for option in question.options
    ]
    traces = iter(trace(model, rows))
    scores: dict[str, list[float]] = {name: [] for name in CHOICES}
    for question in questions:
        own = [next(traces) for _ in question.options]
        means = [exact.nats([each]) for each in own]
        wholes = [mean * (len(each.p) - 1) for mean, each in zip(means, own, strict=True)]
        for name, losses in zip(CHOICES, (means, wholes), strict=True):
            others = [loss for i, loss in enumerate(losses) if i != question.right]
            scores[name].append(float(losses[question.right] < min(others)))
    return scores


def _prompt(question: sets.Question, before: str) -> str:
    return prompt_of(Reading(question.text, "", "full", (before,) if before else ()))


def fits(model: Model, text: sets.Text, n_tokens: int) -> bool:
    """Whether the text, each of its questions and a reply fit into what the model reads."""
    try:
        for question in text.questions:
            prompt = _prompt(question, text.text)
            if len(model.render(prompt)) + n_tokens > model.context:
                return False
            for option in question.options:
                model.render(prompt, option)
    except DataError:
        return False
    return True


# -- the summary ---------------------------------------------------------------------------------


def judged(config: ClosedBook, done: Done, out: Path) -> Done:
    """Add a judge's scores to the records, if one was named; its replies are stored."""
    if not config.judge:
        return done
    scoring = judge.at(config.judge, out)
    return [(job, _with_judge(record, scoring)) for job, record in done]


def _with_judge(record: Mapping[str, Any], scoring: judge.Judge) -> dict[str, Any]:
    rows = []
    for row in record["rows"]:
        if "outputs" in row:
            questions = record["asked"][row["unit"]]
            scores = scoring(
                [
                    judge.Case(q["text"], tuple(q["answers"]), output)
                    for q, output in zip(questions, row["outputs"], strict=True)
                ]
            )
            row = {**row, "scores": {**row["scores"], "judge": scores}}
        rows.append(row)
    return {**record, "rows": rows}


def summarise(config: ClosedBook, done: Done) -> dict[str, Any]:
    """Return every score by format, rank, kind and arm, and what is missing or was seen."""
    records = [record for _, record in done]
    table = arms.table_of(records)
    rows = [row for record in records for row in record["rows"]]
    lessons = [about for record in records for about in record["lessons"].values()]
    questions = [q for record in records for own in record["asked"].values() for q in own]
    scores = [s for row in rows for s in row.get("scores", {}).get("judge", ())]
    return {
        "arms": arms.compared(table),
        "n_texts": len(table.kinds),
        "n_questions": len(questions),
        "chance": _chance(questions),
        "n_seen": {
            name: sum(own[name].get("n_seen", 0) for own in lessons) for name in config.formats
        },
        "n_examples": {
            name: sum(sum(own[name].get("n_examples", {}).values()) for own in lessons)
            for name in config.formats
        },
        "lesson_notes": list(
            dict.fromkeys(note for own in lessons for each in own.values() for note in _told(each))
        ),
        "n_without_full": sum("why" in row for row in rows if row["arm"] == "full"),
        "not_written": _not_written(rows),
        "n_unjudged": scores.count(None),
        "n_judged": len(scores),
    }


def _told(about: Mapping[str, Any]) -> Sequence[str]:
    """What was dropped or left out of a lesson, in sentences."""
    notes: Sequence[str] = about.get("notes", ())
    return notes


def _chance(questions: Sequence[Mapping[str, Any]]) -> float:
    """The share that guessing among the options gets; 0 where there are none."""
    shares = [1 / len(question["options"]) for question in questions if question["options"]]
    return sum(shares) / len(shares) if shares else 0.0


def _not_written(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Memories that came to nothing, by format, and the first reason."""
    lost = [row for row in rows if row["arm"] == "memory" and "why" in row]
    by_format = Counter(row["format"] for row in lost)
    return {"n": dict(by_format), "first": lost[0]["why"] if lost else ""}


# -- how it is shown -----------------------------------------------------------------------------


def tables(summary: Summary) -> Iterator[Table]:
    """Yield all metrics, then the first of them by kind of question."""
    name, config = summary["bench"], summary["config"]
    title = f"{TITLES[name]}: {counted(summary['n_texts'], 'text')}, "
    title += f"{counted(summary['n_questions'], 'question')}, {counted(config['seeds'], 'seed')}"
    whole = [entry for entry in summary["arms"] if entry["kind"] == arms.ALL]
    head = ("written", "metric", *HEAD)
    notes, stacked = tuple(_notes_on(summary)), ("arm", "mean")
    yield Table(title, head, _shown(whole, "metric"), notes, n_keys=3, stacked=stacked)
    first = "judge" if config["judge"] else HEADLINES[name]
    parts = [e for e in summary["arms"] if e["kind"] != arms.ALL and e["metric"] == first]
    if len({entry["kind"] for entry in parts}) > 1:
        title = f"{named(first)}, by kind of question"
        head = ("written", "questions", *HEAD)
        yield Table(title, head, _shown(parts, "kind"), n_keys=3, stacked=stacked)


def _shown(entries: Sequence[Mapping[str, Any]], by: str) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (f"{entry['format']}, rank {entry['rank']}", named(entry[by]), *arm_cells(entry))
        for entry in entries
    )


def _notes_on(summary: Summary) -> Iterator[str]:
    yield MEANING
    yield (
        "n is questions; 95 % intervals: bootstrap over texts, then questions, of means over "
        "seeds; Wilson's where all are right or none. Seeds: lowest and highest mean."
    )
    if summary["chance"]:
        yield f"Choice: the option with the least loss; chance is {summary['chance']:.2f}."
    trained = ", ".join(f"{name} {n}" for name, n in summary["n_examples"].items())
    yield f"Examples trained: {trained}."
    notes = summary["lesson_notes"]
    if notes:
        yield f"On what was written for training, the first of {len(notes)} notes: {notes[0]}"
    seen = {name: n for name, n in summary["n_seen"].items() if n}
    if seen:
        counts = ", ".join(f"{name} {n}" for name, n in seen.items())
        yield f"Questions that came to be trained in the same words: {counts}."
    if summary["n_without_full"]:
        yield f"{summary['n_without_full']} texts do not fit into the prompt: full leaves them out."
    lost = summary["not_written"]
    if lost["n"]:
        counts = ", ".join(f"{name} {n}" for name, n in lost["n"].items())
        yield f"Memories that came to nothing, left out: {counts}. The first: {lost['first']}"
    if summary["n_unjudged"]:
        yield (
            f"The judge gave no number to {summary['n_unjudged']} of {summary['n_judged']} "
            "answers: unscored."
        )


def check(config: ClosedBook) -> object:
    """Read the texts. Raises as `sets.texts`."""
    limit = sets.limit_of(config.data, config.documents)
    return sets.texts(config.bench, sets.located(config.data), limit, config.part)


def _task(name: str) -> Task:
    return Task(
        name,
        ClosedBook,
        quick,
        sweep(name, jobs, task, summarise, judged),
        tables,
        check=check,
        flags={"method": "--objective", "formats": "--format"},
        fixed={"bench": name},
    )


PAPERQA, NARRATIVEQA, QUALITY = map(_task, TITLES)
