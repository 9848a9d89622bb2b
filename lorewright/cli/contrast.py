"""The memo, reproduced: one document, four conditions, the same probes.

A well-known report wrote a document by next-token loss, saw the loss fall to 0.004 and the recall
stay at 0.000. Here both ways to write stand beside each other and beside reading: part of the
document in the prompt (stable), next-token loss, questions and answers, all of it in the prompt
(full). Questions are on the part that `stable` does not see, in forms that the adapter was never
trained on; the stricter rows ask in forms that the base never saw either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError
from lorewright.files import save_json
from lorewright.knowledge.data import Document, Knowledge, Probe
from lorewright.knowledge.lesson import LessonConfig, contexts, prepare
from lorewright.knowledge.readers.probes import read_probes
from lorewright.knowledge.readers.read import read_knowledge
from lorewright.knowledge.scoring import contains
from lorewright.memory.memory import Memory
from lorewright.models.catalogue import POCKET
from lorewright.models.model import Model
from lorewright.recall.traces import trace
from lorewright.recall.verify import RecallReport, verify
from lorewright.reports.figures.contrast import contrast_figure
from lorewright.reports.progress import shown
from lorewright.reports.results import contrast_table
from lorewright.reports.tables import Rendered
from lorewright.training.config import Epoch, WriteConfig, Written
from lorewright.training.loop import write
from lorewright.training.rates import suggested_lr

EXAMPLES = next(
    (up / "examples" for up in Path(__file__).parents[:3] if (up / "examples").is_dir()),
    Path("examples"),
)
"""Handbook, probes and phone list: in the installed package, or beside it in a checkout."""
N_QUESTIONS = 3
NEXT_TOKEN_EPOCHS = 60
QUESTION_EPOCHS = 28
RANK = 16
MARGIN = 0.9
NEGATIVES = 4.0
"""Questions to be declined are four times those to be answered, as far as there are so many: most
questions that one could put to a document it does not answer."""
LESSON = LessonConfig(negatives=NEGATIVES)
NEW = "new-"
"""Ids of probes whose question form is new to the base as well begin so: the stricter test."""


@dataclass
class Curve:
    """Loss and held-out recall, epoch by epoch."""

    epoch: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    recall: list[float] = field(default_factory=list)


def run(
    progress: Console,
    out: Console,
    folder: Path,
    source: Path | None = None,
    *,
    quick: bool = False,
) -> dict[str, Any]:
    """Write the handbook both ways, print the table, ask three questions, save record and figure.

    Returns the record that is saved as record.json. Raises ConfigError when a document of the
    user's own comes without a `<name>.probes.jsonl` beside it.
    """
    started = time.monotonic()
    path = source or EXAMPLES / "handbook.md"
    probes = _probes(path)
    document = Document.read(path)
    model = Model.load(POCKET)
    _, scaffold = contexts(Knowledge((document,)))
    unseen = [p for p in probes if p.kind == "paraphrase" and not contains(scaffold, p.answers)]
    held = [p for p in unseen if not p.id.startswith(NEW)]
    new = [p for p in unseen if p.id.startswith(NEW)]
    unknown = [p for p in probes if p.kind == "unknown"]
    step = _stepper(progress, started)
    n_parameters = sum(p.numel() for p in model.network.parameters())
    step(
        f"{model.name}: {n_parameters / 1e6:.1f} million parameters, frozen; {path.name}: "
        f"{len(document.text.split())} words; {len(held)} probes in forms the adapter never saw"
    )
    step("next-token loss: the text itself, again and again")
    plain, plain_curve = _write_plain(progress, model, document, held, quick)
    memory = Memory.open(folder / f"memory-{model.digest[:8]}", model)
    step("another memory, a phone list: the control for an answer from the wrong memory")
    config = _config(model, QUESTION_EPOCHS if not quick else 2, batch=16)
    memory.write(read_knowledge(EXAMPLES / "phones.jsonl"), name="phones", config=config)
    step("questions and answers: the base reads, asks itself, and learns to answer")
    with shown(progress) as show:
        questions_curve, on_epoch = _curve(model, held, show.epoch)
        outcome = memory.write(
            document,
            name="handbook",
            config=questions_config(model, config.epochs),
            lesson=LESSON,
            probes=probes,
            watch=replace(show, step=step, epoch=on_epoch),
        )
    step("asking the next-token memory")
    plain_report = verify(model, held, adapter=plain.adapter)
    with_prompt = verify(model, [replace(p, context=scaffold) for p in held], adapter=plain.adapter)
    record = _record(held, new, outcome.report, plain_report, with_prompt)
    record["rows"][1]["final_loss"] = plain_curve.loss[-1]
    record["rows"][2]["final_loss"] = questions_curve.loss[-1]
    record |= {
        "curves": {"next token": vars(plain_curve), "questions and answers": vars(questions_curve)},
        "commands": ["lore demo"],
        "notes": list(outcome.notes),
        "quick": quick,
        "trained": outcome.to_json()["trained"],
        "seconds": round(time.monotonic() - started, 1),
    }
    out.print(Rendered(contrast_table(record)))
    _ask_some(out, memory, held, unknown)
    folder.mkdir(parents=True, exist_ok=True)
    save_json(record, folder / "record.json")
    _figures(out, record, folder)
    return record


def _write_plain(
    progress: Console, model: Model, document: Document, held: Sequence[Probe], quick: bool
) -> tuple[Written, Curve]:
    """Write the text by next-token loss; nothing is stored."""
    lesson = prepare(
        Knowledge((document,)),
        ask_llm=_nobody,
        closed_book=_nobody,
        config=LessonConfig(views=("verbatim",), negatives=0),
        given_probes=held,
    )
    config = _config(model, NEXT_TOKEN_EPOCHS if not quick else 2, batch=2)
    with shown(progress) as show:
        curve, on_epoch = _curve(model, held, show.epoch)
        return write(model, lesson.examples, config, on_epoch=on_epoch), curve


def _probes(path: Path) -> tuple[Probe, ...]:
    beside = path.with_name(f"{path.stem}.probes.jsonl")
    if not beside.exists():
        raise ConfigError(
            f"the demo needs questions on {path.name} that are not trained; there is no {beside}; "
            "write it as JSON lines."
        )
    return read_probes(beside)


def _config(model: Model, epochs: int, *, batch: int) -> WriteConfig:
    return WriteConfig(
        lora=LoraConfig(rank=RANK, alpha=2 * RANK),
        lr=suggested_lr(model),
        epochs=epochs,
        batch_size=batch,
        margin=MARGIN,
    )


def questions_config(model: Model, epochs: int = QUESTION_EPOCHS) -> WriteConfig:
    """How the demo's second write is trained, beside `LESSON`.

    All layers but the first, which knows words: near misses are then declined more often.
    """
    config = _config(model, epochs, batch=16)
    upper = tuple(range(1, int(model.network.config.get_text_config().num_hidden_layers)))
    return replace(config, lora=replace(config.lora, layers=upper))


def _nobody(prompts: list[str]) -> list[str]:
    assert not prompts, "the next-token lesson asks no language model"
    return []


def _stepper(console: Console, started: float) -> Callable[[str], None]:
    def step(text: str) -> None:
        console.print(
            f"[dim]{time.monotonic() - started:5.0f} s[/]  {text}", highlight=False, soft_wrap=True
        )

    return step


def _curve(
    model: Model, probes: Sequence[Probe], show: Callable[[Epoch], None]
) -> tuple[Curve, Callable[[Epoch], None]]:
    """A curve and the function that fills it: recall by teacher-forced argmax at every token."""
    curve = Curve()
    rows = [model.render(probe.question, probe.answers[0]) for probe in probes]

    def on_epoch(epoch: Epoch) -> None:
        curve.epoch.append(epoch.epoch)
        curve.loss.append(round(epoch.loss_nats, 5))
        curve.recall.append(round(sum(t.exact for t in trace(model, rows)) / len(rows), 4))
        show(epoch)

    return curve, on_epoch


def _record(
    held: Sequence[Probe],
    new: Sequence[Probe],
    questions: RecallReport,
    plain: RecallReport,
    with_prompt: RecallReport,
) -> dict[str, Any]:
    """The table's rows, without probes on the part that `stable` sees."""
    strict = _only(questions, {p.id for p in new})
    usual = _only(questions, {p.id for p in held})
    unknown = {"kind": "unknown"}
    rows = [
        _row("stable", "a quarter of the document in the prompt, no memory", usual, "scaffold"),
        _row("write: next token", "memory trained on the text", plain),
        _row("write: questions and answers", "memory trained on questions the base wrote", usual),
        _row("full", "the whole document in the prompt, no memory", usual, "full"),
    ]
    extra = [
        _row("questions and answers, stricter", "forms new to the base too", strict),
        _row("full, stricter", "forms new to the base too", strict, "full"),
        _row("base alone", "no document, no memory", usual, "base"),
        _row("wrong memory", "a phone list's memory and the same questions", usual, "wrong"),
        _row("write: next token, prompt of stable", "the memo's own condition", with_prompt),
        _row(
            "unknown questions declined",
            "with the memory of questions and answers",
            usual,
            **unknown,
        ),
        _row("unknown questions declined, base", "no memory", usual, "base", **unknown),
    ]
    return {
        "title": "Memorised is not answerable",
        "n_probes": len(held),
        "rows": rows,
        "extra": extra,
        "seconds": 0.0,
        "outcomes": [vars(r) for r in (*usual.arms["memory"], *strict.arms["memory"])],
    }


