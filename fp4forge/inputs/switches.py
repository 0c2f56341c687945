"""What a release of vLLM understands: ``releases/switches/VERSION.json``."""

from __future__ import annotations

from functools import cache

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import ReleaseError
from fp4forge.core.paths import RELEASES

FOLDER = RELEASES / "switches"
_HEADS = (
    "ForCausalLM",
    "ForConditionalGeneration",
    "ChatModel",
    "LMHeadModel",
    "ForTextEncoding",
    "EmbeddingModel",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForAudioClassification",
    "ForImageClassification",
    "ForVideoClassification",
    "ClassificationModel",
    "ForRewardModeling",
    "RewardModel",
    "Model",
)


class KnownSwitches(Struct, frozen=True, forbid_unknown_fields=True):
    """Names that a release knows, as ``maintain.read_switches`` found them in its sources."""

    flags: list[str]
    environment: list[str]
    tool_parsers: list[str]
    reasoning_parsers: list[str]
    architectures: list[str]
    kv_cache_types: list[str]
    metrics: list[str]

    def flag(self, name: str) -> bool:
        """Whether ``vllm serve`` takes a flag, by any of its spellings.

        vLLM takes ``_`` for ``-``, ``--no-`` before a switch, and ``--config.field`` for JSON
        (FlexibleArgumentParser).
        """
        plain = name.replace("_", "-").split(".")[0]
        return {plain, plain.replace("--no-", "--", 1)} & set(self.flags) != set()

    def architecture(self, name: str) -> bool:
        """Whether vLLM has a class for an entry of config.json's ``architectures``.

        A head that vLLM can put on a generating model is taken off first (``_normalize_arch`` in
        vllm/model_executor/models/registry.py, ``_SUFFIX_TO_DEFAULTS`` in vllm/config/model.py).
        """
        for suffix in _HEADS:
            if name.endswith(suffix):
                stem = name.removesuffix(suffix)
                return any(stem + other in self.architectures for other in _HEADS)
        return name in self.architectures


@cache
def load(version: str) -> KnownSwitches | None:
    """The switches of a release; None if none were extracted for it.

    Raises:
        ReleaseError: the file is not what ``release switches`` writes.
    """
    path = FOLDER / f"{version}.json"
    if not path.is_file():
        return None
    return reading.json_file(path, KnownSwitches, ReleaseError)
