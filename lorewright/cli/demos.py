"""The demonstrations: which document, which conditions and which settings, on which base."""

from __future__ import annotations

from dataclasses import replace

from lorewright.adapters.config import LoraConfig
from lorewright.cli.contrast import PROMPTED, Control, Demo, QuestionWrite, Row, TextWrite
from lorewright.knowledge.lesson import LessonConfig
from lorewright.memory.verify import ROUTED
from lorewright.models.catalogue import POCKET
from lorewright.models.model import Model
from lorewright.recall.verify import SUPPORTED
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr

# -- on the embedded base -------------------------------------------------------------------------

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
TEXT, QUESTIONS = "next token", "questions and answers"


def _config(model: Model, epochs: int, *, batch: int) -> WriteConfig:
    return WriteConfig(
        lora=LoraConfig(rank=RANK, alpha=2 * RANK),
        lr=suggested_lr(model),
        epochs=epochs,
        batch_size=batch,
        margin=MARGIN,
    )


def _text_config(model: Model) -> WriteConfig:
    return _config(model, NEXT_TOKEN_EPOCHS, batch=2)


def _control_config(model: Model) -> WriteConfig:
    return _config(model, QUESTION_EPOCHS, batch=16)


def questions_config(model: Model, epochs: int = QUESTION_EPOCHS) -> WriteConfig:
    """How the embedded base's demo writes questions, beside `LESSON`.

    All layers but the first, which knows words: near misses are then declined more often.
    """
    config = _config(model, epochs, batch=16)
    upper = tuple(range(1, int(model.network.config.get_text_config().num_hidden_layers)))
    return replace(config, lora=replace(config.lora, layers=upper))


HANDBOOK = Demo(
    title="Memorised is not answerable",
    command="lore demo",
    document="handbook.md",
    conditions=(
        TextWrite(
            TEXT,
            "next-token loss: the text itself, again and again",
            _text_config,
            prompted=True,
        ),
        QuestionWrite(
            QUESTIONS,
            "questions and answers: the base reads, asks itself, and learns to answer",
            questions_config,
            LESSON,
        ),
    ),
    rows=(
        Row("stable", "a quarter of the document in the prompt, no memory", QUESTIONS, "scaffold"),
        Row("write: next token", "memory trained on the text", TEXT),
        Row(
            "write: questions and answers",
            "memory trained on questions the base wrote",
            QUESTIONS,
        ),
        Row("full", "the whole document in the prompt, no memory", QUESTIONS, "full"),
    ),
    extra=(
        Row(
            "questions and answers, stricter",
            "forms new to the base too",
            QUESTIONS,
            strict=True,
        ),
        Row("full, stricter", "forms new to the base too", QUESTIONS, "full", strict=True),
        Row("base alone", "no document, no memory", QUESTIONS, "base"),
        Row("wrong memory", "a phone list's memory and the same questions", QUESTIONS, "wrong"),
        Row("write: next token, prompt of stable", "the memo's own condition", TEXT, PROMPTED),
        Row(
            "unknown questions declined",
            "with the memory of questions and answers",
            QUESTIONS,
            kind="unknown",
        ),
        Row("unknown questions declined, base", "no memory", QUESTIONS, "base", kind="unknown"),
    ),
    control=Control(
        "phones.jsonl",
        "another memory, a phone list: the control for an answer from the wrong memory",
        _control_config,
    ),
    strict=NEW,
)

# -- on a pretrained base -------------------------------------------------------------------------

MEMO_TARGETS, MEMO_RANK, MEMO_STEPS = ("q_proj", "v_proj"), 16, 30
"""How the report wrote: query and value, rank 16, so many steps of the whole text."""
WIDE_RANK, WIDE_EPOCHS = 8, 30
PATIENCE = 3
"""Epochs without another example recalled after which questions and answers are learnt enough."""
OTHER = "other-"
"""Ids of probes in other words than the memo's own begin so."""
MEMO_TEXT, WIDE_TEXT = "next token, q+v", "next token, all"


def _memo_config(model: Model) -> WriteConfig:
    """One step an epoch: all of the text is in one batch."""
    lora = LoraConfig(rank=MEMO_RANK, targets=MEMO_TARGETS)
    return WriteConfig(lora=lora, lr=suggested_lr(model), epochs=MEMO_STEPS, batch_size=64)


def _wide_config(model: Model) -> WriteConfig:
    lora = LoraConfig(rank=WIDE_RANK)
    return WriteConfig(lora=lora, lr=suggested_lr(model), epochs=WIDE_EPOCHS, batch_size=1)


def _facts_config(model: Model) -> WriteConfig:
    """As `lore write` does, but that a last stubborn example or two are not waited for."""
    lora = LoraConfig(rank=WIDE_RANK)
    return WriteConfig(lora=lora, lr=suggested_lr(model), patience=PATIENCE)


KESTREL = Demo(
    title="One memo, three ways to write it",
    command="lore demo --model smollm2",
    document="kestrel.md",
    conditions=(
        TextWrite(
            MEMO_TEXT,
            f"next-token loss: query and value, rank {MEMO_RANK}, {MEMO_STEPS} steps",
            _memo_config,
            curve_every=5,
        ),
        TextWrite(
            WIDE_TEXT,
            f"next-token loss: all linear layers, rank {WIDE_RANK}",
            _wide_config,
            curve_every=5,
        ),
        QuestionWrite(
            QUESTIONS,
            "questions and answers: every fact in three wordings, others to be declined",
            _facts_config,
            LessonConfig(views=("given",)),
            curve_every=2,
        ),
    ),
    rows=(
        Row("base", "no document, no memory", QUESTIONS, "base"),
        Row("stable", "a quarter of the memo in the prompt, no memory", QUESTIONS, "scaffold"),
        Row(
            f"write: {MEMO_TEXT}",
            f"memory trained on the text, query and value, rank {MEMO_RANK}, {MEMO_STEPS} steps",
            MEMO_TEXT,
        ),
        Row(
            f"write: {WIDE_TEXT}",
            f"memory trained on the text, all linear layers, rank {WIDE_RANK}",
            WIDE_TEXT,
        ),
        Row(
            f"write: {QUESTIONS}",
            f"memory trained on questions in three other wordings, rank {WIDE_RANK}",
            QUESTIONS,
        ),
        Row(
            "the same, supported",
            "of its replies, or what it would say in place of declining, those that have support",
            QUESTIONS,
            SUPPORTED,
        ),
        Row(
            "the same, routed",
            "where nobody names the memory: it, with support, or the base (ask --unrouted base)",
            QUESTIONS,
            ROUTED,
        ),
        Row("full", "the whole memo in the prompt, no memory", QUESTIONS, "full"),
    ),
    extra=(
        Row(
            "other words: memory",
            "of questions and answers, on probes that use other words than the memo",
            QUESTIONS,
            strict=True,
        ),
        Row(
            "other words: full",
            "the memo in the prompt, on the same probes",
            QUESTIONS,
            "full",
            strict=True,
        ),
    ),
    facts=True,
    metric="contains",
    strict=OTHER,
    strict_apart=False,
    beside=True,
    curve_probes=24,
    quick_facts=4,
)


def demo_on(base: str) -> Demo:
    """The demonstration for a base: the handbook on the embedded one, the memo on all others."""
    if base == POCKET:
        return HANDBOOK
    return replace(KESTREL, command=f"lore demo --model {base}")
