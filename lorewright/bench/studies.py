"""Questions that papers and practitioners ask, each with the benchmarks that answer it.

A study is one question: which benchmarks with which settings, what was published, what differs
here, and how a sentence follows from what was measured. The sentence is computed, also where the
answer is no. `reproduce` runs studies and makes their pages.

Knows the summaries of benchmarks; nothing of models, folders or pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lorewright.bench.task import Summary
from lorewright.errors import ConfigError

LAW_PAPER = "How LoRA Remembers? A Parametric Memory Law for LLM Finetuning, arXiv 2605.30260"
MEMORY_PAPER = "Understanding LoRA as Knowledge Memory: An Empirical Analysis, arXiv 2603.01097"
MEMO = "a report: My LoRA memorized a document and still couldn't answer questions about it"
LESSON = "a course page on when LoRA adaptation fails, how to regularise and how to merge"
THE_MEMO, SECTIONS, PAPERS = "", "real_documents.json", "paperqa_3.json"
"""Files that studies read; the memo is packaged."""

LEAST_UNSATURATED = 6
"""Runs that a rank does not hold whole, from which a law can be wrong; what is whole fits any."""

Summaries = Mapping[str, Summary]
"""By part of a study."""


@dataclass(frozen=True)
class Part:
    """One benchmark of a study."""

    task: str
    """A key of `task.TASKS`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    """Other settings for a quick run, over the benchmark's own quick ones."""
    data: str | None = None
    """The file that it reads; None = it makes its own, or has one that comes along."""
    reads: str = "data"
    """The setting that names the file."""


class Published(NamedTuple):
    """A figure of a source, and where it stands there."""

    what: str
    value: str
    where: str


@dataclass(frozen=True)
class Study:
    """One question."""

    question: str
    source: str
    """Whose question it is."""
    parts: Mapping[str, Part]
    published: Sequence[Published]
    differs: str
    """What is otherwise here, in sentences."""
    answer: Callable[[Summaries], str]
    """What was measured, as a sentence."""


# -- sentences from summaries --------------------------------------------------------------------


def shown(estimate: Mapping[str, Any] | None, form: str = "{:.2f}") -> str:
    """Mean, interval and n in a sentence."""
    if not estimate or estimate["mean"] is None:
        return "nothing measured"
    text = form.format(estimate["mean"])
    if estimate["low"] is None:
        return f"{text} (n = {estimate['n']})"
    ends = f"{form.format(estimate['low'])}, {form.format(estimate['high'])}"
    return f"{text} [{ends}] of {estimate['n']}"


