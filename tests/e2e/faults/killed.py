"""Runs ``build.py`` and kills it, with SIGKILL, at its nth change of a file or start of a program.

``python -m tests.e2e.faults.killed N COUNT ARGUMENTS``: a moment is the last instant before the
change. If N is 0 nothing is killed, and the number of moments goes into the file COUNT.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
    "subprocess.Popen",
    "fcntl.flock",
    "socket.bind",
    "socket.connect",
}


def main() -> None:
    """Counts the moments, and ends at the one that was asked for."""
    last, count = int(sys.argv[1]), Path(sys.argv[2])
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event == "open":
            flags = arguments[2]
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in CHANGES:
            return
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)

    from fp4forge import cli

    sys.argv = ["build.py", *sys.argv[3:]]
    sys.dont_write_bytecode = True
    tempfile.gettempdir()  # Python tries the folder with a file of its own, which nobody could mend
    sys.addaudithook(hook)
    try:
        cli.main()
    finally:
        moments = seen
        if not last:
            count.write_text(str(moments))


if __name__ == "__main__":
    main()
