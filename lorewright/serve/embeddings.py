"""POST /v1/embeddings: vectors of the encoder by which the folder chooses a memory.

Where memories are chosen by words alone there is no encoder, and the answer is a 400 that says so.
Reference: OpenAI API, embeddings.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from lorewright.serve.protocol import APIError, Body, InvalidField, Text

MAX_TEXTS = 2048
"""Texts in one request; OpenAI's own number."""

Embed = Callable[[list[str]], Any]
"""Texts to vectors: n texts give an array of n rows."""
Encoder = Callable[[], Embed | None]
"""The folder's encoder as it is now; None = there is none."""


def _texts(content: Any) -> Any:
    """One text as a list of one; token ids are another tokenizer's, and refused."""
    texts = [content] if isinstance(content, str) else content
    if isinstance(texts, list) and any(isinstance(each, int | list) for each in texts):
        raise InvalidField("", "token ids are not supported; send text")
    return texts


class EmbeddingsRequest(Body):
    """The body of POST /v1/embeddings."""

    ignored = frozenset(("user",))
    model: Text
    """`auto`, or any other model of this server: there is one encoder for all."""
    input: Annotated[
        list[Annotated[Text, Field(min_length=1)]], BeforeValidator(_texts, str | list[str])
    ] = Field(min_length=1, max_length=MAX_TEXTS)
    encoding_format: Literal["float", "base64"] = "float"


def embeddings(request: EmbeddingsRequest, encoder: Encoder) -> dict[str, Any]:
    """The vectors of the texts. Raises APIError 400 where there is no encoder."""
    embed = encoder()
    if embed is None:
        why = (
            "this server has no encoder, for its folder is routed by words alone; start it with "
            "--encoder minilm, or embed elsewhere."
        )
        raise APIError(400, why, code="no_encoder", param="model")
    vectors_ND = np.asarray(embed(list(request.input)), dtype=np.float32)
    as_text = request.encoding_format == "base64"
    rows = [
        base64.b64encode(vector_D.tobytes()).decode() if as_text else vector_D.tolist()
        for vector_D in vectors_ND
    ]
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    usage = {"prompt_tokens": 0, "total_tokens": 0}  # the encoder's tokens are not counted
    return {"object": "list", "model": request.model, "data": data, "usage": usage}
