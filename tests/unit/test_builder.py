"""What buildx says, in the words of a message."""

from __future__ import annotations

from fp4forge.core.errors import EngineError
from fp4forge.oci import buildkit as builder


def test_a_docker_client_without_buildx_is_named() -> None:
    # As Docker 26 answers `docker buildx build --file=x` when the plugin is not installed.
    said = "unknown flag: --file\n\nUsage:  docker [OPTIONS] COMMAND [ARG...]\n"
    error = builder.explain([], said)
    assert isinstance(error, EngineError)
    assert "has no buildx" in error.message
    assert "make setup" in error.remedy


def test_what_is_not_known_is_shown_as_it_was_said() -> None:
    error = builder.explain([], "ERROR: something new\n")
    assert "something new" in error.message
    assert "the docker client has no buildx" not in error.message


def test_a_step_is_told_by_its_command_without_its_mounts() -> None:
    flags = "--network=none --mount=type=secret,id=ca     --mount=type=cache,id=aot"
    name = f"[aot 3/3] RUN {flags}     make it"
    assert builder.instruction(name) == "[aot 3/3] RUN make it"
