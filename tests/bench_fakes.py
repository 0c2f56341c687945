"""A model server and a docker that the benchmark's unit tests run against: no engine, no model.

The server counts a token for each word, and 4 for the chat template. The docker writes results in
the form of ``vllm bench serve`` 0.20.2, with the faults that a file beside it asks for.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPLATE = 4  # tokens
TTFT, ITL = 0.05, 0.01  # seconds


def tokens(text: str) -> int:
    """As the fake server counts: a word, or a filler's character, is a token."""
    return TEMPLATE + len(text.replace(".", " .").replace("!", " !").split())


def raw(prompt: int, output: int, requests: int, **changes: Any) -> dict[str, Any]:
    """A result in the tool's form, all well; ``changes`` replace fields."""
    # The first interval is that between the chunk with the role and the first token.
    itls = [[6.6e-06] + [ITL] * (output - 1)] * requests
    found = {
        "date": "20261127-220000",
        "endpoint_type": "openai-chat",
        "backend": "openai-chat",
        "label": None,
        "model_id": "m",
        "tokenizer_id": None,
        "num_prompts": requests,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": 1,
        "duration": requests * (TTFT + output * ITL),
        "completed": requests,
        "failed": 0,
        "total_input_tokens": prompt * requests,
        "total_output_tokens": output * requests,
        "request_goodput": None,
        "input_lens": [prompt] * requests,
        "output_lens": [output] * requests,
        "ttfts": [TTFT + n / 1e6 for n in range(requests)],
        "itls": itls,
        "start_times": [float(n) for n in range(requests)],
        "generated_texts": ["some words"] * requests,
        "errors": [""] * requests,
        "max_output_tokens_per_s": 100.0,
        "max_concurrent_requests": 1,
        "rtfx": 0.0,
    }
    return found | changes


def _event(**content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


class Fake:
    """What the server does and has been asked."""

    def __init__(self) -> None:
        self.finished = 0
        self.context = 4096
        self.alive = True
        self.counts: list[str] = []
        self.status: dict[str, int] = {}
        self.fault = ""  # of a stream: cut, empty, short

    def stream(self, body: Any) -> Iterator[bytes]:
        """A chat as vLLM streams it, with known times: the role, each token, the usage."""
        asked = body["max_completion_tokens"]
        text = "" if self.fault == "empty" else " word"
        number = asked - 1 if self.fault == "short" else asked
        time.sleep(TTFT)
        yield _event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
        begin = time.monotonic()
        for place in range(number):
            time.sleep(max(begin + place * ITL - time.monotonic(), 0))
            if self.fault == "cut" and place > number // 2:
                return
            reason = "length" if place == number - 1 else None
            yield _event(
                choices=[{"index": 0, "delta": {"content": text}, "finish_reason": reason}]
            )
        prompt = tokens(body["messages"][0]["content"][0]["text"])
        yield _event(choices=[], usage={"prompt_tokens": prompt, "completion_tokens": number})
        yield b"data: [DONE]\n\n"
        self.finished += 1

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and content for a request."""
        if not self.alive:
            return 500, {}
        if path in self.status:
            return self.status[path], {"error": "no"}
        if path == "/v1/models":
            return 200, {"data": [{"id": "m", "root": "/model", "max_model_len": self.context}]}
        if path == "/version":
            return 200, {"version": "0.20.2"}
        if path == "/metrics":
            return 200, f'vllm:request_success_total{{finished_reason="length"}} {self.finished}\n'
        if path == "/tokenize":
            text = body["messages"][0]["content"][0]["text"]
            self.counts.append(text)
            return 200, {"count": tokens(text), "max_model_len": self.context, "tokens": []}
        message = {"content": "Paris."}
        return 200, {"choices": [{"message": message, "finish_reason": "stop"}]}


@contextmanager
def serving(fake: Fake, address: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[str]:
    """A server, by default at a free port of loopback; its URL."""
    # Imported here: the fake docker is started often, and needs none of it.
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(None)

        def do_POST(self) -> None:
            self._send(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _send(self, body: Any) -> None:
            status, content = fake.answer(self.path, body)
            if status == 200 and body and body.get("stream"):
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()  # no length: the stream ends with the connection
                for chunk in fake.stream(body):
                    self.wfile.write(chunk)
                return
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(address, Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


DOCKER = f"""#!{sys.executable} -IS
import json, pathlib, sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from tests import bench_fakes
bench_fakes.docker(pathlib.Path(__file__).parent, sys.argv[1:])
"""
LABELS = {"io.fp4forge.release": "0.20.2", "org.opencontainers.image.version": "0.20.2"}


def install(folder: Path) -> Path:
    """Writes the fake docker; returns the folder for PATH."""
    program = folder / "docker"
    program.write_text(DOCKER)
    program.chmod(0o755)
    return folder


def docker(folder: Path, line: list[str]) -> None:
    """The fake docker: notes its command line, and does what the files beside it say."""
    if line[:2] == ["image", "inspect"]:
        image = {"Id": "sha256:" + "a" * 64, "RepoDigests": [], "Config": {"Labels": LABELS}}
        sys.stdout.write(json.dumps([image]))
        return
    if line[0] != "run":
        return
    begun = asked(folder).get("start", {})
    if "exit" in begun:
        sys.stderr.write("Traceback\nValueError: no luck\n")
        sys.exit(begun["exit"])
    work = next(each for each in line if each.endswith("target=/work")).split("source=")[1]
    say({"error": ""})
    for arguments in sys.stdin:
        say(trial(folder, Path(work.split(",")[0]), json.loads(arguments)))


def say(content: Any) -> None:
    """Writes a line, as inside.py does."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def asked(folder: Path) -> dict[str, Any]:
    """What the fake is asked to do wrong, by the number of the trial."""
    plan = folder / "plan.json"
    return dict(json.loads(plan.read_text())) if plan.is_file() else {}


def trial(folder: Path, work: Path, line: list[str]) -> dict[str, str]:
    """Writes a trial's result; the answer of inside.py."""
    with (folder / "lines.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    number = len((folder / "lines.jsonl").read_text().splitlines())
    changes = asked(folder).get(str(number), asked(folder).get("*", {}))
    if "error" in changes:
        return {"error": changes["error"]}
    if "exit" in changes:
        sys.stderr.write("Traceback\nMemoryError: no room\n")
        sys.exit(changes["exit"])
    options = dict(each[2:].partition("=")[::2] for each in line)
    place = work / Path(options["result-dir"]).name
    prompts = [json.loads(each)["prompt"] for each in (place / "prompts.jsonl").open()]
    body = json.loads(options["extra-body"])
    made = raw(tokens(prompts[0]), body["max_completion_tokens"], len(prompts), **changes)
    (place / "raw.json").write_text(json.dumps(made))
    return {"error": ""}
