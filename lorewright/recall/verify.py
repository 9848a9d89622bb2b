"""Does it come back? Free-running answers to probes, beside controls: the verdict of a write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lorewright.adapters.adapter import Adapter
from lorewright.errors import ConfigError, DataError
from lorewright.knowledge.data import OPEN_KINDS, Probe
from lorewright.knowledge.negatives import DECLINE
from lorewright.knowledge.scoring import LEAST_SUPPORT, METRICS, is_declined
from lorewright.models.general import ASKING_OF_THE_WORLD, REPLY_TOKENS, Known, known_to
from lorewright.models.model import Model
from lorewright.recall.settled import LOOPS_SETTLE, settled
from lorewright.recall.statistics import Estimate, estimate
from lorewright.recall.support import Nearness, Weighed, weigh
from lorewright.training.watch import Watch
from lorewright.writers.writer import State

OWN_ARMS = MEMORY, SUPPORTED = "memory", "supported"
ARMS = (*OWN_ARMS, "base", "scaffold", "wrong", "full")
"""The memory, the same without replies that lack support (see `support`), and its controls: the
base alone, with part of the source in the prompt, with another memory, with all of the source in
the prompt."""
MAX_ANSWER_TOKENS = 64
"""Most tokens of an answer with a text before the question, which chat models quote at length."""
CLOSED_BOOK_TOKENS = 32
"""Most tokens of an answer without one, beside those of the longest answer that is wanted."""
RETAINED = "retained"
"""Kind of outcomes that are no probes of a memory: general questions that the base knows."""
N_RETAINED = 40
"""At most so many of them."""


@dataclass(frozen=True)
class Recall:
    """One probe's outcome under one arm."""

    probe_id: str
    kind: str
    question: str
    answers: tuple[str, ...]
    output: str
    score: float | None
    """1 or 0 (or a metric in between); None when the probe could not be scored."""
    source: str = ""


@dataclass(frozen=True)
class RecallReport:
    """Outcomes of a memory and its controls on the same probes."""

    metric: str
    arms: Mapping[str, tuple[Recall, ...]]
    notes: tuple[str, ...] = ()
    """Why an arm is missing or has unscored probes."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """What was verified: memory, base, adapter id, seed and the like."""

    def proportion(self, arm: str, kind: str) -> Estimate:
        """n, mean and interval of an arm on a kind of probe; unscored probes are left out.

        Wilson's interval where every score is 0 or 1, else the bootstrap's.
        """
        scores = [r.score for r in self.arms.get(arm, ()) if r.kind == kind and r.score is not None]
        return estimate(scores)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of probe present, in order of appearance."""
        return tuple(dict.fromkeys(r.kind for rows in self.arms.values() for r in rows))

    @property
    def retained(self) -> Estimate:
        """Share of what the base knows of the world that is still answered with the memory on."""
        return self.proportion("memory", RETAINED)

    @property
    def recalls(self) -> bool | None:
        """Whether the memory recalled any of its knowledge; None where no probe asks for it."""
        return self.recalls_in("memory")

    def recalls_in(self, arm: str) -> bool | None:
        """Whether an arm recalled any of the knowledge; None where no probe asks for it."""
        rows = self.arms.get(arm, ())
        others = (*OPEN_KINDS, RETAINED)
        scores = [r.score for r in rows if r.kind not in others and r.score is not None]
        return any(score > 0 for score in scores) if scores else None

    def table(self) -> dict[str, dict[str, Estimate]]:
        """Kind -> arm -> proportion, for the arms that were run."""
        return {kind: {arm: self.proportion(arm, kind) for arm in self.arms} for kind in self.kinds}

    def to_json(self) -> dict[str, Any]:
        """Plain data: per kind and arm n, recall, low, high; then every outcome."""
        summary = {
            kind: {arm: share.to_json() for arm, share in arms.items()}
            for kind, arms in self.table().items()
        }
        outcomes = {arm: [asdict(r) for r in rows] for arm, rows in self.arms.items()}
        return {
            "metric": self.metric,
            "recall": summary,
            "notes": list(self.notes),
            "context": dict(self.context),
            "outcomes": outcomes,
        }


