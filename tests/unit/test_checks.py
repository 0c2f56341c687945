"""What pytest reports of an image test, as a check."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fp4forge.checks import runner
from fp4forge.core.errors import VerifyError
from fp4forge.core.paths import IMAGE_TESTS

SUITE = '''
import pytest

def test_size(record_property):
    """the size is right"""
    record_property("unpacked_bytes", 3)

def test_said():
    assert 1 == 2, "one is not two"

def test_plain():
    assert [1] == [2]

def test_skipped():
    pytest.skip("NOT RUN: no GPU")

@pytest.fixture
def broken():
    raise KeyError("plan")

def test_fixture(broken):
    pass
'''


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The report log of a small suite, run with the image tests' own conftest."""
    folder = tmp_path_factory.mktemp("suite")
    hook = (IMAGE_TESTS / "conftest.py").read_text().partition("def pytest_itemcollected")
    (folder / "conftest.py").write_text("import pytest\n" + "".join(hook[1:]))
    (folder / "test_suite.py").write_text(SUITE)
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--report-log=log"]
    done = subprocess.run([*line, "."], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    return Path(folder, "log").read_bytes()


def test_each_test_is_one_check_with_its_reason(log: bytes) -> None:
    found = {check.test: check for check in runner.read_log(log)}
    assert {name: (c.outcome, c.message) for name, c in found.items()} == {
        "test_size": ("passed", ""),
        "test_said": ("failed", "one is not two"),
        "test_plain": ("failed", "assert [1] == [2]"),
        "test_skipped": ("skipped", "Skipped: NOT RUN: no GPU"),
        "test_fixture": ("failed", "KeyError: 'plan'"),
    }
    assert found["test_size"].name == "the size is right"
    assert found["test_size"].facts == {"unpacked_bytes": 3}
    assert found["test_plain"].name == "test_plain"


def test_a_cut_log_is_an_error(log: bytes) -> None:
    with pytest.raises(VerifyError, match="report log of the image tests"):
        runner.read_log(log[: log.rindex(b"teardown")])
