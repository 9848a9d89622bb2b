"""Between text and token ids: prompts going in, a growing reply coming out.

A question is rendered as it was when it was trained, by `Model.render`. A reply is put together
token by token; what is given out is never taken back, so text waits while it may be half a
character, the beginning of a stop text, or white space at an end that will be stripped.

This room knows a model's tokenizer and template. It knows nothing of HTTP or of how ids are made.
"""

from __future__ import annotations

from collections.abc import Sequence

import jinja2

from lorewright.errors import DataError
from lorewright.models.model import Model
from lorewright.serve.engine import Token
from lorewright.serve.reply import Spelled
from lorewright.serve.wire import Message, Refused

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What bytes that are not a whole character yet are decoded to."""


def chat_ids(model: Model, messages: Sequence[Message]) -> tuple[int, ...]:
    """Token ids of a conversation up to where the reply begins.

    A question, with or without a system turn before it, looks exactly as `lore ask` has it. Raises
    Refused when the base's template does not take the turns or they are too long.
    """
    turns = [
        {"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in messages
    ]
    roles = [turn["role"] for turn in turns]
    if roles in (["user"], ["system", "user"]):
        system = turns[0]["content"] if len(turns) == 2 else None
        try:
            return model.render(turns[-1]["content"].strip(), system=system).prompt_ids
        except DataError as error:
            raise _too_long(model, str(error)) from error
    if model.tokenizer.chat_template is None:
        raise Refused(
            400,
            f"{model.name!r} has no chat template, so it takes one question and no conversation.",
            param="messages",
        )
    try:
        text = model.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except jinja2.TemplateError as error:
        raise Refused(
            400,
            f"the chat template of {model.name!r} refuses these turns: {error}.",
            param="messages",
        ) from error
    assert isinstance(text, str)
    return tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def text_ids(model: Model, prompt: str | Sequence[int]) -> tuple[int, ...]:
    """Token ids of a plain prompt, after the base's start token; ids are taken as they are.

    Raises Refused for an id that is no token.
    """
    if isinstance(prompt, str):
        start = model.render("").prompt_ids
        return (*start, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    n_tokens = int(model.network.get_input_embeddings().weight.shape[0])
    strange = [each for each in prompt if not 0 <= each < n_tokens]
    if strange:
        raise Refused(
            400, f"{strange[0]} is no token; ids go from 0 to {n_tokens - 1}.", param="prompt"
        )
    return tuple(prompt)


def budget(model: Model, n_prompt: int, asked: int | None, limit: int) -> int:
    """Tokens that may be generated. Raises Refused when what was asked does not fit."""
    room = model.context - n_prompt
    if asked is not None and asked > limit:
        raise Refused(
            400,
            f"max_tokens is {asked}; this server generates at most {limit}; ask for less.",
            param="max_tokens",
        )
    if room < 1 or (asked is not None and asked > room):
        wanted = "a reply" if asked is None else f"{asked} new ones"
        raise _too_long(model, f"{n_prompt} prompt tokens and {wanted} are too many")
    return min(room, asked or limit)


def _too_long(model: Model, why: str) -> Refused:
    return Refused(
        400,
        f"{why.rstrip('.')}; the context of {model.name!r} is {model.context} tokens.",
        code="context_length_exceeded",
        param="messages",
    )


def spell(model: Model, token: Token) -> Spelled:
    """A token with its alternatives as text."""

    def text(id: int) -> str:
        found = model.tokenizer.decode([id])
        assert isinstance(found, str)
        return found

    top = tuple((text(id), logprob) for id, logprob in token.top)
    return Spelled(text(token.id), token.logprob or 0.0, top)


class Speaker:
    """Text of a reply that grows; what `hear` returns is final."""

    def __init__(self, model: Model, stops: Sequence[str] = (), *, strip: bool = False) -> None:
        """`stops` end the reply before them; `strip` takes white space off both ends."""
        self.tokenizer = model.tokenizer
        self.stops = tuple(stops)
        self.strip = strip
        self.stopped = False
        """Whether one of the stops has been met."""
        self._ids: list[int] = []
        self._from = 0
        self._read = 0
        self._held = ""
        self._began = False

    def hear(self, ids: Sequence[int]) -> str:
        """Take more tokens; return the text that is certain now."""
        self._ids += ids
        before = self._decode(self._from, self._read)
        now = self._decode(self._from, len(self._ids))
        if len(now) <= len(before) or now.endswith(UNFINISHED):
            return ""
        # from here on decode with the last piece as context: some tokenizers write a space or not
        self._from, self._read = self._read, len(self._ids)
        return self._say(now[len(before) :])

    def end(self) -> str:
        """Return what was held back; nothing comes after."""
        rest = self._decode(self._from, len(self._ids))[len(self._decode(self._from, self._read)) :]
        said = self._say(rest)
        last, self._held = "" if self.stopped else self._held, ""
        return said + (last.rstrip() if self.strip else last)

    def _decode(self, start: int, end: int) -> str:
        text = self.tokenizer.decode(self._ids[start:end], skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _say(self, text: str) -> str:
        """What of the held text and this is certain: no stop in it or begun at its end."""
        if self.stopped:
            return ""
        text = self._held + text
        if self.strip and not self._began:
            text = text.lstrip()
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held, text = True, "", text[: min(found)]
            return text.rstrip() if self.strip else text
        n_held = max((_overlap(text, stop) for stop in self.stops), default=0)
        if self.strip:
            n_held = max(n_held, len(text) - len(text[: len(text) - n_held].rstrip()))
        self._held = text[len(text) - n_held :]
        said = text[: len(text) - n_held]
        self._began = self._began or bool(said)
        return said


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that the stop begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
