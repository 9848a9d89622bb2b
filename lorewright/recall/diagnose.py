"""Why recall failed: one check per known failure, each with its measurement, cause and remedy.

"Loss 0.004, recall 0.000": a loss says how training went, not whether a question is answered. Each
check in CHECKS looks at what was measured (`evidence`) and is silent unless that failure is there.
They stand in the order in which they explain one another; where an adapter cannot be attached or
does nothing, no later check can speak. A check runs no model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from lorewright.recall.evidence import OWN, Evidence
from lorewright.recall.traces import TokenTrace

SOURCE = "SOURCE"
"""What stands for `{source}` in a remedy where nothing better is known."""
WRITE = "lore write SOURCE --into FOLDER"
"""The same for `{write}`."""
MERGE = "lore merge FOLDER SOURCES --method rewrite"
"""The same for `{merge}`."""
LOW = 0.5
"""Share of answers below which recall counts as failed."""
HIGH = 0.8
"""Share from which it counts as there."""
MIN_N = 3
"""Fewest answers on which a share is judged."""
RECITED_NATS = 0.5
"""Loss on the text below which it counts as memorised, in nats per token."""
BITS_PER_PARAMETER = 2.0
"""What an adapter parameter holds at best: 2.28 at rank 1 in the law paper's runs, less above."""
LOUD = 0.5
"""Weight change over weight, both in Frobenius norm, from which the change drowns the weight."""
RETAINED_LEAST = 0.8
"""Share of the base's general knowledge below which it counts as forgotten."""
UNUSUAL_SCALE = 32.0
NARROW = 0.5
"""Share of the linear layers below which an adapter that was not learnt counts as misplaced."""
RISE_NATS, RISE_SHARE = 0.1, 1.2
"""Least rise of the held-out loss from its least, and least ratio, that count as overfitting."""


@dataclass(frozen=True)
class Finding:
    """A failure, with what shows it."""

    measured: str
    cause: str
    remedy: str
    """The command that mends it, or that examines further where nothing is known."""
    check: str = ""
    """Name of the check in CHECKS; `diagnose` fills it in."""

    def to_json(self) -> dict[str, str]:
        """Plain data."""
        return {"check": self.check, **asdict(self)}


