"""The verb `trace`: an answer token by token, and what else might stand in each place."""

from __future__ import annotations

from lorewright.errors import ConfigError
from lorewright.files import slug
from lorewright.memory.opened import OpenFolder
from lorewright.recall.traces import Token, tokens


def trace(memory: OpenFolder, question: str, answer: str, name: str = "") -> tuple[Token, ...]:
    """An answer token by token, teacher-forced, with a memory switched on and nothing before it.

    Without a name the folder's only memory. Raises UnknownMemory, AdapterError, ConfigError for an
    empty answer, DataError for what does not fit the context.
    """
    if not answer.strip():
        raise ConfigError("there is no answer to trace; write one.")
    state = memory.state(slug(name) if name else memory.folder.only())
    row = memory.model.render(question, answer)
    with state.on(memory.model):
        (each,) = tokens(memory.model, [row])
    return each
