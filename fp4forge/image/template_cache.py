"""Compiled templates, kept between runs; one that was cut or changed is compiled anew.

Jinja's own cache runs whatever is in its file: a cut one ends the command, and one with a wrong
byte can render another text.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from jinja2 import BytecodeCache
from jinja2.bccache import Bucket

from fp4forge.core import files, reading
from fp4forge.core.errors import ArtefactError


class CheckedTemplateCache(BytecodeCache):
    """A file for each template: the SHA-256 of the bytecode, then the bytecode."""

    def __init__(self, folder: Path) -> None:
        """Keeps them in a folder that may be read-only, or missing."""
        self.folder = folder

    def load_bytecode(self, bucket: Bucket) -> None:
        """Takes what is kept, if it is whole."""
        try:
            kept = reading.content(self.folder / bucket.key, ArtefactError)
        except ArtefactError:
            return
        digest, bytecode = kept[:32], kept[32:]
        if hashlib.sha256(bytecode).digest() == digest:
            bucket.bytecode_from_string(bytecode)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keeps it; a place that cannot be written is left alone."""
        bytecode = bucket.bytecode_to_string()
        with contextlib.suppress(OSError):
            files.replace(self.folder / bucket.key, hashlib.sha256(bytecode).digest() + bytecode)
