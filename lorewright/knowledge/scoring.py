"""How right an output is: metrics, text as it is compared, and whether a reply declines.

A metric takes an output and the acceptable answers and gives a number in [0, 1], the best over the
answers. Self-study checks what a language model wrote by the same comparison.

Paper: Lin 2004 (ROUGE-L).
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import takewhile

from lorewright.errors import DataError

SAFE_NATS = math.log(2)
"""A token with less loss has p > 1/2: no other can win under greedy decoding."""
LEAST_SUPPORT = 0.5
"""A memory's reply counts where it has at least so much support; see `recall.support`."""
Metric = Callable[[str, tuple[str, ...]], float]
"""Output and acceptable answers to a number in [0, 1]."""

_LOOKALIKES = str.maketrans("‘’‚“”„‐‑‒–—−", "'''\"\"\"------")
_OUTER_BEFORE = re.compile(r"(?:[\s\"'`«»()\[\]{}<>*_,;:!?¿¡。、，！？]|\.(?!\w)|-(?!\w))+")
_OUTER_AFTER = re.compile(r"[\s\"'`«»()\[\]{}<>*_.,;:!?。、，！？-]+\Z")
_ARTICLE = re.compile(r"(?<!\S)(?:an?|the)\s+(?=\S)")
_WORD = re.compile(r"\w+(?:[.,:'/@-]\w+)*")

_FILLER = re.compile(
    r"(?:(?:i'm|i am|we are|we're)?\s*(?:very |so |terribly )?sorry|my apologies|apologies|"
    r"unfortunately|hmm+|well|oh|as an ai[^,.]*)\b[\s,.!:;-]*"
)
_WE = r"(?:i|we)(?:'m|'re| am| are)?(?: \w+ly)?"
# What the speaker or the text fails to know; "Do not say it", "Lunch is not provided" are answers.
_DECLINING = re.compile(
    rf"(?:\A|\b{_WE} )(?:do not|don't|did not|didn't|cannot|can't|can not|could not|couldn't|"
    r"unable to|not able to)(?: \w+ly)? "
    r"(?:know|recall|remember|answer|find|tell|determine|have (?:any|enough|sufficient|that|this|"
    r"the|access|information|details|records?|knowledge)|be sure|be certain)\b"
    r"|\w (?:does not|doesn't|did not|didn't) (?:know|mention|specify|state|contain|say|provide)\b"
    r"|(?:\bnot|n't) (?:sure|certain|known|mentioned|stated|specified|disclosed)\b"
    r"|\b(?:cannot|can't|can not|could not|couldn't) be (?:answered|determined|found)\b"
    r"|\bno (?:information|knowledge|idea|answer|mention|record of)\b"
    r"|\bunanswerable\b|\bunknown\Z|\An/?a\Z"
)
_GUESS = re.compile(
    r"\bbut\b.{0,30}\b(?:think|guess|believe|probably|maybe|perhaps|might be|it is|it's)\b"
)


