"""The tokenizer of a folder without transformers, which takes longer to import than to answer.

What questions and answers need is done here, on the `tokenizers` library and jinja2, as
transformers does it: text to ids and back, and the chat template. For anything else transformers'
own tokenizer of the folder is loaded and takes over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

CLASS = "TokenizersBackend"
"""What transformers calls a tokenizer that is all in its file, as this one must be."""
TOKENIZER, ABOUT, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
KNOWN = {
    "backend",
    "clean_up_tokenization_spaces",
    "extra_special_tokens",
    "is_local",
    "local_files_only",
    "model_max_length",
    "tokenizer_class",
    *ROLES,
}
"""What a tokenizer's settings may say; of these only special tokens and the length matter here."""
HARDENED = re.compile(r"\b(namespace|dict|strftime_now|generation)\b")
"""What a template may use that transformers has made over; such templates are left to it."""
ENDLESS = int(1e30)
"""The longest text where none is stated, in tokens; transformers' number."""


def read_plain_tokenizer(folder: Path) -> PlainTokenizer | None:
    """The tokenizer in a folder; None when it is not exactly of the form that is read here.

    Files that are damaged are of another form, too.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if not isinstance(about, dict) or not _is_plain(about):
            return None
        backend = Tokenizer.from_file(str(folder / TOKENIZER))
        template = folder / TEMPLATE
        text = template.read_text(encoding="utf-8") if template.is_file() else None
        if text is not None and HARDENED.search(text):
            return None
        tokenizer = PlainTokenizer(folder, backend, about, text)
    except Exception as error:  # the library raises plain Exception for a damaged file
        if isinstance(error, (MemoryError, RecursionError)):
            raise
        return None
    return tokenizer if tokenizer.stands_alone else None


def _is_plain(about: Mapping[str, Any]) -> bool:
    named = [about.get(role) for role in ROLES] + list(about.get("extra_special_tokens") or ())
    return (
        about.get("tokenizer_class") == CLASS
        and set(about) <= KNOWN
        and not about.get("clean_up_tokenization_spaces")
        and all(token is None or isinstance(token, str) for token in named)
    )


class PlainTokenizer:
    """Text to ids and back, and the chat template, of a folder."""

    def __init__(
        self, folder: Path, backend: Tokenizer, about: Mapping[str, Any], template: str | None
    ) -> None:
        """Raises TemplateSyntaxError for a template that plain jinja2 does not read."""
        self._folder, self._about = folder, about
        self.backend_tokenizer = backend
        self.chat_template = template
        self.model_max_length = int(about.get("model_max_length") or ENDLESS)
        if template is not None:
            _environment().parse(template)

    @property
    def stands_alone(self) -> bool:
        """Whether its file has the special tokens, as such, and neither cuts nor pads."""
        backend = self.backend_tokenizer
        special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
        others = self._about.get("extra_special_tokens") or ()
        named = {*self.special_tokens_map.values(), *others}
        return named <= special and backend.truncation is None and backend.padding is None

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens that have a role, by role."""
        return {role: self._about[role] for role in ROLES if self._about.get(role) is not None}

    @property
    def bos_token_id(self) -> int | None:
        """Of the token that begins a text."""
        return self._id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Of the token that ends a text."""
        return self._id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        """Of the token that fills a row up."""
        return self._id("pad_token")

    def _id(self, role: str) -> int | None:
        token = self.special_tokens_map.get(role)
        return None if token is None else self.backend_tokenizer.token_to_id(token)

    def __call__(
        self, text: str | Sequence[str], add_special_tokens: bool = True, **settings: Any
    ) -> Any:
        """The `input_ids` of a text, or of each of several."""
        if settings:
            return self._theirs(text, add_special_tokens=add_special_tokens, **settings)
        encode = self.backend_tokenizer.encode
        if isinstance(text, str):
            return _Ids(input_ids=encode(text, add_special_tokens=add_special_tokens).ids)
        encoded = self.backend_tokenizer.encode_batch(
            list(text), add_special_tokens=add_special_tokens
        )
        return _Ids(input_ids=[each.ids for each in encoded])

    def decode(self, ids: Any, skip_special_tokens: bool = False, **settings: Any) -> str:
        """The text of some ids, or of one."""
        if settings not in ({}, {"clean_up_tokenization_spaces": False}):  # nothing is cleaned up
            return str(self._theirs.decode(ids, skip_special_tokens, **settings))
        listed = [ids] if isinstance(ids, int) else list(map(int, ids))
        return str(self.backend_tokenizer.decode(listed, skip_special_tokens=skip_special_tokens))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """The tokens as the vocabulary spells them."""
        return [self.backend_tokenizer.id_to_token(int(i)) for i in ids]

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their ids."""
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **settings: Any,
    ) -> Any:
        """The conversation as text. Raises TemplateError where the template refuses it."""
        if tokenize or self.chat_template is None:
            return self._theirs.apply_chat_template(
                conversation,
                tokenize=tokenize,
                add_generation_prompt=add_generation_prompt,
                **settings,
            )
        given: dict[str, Any] = {"messages": conversation, "tools": None, "documents": None}
        given["add_generation_prompt"] = add_generation_prompt
        return self._template.render(**given, **self.special_tokens_map, **settings)

    @cached_property
    def _template(self) -> jinja2.Template:
        return _environment().from_string(self.chat_template or "")

    @cached_property
    def _theirs(self) -> Any:
        from transformers.tokenization_utils_tokenizers import TokenizersBackend

        return TokenizersBackend.from_pretrained(self._folder, trust_remote_code=False)

    def __len__(self) -> int:
        """Return the number of tokens, added ones included."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def __getattr__(self, name: str) -> Any:
        """What is not here, transformers' tokenizer has."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._theirs, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> PlainTokenizer:
        """Another one of the same folder: a tokenizer is not made for two threads at once."""
        backend = Tokenizer.from_str(self.backend_tokenizer.to_str())
        return PlainTokenizer(self._folder, backend, self._about, self.chat_template)


class _Ids(dict[str, Any]):
    """What a call gives: `ids["input_ids"]` or `ids.input_ids`, as transformers' has it."""

    @property
    def input_ids(self) -> Any:
        return self["input_ids"]


def _environment() -> ImmutableSandboxedEnvironment:
    """Where templates run, with what transformers gives them; a template is foreign code."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment


def _to_json(value: Any, **settings: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **settings})


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
