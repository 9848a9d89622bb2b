"""`lore chat`: many questions to one folder, at a terminal or from a pipe.

At a terminal there is a prompt with the history of this chat, and Ctrl-C ends an answer. In a pipe
every line is answered at once; one that fails is reported and the next is read, and the first
failure decides the exit code.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from lorewright.cli.ask import ASK, print_answer, print_route, route_json
from lorewright.cli.options import Base, Encoder, Folder, Json, Name, Threads, open_memory
from lorewright.cli.settings import with_options
from lorewright.cli.streams import Stream
from lorewright.cli.terminal import Exit, console_for, print_error, print_json, say, watching
from lorewright.errors import ConfigError, DataError, LorewrightError
from lorewright.files import slug
from lorewright.routing.config import AskConfig

if TYPE_CHECKING:
    from lorewright.memory.chat import Exchange
    from lorewright.memory.memory import Memory

COMMAND = re.compile(r"/([a-z]*)(?:\s+(.*))?", re.DOTALL)
MAX_SHOWN = 300
"""Longest text of a source that is printed, in characters."""


@dataclass
class Chat:
    """A folder that is open, and where the conversation stands."""

    memory: Memory
    config: AskConfig
    console: Console
    """For progress."""
    as_json: bool
    name: str = ""
    """The memory that answers, whatever the question; empty = routed."""
    last: Exchange | None = None


@with_options(config=ASK)
def chat(
    folder: Folder,
    config: AskConfig,
    name: Name = "",
    encoder: Encoder = "auto",
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Ask a folder that is loaded once many questions; /help lists what else can be typed.

    A follow-up ("And its fee?") is read as a whole question, which is shown, or declined.
    In a pipe each line is a question; blank lines are left out.

    [dim]lore chat atlas[/]
    [dim]lore chat atlas --name handbook --mode closed[/]
    [dim]lore chat atlas --json < questions.txt[/]
    """
    from lorewright.memory.ask import check_mode

    check_mode(config.mode)
    console = console_for(threads)
    here = Chat(open_memory(folder, model, encoder), config, console, as_json)
    if not here.memory.names:
        here.memory.folder.only()  # raises, with the command that writes one
    if name:
        here.memory.folder.entry(slug(name))
        here.name = slug(name)
    with watching(console) as watch:  # the index is made, and the settings refused, before a prompt
        rate = config.false_activation
        here.memory.route("Who?", top=config.top, false_activation=rate, watch=watch)
    at_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    code = _at_terminal(here) if at_terminal and not as_json else _from_pipe(here)
    if code:
        raise typer.Exit(code)


# -- where lines come from -----------------------------------------------------------------------


def _from_pipe(here: Chat) -> Exit:
    """Answer each line; returns the exit code of the first that failed."""
    first, number, going_on = Exit.DONE, 0, True
    while going_on:
        number += 1
        try:
            line = _read_line(number)
            going_on = line is not None and _obey(here, line)
        except LorewrightError as error:
            code = print_error(error, here.as_json)
            first = first or code
            _drop_context(here)
        sys.stdout.flush()
        if isinstance(sys.stdout, Stream) and sys.stdout.failure is not None:
            break  # nobody reads the answers
    return first


def _read_line(number: int) -> str | None:
    """A line of standard input, None at its end; DataError for bytes that are no text."""
    raw = sys.stdin.buffer.readline() if sys.stdin is not None else b""
    if not raw:
        return None
    encoding = sys.stdin.encoding
    try:
        return raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise DataError(
            f"line {number} of the questions is not in {encoding}; save them in it."
        ) from None


def _at_terminal(here: Chat) -> Exit:
    """Answer at a prompt until /quit or Ctrl-D; what fails is shown, and the chat goes on."""
    with contextlib.suppress(ImportError):  # where there is none, the prompt has no history
        importlib.import_module("readline")
    say("/help lists what else can be typed; Ctrl-D ends the chat.", "dim")
    going_on = True
    while going_on:
        try:
            going_on = _obey(here, input(f"{here.name}> "))
        except EOFError:
            say("")
            going_on = False
        except KeyboardInterrupt:
            say("\ninterrupted; Ctrl-D ends the chat", "dim")
        except LorewrightError as error:
            print_error(error, as_json=False)
    return Exit.DONE


