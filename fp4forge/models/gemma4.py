"""Gemma-4, the reference's family: how vLLM serves it, and what goes wrong with it.

The serving settings and the doctor's findings take their words from here.
"""

from __future__ import annotations

NAME = "gemma4"

# vLLM's parsers (vllm/tool_parsers, vllm/reasoning; 0.19.1 and 0.20.2).
TOOL_CALL_PARSER = "gemma4"
REASONING_PARSER = "gemma4"
TOOL_CALL_WHY = "Gemma-4's own tool-call markers"

# fused_moe/oracle/nvfp4.py of 0.19.1 and 0.20.2: FlashInfer takes no GELU there.
MOE_BACKEND = "marlin"
MOE_WHY = "Gemma-4's GELU experts: FlashInfer refuses them, SM12x would pick VLLM_CUTLASS"

# What the doctor says of this family.
UNPATCHED = "without them Gemma-4's NVFP4 loads and answers '-Hello-Hello-' or nothing"
MOE_ONLY_MARLIN = "Gemma-4's 128 GELU experts are right only through Marlin in these releases"
NO_EAGLE3 = "EAGLE3 for Gemma-4 is not in these releases: AttributeError image_token_index"
FIRST_VLLM = "0.19.1"
TOO_OLD = f"ModelOpt's per-expert NVFP4 of Gemma-4 loads from {FIRST_VLLM} on"