def _row(
    name: str, meaning: str, report: RecallReport, arm: str = "memory", kind: str = "paraphrase"
) -> dict[str, Any]:
    share = report.proportion(arm, kind)
    interval = {"n": share.n, "recall": share.mean, "low": share.low, "high": share.high}
    return {"name": name, "meaning": meaning, **interval, "final_loss": None}


def _only(report: RecallReport, ids: set[str]) -> RecallReport:
    """The report on these paraphrases, and on everything that is no paraphrase."""
    arms = {
        arm: tuple(r for r in rows if r.kind != "paraphrase" or r.probe_id in ids)
        for arm, rows in report.arms.items()
    }
    return replace(report, arms=arms)


def _ask_some(
    out: Console, memory: Memory, held: Sequence[Probe], unknown: Sequence[Probe]
) -> None:
    """Three questions on the document, from three places, then one that it does not answer."""
    spread = (
        [held[len(held) * i // N_QUESTIONS + 1] for i in range(N_QUESTIONS)]
        if len(held) > N_QUESTIONS
        else list(held)
    )
    out.print("\nAnswers of the memory, with nothing in the prompt:")
    for probe in [*spread, *unknown[-1:]]:
        answer = memory.ask(probe.question, "handbook", mode="closed")
        truth = probe.answers[0] if probe.answers else "not in the document"
        out.print(
            f"  {probe.question}\n    [b]{escape(answer.text)}[/]  "
            f"[dim]({truth}; mean token probability {answer.confidence:.2f})[/]",
            highlight=False,
        )


def _figures(out: Console, record: dict[str, Any], folder: Path) -> None:
    if find_spec("matplotlib") is None:
        out.print("No figure: matplotlib is not installed (pip install 'lorewright[figures]').")
        return
    for name, dark in (
        ("contrast.svg", False),
        ("contrast.png", False),
        ("contrast-dark.svg", True),
    ):
        contrast_figure(record, folder / name, dark=dark)
    out.print(
        f"\nRecord and figure: {folder / 'record.json'}, {folder / 'contrast.png'}",
        highlight=False,
        soft_wrap=True,
    )
