"""Runs inside the image: ``vllm bench serve`` as often as asked, in one process.

Each line of standard input is a list of arguments in JSON, each line of output an answer. Importing
vLLM takes seconds, so a process for each trial would spend most of its time on that. This file
imports nothing of fp4forge.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, TextIO


class _Rows:
    """What the tool's custom dataset does with a pandas.DataFrame: look at columns, go through."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.columns = set.intersection(*(set(row) for row in rows)) if rows else set()

    def iterrows(self) -> Iterator[tuple[int, _Row]]:
        """Each row with its number."""
        return enumerate(_Row(row) for row in self.rows)


class _Row(dict[str, Any]):
    def to_dict(self) -> dict[str, Any]:
        """The row."""
        return dict(self)


class _Pandas:
    """The one function of pandas that the tool needs to read prompts; our images lack pandas."""

    @staticmethod
    def read_json(path_or_buf: str, lines: bool) -> _Rows:
        """A file with a JSON object on each line."""
        assert lines
        with open(path_or_buf, encoding="utf-8") as file:  # noqa: PTH123
            return _Rows([json.loads(line) for line in file])


def tool() -> tuple[Any, Any]:
    """The tool's parser and its main function."""
    from vllm.benchmarks import serve
    from vllm.benchmarks.datasets import CustomDataset
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    if importlib.util.find_spec("pandas") is None:
        sys.modules[CustomDataset.__module__].pd = _Pandas  # type: ignore[attr-defined]
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    return parser, serve.main


def answer(to: TextIO, **content: object) -> None:
    """Writes a line for the other side."""
    to.write(json.dumps(content) + "\n")
    to.flush()


def main() -> None:
    """Answers until its input ends; what the tool prints goes to standard error."""
    to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    parser, run = tool()
    answer(to, error="")
    for line in sys.stdin:
        try:
            run(parser.parse_args(json.loads(line)))
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            answer(to, error=f"{type(error).__name__}: {error}")
        else:
            answer(to, error="")


if __name__ == "__main__":
    main()
