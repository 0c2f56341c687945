"""The batch chat endpoint of vLLM's real server application, over an engine that only recites."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from checkpoint import write_tokenizer
from host import configured

RECITED = "<|channel>thought\nfirst I think<channel|>then I call <|tool_call>call:f{}<tool_call|>"


class Engine:
    """What the application needs of an engine client; its text is always ``RECITED``."""

    errored = False
    dead_error = RuntimeError("never")

    def __init__(self, config: Any) -> None:
        from vllm.renderers import renderer_from_config

        self.vllm_config, self.model_config = config, config.model_config
        self.renderer = renderer_from_config(config)
        self.tokenizer = self.renderer.tokenizer
        self.input_processor = self.io_processor = None

    async def generate(
        self, prompt: Any, params: Any, request_id: str, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """One output, its tokens made text as vLLM's detokenizer does it."""
        from vllm.outputs import CompletionOutput, RequestOutput

        ids = self.tokenizer.encode(RECITED, add_special_tokens=False)
        text = self.tokenizer.decode(ids, skip_special_tokens=params.skip_special_tokens)
        output = CompletionOutput(0, text, ids, None, None, finish_reason="stop")
        yield RequestOutput(request_id, "", [1, 2], None, [output], finished=True)

    async def is_tracing_enabled(self) -> bool:
        """No."""
        return False

    async def get_supported_tasks(self) -> tuple[str, ...]:
        """Text generation."""
        return ("generate",)

    async def add_lora(self, *args: Any) -> bool:
        """Never asked for."""
        return False


def batch_chat(folder: Path) -> dict[str, Any]:
    """Posts two conversations; returns reasoning and content of both answers."""
    write_tokenizer(folder)
    with configured(folder, skip_tokenizer_init=False, quantization=None) as config:
        return asyncio.run(_post(config, folder))


async def _post(config: Any, folder: Path) -> dict[str, Any]:
    import httpx
    from vllm.entrypoints.openai.api_server import build_app, init_app_state
    from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = ["--model", str(folder), "--reasoning-parser", "gemma4", "--served-model-name", "m"]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    validate_parsed_serve_args(args)
    app = build_app(args, ("generate",))
    args.structured_outputs_config.reasoning_parser = "gemma4"
    await init_app_state(Engine(config), app.state, args, ("generate",))
    said = [{"role": "user", "content": "hello"}]
    body = {"model": "m", "messages": [said, said], "max_tokens": 16}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        answer = await client.post("/v1/chat/completions/batch", json=body)
    if answer.status_code != 200:
        raise RuntimeError(answer.text[:400])
    messages = [choice["message"] for choice in answer.json()["choices"]]
    return {
        "reasoning": [m.get("reasoning") or m.get("reasoning_content") for m in messages],
        "content": [m["content"] for m in messages],
    }
