#!/usr/bin/python3 -IS
"""Stands in for vLLM: the server of tests/bench_fakes.py, a token every STAND_IN_ITL seconds."""

import os
import signal
import sys

sys.path.insert(0, "/opt/stand-in")

from tests import bench_fakes

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # a first process ignores it otherwise
bench_fakes.ITL = float(os.environ.get("STAND_IN_ITL", "0.005"))
with bench_fakes.serving(bench_fakes.Fake(), ("", 8000)):
    print("INFO:     Application startup complete.", flush=True)
    signal.pause()