def normalise(text: str) -> str:
    """Return the text as compared: NFKC, casefold, without outer punctuation and articles.

    White space becomes single, typographic quotes and dashes plain. A minus sign or decimal
    point before a digit stays, and so does a last "A" ("hepatitis A"). A text of
    punctuation only stays as it is.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", text).casefold())
    plain = unicodedata.normalize("NFKC", folded.casefold()).translate(_LOOKALIKES)
    plain = " ".join(plain.split())
    while plain:
        before = _OUTER_BEFORE.match(plain)
        bare = _OUTER_AFTER.sub("", plain[before.end() if before else 0 :])
        bare = _ARTICLE.sub("", bare)
        if not bare or bare == plain:
            break
        plain = bare
    return plain


def exact_match(output: str, answers: tuple[str, ...]) -> float:
    """Return 1 if the normalised output equals a normalised answer, else 0."""
    return _best(lambda answer: float(normalise(output) == normalise(answer)), answers)


def contains(output: str, answers: tuple[str, ...]) -> float:
    """Return 1 if an answer stands in the output as whole words, else 0.

    Numbers must be whole as well: 5 is not in 8.5, 12 is not in 12,000, 19 is not in COVID-19.
    """
    text = normalise(output)
    return _best(lambda answer: float(_stands_in(normalise(answer), text)), answers)


def _stands_in(answer: str, output: str) -> bool:
    if answer not in output:  # nearly always, and a pattern takes far longer
        return False
    before = r"(?<!\w)" if _is_word(answer[:1]) else ""
    after = r"(?!\w)" if _is_word(answer[-1:]) else ""
    if answer[:1].isdigit():
        before += r"(?<![.-])(?<!\d[,:/])"
    if answer[-1:].isdigit():
        after += r"(?![.,:/-]\d)"
    return re.search(before + re.escape(answer) + after, output) is not None


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def token_f1(output: str, answers: tuple[str, ...]) -> float:
    """Return the harmonic mean of precision and recall over the words, as in SQuAD."""
    words = _words(output)

    def score(answer: str) -> float:
        wanted = _words(answer)
        return _f1((Counter(words) & Counter(wanted)).total(), len(words), len(wanted))

    return _best(score, answers)


def rouge_l(output: str, answers: tuple[str, ...]) -> float:
    """Return ROUGE-L: the F1 of the longest common subsequence of words."""
    words = _words(output)

    def score(answer: str) -> float:
        wanted = _words(answer)
        return _f1(_n_common_subsequence(words, wanted), len(words), len(wanted))

    return _best(score, answers)


def _n_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for n, other in enumerate(b, start=1):
            above = row[n]
            row[n] = diagonal + 1 if word == other else max(above, row[n - 1])
            diagonal = above
    return row[-1]


def verbatim_prefix(output: str, answers: tuple[str, ...]) -> float:
    """Return the share of an answer's characters given exactly before the first mistake.

    Only outer white space is ignored; what follows a complete answer does not count against it.
    """
    text = output.strip()

    def score(answer: str) -> float:
        wanted = answer.strip()
        same = takewhile(lambda pair: pair[0] == pair[1], zip(text, wanted, strict=False))
        return sum(1 for _ in same) / len(wanted)

    return _best(score, answers)


def is_declined(text: str) -> bool:
    """Say whether an English output admits, in its first sentence, that it does not know.

    An apology before it is passed over. An answer offered all the same ("I do not know, but I think
    it is Paris") is not declining.
    """
    plain, sentence, _ = _opening(text)
    return bool(_DECLINING.search(sentence)) and not _GUESS.search(plain)


def opens_with_an_answer(text: str) -> bool:
    """Say whether an English output has declined nothing in a first sentence that is over.

    Then it is not declined, however it goes on.
    """
    _, sentence, over = _opening(text)
    return over and not _DECLINING.search(sentence)


def _opening(text: str) -> tuple[str, str, bool]:
    """Text as compared, without fillers before it; its first sentence; whether another follows."""
    plain = " ".join(text.casefold().translate(_LOOKALIKES).split()).lstrip("\"'*_ ")
    while filler := _FILLER.match(plain):
        plain = plain[filler.end() :]
    sentence, *others = re.split(r"[.!?;](?:\s|\Z)", plain, maxsplit=1)
    return plain, sentence.strip(), any(others)


def _best(score: Callable[[str], float], answers: Sequence[str]) -> float:
    if not answers or not all(answer.strip() for answer in answers):
        raise DataError(
            f"the answers to score against are {answers!r}; give at least one and none empty, or "
            "leave the output unscored."
        )
    return max(score(answer) for answer in answers)


def _words(text: str) -> list[str]:
    plain = normalise(text)
    return _WORD.findall(plain) or plain.split()


def _f1(n_common: int, n_words: int, n_wanted: int) -> float:
    return 2 * n_common / (n_words + n_wanted) if n_common else 0.0


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "contains": contains,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "verbatim_prefix": verbatim_prefix,
}
