"""Interrupts that cannot be lost.

Python drops what a signal's handler raises while a finaliser runs ("Exception ignored in"), and
urllib3's pools, ``subprocess.Popen`` and temporary folders have finalisers. A build that lost its
Ctrl-C that way went on to verify and to publish; the next step asks here.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

_arrived = threading.Event()


def install() -> None:
    """Makes SIGINT and SIGTERM raise KeyboardInterrupt in the main thread.

    Background jobs inherit an ignored SIGINT; a runner that cancels sends SIGTERM.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def check() -> None:
    """Raises again an interrupt that was lost; does nothing while one is being handled.

    Raises:
        KeyboardInterrupt: a signal arrived, and this thread, the main one, goes on as if none had.
    """
    handled = isinstance(sys.exc_info()[1], KeyboardInterrupt)
    if _arrived.is_set() and not handled and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def taken() -> None:
    """An interrupt has ended what it should, and the command goes on."""
    _arrived.clear()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    _arrived.set()
    raise KeyboardInterrupt
