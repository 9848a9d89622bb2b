"""What the replies of benchmark `memories` come to: shares, the five numbers, comparisons, a table.

Shares carry n and Wilson's interval. What is compared was asked the same questions, so differences
are paired, with a bootstrap interval and McNemar's exact p; the share of the oracle that routing
keeps is resampled by document, since questions on one document are not independent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from lorewright import __version__
from lorewright.bench.memories import (
    ARMS,
    DOCUMENTS,
    STRANGERS,
    Question,
    Setting,
    Settings,
    lesson_of,
    near_misses,
    pairs,
    read_pages,
    replies,
    score,
    two_in_one,
    two_memories,
    written,
)
from lorewright.bench.oracle_gap import Trial, oracle_gap
from lorewright.bench.routers import first_right, routers
from lorewright.files import digest, read_object, read_text, save_json
from lorewright.memory.verify import usual_metric
from lorewright.models.model import Model
from lorewright.recall.statistics import Estimate, mcnemar, mean_interval, paired_difference, wilson
from lorewright.routing.ask import Answer, ask_each
from lorewright.training.watch import Watch

RECORD_FILE = "record.json"
STRANGE_ARMS = ("base", "routed", "abstaining", "single", "merged", "open", "hybrid")
NEAR_ARMS = ("base", "oracle", "abstaining", "single", "merged", "open", "full", "hybrid")
ALL = "all"
N_DRAWS = 2000


def run(
    folder: Path,
    model: Model,
    settings: Settings,
    *,
    arms: Sequence[str] = ARMS,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Write the memories, ask everything of every arm, and return the record that is kept.

    Raises DataError for files of another shape or too few documents, ModelError when a write
    diverged; what was done before is not done again.
    """
    watch = watch or Watch()
    pages = read_pages(Path(settings.documents or DOCUMENTS), settings.n_documents)
    strangers = read_text(Path(settings.strangers or STRANGERS)).splitlines()
    memory = written(folder, model, pages, settings, watch)
    given = Setting(memory, folder, {page.document.id: page for page in pages}, settings, watch, {})
    questions = [q for page in pages for q in page.questions]
    strange = [Question(text, "", "", "stranger") for text in strangers[: settings.n_strangers]]
    near = near_misses(given)
    asked = {"questions": questions, "strangers": strange, "near misses": near}
    allowed = {"questions": ARMS, "strangers": STRANGE_ARMS, "near misses": NEAR_ARMS}
    told = {
        name: {arm: replies(given, arm, own, name) for arm in arms if arm in allowed[name]}
        for name, own in asked.items()
    }
    record = {
        "benchmark": "memories",
        "settings": asdict(settings),
        "base": {"id": model.name, "digest": model.digest},
        "version": __version__,
        "metric": usual_metric(model),
        **_shares(given, asked, told),
        "routing": _routing(given, questions, strange),
        "several": {
            **_kept(given, "several", lambda: _several(given, questions)),
            **_kept(given, "routers", lambda: _routers(given, questions)),
        },
        "seconds": {"writing": _writing(folder), "a question": _seconds(given, questions)},
        "made": time.strftime("%Y-%m-%d"),
    }
    save_json(record, folder / RECORD_FILE)
    return record


def _shares(
    given: Setting,
    asked: Mapping[str, Sequence[Question]],
    told: Mapping[str, Mapping[str, Sequence[Answer]]],
) -> dict[str, Any]:
    """Shares by arm, and what follows from them."""
    questions, metric = asked["questions"], usual_metric(given.memory.model)
    right = {
        arm: [score(q, a, metric) for q, a in zip(questions, answers, strict=True)]
        for arm, answers in told["questions"].items()
    }
    kinds = [ALL, *dict.fromkeys(q.kind for q in questions)]
    accuracy = {
        arm: {
            kind: _plain(_of(scores, [kind in (ALL, q.kind) for q in questions])) for kind in kinds
        }
        for arm, scores in right.items()
    }
    declined = {
        name: {
            arm: _plain(wilson(sum(a.declined for a in answers), len(answers)))
            for arm, answers in told[name].items()
        }
        for name in ("strangers", "near misses")
    }
    found: dict[str, Any] = {"accuracy": accuracy, "declined": declined}
    if {"base", "oracle", "routed", "abstaining", "wrong"} <= right.keys():
        found["five"] = _five(questions, told["questions"]["routed"], right)
        found["routed_of_oracle"] = _ratio(questions, right["routed"], right["oracle"])
    if {"hybrid", "abstaining", "open"} <= right.keys():
        found["hybrid"] = _hybrid(right)
    return found


def _of(scores: Sequence[float], chosen: Sequence[bool]) -> Estimate:
    return _all([value for value, kept in zip(scores, chosen, strict=True) if kept])


