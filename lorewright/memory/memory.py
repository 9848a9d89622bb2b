"""Memory: a folder and its base, with the verbs as methods.

    memory = Memory.open("atlas")
    memory.write(read_knowledge(Path("handbook.md")))
    memory.ask("Who signs off Project Gannet?").text

Each verb is a function of an `OpenFolder` in a file of its own, where its arguments, results and
errors are described; it is a method here under the same name.
"""

from __future__ import annotations

from lorewright.files import slug
from lorewright.memory import (
    add,
    ask,
    compare,
    failures,
    forget,
    layer,
    merge,
    plan,
    plane,
    ranks,
    resume,
    sides,
    supersede,
    trace,
    verify,
    write,
)
from lorewright.memory.opened import OpenFolder
from lorewright.memory.route import FALSE_ACTIVATION, TOP
from lorewright.routing.gate import Decision
from lorewright.training.watch import Watch


class Memory(OpenFolder):
    """A folder of memories on one base model."""

    write = write.write
    """Knowledge into a new state, proved on disk: an Outcome with the verdict."""
    resume = resume.resume
    """A write that was cut off or stopped, gone on with: an Outcome."""
    verify = verify.verify
    """A memory's verdict, taken again: a RecallReport."""
    trace = trace.trace
    """An answer token by token, with what else might stand there: Tokens."""
    ask = ask.ask
    """An Answer from the memories that a question is for, or none."""
    sides = sides.sides
    """One question before the base, the memory, its passages and all of them: Sides."""
    ranks = ranks.ranks
    """A memory cut to smaller ranks, and what comes back: Ranks."""
    layer = layer.layer
    """One layer of a memory by hand, W, A, B and BA at a rank: a Layer."""
    plan = plan.plan
    """The rank that recalls a wanted share, and what it costs: a Plan."""
    add = add.add
    """An adapter that was made elsewhere, as a memory: Added, with proof and verdict."""
    merge = merge.merge
    """Several memories in one: Merged, with what that cost each of them."""
    plane = plane.plane
    """Memories as arrows in one plane, and where each way of merging lands: a Plane."""
    fail = failures.fail
    """A page written so that it fails in a known way: an Outcome."""
    forget = forget.forget
    """A memory and all that came of its source, gone: Forgotten, with the proof."""
    supersede = supersede.supersede
    """A changed source under the same name: Superseded, with what changed and what did not."""
    compare = compare.compare
    """Closed, open and hybrid on the memories' own probes: a Comparison, which `ask` goes by."""

    def route(
        self,
        question: str,
        *,
        top: int = TOP,
        false_activation: float = FALSE_ACTIVATION,
        watch: Watch | None = None,
    ) -> Decision:
        """Which memories a question is for, with what probability, or none."""
        return self.router.route(question, top=top, false_activation=false_activation, watch=watch)

    def rename(self, old: str, new: str) -> None:
        """Give a memory another name; raises UnknownMemory, and ConfigError for one in use."""
        self.folder.rename(slug(old), slug(new))
