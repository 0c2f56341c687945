"""Fixtures of the image tests: the running container, the plan it is held to, the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import testinfra


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("image")
    group.addoption("--image", help="Reference of the image under test.")
    group.addoption("--container", help="A running container of it.")
    group.addoption("--plan", help="The plan as JSON.")
    group.addoption("--checks", help="Where to write one JSON line per check.")


@pytest.fixture(scope="session")
def host(request: pytest.FixtureRequest) -> Any:
    return testinfra.get_host(f"docker://{request.config.getoption('--container')}")


@pytest.fixture(scope="session")
def plan(request: pytest.FixtureRequest) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(request.config.getoption("--plan")).read_text())
    return data


@pytest.fixture(scope="session")
def site(plan: dict[str, Any]) -> str:
    return f"/usr/local/lib/python{plan['python']}/dist-packages"


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> dict[str, Any]:
    import docker

    reference = request.config.getoption("--image")
    attributes: dict[str, Any] = docker.from_env().images.get(reference).attrs
    return attributes


@pytest.fixture(scope="session")
def config(image: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = image["Config"]
    return found


@pytest.fixture(scope="session")
def history(request: pytest.FixtureRequest) -> list[str]:
    import docker

    found = docker.from_env().images.get(request.config.getoption("--image")).history()
    return [entry["CreatedBy"] for entry in found]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    ended = report.when == "call" or (report.when == "setup" and report.outcome != "passed")
    path = item.config.getoption("--checks")
    if ended and path:
        message = ""
        if report.failed and call.excinfo is not None:
            message = (
                str(call.excinfo.value).splitlines()[0] if str(call.excinfo.value) else "failed"
            )
        elif report.skipped:
            message = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        line = {
            "name": (item.obj.__doc__ or item.name).strip().splitlines()[0],  # type: ignore[attr-defined]
            "outcome": report.outcome,
            "message": message,
            "seconds": round(call.duration, 3),
            "facts": dict(item.user_properties),
        }
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")
    return report
