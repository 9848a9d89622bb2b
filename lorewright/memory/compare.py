"""Which mode suits a folder: closed, open and hybrid on the memories' own probes, side by side.

Every probe is asked once in mode hybrid, by which its halves are asked too. Probes are not trained
and have no part in routing; one choice among three modes is all that is taken from them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorewright.errors import ConfigError
from lorewright.knowledge.data import Probe
from lorewright.knowledge.scoring import METRICS
from lorewright.memory.ask import ask_as
from lorewright.memory.folder import entries
from lorewright.memory.modes import ALL, HALVES, Standing, keep
from lorewright.memory.verify import stored_lesson, usual_metric
from lorewright.recall.statistics import Estimate, mcnemar, mean_interval, wilson
from lorewright.routing.ask import Answer, best
from lorewright.training.watch import Watch

if TYPE_CHECKING:
    from lorewright.memory.memory import Memory

N_PROBES = 256
"""At most so many probes, spread over the memories."""
KINDS = ("paraphrase", "efficacy", "unknown")


def compare(
    memory: Memory, *, n: int = N_PROBES, seed: int = 0, watch: Watch | None = None
) -> Standing:
    """Measure the modes and store the result; see `Memory.compare`."""
    probes, metric = _probes(memory, n, seed), usual_metric(memory.model)
    (watch or Watch()).step(f"asking {len(probes)} probes closed-book, open-book and both ways")
    answers = ask_as(memory, [probe.question for probe in probes], mode="hybrid", watch=watch)
    pairs = list(zip(probes, answers, strict=True))
    right = {
        mode: [_right(probe, answer, mode, metric) for probe, answer in pairs]
        for mode in (*HALVES, "hybrid")
    }
    kinds = {ALL: {mode: _estimate(scores) for mode, scores in right.items()}}
    for kind in dict.fromkeys(probe.kind for probe in probes):
        at = [i for i, probe in enumerate(probes) if probe.kind == kind]
        kinds[kind] = {mode: _estimate([each[i] for i in at]) for mode, each in right.items()}
    half = max(reversed(HALVES), key=lambda mode: sum(right[mode]))
    both = list(zip(right["hybrid"], right[half], strict=True))
    p = mcnemar(sum(a > b for a, b in both), sum(a < b for a, b in both))
    standing = Standing(metric, kinds, tuple(sorted(set(memory.names.values()))), p)
    keep(standing, memory.folder)
    return standing


def _probes(memory: Memory, n: int, seed: int) -> list[Probe]:
    """At most n probes, as many of each memory as of the others, drawn by seed."""
    rng, by_memory = random.Random(seed), []
    for _, entry in sorted(entries(memory.folder).items()):
        path = memory.folder / "runs" / str(entry.get("run")) / "lesson.json"
        found = stored_lesson(path).probes if path.exists() else ()
        own = [probe for probe in found if probe.kind in KINDS]
        by_memory.append(rng.sample(own, len(own)))
    rounds = range(max(map(len, by_memory), default=0))
    found = tuple(own[i] for i in rounds for own in by_memory if i < len(own))
    if not found:
        raise ConfigError(
            f"{memory.folder} has no memory that was written with probes; without questions "
            "nothing can be compared."
        )
    return list(found[:n])


def _right(probe: Probe, answer: Answer, mode: str, metric: str) -> float:
    """Score of what a mode says, of which an answer in mode hybrid holds all replies."""
    text, declined = answer.text, answer.declined
    said = [reply for reply in answer.replies if reply.way == mode]
    if said:
        reply = best(said)
        text, declined = reply.text, reply.declined
    if probe.kind == "unknown":
        return float(declined)
    return METRICS[metric](text, probe.answers)


def _estimate(scores: Sequence[float]) -> Estimate:
    if all(score in (0, 1) for score in scores):
        return wilson(round(sum(scores)), len(scores))
    return mean_interval(scores)
