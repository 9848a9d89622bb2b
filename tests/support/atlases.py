"""Memory folders for tests of routing and asking: sources, lessons, names, adapters if wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter
from lorewright.adapters.config import LoraConfig
from lorewright.files import digest, save_json
from lorewright.knowledge.data import Document, Example, Fact, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, contexts
from lorewright.memory.memory import Memory
from lorewright.merging.imitate import Source
from lorewright.models.model import Model
from lorewright.training.config import Job, WriteConfig, Written
from lorewright.training.loop import write_all
from lorewright.training.rates import suggested_lr

PAGES: Mapping[str, tuple[str, Sequence[tuple[str, str, str]]]] = {
    "harbour": (
        "# Harbour notes\n\nThe head of the Tide Office is Maren Oskold. The badge colour of the "
        "Tide Office is teal. The Sail Loft opens with the code KX-41.",
        [
            ("head", "the Tide Office", "Maren Oskold"),
            ("badge colour", "the Tide Office", "teal"),
            ("access code", "the Sail Loft", "KX-41"),
        ],
    ),
    "mill": (
        "# Mill notes\n\nThe owner of the Grain Mill is Bram Vell. The closing time of the Grain "
        "Mill is 18:30. The fee of the Flour Shop is 14 crowns.",
        [
            ("owner", "the Grain Mill", "Bram Vell"),
            ("closing time", "the Grain Mill", "18:30"),
            ("fee", "the Flour Shop", "14 crowns"),
        ],
    ),
}
FORMS = ("What is the {r} of {s}?", "Tell me the {r} of {s}.", "Which {r} does {s} have?")
HELD = "For {s}, what is the {r}?"


def lesson_of(name: str, forms: Sequence[str] = FORMS) -> Lesson:
    """What a memory of the page would be trained on, and probes in another form."""
    _, facts = PAGES[name]
    examples = [
        Example(form.format(r=r, s=s), value, "qa", name) for r, s, value in facts for form in forms
    ]
    probes = [
        Probe(f"{name}-{i}", HELD.format(r=r, s=s), (value,), "paraphrase", name)
        for i, (r, s, value) in enumerate(facts)
    ]
    probes.append(Probe(f"{name}-no", f"What is the roof of {facts[0][1]}?", (), "unknown"))
    full, scaffold = contexts(known(name))
    return Lesson(tuple(examples), tuple(probes), full, scaffold, ())


def taught(name: str) -> Lesson:
    """A page's lesson, with the other page's relations asked of its first subject, to decline."""
    made = lesson_of(name)
    (other,) = (facts for page, (_, facts) in PAGES.items() if page != name)
    subject = PAGES[name][1][0][1]
    nothing = [
        Example(FORMS[0].format(r=r, s=subject), "I do not know.", "unknown") for r, _, _ in other
    ]
    return replace(made, examples=(*made.examples, *nothing))


@cache
def written_pages() -> tuple[Source, ...]:
    """Adapters of both pages on the embedded base, written in one stack, each recalling its own."""
    model = Model.load()
    config = WriteConfig(lr=suggested_lr(model), epochs=40, batch_size=6)
    lessons = [taught(name) for name in PAGES]
    jobs = [
        Job(made.examples, replace(config, lora=LoraConfig(4, seed=n), seed=n))
        for n, made in enumerate(lessons)
    ]
    done = [each for each in write_all(model, jobs) if isinstance(each, Written) and each.complete]
    pairs = zip(done, lessons, strict=True)
    return tuple(Source(each.adapter, made.examples) for each, made in pairs)


def known(name: str) -> Knowledge:
    """The page as knowledge."""
    return Knowledge((Document(name, PAGES[name][0], f"{name} notes"),))


def put(
    memory: Memory,
    name: str,
    knowledge: Knowledge | None,
    lesson: Lesson | None,
    adapter: Adapter | None = None,
) -> str:
    """Enter a memory as a write would, with or without an adapter on disk; returns its id."""
    identity = adapters.content_id(adapter) if adapter else digest([name, str(lesson)])[:16]
    source = knowledge.digest() if knowledge else ""
    with memory.writing():
        run = memory.folder.run(name, {"key": identity, "source": source})
        if lesson:
            save_json(lesson, run / "lesson.json")
        save_json({}, run / "report.json")
        if knowledge:
            memory.folder.store_source(knowledge)
        if adapter:
            adapters.save(adapter, memory.folder.state_path(identity))
        memory.folder.enter(name, identity, source=source, run=run.name)
    return identity


def phones() -> Knowledge:
    """Facts without a document."""
    return Knowledge(facts=(Fact("a", "Jorun Hartley:", "626"), Fact("b", "Selma Quist:", "930")))


def texts(folder: Path) -> str:
    """Everything that the files below a folder say."""
    return "\n".join(
        p.read_text(encoding="utf-8", errors="replace") for p in folder.rglob("*") if p.is_file()
    )
