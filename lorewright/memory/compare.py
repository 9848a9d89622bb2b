"""The verb `compare`: closed, open, read and hybrid on the memories' own probes, side by side.

Every probe is answered in mode hybrid, which includes its halves, and in mode read. Probes are not
trained and have no part in routing; one choice among four modes is all that is taken from them.
"""

from __future__ import annotations

import random

from lorewright.errors import ConfigError
from lorewright.knowledge.data import Probe
from lorewright.knowledge.negatives import DECLINE
from lorewright.knowledge.scoring import METRICS
from lorewright.memory.ask import ask_as
from lorewright.memory.folder import Folder
from lorewright.memory.modes import ALL, HALVES, MEASURED, Comparison, store_comparison
from lorewright.memory.opened import OpenFolder
from lorewright.memory.verify import usual_metric
from lorewright.recall.statistics import estimate, mcnemar
from lorewright.routing.ask import Answer, best
from lorewright.training.watch import Watch

N_PROBES = 256
"""At most so many probes, spread over the memories."""
KINDS = ("paraphrase", "efficacy", "unknown")


def compare(
    memory: OpenFolder, *, n: int = N_PROBES, seed: int = 0, watch: Watch | None = None
) -> Comparison:
    """Measure MEASURED modes on the memories' probes; `ask` goes by it from then on.

    Raises ConfigError when no memory was written with probes.
    """
    probes, metric = _probes(memory.folder, n, seed), usual_metric(memory.model)
    questions = [probe.question for probe in probes]
    watch = watch or Watch()
    watch.step(f"asking {len(probes)} probes closed-book, open-book and both ways")
    answers = ask_as(memory, questions, mode="hybrid", watch=watch)
    watch.step(f"asking {len(probes)} probes again: the base reads, the memory answers")
    by_mode = dict.fromkeys(MEASURED, answers)
    by_mode["read"] = ask_as(memory, questions, mode="read", watch=watch)
    right = {
        mode: [_right(*pair, mode, metric) for pair in zip(probes, own, strict=True)]
        for mode, own in by_mode.items()
    }
    kinds = {ALL: {mode: estimate(scores) for mode, scores in right.items()}}
    for kind in dict.fromkeys(probe.kind for probe in probes):
        at = [i for i, probe in enumerate(probes) if probe.kind == kind]
        kinds[kind] = {mode: estimate([each[i] for i in at]) for mode, each in right.items()}
    half = max(reversed(HALVES), key=lambda mode: sum(right[mode]))
    both = list(zip(right["hybrid"], right[half], strict=True))
    p = mcnemar(sum(a > b for a, b in both), sum(a < b for a, b in both))
    comparison = Comparison(metric, kinds, tuple(sorted(set(memory.names.values()))), p)
    with memory.writing():
        store_comparison(comparison, memory.folder)
    return comparison


def _probes(folder: Folder, n: int, seed: int) -> list[Probe]:
    """At most n probes, as many of each memory as of the others, drawn by seed."""
    rng, by_memory = random.Random(seed), []
    for _, entry in sorted(folder.entries().items()):
        own = [probe for probe in folder.lesson(entry).probes if probe.kind in KINDS]
        by_memory.append(rng.sample(own, len(own)))
    rounds = range(max(map(len, by_memory), default=0))
    probes = [own[i] for i in rounds for own in by_memory if i < len(own)]
    if not probes:
        raise ConfigError(
            f"{folder.path} has no memory that was written with probes; without questions nothing "
            "can be compared."
        )
    return probes[:n]


def _right(probe: Probe, answer: Answer, mode: str, metric: str) -> float:
    """Score of a mode's own reply, of which an answer in mode hybrid holds all."""
    text, declined = answer.text, answer.declined
    if own := [reply for reply in answer.replies if reply.way == mode]:
        text, declined = best(own).text, not best(own).answers
        text = DECLINE if declined else text
    return float(declined) if probe.kind == "unknown" else METRICS[metric](text, probe.answers)
