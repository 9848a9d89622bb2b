"""Questions without the greeting, the request and the thanks around them.

    Hi! Could you tell me what the price of it is? Thanks   ->   What is the price of it?

A memory was trained on bare questions, and words of courtesy are in none of its texts. English
only; what is left must be a question or a request of its own, otherwise the text stays as it is.
"""

from __future__ import annotations

import re

_GREETING = re.compile(
    r"(?:(?:hi|hello|hey|good (?:morning|afternoon|evening|day)|dear \w+|greetings|excuse me|sorry)"
    r"(?: (?:there|all|everyone|everybody|team))?|please)(?:\s*[,!.:–-]+|(?=\s*\n)|(?<=please))\s*",
    re.IGNORECASE,
)
_THANKS = re.compile(
    r"(?:[\s,.!?;–-]+)(?:(?:many )?thanks|thank you|thx|cheers|please|(?:kind |best )?regards)"
    r"(?: (?:you|a lot|so much|very much|in advance|again))*\s*[.!?]*\s*\Z",
    re.IGNORECASE,
)
_MARKS = re.compile(r"(?:\s*[^\w\s.,;:!?()\"'“”‘’%$€£°\]}/+*#&@<>=~`-])+\s*\Z")
"""Emoji and the like at the end."""
_REQUEST = re.compile(
    r"(?:(?:could|can|would|will) you (?:please |kindly )?(?:tell me|let me know|say|remind me)"
    r"|(?:do you|you) (?:happen to )?know|i(?:'d| would) (?:like|love) to know|i wonder"
    r"|i(?:'m| am) wondering|i want to know|i need to know"
    r"|(?:please )?(?:tell me|let me know|remind me))[,:]? "
    r"(?P<rest>(?:what|who|whom|whose|which|when|where|why|how)\b.*)",
    re.IGNORECASE | re.DOTALL,
)
_ASKS = re.compile(r"(?:could|can|would|will) you (?:please |kindly )?(?P<rest>\w.*)", re.I | re.S)
_PLEASE_TELL = re.compile(r"(?:tell|give|name|say|state|list|show|explain|describe|remind)\b", re.I)
_INDIRECT = re.compile(
    r"(?P<word>what|who|whose|which|when|where|why|how(?: \w+)??) "
    r"(?P<subject>(?:the|a|an|my|our|its|[A-Z])\S*(?: \S+)*) (?P<verb>is|are|was|were)",
    re.IGNORECASE,
)


def without_courtesy(question: str) -> str:
    """Return the question alone; the text as it is where nothing, or no question, would be left."""
    bare = _MARKS.sub("", question.strip())
    before = ""
    while bare != before:
        before = bare
        bare = _MARKS.sub("", _THANKS.sub(_ending, bare)).strip()
        bare = bare[match.end() :] if (match := _GREETING.match(bare)) else bare
    request = _REQUEST.fullmatch(bare)
    if request:
        bare = _direct(request["rest"])
    elif (direct := _ASKS.fullmatch(bare)) and _PLEASE_TELL.match(direct["rest"]):
        bare = direct["rest"].rstrip("?. ") + "."
    if bare == question.strip() or len(bare.split()) < 2:
        return question
    return bare[:1].upper() + bare[1:] if not question.islower() else bare


def _ending(match: re.Match[str]) -> str:
    """The mark that ended the question before the thanks."""
    whole = match[0].strip()
    return whole[0] if whole[0] in "?.!" else "?" if whole[-1] == "?" else ""


def _direct(question: str) -> str:
    """`what the price of the kiln is` as a question: `what is the price of the kiln?`"""
    bare = question.rstrip("?.! ")
    indirect = _INDIRECT.fullmatch(bare)
    if indirect:
        bare = f"{indirect['word']} {indirect['verb']} {indirect['subject']}"
    return f"{bare}?"