def apart(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two intervals do not touch, so that a difference is no chance."""
    ends = (a["low"], a["high"], b["low"], b["high"])
    return None not in ends and (a["low"] > b["high"] or b["low"] > a["high"])


def _mean(cells: Sequence[Mapping[str, Any]], kind: str = "paraphrase") -> float:
    values = [cell[kind]["mean"] for cell in cells if kind in cell]
    return sum(values) / len(values) if values else 0.0


def _levels(cells: Sequence[Mapping[str, Any]], key: str) -> dict[Any, float]:
    """Mean recall of each value of a setting, over all others."""
    values = dict.fromkeys(cell[key] for cell in cells)
    return {value: _mean([cell for cell in cells if cell[key] == value]) for value in values}


def _best(cells: Sequence[Mapping[str, Any]], kind: str = "paraphrase") -> Mapping[str, Any]:
    return max(cells, key=lambda cell: cell[kind]["mean"])


def what_recovers(summaries: Summaries) -> str:
    """Which setting of a write moves recall most."""
    cells = summaries["recipes"]["cells"]
    spreads = {}
    for key in ("wordings", "placement", "rank"):
        levels = _levels(cells, key)
        if len(levels) > 1:
            spreads[key] = (max(levels.values()) - min(levels.values()), levels)
    if not spreads:
        return "Nothing was varied, so no setting stands out."
    first, *others = sorted(spreads, key=lambda key: spreads[key][0], reverse=True)
    best, text = _best(cells), [cell for cell in cells if not cell["wordings"]]
    means = ", ".join(f"{_named(first, k)}: {v:.2f}" for k, v in spreads[first][1].items())
    rest = " and ".join(f"{_KEYS[key]} by {spreads[key][0]:.2f}" for key in others)
    sentence = f"What recovers recall is the {_KEYS[first]} ({means})"
    sentence += f"; {rest}" if rest else ""
    sentence += f". The best recipe recalls {shown(best['paraphrase'])}"
    if text:
        sentence += f", the best from the text alone {shown(_best(text)['paraphrase'])}"
    return sentence + "."


_KEYS = {"wordings": "number of wordings", "placement": "choice of layers", "rank": "rank"}


def _named(key: str, value: Any) -> str:
    return "the text alone" if key == "wordings" and not value else str(value)


def how_good_is_the_law(summaries: Summaries) -> str:
    """How far the law errs within and beyond what it was fitted on."""
    clauses = []
    for noise, law in summaries["longcontext"]["law"].items():
        report = law["report"]
        bounded = report.get("laws", {}).get("bounded", {"refused": report.get("refused")})
        if "refused" in bounded:
            clauses.append(f"at {noise} % random tokens it could not be fitted")
            continue
        scores, beyond = bounded["scores"], bounded.get("held_out", {})
        n_open = bounded.get("unsaturated", {"n": 0})["n"]
        if n_open < LEAST_UNSATURATED:
            clauses.append(
                f"at {noise} % random tokens {n_open} of {scores['n']} runs were not learnt whole, "
                "too few to test it"
            )
            continue
        r2 = "" if scores["r2"] is None else f"R² {scores['r2']:.3f}, "
        error = f"error {scores['mape']:.1%}" if scores["mape"] is not None else "no error"
        far = f", {beyond['mape']:.1%} beyond" if beyond.get("mape") is not None else ""
        clauses.append(f"at {noise} % random tokens {r2}{error}{far}")
    return "The bounded law: " + "; ".join(clauses) + "."


def where_it_fails(summaries: Summaries) -> str:
    """Whether the first stubborn token says where recitation breaks off."""
    failures = summaries["longcontext"]["stubborn"]
    rho = failures["spearman"]
    if rho["mean"] is None:
        return f"Of {failures['n_sequences']} texts too few failed to say where texts fail."
    return (
        f"The first stubborn token says where a text breaks off: Spearman {shown(rho)} failing "
        f"texts; the same token in {failures['n_same']} of {failures['n_failed']}."
    )


def does_memft_win(summaries: Summaries) -> str:
    """Whether any objective differs from plain loss at the same budget."""
    clauses = []
    for name, rows in _comparisons(summaries):
        pooled = [row for row in rows if row["metric"] == "exact" and row["difference"]]
        ranks = [row for row in pooled if row["rank"] is None] or pooled
        sure = [row for row in ranks if row["difference"]["low"] > 0]
        sure += [row for row in ranks if row["difference"]["high"] < 0]
        if not sure:
            clauses.append(f"{name}: no objective differs from plain loss beyond its interval")
        for row in sure:
            clauses.append(f"{name}: {row['method']} {shown(row['difference'], '{:+.2f}')}")
    return "MemFT against plain loss, exact recall at the same budget. " + "; ".join(clauses) + "."


def _comparisons(summaries: Summaries) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
    listed: list[tuple[str, Sequence[Mapping[str, Any]]]] = []
    for part, summary in summaries.items():
        if summary["bench"] == "phonebook":
            listed += [(f"{part}, {size} tokens", r) for size, r in summary["methods"].items()]
        elif "methods" in summary:
            listed.append((part, summary["methods"]))
    return listed


def where_to_adapt(summaries: Summaries) -> str:
    """Which layers hold most facts at equal parameters."""
    cells = summaries["recipes"]["cells"]
    levels = _levels(cells, "placement")
    order = sorted(levels, key=lambda name: levels[name], reverse=True)
    top, bottom = (_best([c for c in cells if c["placement"] == n]) for n in (order[0], order[-1]))
    sure = "" if apart(top["paraphrase"], bottom["paraphrase"]) else ", within their intervals"
    ranked = ", ".join(f"{name} {levels[name]:.2f}" for name in order)
    return (
        f"At equal parameters {order[0]} holds most and {order[-1]} least{sure}: mean recall over "
        f"ranks {ranked}. The paper's claim is feed-forward over attention and early over late."
    )


def which_format(summaries: Summaries) -> str:
    """In which order formats of a text answer questions."""
    rows = [row for row in summaries["paperqa"]["arms"] if row["kind"] == "all"]
    metric = next((m for m in ("judge", "token_f1") if any(r["metric"] == m for r in rows)), "")
    own = {row["format"]: row["arms"]["memory"] for row in rows if row["metric"] == metric}
    scored = {name: each for name, each in own.items() if each and each["mean"] is not None}
    if not scored:
        return "No format came to anything that could be scored."
    order = sorted(scored, key=lambda name: scored[name]["mean"], reverse=True)
    ranked = ", ".join(f"{name} {shown(scored[name])}" for name in order)
    sure = apart(scored[order[0]], scored[order[-1]])
    verdict = "differ beyond their intervals" if sure else "lie within each other's intervals"
    return f"Formats of a paper, {metric.replace('_', ' ')}: {ranked}; the ends {verdict}."


def are_edits_believed(summaries: Summaries) -> str:
    """Efficacy, paraphrase and neighbourhood of the memory."""
    arms = summaries["counterfact"]["arms"]
    clauses = []
    for kind in ("efficacy", "paraphrase", "neighbourhood"):
        rows = [row for row in arms if (row["metric"], row["kind"]) == ("success", kind)]
        clauses += [f"{kind} {shown(row['arms']['memory'])}" for row in rows[:1]]
    return "False statements: " + ", ".join(clauses) + "."


def memories_or_retrieval(summaries: Summaries) -> str:
    """Which way of answering from many documents is best, and whether routing finds them."""
    accuracy = summaries["memories"]["accuracy"]
    scored = {arm: kinds["all"] for arm, kinds in accuracy.items() if kinds["all"]["n"]}
    order = sorted(scored, key=lambda name: scored[name]["mean"], reverse=True)
    if not order:
        return "No way of answering could be scored."
    best, *others = order
    ranked = ", ".join(f"{name} {scored[name]['mean']:.2f}" for name in others)
    return f"From many documents {best} answers best, {shown(scored[best])}; then {ranked}."


def is_a_merge_free(summaries: Summaries) -> str:
    """Which methods stay within the falsifier."""
    methods = summaries["merging"]["methods"]
    held = {name: each["worse_off"] for name, each in methods.items()}
    within = [
        name for name, each in held.items() if each["mean"] is not None and each["mean"] <= 0.2
    ]
    if not within:
        return "Every way of merging two memories costs the worse-off one more than a fifth."
    clauses = ", ".join(f"{name} {shown(held[name])}" for name in within)
    others = [name for name in held if name not in within]
    rest = f"; with {', '.join(others)} it loses more" if others else ""
    return f"The worse-off of two merged memories loses at most a fifth with {clauses}{rest}."


def does_regularising_help(summaries: Summaries) -> str:
    """Whether dropout or decay helps recall in other words or retained knowledge."""
    cells = summaries["recipes"]["cells"]
    plain = [cell for cell in cells if not cell["dropout"] and not cell["decay"]]
    clauses = []
    for base in plain:
        others = [c for c in cells if c["facts"] == base["facts"] and c not in plain]
        if not others:
            continue
        size = f"{base['facts']} facts" if base["facts"] else "all facts"
        for kind, what in (("paraphrase", "recall"), ("retained", "retained")):
            if kind in base:
                best = _best([c for c in others if kind in c], kind)
                how = f"dropout {best['dropout']:g}, decay {best['decay']:g}"
                sure = "" if apart(base[kind], best[kind]) else ", within the intervals"
                clauses.append(
                    f"{size}: {what} {base[kind]['mean']:.2f} without, at best "
                    f"{best[kind]['mean']:.2f} ({how}{sure})"
                )
    return "Regularisation. " + "; ".join(clauses) + "."


def is_one_rank_enough(summaries: Summaries) -> str:
    """Whether any rank beats rank 8 beyond its interval."""
    cells = summaries["recipes"]["cells"]
    usual = min(cells, key=lambda cell: abs(cell["rank"] - 8))
    best = _best(cells)
    text = f"rank {usual['rank']} recalls {shown(usual['paraphrase'])}"
    if best["paraphrase"]["mean"] <= usual["paraphrase"]["mean"]:
        return f"No rank beats it: {text}."
    other = f"rank {best['rank']} {shown(best['paraphrase'])}"
    if apart(best["paraphrase"], usual["paraphrase"]):
        return f"The rank matters: {text}, {other}."
    return f"No rank beats another beyond its interval: {text}, at best {other}."


_COUNTED = {
    "paraphrase": "questions in other words answered",
    "unknown": "near misses declined",
    "retained": "general questions retained",
}


def what_comes_back(summaries: Summaries) -> str:
    """What memories of real text recall, decline and keep, where routing chooses who answers."""
    every = {name: summary["groups"]["all"] for name, summary in summaries.items()}
    clauses = []
    for kind, what in _COUNTED.items():
        own = [
            (f"from {name} " if len(every) > 1 else "")
            + shown(kinds[kind].get("routed", kinds[kind]["memory"]))
            for name, kinds in every.items()
            if kind in kinds
        ]
        clauses += [f"{what} {', '.join(own)}"] if own else []
    read = next(iter(every.values()))["paraphrase"].get("full")
    clauses += (
        [f"with the text in the prompt {read['mean']:.2f} of these questions"] if read else []
    )
    return f"Real text, routed: {'; '.join(clauses)}."


# -- the studies ---------------------------------------------------------------------------------

_FEW: Mapping[str, Any] = {"facts": (3,), "epochs": 2}
_LAW: Mapping[str, Any] = {
    "parts": ("law",),
    "ranks": (1, 2, 3, 4, 6),
    "noise": (100,),  # texts that a rank does not hold whole
    "documents": 2,
}
_LAW_QUICK: Mapping[str, Any] = {"ranks": (1, 2, 4), "lengths": (8, 16, 32), "steps": 30}
_LAW_FITS = (
    Published("R², all settings", "0.983 to 0.996", "Table of fits"),
    Published("mean error, all settings", "0.5 to 8.3 %", "Table of fits"),
    Published("held out", "not measured", ""),
)
_THREE: Mapping[str, Any] = {
    "methods": ("sft", "threshold", "window"),
    "sizes": (250,),
    "seeds": 5,
}
"""Plain loss and the paper's two, on books of so many answer tokens."""

STUDIES: dict[str, Study] = {
    "memo": Study(
        "Which of layers and wordings recovers the recall that the memo lost?",
        MEMO,
        {
            "recipes": Part(
                "recipes",
                {
                    "ranks": (16,),  # the report's; the study of ranks varies it
                    "placements": ("q_proj+v_proj", "all-linear"),
                    "wordings": (0, 1, 3),
                },
                {**_FEW, "ranks": (4,), "wordings": (0, 3)},
                THE_MEMO,
            )
        },
        (
            Published("stable, write, full", "0.000, 0.000, 0.875", "the report's table"),
            Published("training loss", "10.10 to 0.004", "the report's table"),
        ),
        "One memo of our own with 32 facts with 96 probes; theirs had 24 questions on one "
        "document and a multimodal model. The text alone is one step an epoch, as theirs, and has "
        "up to 60.",
        what_recovers,
    ),
    "law": Study(
        "Does one law of rank and length hold on a pretrained model, also beyond its fit?",
        LAW_PAPER,
        {
            "longcontext": Part(
                "longcontext",
                {**_LAW, "lengths": (32, 64, 96, 128, 192), "steps": 200},
                _LAW_QUICK,
            )
        },
        _LAW_FITS,
        "Ranks 1 to 512 and lengths to 10,000 there, one document, all layers; here the second "
        "projection of one feed-forward layer, which a hundred random tokens fill, several texts, "
        "each with its own first A, and scores on larger ranks and lengths than were fitted.",
        how_good_is_the_law,
    ),
    "family": Study(
        "Does the law hold on a second family of pretrained models?",
        LAW_PAPER,
        {
            "longcontext": Part(
                "longcontext",
                {**_LAW, "lengths": (24, 40, 56, 72, 96), "steps": 80},
                _LAW_QUICK,
            )
        },
        _LAW_FITS,
        "As the study of the law, with shorter texts and fewer steps: a vocabulary of 262,144, as "
        "Gemma's, makes a token several times as expensive. For --model gemma3-270m.",
        how_good_is_the_law,
    ),
    "failures": Study(
        "Does the first token below one half say where a text breaks off?",
        LAW_PAPER,
        {
            "longcontext": Part(
                "longcontext",
                {"parts": ("stubborn",), "sequences": 60, "compared": 96, "compared_steps": 60},
                {"sequences": 12, "compared_steps": 30},
            )
        },
        (Published("Spearman", "0.908, n = 155", "one sequence, 28 % fail at one position"),),
        "Independent sequences here, each with an adapter of its own.",
        where_it_fails,
    ),
    "memft": Study(
        "Does spending training on tokens that are not safe beat plain loss at the same budget?",
        LAW_PAPER,
        {
            "one layer": Part(
                "phonebook",
                {**_THREE, "placement": "mlp@middle", "ranks": (1, 4, 16)},
                {"sizes": (80,)},
            ),
            "all layers": Part(
                "phonebook",
                {**_THREE, "ranks": (1,), "seeds": 3},
                {"sizes": (80,)},
            ),
        },
        (
            Published("PhoneBook, Llama, rank 4", "18.7 / 31.4 / 34.0 %", "SFT / OT / SW"),
            Published("PhoneBook, Llama, rank 64", "59.3 / 87.0 / 100 %", "SFT / OT / SW"),
            Published("PhoneBook, Qwen, rank 64", "100 / 100 / 100 %", "SFT / OT / SW"),
        ),
        "There SW had 1.5 to 4 times the epochs and rates of its own; here all have the same.",
        does_memft_win,
    ),
    "placement": Study(
        "Do feed-forward layers hold more than attention, and early ones more than late ones?",
        MEMORY_PAPER,
        {
            "recipes": Part(
                "recipes",
                {
                    "placements": (
                        *("all-linear", "attention", "mlp"),
                        *("all-linear@early", "all-linear@centre", "all-linear@late"),
                    ),
                    "equal": True,
                    "documents": 3,
                },
                {**_FEW, "placements": ("attention", "mlp"), "ranks": (8,)},
                SECTIONS,
            )
        },
        (Published("order", "feed-forward over attention, early over late", "no numbers"),),
        "Facts of real documents, questions in other words, at equal parameters.",
        where_to_adapt,
    ),
    "formats": Study(
        "In which format does a paper answer questions best?",
        MEMORY_PAPER,
        {
            "paperqa": Part(
                "paperqa",
                {
                    "documents": 2,
                    "formats": ("raw", "qa", "raw+qa"),
                    "seeds": 1,
                    "sets": 1,
                    "epochs": 20,
                },
                {"documents": 1, "formats": ("raw",), "questions": 4},
                PAPERS,
            )
        },
        (
            Published("raw text", "3.19 / 4.59", "judge, Llama-3.1-8B / Qwen3-8B"),
            Published("40 questions", "5.89 / 5.41", "judge"),
            Published("summaries and questions", "6.38 / 5.66", "judge"),
        ),
        "Scored by token F1 without a judge; the base writes its own questions.",
        which_format,
    ),
    "edits": Study(
        "Are false statements believed, also reworded, and is all else left alone?",
        MEMORY_PAPER,
        {
            "counterfact": Part(
                "counterfact",
                {"edits": 24, "together": 4, "seeds": 2, "margin": 0.6},
                {"together": 2},
            )
        },
        (Published("GPT-J with ROME, S", "91.5", "Meng et al. 2022, Table 4"),),
        "Statements of our own in CounterFact's shape, about well-known things, not CounterFact's; "
        "four in a memory, where ROME has one; preferences of the same definition, on another "
        "base; greedy replies beside them.",
        are_edits_believed,
    ),
    "many": Study(
        "From many documents: memories, merged, retrieval or both?",
        MEMORY_PAPER,
        {
            "memories": Part(
                "memories",
                {"n_documents": 12, "rank": 8, "patience": 3, "n_pairs": 24, "n_routed": 72},
                {"n_documents": 2},
                SECTIONS,
                "documents",
            )
        },
        (
            Published("oracle, one adapter, routed", "5.92, 5.24, 4.94", "judge, PaperQA, Llama"),
            Published("merged by TIES, linear", "5.41, 4.92", "judge, PaperQA, Llama"),
        ),
        "Twelve sections of real manuals and dictionaries here, six facts each, written in three "
        "wordings, the questions in the fourth, without its title; exact replies, no judge.",
        memories_or_retrieval,
    ),
    "merging": Study(
        "Does merging two memories of real documents cost more than a fifth of either?",
        "a review of " + MEMORY_PAPER,
        {
            "merging": Part(
                "merging",
                {"pairs": 2},
                {"methods": ("mean", "ties", "tsv"), "epochs": 2},
                SECTIONS,
            )
        },
        (Published("TIES, linear, DARE, CAT", "5.41, 4.92, 1.43, 0.19 (alone 5.92)", "judge"),),
        "Two pairs of sections, each loss against the source alone on its own questions.",
        is_a_merge_free,
    ),
    "regularisation": Study(
        "Do dropout and weight decay help a memory, by how much is written?",
        LESSON,
        {
            "recipes": Part(
                "recipes",
                {"dropouts": (0.0, 0.15), "decays": (0.0, 0.1), "facts": (2, 6), "documents": 3},
                {**_FEW, "facts": (2,)},
                SECTIONS,
            )
        },
        (
            Published("below 1,000 examples", "dropout 0.1 to 0.15, decay 0.05 to 0.1", "advice"),
            Published("10,000 to 100,000", "dropout 0 to 0.05, decay 0.01", "advice"),
        ),
        "All loads here are below 1,000 examples.",
        does_regularising_help,
    ),
    "sections": Study(
        "What comes back of real manuals and dictionaries that were given as facts?",
        "this project",
        {
            "facts": Part("sections", {"patience": 3}, {}, SECTIONS),
            "reworded facts": Part(
                "sections",
                {"patience": 3, "rewordings": 4},
                {"rewordings": 0},  # of which the embedded base makes none
                SECTIONS,
            ),
        },
        (),
        "Half of the values were altered, so that no base can know them. Facts are written in "
        "three wordings; the fourth, which is the question, uses other words than the text. "
        "Reworded, the base makes up to four more of the three, and is held to no other answer.",
        what_comes_back,
    ),
    "documents": Study(
        "What comes back of real manuals and dictionaries when the base reads them by itself?",
        "this project",
        {"documents": Part("sections", {"source": "documents", "patience": 3}, {}, SECTIONS)},
        (),
        "The same sections; the base words its own questions, and answers all four wordings.",
        what_comes_back,
    ),
    "rank": Study(
        "Is one rank enough, or must it be planned?",
        "the planner of this project",
        {
            "recipes": Part(
                "recipes",
                {"ranks": (1, 4, 8, 32), "documents": 4},
                {**_FEW, "ranks": (1, 8)},
                SECTIONS,
            )
        },
        (),
        "A section holds six facts in three wordings.",
        is_one_rank_enough,
    ),
}


def named(names: Sequence[str]) -> list[str]:
    """The studies of these names, `all` for every one. Raises ConfigError for another name."""
    wanted = [each for name in names for each in (STUDIES if name == "all" else (name,))]
    for name in wanted:
        if name not in STUDIES:
            raise ConfigError(
                f"there is no study {name!r}; choose among all, {', '.join(STUDIES)}."
            )
    return list(dict.fromkeys(wanted))