Check = Callable[[Evidence], Finding | None]
"""Evidence to a finding; None where this failure is not there or could not be measured."""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and what was measured beside them."""

    evidence: Evidence
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        findings = [finding.to_json() for finding in self.findings]
        return {"findings": findings, "measured": summary(self.evidence)}


def diagnose(
    evidence: Evidence, *, write: str = WRITE, merge: str = MERGE, source: str = SOURCE
) -> Diagnosis:
    """Run every check; `write` and `merge` are the commands that make this memory again.

    `source` is what it was written from.

    Where recall failed and none of them knows why, that is the finding: `unexplained`.
    """
    findings = {name: each for name, check in CHECKS.items() if (each := check(evidence))}
    if not findings and (unknown := unexplained(evidence)):
        findings["unexplained"] = unknown

    def named(name: str, finding: Finding) -> Finding:
        remedy = finding.remedy.replace("{write}", write).replace("{merge}", merge)
        remedy = remedy.replace("{source}", source)
        return replace(finding, check=name, remedy=remedy)

    return Diagnosis(evidence, tuple(named(*each) for each in findings.items()))


def unexplained(evidence: Evidence) -> Finding | None:
    """Recall failed: of facts, of questions as trained, or in other words."""
    measured = {
        "facts answered": (evidence.answered, HIGH),
        "questions as trained answered": (evidence.efficacy, HIGH),
        "questions in other words answered": (evidence.paraphrase, LOW),
    }
    low = [
        f"{what}: {sum(outcomes)} of {len(outcomes)}"
        for what, (outcomes, least) in measured.items()
        if outcomes and sum(outcomes) < least * len(outcomes)
    ]
    if not low:
        return None
    n_formats = sum(bool(rows) for rows in evidence.formats.values())
    return Finding(
        "; ".join(low),
        f"unknown: the adapter is sound, and none of {len(CHECKS)} checks and {n_formats} prompt "
        "formats explains it. Facts that it was never trained on, or another format, would: a "
        "template is a text file with {prompt} in it",
        f"lore doctor {evidence.place} --facts FILE --template FILE",
    )


def summary(evidence: Evidence) -> dict[str, Any]:
    """The measurements in figures; None where something was not measured."""
    relative = sorted(evidence.relative.values())
    formats = {name: _exact(rows) for name, rows in evidence.formats.items() if rows}
    strange, texts = evidence.strange, evidence.texts
    return {
        "adapter": evidence.place,
        "base": evidence.base,
        "rank": evidence.rank or None,
        "scale": evidence.scale or None,
        "n_parameters": evidence.n_parameters or None,
        "modules_unchanged": sum(not norm > 0 for norm in evidence.norms.values()) or None,
        "relative_change": median(relative) if relative else None,
        "logits_moved": evidence.moved,
        "n_facts": len(evidence.answered),
        "answered": _share(evidence.answered),
        "teacher_forced": formats,
        "n_trained": len(evidence.trained),
        "trained_exact": _exact(evidence.trained),
        "stubborn_tokens": sum(len(t.stubborn) for t in evidence.trained or _own(evidence)),
        "needed_bits": evidence.needed_bits,
        "efficacy": _share(evidence.efficacy),
        "paraphrase": _share(evidence.paraphrase),
        "text_nats": texts.nats if texts else None,
        "text_nats_base": texts.base_nats if texts else None,
        "strange_declined": strange.declined if strange else None,
        "strange_declined_base": strange.base_declined if strange else None,
        "n_strange": strange.n if strange else None,
        "retained": _share(evidence.retained),
        "n_retained": len(evidence.retained) or None,
    }


def _own(evidence: Evidence) -> tuple[TokenTrace, ...]:
    return tuple(evidence.formats.get(OWN, ()))


def _share(outcomes: Sequence[bool]) -> float | None:
    return sum(outcomes) / len(outcomes) if outcomes else None


def _exact(rows: Sequence[TokenTrace]) -> float | None:
    return _share([row.exact for row in rows])


def _failed(evidence: Evidence) -> bool:
    """Whether its facts were probed and do not come back."""
    share = _share(evidence.answered)
    return len(evidence.answered) >= MIN_N and share is not None and share < LOW


# -- files, binding, effect ----------------------------------------------------------------------


def damaged(evidence: Evidence) -> Finding | None:
    """The files are no adapter, incomplete or corrupt."""
    if not evidence.unreadable:
        return None
    return Finding(
        evidence.unreadable,
        "the folder cannot be read as an adapter, so an engine that takes it runs the base alone "
        "or fails; what was trained elsewhere can be copied again from there",
        "{write}",
    )


def unsupported(evidence: Evidence) -> Finding | None:
    """The files are sound, and of a kind in which A and B are not all."""
    if not evidence.unsupported:
        return None
    return Finding(
        evidence.unsupported,
        "only A and B of linear layers (and DoRA's lengths) are read here, and examining a part of "
        "an adapter would say nothing of the whole",
        "{write}",
    )


def other_base(evidence: Evidence) -> Finding | None:
    """It was made on another base than this one."""
    if not evidence.unbound or not evidence.wrong_base:
        return None
    return Finding(
        evidence.unbound,
        "a weight change is a difference to the weights it was trained on; added to others it is "
        "noise",
        f"lore doctor {evidence.place} --model {evidence.named_base or 'ITS_BASE'}",
    )


def unbound(evidence: Evidence) -> Finding | None:
    """Its tensors do not fit the modules of this base."""
    if not evidence.unbound or evidence.wrong_base:
        return None
    elsewhere = evidence.named_base and evidence.named_base != evidence.base
    return Finding(
        evidence.unbound,
        "names or shapes differ from the base's layers; loaders that pass over what they do not "
        "know report success and change nothing",
        f"lore doctor {evidence.place} --model {evidence.named_base}" if elsewhere else "{write}",
    )


def zero(evidence: Evidence) -> Finding | None:
    """Every weight change is zero: B never moved."""
    if not evidence.norms or any(norm > 0 for norm in evidence.norms.values()):
        return None
    return Finding(
        f"{len(evidence.norms)} of {len(evidence.norms)} modules have a weight change of exactly "
        "zero",
        "B starts at zero and was not trained: no gradient reached it, the optimiser was given "
        "other parameters, steps in bfloat16 rounded to nothing, or A was reset to zero as well",
        "{write}",
    )


def unmoved(evidence: Evidence) -> Finding | None:
    """It is bound and not zero, and no logit moves."""
    some = any(norm > 0 for norm in evidence.norms.values())
    if evidence.unbound or not some or evidence.moved is None or evidence.moved > 0:
        return None
    return Finding(
        f"the largest change of any logit is {evidence.moved:g}",
        f"the weight change is too small for the arithmetic of this base (largest "
        f"{max(evidence.norms.values()):.2g})",
        "{write} --lr find",
    )


def unwritable(evidence: Evidence) -> Finding | None:
    """Answers need characters that the base cannot write."""
    if not evidence.unwritable or all(evidence.answered):
        return None
    answer, _ = next(iter(evidence.unwritable.items()))
    marks = " ".join(sorted({c for lost in evidence.unwritable.values() for c in lost}))
    return Finding(
        f"{len(evidence.unwritable)} of {len(evidence.answered)} answers need {marks}, the first "
        f"is {answer!r}",
        "in the head of this base the tokens of these characters are nearly one vector, so no "
        "adapter can tell them apart, however long it is trained: spell these answers otherwise, "
        "or write them on a base that has the characters",
        "lore write {source} --into NEW_FOLDER --model smollm2",
    )


# -- answers -------------------------------------------------------------------------------------


def other_format(evidence: Evidence) -> Finding | None:
    """The answers are there when the question is put in another format: that one was trained."""
    own = _exact(_own(evidence))
    others = {n: _exact(rows) for n, rows in evidence.formats.items() if n != OWN and rows}
    if not _failed(evidence) or own is None or not others or evidence.n_merged:
        return None

    def fit(name: str) -> tuple[float, float]:
        log_p = sum(math.log(max(p, 1e-30)) for row in evidence.formats[name] for p in row.p)
        return others[name] or 0.0, log_p

    name = max(others, key=fit)
    best = others[name] or 0.0
    if best < LOW or own > best / 2:
        return None
    n = len(_own(evidence))
    return Finding(
        f"answers reproduced: {best:.2f} with {name}, {own:.2f} with {OWN}, n={n}",
        "it was trained on prompts in another format than the probes have; its loss was low "
        "on those, and says nothing of these",
        "{write}",
    )


def interference(evidence: Evidence) -> Finding | None:
    """It is a merge, and its sources' facts do not come back."""
    if not _failed(evidence) or not evidence.n_merged:
        return None
    return Finding(
        f"answers: {_share(evidence.answered):.2f} of {len(evidence.answered)}, after a merge of "
        f"{evidence.n_merged} adapters",
        "the weight changes of the sources disturb one another",
        "{merge}",
    )


