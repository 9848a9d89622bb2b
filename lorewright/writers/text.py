"""A source as rows of tokens, for writers that read text and no lesson."""

from __future__ import annotations

from lorewright.errors import DataError
from lorewright.knowledge.data import Knowledge
from lorewright.models.model import Model


def token_rows(model: Model, knowledge: Knowledge) -> list[list[int]]:
    """Every document, and the facts as lines, as rows that fit the model's context.

    A row begins with the start token, as plain text does. Raises DataError for no text.
    """
    texts = [document.text for document in knowledge.documents]
    texts.append("\n".join(f"{fact.question} {fact.answer}" for fact in knowledge.facts))
    start = list(model.render("").prompt_ids)
    size = model.context - len(start)
    rows = []
    for text in texts:
        encoded = model.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        ids = list(encoded)
        rows += [[*start, *ids[i : i + size]] for i in range(0, len(ids), size)]
    if not rows:
        raise DataError("the source has no text to read; give documents or facts.")
    return rows
