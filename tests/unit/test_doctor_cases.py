"""Reports that people really wrote, and siblings of them: verdict, cause, and nothing false."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import doctor_cases


@pytest.mark.parametrize("name", doctor_cases.NAMES)
def test_case(name: str, tmp_path: Path) -> None:
    wanted = doctor_cases.expected(name)
    said = doctor_cases.outcome(name, tmp_path)
    assert said.verdict == wanted["verdict"], said.text
    assert set(wanted.get("finds", ())) <= set(said.found), said.text
    for words in wanted.get("says", ()):
        assert re.search(words, said.text), f"{words} is not in: {said.text}"
    for words in wanted.get("never", ()):
        assert not re.search(words, said.text), f"{words} is in: {said.text}"


def test_the_page_is_what_the_cases_give(tmp_path: Path) -> None:
    assert doctor_cases.PAGE.read_text() == doctor_cases.text(tmp_path)