def recites(evidence: Evidence) -> Finding | None:
    """It knows how the text goes on and answers nothing: trained on next tokens only."""
    texts = evidence.texts
    if texts is None or not _failed(evidence):
        return None
    if texts.nats > RECITED_NATS or texts.nats > texts.base_nats / 2:
        return None
    return Finding(
        f"the text itself: {texts.nats:.3f} nats per token (base {texts.base_nats:.2f}), n="
        f"{texts.n_tokens} tokens; questions on it answered: {_share(evidence.answered):.2f} of "
        f"{len(evidence.answered)}",
        "next-token training teaches how a document continues, not to answer questions about it: "
        "low loss, no recall",
        "{write} --view qa",
    )


def one_form(evidence: Evidence) -> Finding | None:
    """It answers the questions as they were trained, and not in other words."""
    as_trained, reworded = _share(evidence.efficacy), _share(evidence.paraphrase)
    if as_trained is None and evidence.answered:
        as_trained = _share(evidence.answered)
    if as_trained is None or reworded is None or len(evidence.paraphrase) < MIN_N:
        return None
    if as_trained < HIGH or reworded > as_trained / 2:
        return None
    return Finding(
        f"answered as trained {as_trained:.2f}, in other words {reworded:.2f} of "
        f"{len(evidence.paraphrase)}",
        "each fact was trained in one form of question, so the form became part of the key; of "
        "documents --view qa trains several, and --teacher URL has another model write them",
        "{write} --view qa",
    )


