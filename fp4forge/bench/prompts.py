"""Prompts of real text with an exact number of tokens, by the server's own tokenizer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated

from msgspec import Meta, Struct

from fp4forge.bench.suite import TrialLoad
from fp4forge.core.errors import BenchError
from fp4forge.core.paths import BENCHMARKS
from fp4forge.inputs.reader import InputFormat

Count = Callable[[str], int]


class PromptText(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What prompts are made of."""

    tasks: Annotated[tuple[str, ...], Meta(min_length=4, description="what a prompt asks for")]
    sentences: Annotated[
        tuple[str, ...], Meta(min_length=40, description="English prose that fills a prompt")
    ]


FORMAT = InputFormat(PromptText, "prompts", BenchError)
# Each of these is one token more in most vocabularies; what fills the last places of a prompt.
_NUMBERED = 32  # tokens beside the template, from which on a prompt has room for a number
_FILLERS = (" a", ".", " I", " the", "!", " x", "?", " 1", "\n")


@cache
def text() -> PromptText:
    """The text that ships with the project."""
    path = BENCHMARKS / "prompts.yaml"
    return FORMAT.read(path, "benchmarks/prompts.yaml")


def _prompt_words(choose: random.Random, *, numbered: bool) -> Iterator[str]:
    """Endless words: a number that no other prompt begins with, a task, then prose."""
    parts = text()
    if numbered:
        yield f"{choose.randrange(100_000, 1_000_000)}."
    yield from choose.choice(parts.tasks).split()
    while True:
        sentences = list(parts.sentences)
        choose.shuffle(sentences)
        for sentence in sentences:
            yield from sentence.split()


@dataclass
class PromptWriter:
    """Writes prompts; ``count`` is the server's, which it asks as seldom as it can."""

    count: Count
    seed: int
    _ratio: float = field(default=1.4, init=False)  # tokens a word, as learnt
    _empty: int = field(default=-1, init=False)

    def write(self, load: TrialLoad, trial: int) -> list[str]:
        """A trial's prompts. The same seed, point and trial give the same ones.

        Raises:
            BenchError: no text has that many tokens.
        """
        place = f"{self.seed} {load.table} {load.label} {trial}"
        begin = self._beginning(load, place)
        return [
            self._exact(load.prompt, f"{place} {number}", begin) for number in range(load.requests)
        ]

    def _beginning(self, load: TrialLoad, place: str) -> str:
        if load.prompts != "shared":
            return ""
        if load.shared >= load.prompt:
            raise BenchError(
                f"{load.name}: {load.shared} shared tokens in a prompt of {load.prompt}",
                rule="the shared tokens are fewer than the prompt's",
            )
        return self._exact(load.shared, f"{place} shared", "") + " "

    def _exact(self, tokens: int, place: str, begin: str) -> str:
        """A text that starts in a given way and has exactly that many tokens."""
        if self._empty < 0:
            self._empty = self.count("")
        if tokens <= self._empty:
            raise BenchError(
                f"a prompt of {tokens} tokens: the model's chat template alone has {self._empty}",
                rule="a prompt's tokens include the chat template",
            )
        choose = random.Random(place)  # noqa: S311 - prompts are not secret
        stream = _prompt_words(choose, numbered=tokens - self._empty >= _NUMBERED)
        words: list[str] = []

        def made(number: int) -> str:
            while len(words) < number:
                words.append(next(stream))
            return begin + " ".join(words[:number])

        number = self._most(tokens, made)
        found = made(number)
        if number > 20:
            self._ratio = max((tokens - self._empty) / number, 0.2)
        return self._filled(found, tokens)

    def _most(self, tokens: int, made: Callable[[int], str]) -> int:
        """The most words that have no more tokens than wanted."""
        low, high = 0, -1  # low fits; high, once it is known, does not
        guess = max(int((tokens - self._empty) / self._ratio), 1)
        step = max(guess // 50, 1)
        while high < 0 or high - low > 1:
            if self.count(made(guess)) <= tokens:
                low = guess
            else:
                high = guess
            if high < 0:
                guess, step = low + step, 2 * step
            elif low == 0:
                guess, step = max(high - step, 1), 2 * step
            else:
                guess = (low + high) // 2
            if high == 1:
                break
        return low

    def _filled(self, begun: str, tokens: int) -> str:
        """A text with the few tokens that still lack."""
        missing = tokens - self.count(begun)
        for filler in _FILLERS:
            if missing == 0:
                return begun
            if self.count(begun + filler * missing) == tokens:
                return begun + filler * missing
        for _ in range(missing):
            have = self.count(begun)
            step = next((f for f in _FILLERS if self.count(begun + f) == have + 1), None)
            if step is None:
                break
            begun += step
        if self.count(begun) == tokens:
            return begun
        raise BenchError(
            f"no text of exactly {tokens} tokens was found",
            rule="the prompts' tokens, as /tokenize counts them",
            remedy="please report the model: its tokenizer merges what others keep apart",
        )
