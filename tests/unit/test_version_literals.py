"""The lint that keeps versions of vLLM out of code."""

from __future__ import annotations

from scripts.version_literals import literals

CODE = '''
"""Read in vLLM 0.20.2."""
A = 1  # as 0.19.1 does
def f() -> str:
    """Source: vllm/envs.py of 0.33.0."""
    return "1.2.3, 0.9.1"
'''


def test_a_version_in_a_string_is_found_and_in_a_docstring_is_not() -> None:
    assert list(literals(CODE)) == []
    assert list(literals(CODE + 'B = "--release 0.33.0"\n')) == [(7, "--release 0.33.0")]
    assert list(literals(CODE + 'C = f"{A} 0.27.1"\n')) == [(7, " 0.27.1")]
