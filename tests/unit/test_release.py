"""Release files: what is refused, and what the message says."""

from __future__ import annotations

from pathlib import Path

import pytest

from fp4forge.core.errors import ReleaseError
from fp4forge.core.paths import RELEASES
from fp4forge.inputs import release

GOOD = (RELEASES / "0.20.2.yaml").read_text()


def test_every_release_is_valid() -> None:
    assert len(release.names()) > 1
    for name in release.names():
        assert release.load(name).vllm_version == name


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("release: 0.20.2", "release: [0.20.2", "line"),
        ("torch: 2.11.0", "torch: 2", "torch"),
        ("torch: 2.11.0", "torhc: 2.11.0", "torhc"),
        ("arch_list: 10.0;12.0;12.1", "arch_list: '12.0; rm -rf /'", "arch_list"),
        ("arch_list: 10.0;12.0;12.1", 'arch_list: "12.0\\nRUN evil"', "control character"),
        ("58809377798c5335", "5880937779", "sha256"),
        ("awq: {}", "awq: {VLLM_X: '1 && curl evil'}", "VLLM_X"),
        ("      - ninja\n", "      - ninja; touch /x\n", "requirements"),
        ("release: 0.20.2", "release: 0.20.3", "file's name"),
        ("glob: torch/bin/p*", "glob: torch/bin/$(id)", "glob"),
    ],
)
def test_broken_releases_are_refused(old: str, new: str, says: str) -> None:
    assert old in GOOD
    with pytest.raises(ReleaseError) as caught:
        release.parse(GOOD.replace(old, new, 1), "releases/0.20.2.yaml")
    assert "releases/0.20.2.yaml" in caught.value.message
    assert says in caught.value.message + caught.value.rule


def test_a_trailing_newline_does_not_pass_as_a_version() -> None:
    with pytest.raises(ReleaseError):
        release.parse(GOOD.replace("torch: 2.11.0", 'torch: "2.11.0\\n"'), "releases/0.20.2.yaml")


def test_unreadable_yaml_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="line 3"):
        release.parse("a: 1\nb: 2\n  c: [\n", "releases/x.yaml")