def _all(scores: Sequence[float]) -> Estimate:
    if all(value in (0, 1) for value in scores):
        return wilson(round(sum(scores)), len(scores))
    return mean_interval(scores)


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {"n": estimate.n, "mean": estimate.mean, "low": estimate.low, "high": estimate.high}


def _five(
    questions: Sequence[Question], nearest: Sequence[Answer], right: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The five numbers, and what the gap between oracle and routed is made of."""
    trials = [
        Trial(
            base=right["base"][i],
            oracle=right["oracle"][i],
            routed=right["routed"][i],
            abstaining=right["abstaining"][i],
            wrong=right["wrong"][i],
            hit=nearest[i].memory == q.document,
        )
        for i, q in enumerate(questions)
    ]
    gap = oracle_gap(trials)
    parts = ("base", "oracle", "routed", "abstaining", "wrong", "hit", "missed", "merged")
    return {part: _plain(vars(gap)[part]) for part in parts}


def _ratio(
    questions: Sequence[Question], above: Sequence[float], below: Sequence[float]
) -> dict[str, Any]:
    """Mean over mean, with a bootstrap interval over documents; None over a mean of zero."""
    names = sorted({q.document for q in questions})
    sums = np.zeros((len(names), 2))
    for q, a, b in zip(questions, above, below, strict=True):
        sums[names.index(q.document)] += (a, b)
    total = sums.sum(axis=0)
    if not total[1]:
        return {"n": len(questions), "mean": None, "low": None, "high": None}
    draws = np.random.default_rng(0).integers(len(names), size=(N_DRAWS, len(names)))
    drawn = sums[draws].sum(axis=1)
    ratios = drawn[:, 0] / np.maximum(drawn[:, 1], 1e-9)
    low, high = np.quantile(ratios, [0.025, 0.975])
    mean = float(total[0] / total[1])
    return {"n": len(questions), "mean": mean, "low": float(low), "high": float(high)}


def _hybrid(right: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Hybrid against its better half, on the same questions."""
    half = max(("open", "abstaining"), key=lambda arm: sum(right[arm]))
    both = list(zip(right["hybrid"], right[half], strict=True))
    won, lost = sum(a > b for a, b in both), sum(a < b for a, b in both)
    difference = paired_difference(right["hybrid"], right[half])
    return {
        "better_half": half,
        "difference": _plain(difference),
        "only_hybrid": won,
        "only_half": lost,
        "p": mcnemar(won, lost),
    }


def _routing(
    given: Setting, questions: Sequence[Question], strange: Sequence[Question]
) -> dict[str, Any]:
    """Of questions the share that is let through, and to the right memory; of strangers, too."""
    rate, found = given.settings.false_activation, given.router

    def chosen(text: str) -> list[Any]:
        return list(found.route(text, false_activation=rate).chosen)

    hits = [chosen(q.text) for q in questions]
    right = [q.document in [h.memory for h in own] for q, own in zip(questions, hits, strict=True)]
    threshold = found.route(questions[0].text, false_activation=rate).threshold
    return {
        "n_keys": len(found.index.keys),
        "threshold": None if threshold is None else asdict(threshold),
        "covered": _plain(wilson(sum(map(bool, hits)), len(hits))),
        "to_the_right_one": _plain(wilson(sum(right), len(right))),
        "several": _plain(wilson(sum(len(own) > 1 for own in hits), len(hits))),
        "false_activation": _plain(
            wilson(sum(bool(chosen(q.text)) for q in strange), len(strange))
        ),
    }


def _kept(
    given: Setting, name: str, make: Callable[[], dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    """What was measured before with these settings and memories, or is now."""
    path = given.folder / f"{name}.json"
    ids = sorted(given.memory.names.items())
    key = digest([given.memory.model.digest, asdict(given.settings), ids])
    found = read_object(path, "delete it") if path.exists() else {}
    if found.get("key") != key:
        given.watch.step(name)
        found = {"key": key, "found": make()}
        save_json(found, path)
    return dict(found["found"])


def _several(given: Setting, questions: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """Two memories for one question: which way of using both loses least."""
    metric = usual_metric(given.memory.model)
    own = _some(questions, given.settings.n_pairs)
    told = two_memories(given, own)
    both = two_in_one(given, pairs(given))
    return {
        "right and nearest other": {
            way: _plain(_all([score(q, a, metric) for q, a in zip(own, said, strict=True)]))
            for way, said in told.items()
        },
        "two questions in one": {way: _plain(_all(scores)) for way, scores in both.items()},
    }


def _routers(given: Setting, questions: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """Share of questions whose first memory is the right one, by router."""
    index = given.router.index
    ids = {name: given.memory.names[name] for name in given.pages}
    own = {
        ids[key]: [e.prompt for e in lesson_of(given, key).examples if e.kind == "qa"]
        for key in sorted(ids)
    }
    adapters = {ids[name]: given.adapter(name) for name in sorted(ids)}
    asked = [(q.text, ids[q.document]) for q in _some(questions, given.settings.n_routed)]
    made = routers(given.memory.model, index, adapters, own)
    return {
        "first is right": {
            name: _plain(_all([float(right) for right in first_right(router, asked)]))
            for name, router in made.items()
        }
    }


def _some(questions: Sequence[Question], n: int) -> list[Question]:
    """At most n, evenly spread."""
    return list(questions[:: max(1, len(questions) // n)][:n])


def _writing(folder: Path) -> dict[str, float]:
    """Seconds of all stacks, lessons and training apart."""
    spent = [read_object(path, "delete it") for path in folder.glob("stacks/*/seconds.json")]
    return {part: sum(each[part] for each in spent) for part in ("n", "lessons", "training")}


def _seconds(given: Setting, questions: Sequence[Question]) -> dict[str, Any]:
    given.watch.step("one question at a time, with a clock")
    found = timed(given, _some(questions, given.settings.n_timed))
    return {
        way: {"n": len(own), "median": median(own), "p90": quantiles(own, n=10)[-1]}
        for way, own in found.items()
        if len(own) > 1
    }


# -- tables --------------------------------------------------------------------------------------

MEANING = {
    "base": "the base alone",
    "oracle": "the memory that holds the answer",
    "routed": "the memory nearest by its keys",
    "abstaining": "the same, or nobody",
    "wrong": "another memory",
    "single": "one adapter of the summed rank for all",
    "merged": "all memories merged",
    "open": "passages found, no memory",
    "full": "the right document in the prompt",
    "hybrid": "memory and passages: `lore ask`",
}


def rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The table: a heading, then one row an arm."""
    kinds = list(next(iter(record["accuracy"].values())))
    head = ["arm", "what answers", *kinds, "near misses declined", "strangers declined"]
    declined = record["declined"]
    body = [
        [
            arm,
            MEANING[arm],
            *(_spelt(by_kind[kind]) for kind in kinds),
            _spelt(declined["near misses"].get(arm)),
            _spelt(declined["strangers"].get(arm)),
        ]
        for arm, by_kind in record["accuracy"].items()
    ]
    return [head, *body]


def sentences(record: Mapping[str, Any]) -> list[str]:
    """What the benchmark was made to show, in sentences."""
    routing, told = record["routing"], []
    n = record["settings"]["n_documents"]
    false = routing["false_activation"]
    told.append(
        f"{n} memories, {routing['n_keys']} keys: let through {_spelt(routing['covered'])}, to the "
        f"right one {_spelt(routing['to_the_right_one'])}; strangers let through {_spelt(false)}"
    )
    if "routed_of_oracle" in record:
        told.append(f"routed keeps {_spelt(record['routed_of_oracle'])} of the oracle")
    if "hybrid" in record:
        own = record["hybrid"]
        told.append(
            f"hybrid against its better half ({own['better_half']}): {_signed(own['difference'])}, "
            f"{own['only_hybrid']} right in hybrid alone, {own['only_half']} there alone, "
            f"p = {own['p']:.3g}"
        )
    for title, ways in record["several"].items():
        told.append(f"{title}: " + ", ".join(f"{way} {_spelt(s)}" for way, s in ways.items()))
    spent = record["seconds"]
    told.append(
        f"written in {spent['writing']['training']:.0f} s of training and "
        f"{spent['writing']['lessons']:.0f} s of lessons; a question, median: "
        + ", ".join(f"{way} {own['median']:.3f} s" for way, own in spent["a question"].items())
    )
    return told


def markdown(record: Mapping[str, Any]) -> str:
    """The table and the sentences as Markdown."""
    head, *body = rows(record)
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in body]
    return "\n".join([*lines, "", *(f"- {sentence}." for sentence in sentences(record))])


def _spelt(estimate: Mapping[str, Any] | None) -> str:
    if not estimate or estimate["mean"] is None:
        return ""
    text = f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
    return f"{text} n={estimate['n']}"


def _signed(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['mean']:+.3f} [{estimate['low']:+.3f}, {estimate['high']:+.3f}]"


def timed(given: Setting, questions: Sequence[Question]) -> dict[str, list[float]]:
    """Seconds of one question at a time, all loaded, by mode; `route` only finds memories."""
    ask, find = given.memory.ask, given.memory.route
    ways: dict[str, Callable[[str], object]] = {
        "route": find,
        "base": lambda text: ask_each(given.memory.model, [(text, ())], given.adapter),
        **{mode: partial(ask, mode=mode) for mode in ("closed", "open", "hybrid", "full")},
    }
    found: dict[str, list[float]] = {}
    for way, call in ways.items():
        call(questions[0].text)
        found[way] = []
        for question in questions:
            began = time.perf_counter()
            call(question.text)
            found[way].append(time.perf_counter() - began)
    return found