def answer(
    model: Model,
    probes: Sequence[Probe],
    *,
    context: str = "",
    max_new_tokens: int = 0,
    metric: str = "",
    base_outputs: Sequence[str] = (),
    guess: bool = False,
    progress: Callable[[int, int, int], None] = lambda done, total, n: None,
) -> list[str]:
    """Free-running greedy answers; `context` (or the probe's own) stands before the question.

    An answer has `max_new_tokens`; 0 = as many as its question wants. With a `metric` it ends after
    the sentence that settles its score; `base_outputs` are what kind `neighborhood` is compared
    with. `guess`: right answers are likely, and are tried in one pass. `progress` is called with
    tokens done, tokens at most and answers that have ended.
    """
    prompts = [_with_context(probe.context or context, probe.question) for probe in probes]
    alone: Sequence[str | None] = base_outputs or [None] * len(probes)
    n_ended = 0

    def until(i: int, text: str, ids: Sequence[int]) -> str | None:
        return settled(probes[i], metric, text, alone[i])

    def ended(i: int, text: str) -> None:
        nonlocal n_ended
        n_ended += 1

    return model.generate(
        prompts,
        max_new_tokens=[
            max_new_tokens or _n_tokens(model, probe, probe.context or context) for probe in probes
        ],
        until=until if metric else None,
        end_loops=metric in LOOPS_SETTLE,
        guesses=[_likely(*each) for each in zip(probes, alone, strict=True)] if guess else (),
        on_reply=ended,
        progress=lambda done, total: progress(done, total, n_ended),
    )


def _n_tokens(model: Model, probe: Probe, context: str) -> int:
    """Tokens for the longest answer that is wanted and for words around it."""
    texts = list(probe.answers)
    ids = model.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    n_tokens = max(map(len, ids), default=0) + CLOSED_BOOK_TOKENS
    return max(n_tokens, MAX_ANSWER_TOKENS) if context else n_tokens


def _likely(probe: Probe, base_output: str | None) -> str:
    """What a memory may answer."""
    if probe.kind == "neighborhood":
        return base_output or ""
    return DECLINE if probe.kind == "unknown" else probe.answers[0]


def _with_context(context: str, question: str) -> str:
    return f"{context}\n\n{question}" if context else question


def switched_on(model: Model, memory: Adapter | State) -> AbstractContextManager[object]:
    """Attach an adapter, or switch on a state of any kind, for the length of a block."""
    return model.using(memory) if isinstance(memory, Adapter) else memory.on(model)


def verify(
    model: Model,
    probes: Sequence[Probe],
    *,
    adapter: Adapter | State | None,
    full: str = "",
    scaffold: str = "",
    wrong: Adapter | State | None = None,
    metric: str = "exact_match",
    general: Sequence[Known] = (),
    nearness: Nearness | None = None,
    watch: Watch | None = None,
) -> RecallReport:
    """Ask every probe of the memory and of each control, free-running and greedy.

    With `nearness` the arm `supported` is the memory where only replies with support stand.

    `general` are questions about the world that the base answers right: the memory's share of them
    is what is retained. They are put to the memory alone.

    `full` and `scaffold` are texts put before the question for the base alone; `wrong` is another
    memory. An arm that cannot be run is left out and named in `notes`, never scored 0. Kind
    `unknown` scores declining; `neighborhood` scores giving the base's own answer. Raises
    ConfigError for an unknown metric or no probes.
    """
    _check_metric(metric)
    if not probes:
        raise ConfigError(
            "there are no probes to verify with; write a memory with facts, or give --probes FILE."
        )
    notes: list[str] = ["memory: there is none."] if adapter is None else []
    contexts: dict[str, str] = {}
    for arm, text in (("scaffold", scaffold), ("full", full)):
        if not text:
            notes.append(f"{arm}: there is no source text for it.")
        elif not _fits(model, probes, text):
            notes.append(
                f"{arm}: text, question and answer do not fit into the {model.context} tokens that "
                "the model reads."
            )
        else:
            contexts[arm] = text
    memories = {"memory": adapter, "wrong": wrong}
    if wrong is None:
        notes.append("wrong: there is no other memory.")
    arms = ["base", *(arm for arm, each in memories.items() if each is not None), *contexts]
    outputs = _ask(model, probes, arms, memories, contexts, metric, watch or Watch())
    if nearness is not None and adapter is not None:
        prompts = [_with_context(probe.context, probe.question) for probe in probes]
        with switched_on(model, adapter):
            weighed = weigh(model, prompts, outputs[MEMORY], [nearness] * len(prompts))
        outputs[SUPPORTED] = supported(outputs[MEMORY], weighed)
    ordered = {arm: outputs[arm] for arm in ARMS if arm in outputs}
    report = _report(probes, ordered, metric, notes)
    if adapter is None or not general:
        return report
    after = still_known(model, adapter, general, watch)
    both = {"memory": after, "base": known_before(general)}
    if nearness is not None:
        both[SUPPORTED] = _with_support(model, adapter, after, nearness)
    return replace(report, arms={**report.arms, **added(report.arms, both)})


