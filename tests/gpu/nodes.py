"""Serves one model from two network namespaces as two machines, a GPU each; compares the answers.

    python3 nodes.py [--out FOLDER] [--ip PROGRAM] [--without VARIABLE,VARIABLE ...]

vLLM's own multi-node start: --nnodes 2, rank 0 answers, rank 1 is --headless; NCCL on sockets over
a veth pair. Then the same model on one GPU. What a machine's interface makes necessary (the
variables that ``serve cluster`` sets) is found by leaving some out: --without.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "image/proofs")]

import torch  # noqa: E402
from families import CASES, VOCABULARY, randomised, save  # noqa: E402
from serve import VLLM, Server, compare, tail  # noqa: E402

ADDRESSES = ("10.77.0.1", "10.77.0.2")
LINKS = ("node0", "node1")
PORT = 8524
# Run in a namespace: what a client outside cannot reach it asks from inside.
ASK = """
import json, sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.stdin.buffer.read() or None,
                                 {"Content-Type": "application/json"})
sys.stdout.buffer.write(urllib.request.urlopen(request, timeout=120).read())
"""


class Namespaces:
    """Two namespaces with a veth pair between them."""

    def __init__(self, ip: str) -> None:
        self.ip = ip
        self.close()
        for link in LINKS:
            self._ip("netns", "add", link)
            self._ip("-n", link, "link", "set", "lo", "up")
        self._ip("link", "add", LINKS[0], "type", "veth", "peer", "name", LINKS[1])
        for link, address in zip(LINKS, ADDRESSES, strict=True):
            self._ip("link", "set", link, "netns", link)
            self._ip("-n", link, "addr", "add", f"{address}/24", "dev", link)
            self._ip("-n", link, "link", "set", link, "up")

    def _ip(self, *words: str) -> None:
        subprocess.run([self.ip, *words], check=True, capture_output=True, text=True)

    def run(self, rank: int, line: list[str]) -> list[str]:
        """A command line inside a rank's namespace."""
        return [self.ip, "netns", "exec", LINKS[rank], *line]

    def close(self) -> None:
        """Removes what is there."""
        for link in LINKS:
            subprocess.run([self.ip, "netns", "del", link], capture_output=True, check=False)


class Node(Server):
    """One rank's ``vllm serve``, in its namespace, with one GPU."""

    def __init__(
        self, names: Namespaces, rank: int, folder: Path, log: Path, options: list[str], unset: str
    ) -> None:
        self.names, self.rank, self.log, self.port = names, rank, log, PORT
        interface = LINKS[rank]
        variables = {
            "VLLM_HOST_IP": ADDRESSES[rank],
            "GLOO_SOCKET_IFNAME": interface,
            "TP_SOCKET_IFNAME": interface,
            "NCCL_SOCKET_IFNAME": interface,
        }
        variables = {k: v for k, v in variables.items() if k not in unset.split(",")}
        # Sockets alone: two machines share no memory, and have no NVLink between them.
        variables |= {"CUDA_VISIBLE_DEVICES": str(rank), "NCCL_IB_DISABLE": "1"}
        variables |= {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1", "NCCL_DEBUG": "INFO"}
        line = [*VLLM, "serve", str(folder), "--served-model-name", "m", "--port", str(PORT)]
        line += ["--nnodes", "2", "--node-rank", str(rank), "--master-addr", ADDRESSES[0]]
        line += ["--tensor-parallel-size", "2", *(["--headless"] if rank else [])]
        self.started = time.monotonic()
        with log.open("w") as file:
            self.process = subprocess.Popen(
                names.run(rank, [*line, *options]),
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | variables,
                start_new_session=True,
            )

    def get(self, path: str, body: bytes = b"") -> bytes:
        """An answer, asked for inside the namespace."""
        line = [sys.executable, "-c", ASK, f"http://{ADDRESSES[0]}:{PORT}{path}"]
        done = subprocess.run(self.names.run(self.rank, line), input=body, capture_output=True)
        if done.returncode != 0:
            raise OSError(done.stderr.decode(errors="replace")[-300:])
        return done.stdout

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to a request."""
        return json.loads(self.get(path, json.dumps(body).encode()))

    def wait(self, seconds: float = 300) -> float | None:
        """Seconds until /health answers; None when the server ended first, or never answered."""
        while time.monotonic() - self.started < seconds and self.process.poll() is None:
            try:
                self.get("/health")
                return time.monotonic() - self.started
            except OSError:
                time.sleep(1)
        return None

    def close(self) -> None:
        """Ends the rank and its workers."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def served(server: Server, want: torch.Tensor, prompt: list[int], others: list[Server]) -> Any:
    """Readiness, and the log-probabilities against the reference."""
    try:
        if (ready := server.wait(300)) is None:
            return {"ended": [tail(each.log) for each in (server, *others)]}
        return {"ready_s": ready} | compare(server, want, prompt)
    except Exception as error:  # the error is the result
        return {"failed": f"{type(error).__name__}: {error}"[:400]}
    finally:
        for each in (server, *others):
            each.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    parser.add_argument("--ip", default="ip", help="iproute2's program.")
    parser.add_argument("--without", action="append", default=[], help="Variables left out.")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    family = CASES["qwen3"]
    prompt = [2, *torch.randint(23, VOCABULARY, (96,)).tolist()]
    options = ["--max-model-len", "2048", "--enforce-eager", "--gpu-memory-utilization", "0.2"]
    options += [*family.options, "--max-num-seqs", "8"]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "model")
        model = randomised(family.make)
        save(model, family, folder)
        with torch.no_grad():
            logits = model(torch.tensor([prompt], device="cuda")).logits[0].float()
        want = logits.log_softmax(-1).cpu()
        del model, logits
        torch.cuda.empty_cache()
        for unset in ("", *args.without):
            names = Namespaces(args.ip)
            try:
                name = f"without-{unset}" if unset else "all-variables"
                logs = [args.out / f"nodes-{name}-{rank}.log" for rank in (0, 1)]
                ranks = [Node(names, rank, folder, logs[rank], options, unset) for rank in (0, 1)]
                found[name] = served(ranks[0], want, prompt, [ranks[1]])
            finally:
                names.close()
            (args.out / "nodes.json").write_text(json.dumps(found, indent=1) + "\n")
            print(name, json.dumps(found[name]), flush=True)
        alone = Server(folder, args.out / "nodes-one.log", options, PORT)
        found["one GPU"] = served(alone, want, prompt, [])
    (args.out / "nodes.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
