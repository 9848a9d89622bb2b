"""A diagnosis as one tree: every check a question, in the order in which they explain one another.

    files ─▶ binding ─▶ effect ─▶ answers ─▶ side effects

A branch has what was measured there; it is passed, failed, or could not be measured, because files
or facts lack it or because an earlier failure leaves nothing to measure. The terminal, JSON and the
page show this one structure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from lorewright.recall.diagnose import BITS_PER_PARAMETER, CHECKS, Diagnosis
from lorewright.recall.evidence import OWN, Evidence

PASSED, FAILED, UNMEASURED = "passed", "failed", "unmeasured"
UNEXPLAINED = "unexplained"


@dataclass(frozen=True)
class Branch:
    """One check of a diagnosis."""

    check: str
    """A key of `diagnose.CHECKS`, or UNEXPLAINED."""
    question: str
    measured: str
    """In a few words; empty where nothing was."""
    outcome: str
    """PASSED, FAILED or UNMEASURED."""
    cause: str = ""
    """Of a failure."""
    remedy: str = ""
    """The command that mends it, or that examines further."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


Value = Callable[[Evidence], str]
"""What a check looks at, in a few words; empty where it was not measured."""


def _readable(e: Evidence) -> str:
    return f"rank {e.rank}, {e.n_parameters:,} parameters" if e.n_parameters else ""


def _whole(e: Evidence) -> str:
    return "A and B of linear layers" if e.n_parameters else ""


def _base(e: Evidence) -> str:
    return (e.named_base or "it names none") if e.n_parameters else ""


def _bound(e: Evidence) -> str:
    return f"{len(e.norms)} modules" if e.norms and not e.wrong_base else ""


def _changed(e: Evidence) -> str:
    n = sum(norm > 0 for norm in e.norms.values())
    return f"{n} of {len(e.norms)} modules" if e.norms else ""


def _moved(e: Evidence) -> str:
    return "" if e.moved is None else f"by up to {e.moved:.3g}"


def _writable(e: Evidence) -> str:
    n = len(e.answered)
    return f"{n - len(e.unwritable)} of {n}" if n else ""


def _format(e: Evidence) -> str:
    rows = e.formats.get(OWN, ())
    return f"{sum(row.exact for row in rows)} of {len(rows)} reproduced" if rows else ""


def _merged(e: Evidence) -> str:
    if not e.sound:
        return ""
    return f"a merge of {e.n_merged}" if e.n_merged else "not a merge"


def _recited(e: Evidence) -> str:
    if e.texts is None or not e.answered:
        return ""
    share = f"{sum(e.answered)} of {len(e.answered)} answered"
    return f"{share}; the text at {e.texts.nats:.2f} nats a token"


def _reworded(e: Evidence) -> str:
    if not e.paraphrase:
        return ""
    return f"{sum(e.paraphrase)} of {len(e.paraphrase)} answered"


def _room(e: Evidence) -> str:
    if e.needed_bits is None or not e.n_parameters:
        return ""
    room = BITS_PER_PARAMETER * e.n_parameters
    return f"{e.needed_bits:,.0f} bits into room for {room:,.0f}"


def _placed(e: Evidence) -> str:
    return f"{len(e.norms)} of {e.n_linear} linear layers" if e.n_linear and e.trained else ""


def _trained(e: Evidence) -> str:
    rows = e.trained
    return f"{sum(row.exact for row in rows)} of {len(rows)} reproduced" if rows else ""


def _in_time(e: Evidence) -> str:
    if not e.held_out_nats:
        return ""
    least, last = min(e.held_out_nats), e.held_out_nats[-1]
    return f"held-out loss {least:.2f} at its least, {last:.2f} at the end"


def _ending(e: Evidence) -> str:
    rows = [row for row in e.formats.get(OWN, ()) if len(row.right) > 1 and all(row.right[:-1])]
    return f"{sum(row.right[-1] for row in rows)} of {len(rows)} right answers stop" if rows else ""


def _loudness(e: Evidence) -> str:
    if not e.relative:
        return ""
    return f"{median(e.relative.values()):.2f} of the weights, scale {e.scale:g}"


def _strange(e: Evidence) -> str:
    if e.strange is None:
        return ""
    return f"{e.strange.n - e.strange.answered} of {e.strange.n} declined or as by the base"


def _retained(e: Evidence) -> str:
    return f"{sum(e.retained)} of {len(e.retained)} answered still" if e.retained else ""


QUESTIONS: Mapping[str, tuple[str, Value]] = {
    "damaged": ("Can its files be read?", _readable),
    "unsupported": ("Is it of a kind that is read here?", _whole),
    "other_base": ("Was it made on this base?", _base),
    "unbound": ("Does it fit the base's layers?", _bound),
    "zero": ("Does it change weights?", _changed),
    "unmoved": ("Do the logits move?", _moved),
    "unwritable": ("Can the base write the answers?", _writable),
    "other_format": ("Are questions put as they were trained?", _format),
    "interference": ("Do its sources leave one another alone?", _merged),
    "recites": ("Does it answer, and not only recite?", _recited),
    "one_form": ("Does it answer in other words?", _reworded),
    "too_small": ("Does the rank hold what was written?", _room),
    "wrong_layers": ("Does it sit where it can learn?", _placed),
    "undertrained": ("Is what was trained reproduced?", _trained),
    "overfit": ("Did training end in time?", _in_time),
    "no_stop": ("Do answers end?", _ending),
    "loud": ("Is the change small beside the weights?", _loudness),
    "answers_everybody": ("Are other questions left alone?", _strange),
    "forgets": ("Is what the base knows retained?", _retained),
}
"""By check: what it asks, and what it measures."""


def tree(diagnosis: Diagnosis) -> tuple[Branch, ...]:
    """The branches of a diagnosis in the order of its checks; last a failure that none explains."""
    findings = {finding.check: finding for finding in diagnosis.findings}
    branches = []
    for check in CHECKS:
        question, value = QUESTIONS.get(check, (check.replace("_", " "), lambda evidence: ""))
        if finding := findings.get(check):
            about = (finding.measured, FAILED, finding.cause, finding.remedy)
            branches.append(Branch(check, question, *about))
        else:
            measured = value(diagnosis.evidence)
            branches.append(Branch(check, question, measured, PASSED if measured else UNMEASURED))
    if finding := findings.get(UNEXPLAINED):
        about = (finding.measured, FAILED, finding.cause, finding.remedy)
        branches.append(Branch(UNEXPLAINED, "Does it recall?", *about))
    return tuple(branches)
