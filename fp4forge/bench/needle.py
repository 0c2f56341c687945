"""A number hidden in the project's own prose, and whether an answer finds it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from fp4forge.bench.prompts import text
from fp4forge.serve.client import ChatAnswer

ANSWER = 1024  # tokens: a thinking model thinks first
ROOM = ANSWER + 256  # tokens of a context that the answer and the chat template need
_WORD = 1.6  # tokens, at most, of an English word in the vocabularies of today's models
_TRIES = 4  # questions to the server's tokenizer
_ASKED = " What is the keeper's number? Answer with the number alone."


@dataclass(frozen=True)
class Needle:
    """A question whose answer stands a third into its text; tokens as counted, or estimated."""

    number: str
    text: str
    tokens: int

    def wrong(self, answer: ChatAnswer) -> str:
        """What is wrong with an answer; empty if it has the number."""
        found = answer.text.replace(",", "").replace(" ", "")
        return "" if self.number in found else f"it does not say {self.number}"


def hidden(seed: int, words: int = 0) -> Needle:
    """A needle in about so many words; by default in the whole prose once."""
    choose = random.Random(seed)  # noqa: S311 - not a secret
    number = str(choose.randrange(10_000, 100_000))
    said = f"The keeper's number is {number}."
    sentences: list[str] = []
    length = 0
    while not sentences or length < words:
        once = list(text().sentences)
        choose.shuffle(once)
        for sentence in once:
            if words and length >= words:
                break
            sentences.append(sentence)
            length += len(sentence.split())
    sentences.insert(len(sentences) // 3, said)
    whole = " ".join(sentences) + _ASKED
    return Needle(number, whole, round(len(whole.split()) * _WORD))


def of_length(seed: int, tokens: int, count: Callable[[str], int] | None) -> Needle:
    """A needle in at most so many tokens, and not many fewer.

    Args:
        seed: the same one gives the same text.
        tokens: of the prompt, with the chat template if ``count`` has it.
        count: the server's own tokenizer; None: by a cautious estimate.

    Raises:
        ForgeError: ``count`` fails.
    """
    words = max(int(tokens / _WORD) - 40, 20)
    found = hidden(seed, words)
    for _ in range(_TRIES if count else 0):
        found = replace(found, tokens=count(found.text) if count else found.tokens)
        if 0.97 * tokens <= found.tokens <= tokens:
            break
        # A word has at least one token, whatever the server says.
        words = min(max(int(words * 0.985 * tokens / max(found.tokens, 1)), 20), tokens)
        found = hidden(seed, words)
    return found