def _with_support(
    model: Model, memory: Adapter | State, outcomes: Sequence[Recall], nearness: Nearness
) -> tuple[Recall, ...]:
    """Outcomes on general questions where only replies with support stand."""
    prompts, outputs = [r.question for r in outcomes], [r.output for r in outcomes]
    with switched_on(model, memory):
        weighed = weigh(model, prompts, outputs, [nearness] * len(prompts))
    return tuple(
        replace(r, output=text, score=METRICS["contains"](text, r.answers))
        for r, text in zip(outcomes, supported(outputs, weighed), strict=True)
    )


def supported(outputs: Sequence[str], weighed: Sequence[Weighed]) -> list[str]:
    """The replies that have support, DECLINE for the others; as they are where it is unknown."""
    return [
        own if each.support is None else each.text if each.support >= LEAST_SUPPORT else DECLINE
        for own, each in zip(outputs, weighed, strict=True)
    ]


def known_beforehand(model: Model, texts: Sequence[str], watch: Watch | None = None) -> list[Known]:
    """The general questions by which it is seen what is retained: answered, and in no text."""
    progress = (watch or Watch()).of(ASKING_OF_THE_WORLD)
    return known_to(model, "held", N_RETAINED, texts=texts, progress=progress)


def added(
    arms: Mapping[str, Sequence[Recall]], more: Mapping[str, Sequence[Recall]]
) -> dict[str, tuple[Recall, ...]]:
    """The arms that have more rows, with these behind their own."""
    return {arm: (*arms[arm], *rows) for arm, rows in more.items()}


def still_known(
    model: Model,
    memory: Adapter | State,
    general: Sequence[Known],
    watch: Watch | None = None,
) -> tuple[Recall, ...]:
    """What becomes of general questions, which the base answers right, with a memory on."""
    if not general:
        return ()
    phase = f"asking: {RETAINED}"
    (watch or Watch()).step(phase)
    with switched_on(model, memory):
        replies = model.generate(
            [k.question for k in general],
            max_new_tokens=REPLY_TOKENS,
            progress=(watch or Watch()).of(phase),
        )
    return tuple(_general(known, text) for known, text in zip(general, replies, strict=True))


def known_before(general: Sequence[Known]) -> tuple[Recall, ...]:
    """The same questions with the base's own replies."""
    return tuple(_general(known, known.reply) for known in general)


def _general(known: Known, output: str) -> Recall:
    score = METRICS["contains"](output, known.answers)
    return Recall(known.question, RETAINED, known.question, known.answers, output, score)


