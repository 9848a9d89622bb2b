"""A file of sections that the embedded base reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROW: dict[str, Any] = {
    "id": "prose-teal",
    "title": "The Teal Office",
    "text": "The head of the Teal Office is Ada Lund. The code of the Teal Office is KX-42.",
    "altered": True,
    "facts": [
        {
            "answer": "Ada Lund",
            "questions": [
                "What is the head of the Teal Office?",
                "Who leads the Teal Office?",
                "Name the head of the Teal Office.",
            ],
        },
        {
            "answer": "KX-42",
            "questions": [
                "What is the code of the Teal Office?",
                "Which code does the Teal Office have?",
                "Name the code of the Teal Office.",
            ],
        },
    ],
    "unanswerable": ["What is the phone number of the Teal Office?"],
    "multihop": [{"question": "Who leads the office with the code KX-42?", "answer": "Ada Lund"}],
}


def stored(folder: Path, *rows: Any) -> str:
    path = folder / "sections.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def section(own: str, subject: str, head: str, code: str) -> dict[str, Any]:
    """A section like ROW about another subject."""
    facts = [
        {
            "answer": answer,
            "questions": [
                question.replace("Teal Office", subject) for question in each["questions"]
            ],
        }
        for each, answer in zip(ROW["facts"], (head, code), strict=True)
    ]
    text = f"The head of the {subject} is {head}. The code of the {subject} is {code}."
    asked = [f"What is the phone number of the {subject}?"]
    return {**ROW, "id": own, "title": f"The {subject}", "text": text, "facts": facts} | {
        "unanswerable": asked,
        "multihop": [],
    }