def too_small(evidence: Evidence) -> Finding | None:
    """The rank cannot hold what was to be written."""
    exact, bits = _exact(evidence.trained), evidence.needed_bits
    if exact is None or bits is None or not evidence.n_parameters or exact >= 1 - 0.1:
        return None
    capacity_bits = BITS_PER_PARAMETER * evidence.n_parameters
    if bits <= capacity_bits:
        return None
    rank = math.ceil(evidence.rank * bits / capacity_bits)
    return Finding(
        f"{bits:,.0f} bits to be written into {evidence.n_parameters:,} parameters at rank "
        f"{evidence.rank}: {bits / evidence.n_parameters:.1f} each; reproduced {exact:.2f}",
        f"an adapter parameter holds {BITS_PER_PARAMETER:g} bits at best",
        f"{{write}} --rank {2 ** math.ceil(math.log2(max(rank, 1)))}",
    )


def wrong_layers(evidence: Evidence) -> Finding | None:
    """What was trained is not reproduced, in few layers that have the capacity for it."""
    exact, n_adapted = _exact(evidence.trained), len(evidence.norms)
    if exact is None or exact >= 1 - 0.1 or n_adapted >= NARROW * evidence.n_linear:
        return None
    if too_small(evidence) or unwritable(evidence):
        return None
    kinds = sorted({name.rsplit(".", 1)[-1] for name in evidence.norms})
    return Finding(
        f"{n_adapted} of {evidence.n_linear} linear layers are adapted ({', '.join(kinds)}); "
        f"reproduced {exact:.2f}",
        "the capacity is there, and these layers do not learn it in the time: facts are held "
        "best where all linear layers are adapted, the MLPs above all",
        "{write} --target all-linear",
    )


def undertrained(evidence: Evidence) -> Finding | None:
    """What was trained is not reproduced: tokens with p < 1/2 are left."""
    rows = evidence.trained
    exact = _exact(rows)
    if exact is None or exact >= 1 - 0.1:
        return None
    if too_small(evidence) or wrong_layers(evidence) or unwritable(evidence):
        return None
    stubborn = sum(len(row.stubborn) for row in rows)
    n_tokens = sum(len(row.p) for row in rows)
    failures = [row.first_failure for row in rows if row.first_failure is not None]
    where = ", ".join(f"{at} (×{n})" for at, n in Counter(failures).most_common(3))
    why = f", its training ended by {evidence.reason}" if evidence.reason else ""
    return Finding(
        f"{len(failures)} of {len(rows)} trained examples are not reproduced; {stubborn} of "
        f"{n_tokens} tokens have p < 1/2; first failures at token {where}",
        f"training ended before every token was the likeliest{why}",
        "{write} --epochs 200 --lr find",
    )