def ask(
    model: Model,
    probes: Sequence[Probe],
    *,
    memory: Adapter | State | None = None,
    context: str = "",
    metric: str = "exact_match",
    watch: Watch | None = None,
    title: str = "asking",
) -> tuple[Recall, ...]:
    """Ask every probe under one arm alone: with a memory or without, a text before it or none.

    Scored as in `verify`. Raises ConfigError for an unknown metric, and for probes of kind
    `neighborhood`, which need the base's own answers to be compared with.
    """
    _check_metric(metric)
    if any(probe.kind == "neighborhood" for probe in probes):
        raise ConfigError("probes of kind neighborhood need the base beside the memory; verify.")
    arms = {"": memory} if memory is not None else {}
    outputs = _ask(model, probes, [""], arms, {"": context}, metric, watch or Watch(), title)
    return _report(probes, {"base": outputs[""]}, metric).arms["base"]


def side_by_side(
    model: Model,
    probes: Sequence[Probe],
    adapters: Mapping[str, Adapter | State],
    *,
    metric: str = "exact_match",
    watch: Watch | None = None,
    title: str = "asking",
) -> RecallReport:
    """Ask every probe of several adapters and, as the arm `base`, of the base alone.

    Scored as in `verify`, without its other controls. Raises ConfigError for an unknown metric.
    """
    _check_metric(metric)
    arms = ["base", *adapters]
    outputs = _ask(model, probes, arms, adapters, {}, metric, watch or Watch(), title)
    return _report(probes, {arm: outputs[arm] for arm in (*adapters, "base")}, metric)


def _ask(
    model: Model,
    probes: Sequence[Probe],
    arms: Sequence[str],
    memories: Mapping[str, Adapter | State | None],
    contexts: Mapping[str, str],
    metric: str,
    watch: Watch,
    title: str = "asking",
) -> dict[str, list[str]]:
    """The outputs of every arm; the first is `base`, whose replies the others are compared with."""
    outputs: dict[str, list[str]] = {}
    for n, arm in enumerate(arms, 1):
        memory = memories.get(arm)
        phase = f"{title}: {arm}" if arm else title
        of = f", arm {n} of {len(arms)}" if len(arms) > 1 else ""
        watch.step(phase)
        with switched_on(model, memory) if memory is not None else nullcontext():
            outputs[arm] = answer(
                model,
                probes,
                context=contexts.get(arm, ""),
                metric=metric,
                base_outputs=outputs.get("base", ()),
                guess=memory is not None,
                progress=reported(watch, phase, len(probes), of),
            )
    return outputs


def reported(
    watch: Watch, phase: str, n_probes: int, of: str = ""
) -> Callable[[int, int, int], None]:
    """A `progress` for `answer` that reports to a watch how many probes are answered."""

    def progress(done: int, total: int, n_ended: int) -> None:
        watch.advance(phase, done, total, f"{n_ended} of {n_probes} answered{of}")

    return progress


def _check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ConfigError(f"metric {metric!r} is unknown; use one of {', '.join(sorted(METRICS))}.")


def _report(
    probes: Sequence[Probe],
    outputs: Mapping[str, Sequence[str]],
    metric: str,
    notes: Sequence[str] = (),
) -> RecallReport:
    """Score the outputs of every arm, those of the base among them."""
    arms = {
        arm: tuple(
            _scored(probe, text, alone, metric)
            for probe, text, alone in zip(probes, texts, outputs["base"], strict=True)
        )
        for arm, texts in outputs.items()
    }
    return RecallReport(metric, arms, tuple(notes))


def _fits(model: Model, probes: Sequence[Probe], text: str) -> bool:
    prompts = [_with_context(probe.context or text, probe.question) for probe in probes]
    try:
        longest = max(len(model.render(prompt)) for prompt in prompts)
    except DataError:
        return False
    return longest + max(_n_tokens(model, probe, text) for probe in probes) <= model.context


def _scored(probe: Probe, output: str, base_output: str, metric: str) -> Recall:
    if probe.kind == "unknown":
        score: float = float(is_declined(output))
    elif probe.kind == "neighborhood":
        score = float(output == base_output)
    else:
        score = METRICS[metric](output, probe.answers)
    return Recall(probe.id, probe.kind, probe.question, probe.answers, output, score, probe.source)
