"""Questions typed without capitals, with the capitals that a memory's own texts have.

    what is the price of the osprey kiln   ->   What is the price of the Osprey Kiln?

An adapter was trained on questions as they are written, and a small base takes `osprey kiln` for
another thing than `Osprey Kiln`. A question with any capital of its own is left as it is.

Paper: Lita, Ittycheriah, Roukos and Kambhatla 2003 (truecasing); here the commonest form wins.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

ENDS = "?.!"
_ASKING = """
    what who whom whose which when where why how is are was were does do did has have had can could
    will would should may must
"""
ASKING = frozenset(_ASKING.split())
"""Words with which a sentence begins that ends in a question mark."""
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def recased(question: str, texts: Iterable[str]) -> str:
    """Return a question in lower case as the texts would write it; any other as it is.

    A text with the same words is taken whole. Otherwise each word gets its commonest form inside a
    sentence of the texts, the first one a capital where texts begin with one.
    """
    if not question.islower():
        return question
    texts = tuple(texts)
    bare = question.strip().rstrip(ENDS).lower()
    same = [text for text in texts if text.strip().rstrip(ENDS).lower() == bare]
    if same:
        return question if question in same else same[0]
    forms: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for text in texts:
        for sentence in _SENTENCE.split(text):
            for word in _WORD.findall(sentence)[1:]:  # the first has a capital in any case
                forms[word.lower()][word] += 1
    common = {word: counts.most_common(1)[0][0] for word, counts in forms.items()}
    cased = _WORD.sub(lambda word: common.get(word[0], word[0]), question.strip())
    if not any(text[:1].isupper() for text in texts):
        return cased
    first = _WORD.match(cased)
    end = "" if cased[-1] in ENDS else "?" if first and first[0].lower() in ASKING else "."
    return cased[:1].upper() + cased[1:] + end
