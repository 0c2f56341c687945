#!/usr/bin/python3 -IS
"""Stands in for vLLM (``serve MODEL ...``), and otherwise for the gateway before it.

A server takes two seconds to start, and prints when it began and when it was ready.
"""

import json
import signal
import sys
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SERVES = sys.argv[1] == "serve"


class Handler(BaseHTTPRequestHandler):
    """Answers, or asks the server of the model that is named."""

    def do_GET(self) -> None:
        self.answer(200, b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if SERVES:
            message = {"content": f"Paris, says {NAME}."}
            choice = {"message": message, "finish_reason": "stop"}
            self.answer(200, json.dumps({"choices": [choice]}).encode())
            return
        config = Path("/etc/litellm/config.yaml").read_text()
        models = json.loads(config.partition("\n")[2])["model_list"]  # JSON, after a comment
        chosen = next(m for m in models if m["model_name"] == json.loads(body)["model"])
        host = chosen["litellm_params"]["api_base"].split("/")[2]
        asked = HTTPConnection(host, timeout=10)
        asked.request("POST", "/v1/chat/completions", body)
        found = asked.getresponse()
        self.answer(found.status, found.read())

    def answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # a first process ignores it otherwise
if SERVES:
    NAME = sys.argv[sys.argv.index("--served-model-name") + 1]
    print("begins at", time.time(), flush=True)
    time.sleep(2)
    print("ready at", time.time(), flush=True)
ThreadingHTTPServer(("", 8000 if SERVES else 4000), Handler).serve_forever()