# -- what a line does ----------------------------------------------------------------------------


def _obey(here: Chat, line: str) -> bool:
    """Answer a question or run a command; False ends the chat. Raises what answering raises."""
    line = line.strip()
    command = COMMAND.fullmatch(line)
    if command is None:
        if line:
            _answer(here, line)
        return True
    if command[1] not in VERBS:
        raise ConfigError(f"/{command[1]} is no command of a chat; use one of {LISTED}.")
    VERBS[command[1]](here, (command[2] or "").strip())
    return command[1] != "quit"


def _answer(here: Chat, question: str) -> None:
    """Answer a question and print what the answer rests on."""
    from lorewright.memory.chat import converse

    context = here.last.context if here.last else None
    _drop_context(here)  # what fails or is interrupted leaves nothing to refer to
    with watching(here.console) as watch:
        here.last = converse(
            here.memory, question, context, name=here.name, config=here.config, watch=watch
        )
    last = here.last
    if here.as_json:
        sources = [{"memory": h.memory, "kind": h.kind, "text": h.key} for h in last.sources]
        print_json({**asdict(last.answer), "read_as": last.read_as, "sources": sources})
        return
    if last.read_as:
        say(f"read as: {last.read_as}", "dim")
    print_answer(last.answer)
    for hit in last.sources:
        say(f"nearest {hit.kind} of {hit.memory}: {' '.join(hit.key.split())[:MAX_SHOWN]}", "dim")
    say("")


def _drop_context(here: Chat) -> None:
    if here.last:
        here.last = replace(here.last, context=None)


def _pin(here: Chat, name: str) -> None:
    """/memory NAME: ask this memory, whatever the question."""
    if not name:
        listed = ", ".join(sorted(here.memory.names))
        raise ConfigError(f"/memory was given no name; use one of {listed}.")
    here.memory.folder.entry(slug(name))
    here.name = slug(name)
    _report(here, {"memory": here.name}, f"asking {here.name}; /auto routes again")


def _route_again(here: Chat, rest: str) -> None:
    """/auto: ask the memories that a question is for."""
    here.name = ""
    _report(here, {"memory": ""}, "asking the memories that a question is for")


def _explain(here: Chat, rest: str) -> None:
    """/why: show candidates, probabilities, threshold and replies of the last answer."""
    if here.last is None:
        raise ConfigError("/why explains the last answer, and there is none yet; ask something.")
    last = here.last
    if here.as_json:
        route = route_json(last.read_as or last.question, last.route)
        replies = [asdict(reply) for reply in last.answer.replies]
        print_json({"why": {**route, "replies": replies, "note": last.answer.note}})
        return
    say(f"question: {last.read_as or last.question}", "dim")
    if last.route.hits:
        print_route(last.route)
    for reply in last.answer.replies:
        sure = f"mean token probability {reply.confidence:.2f}, least {reply.least:.2f}"
        say(f"{reply.memory}, {reply.way}: {reply.text or '(nothing)'} ({sure})", "dim")
    if last.answer.note:
        say(last.answer.note, "dim")
    say("")


def _help(here: Chat, rest: str) -> None:
    """/help: list the commands."""
    lines = [" ".join((verb.__doc__ or "").split()) for verb in VERBS.values()]
    _report(here, {"help": lines}, "\n".join(lines))


def _end(here: Chat, rest: str) -> None:
    """/quit: end the chat; so does Ctrl-D."""


def _report(here: Chat, data: dict[str, Any], text: str) -> None:
    if here.as_json:
        print_json(data)
    else:
        say(text, "dim")


VERBS: dict[str, Callable[[Chat, str], None]] = {
    "memory": _pin,
    "auto": _route_again,
    "why": _explain,
    "help": _help,
    "quit": _end,
}
LISTED = ", ".join(f"/{verb}" for verb in VERBS)
COMMANDS = (chat,)