def overfit(evidence: Evidence) -> Finding | None:
    """Its loss on questions in other words had been lower before training went on."""
    nats, reworded = evidence.held_out_nats, _share(evidence.paraphrase)
    if len(nats) < MIN_N or reworded is None or reworded >= HIGH:
        return None
    least = min(nats)
    if nats[-1] - least < RISE_NATS or nats[-1] < RISE_SHARE * least:
        return None
    return Finding(
        f"loss on questions in other words: {least:.2f} nats a token at its least, {nats[-1]:.2f} "
        f"at the end; answered {reworded:.2f} of {len(evidence.paraphrase)}",
        "training went on after what carries over to other words was learnt: what was trained "
        "became surer, and everything near it wrong",
        "{write} --preset generalise",
    )


def no_stop(evidence: Evidence) -> Finding | None:
    """Answers are right and do not end: the stop token was not trained."""
    rows = _own(evidence)
    ends = [row.right[-1] for row in rows if len(row.right) > 1 and all(row.right[:-1])]
    if len(ends) < MIN_N or len(ends) < LOW * len(rows) or sum(ends) >= LOW * len(ends):
        return None
    return Finding(
        f"{len(ends)} of {len(rows)} answers are right up to their end; of these {sum(ends)} stop",
        "the loss left out the token that ends a reply (a pad token equal to it and masked, or "
        "completions without it), so the model goes on after the answer",
        "{write}",
    )


# -- side effects --------------------------------------------------------------------------------


def loud(evidence: Evidence) -> Finding | None:
    """The weight change drowns the weights."""
    if not evidence.relative:
        return None
    typical = median(evidence.relative.values())
    if typical < LOUD and evidence.scale < UNUSUAL_SCALE:
        return None
    name = max(evidence.relative, key=lambda n: evidence.relative[n])
    return Finding(
        f"weight change over weight: median {typical:.2f}, largest {evidence.relative[name]:.2f} "
        f"({name}); scale {evidence.scale:g}",
        "rate or alpha/rank were too large: what the base could do is drowned, and adapters like "
        "this cannot be merged",
        "{write} --alpha 16 --lr find",
    )


def answers_everybody(evidence: Evidence) -> Finding | None:
    """It changes replies to questions that are none of its business."""
    strange = evidence.strange
    if strange is None or strange.n < MIN_N:
        return None
    declining = strange.base_declined >= LOW * strange.n
    # A base that answers anything anyhow is not spoilt where the memory declines.
    n_same = strange.declined if declining else strange.n - strange.answered
    of = strange.base_declined if declining else strange.n
    if n_same >= LOW * of:
        return None
    what = "declined" if declining else "declined or answered as by the base"
    return Finding(
        f"questions on other things {what}: {n_same} of {strange.n} (base {of})",
        "it was trained without questions to leave alone, which a write mixes in by default, so it "
        "answers for everybody, and routing to it by mistake goes unnoticed",
        "{write}",
    )


def forgets(evidence: Evidence) -> Finding | None:
    """It costs what the base knew of the world."""
    share = _share(evidence.retained)
    if share is None or len(evidence.retained) < MIN_N or share >= RETAINED_LEAST:
        return None
    return Finding(
        f"general questions that the base answers: {share:.2f} of {len(evidence.retained)} are "
        "answered still",
        "it was trained on its own knowledge alone, or too loudly: other answers were overwritten",
        "{write} --rehearse 100",
    )


CHECKS: dict[str, Check] = {
    "damaged": damaged,
    "unsupported": unsupported,
    "other_base": other_base,
    "unbound": unbound,
    "zero": zero,
    "unmoved": unmoved,
    "unwritable": unwritable,
    "other_format": other_format,
    "interference": interference,
    "recites": recites,
    "one_form": one_form,
    "too_small": too_small,
    "wrong_layers": wrong_layers,
    "undertrained": undertrained,
    "overfit": overfit,
    "no_stop": no_stop,
    "loud": loud,
    "answers_everybody": answers_everybody,
    "forgets": forgets,
}
