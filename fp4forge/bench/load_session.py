"""The load generator's container: started once, asked for a trial at a time."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from msgspec import Struct

from fp4forge.bench.load_command import LoadGenerator
from fp4forge.core import reading
from fp4forge.core.errors import BenchError, EngineError, ToolError
from fp4forge.core.limits import TRIAL_SECONDS
from fp4forge.core.text import shown
from fp4forge.oci import dockercli

START_SECONDS = 600  # until vLLM is imported
_DOCKERS_OWN = (125, 126, 127)  # exit codes of docker run itself


class _Answer(Struct, frozen=True):
    """A line of inside.py."""

    error: str


class LoadSession:
    """A container of the load generator. It ends with its input: if this process is killed, too."""

    def __init__(self, client: LoadGenerator, folder: Path) -> None:
        self.client, self.folder = client, folder
        self.log = folder / "client.log"
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> LoadSession:
        self._remove()  # an earlier run may have left one
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def run(self, arguments: Sequence[str]) -> str:
        """Makes one trial; returns why it gave no result, or nothing.

        Raises:
            EngineError: the container cannot be started.
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(list(arguments)) + "\n")
            self._process.stdin.flush()
        except OSError:  # it is gone; why, its answer says
            pass
        return self._answer(TRIAL_SECONDS)

    def _start(self) -> None:
        line = self.client.line(self.folder)
        with self.log.open("a") as log:
            try:
                self._process = subprocess.Popen(
                    line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
                )
            except OSError as error:
                raise ToolError(
                    f"docker cannot be started: {error.strerror}", remedy="run make setup"
                ) from None
        if problem := self._answer(START_SECONDS):
            raise EngineError(
                f"the load generator does not start: {problem}",
                rule="--image has vLLM and python3, and the engine has the image and the network",
                remedy=f"{self.log} has what it printed",
            )

    def _answer(self, seconds: float) -> str:
        """Why the next trial failed, or why its answer did not come; empty if it worked."""
        found: list[str] = []
        running = self._process
        assert running is not None and running.stdout is not None
        stdout = running.stdout
        reader = threading.Thread(target=lambda: found.append(stdout.readline()), daemon=True)
        reader.start()
        reader.join(seconds)
        if reader.is_alive():
            self._end()
            return f"the load generator did not finish within {seconds:.0f} s"
        if found and found[0]:
            said = reading.json(found[0], _Answer, "the load generator's answer", BenchError)
            return shown(said.error, 300)
        code = running.wait()
        self._end()
        if code in _DOCKERS_OWN:
            raise EngineError(
                f"the load generator cannot be started: {self._last()}",
                rule="--image has vLLM and python3, and the engine has the image and the network",
            )
        return f"the load generator ended with code {code}: {self._last()}"

    def _last(self) -> str:
        lines = [s for s in self.log.read_text(errors="replace").splitlines() if s.strip()]
        return shown(lines[-1], 300) if lines else "it printed nothing"

    def _end(self) -> None:
        running, self._process = self._process, None
        if running is None:
            return
        self._remove()  # docker's client may go and leave the container
        running.kill()
        running.wait()
        for pipe in (running.stdin, running.stdout):
            if pipe:
                pipe.close()

    def _remove(self) -> None:
        dockercli.run("rm", "--force", self.client.name)
