"""Recipes in the form of vllm-project/recipes, as manifests of this project's images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.errors import ReleaseError, UsageError
from fp4forge.inputs import release, switches
from fp4forge.maintain import read_switches as extracting
from fp4forge.models import family
from fp4forge.serve import recipes, settings
from tests.checkpoints import TINY, gemma4, write

FILE = Path(__file__).parent / "data/recipe.yaml"
IMAGE = "127.0.0.1:5000/fp4forge/vllm@sha256:" + "a" * 64


def applied(
    folder: Path, *features: str, variant: str = "", product: str | None = "gb10"
) -> settings.ServerSettings:
    model = write(folder / "m", gemma4(TINY), TINY)
    server = settings.server(model, IMAGE, settings.ServerWishes(version="0.20.2", gpus=("sm121",)))
    return recipes.apply(server, recipes.choose(recipes.read(FILE), variant, features, product))


def test_flags_come_in_layers_and_the_last_counts(tmp_path: Path) -> None:
    found = {flag.name: flag.value for flag in applied(tmp_path).flags}
    assert found["--max-num-seqs"] == "8"  # the hardware's, over the model's and the workload's
    assert found["--gpu-memory-utilization"] == "0.8"
    assert found["--kv-cache-dtype"] == "fp8"
    assert found["--tool-call-parser"] == "hermes"
    assert found["--moe-backend"] == "marlin"  # the family's, of which the recipe says nothing
    assert "--language-model-only" not in found


def test_what_this_image_cannot_do_is_left_out_and_said(tmp_path: Path) -> None:
    server = applied(tmp_path)
    names = {s.name for s in (*server.flags, *server.environment)}
    left_out = {"--no-such-flag", "--chat-template", "--trust-remote-code", "VLLM_NO_SUCH_VARIABLE"}
    assert not names & left_out
    said = "\n".join(server.notes)
    assert all(name in said for name in left_out)
    assert "asks for vLLM 0.25.0" in said
    assert "example/nightly:20260704" in said
    assert "verified of dgx_spark_gb10" in said


HYBRID = family.examples()["qwen3.6-35b-a3b"].config


def test_features_and_their_modes(tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q/config.json").write_text(json.dumps(HYBRID))

    def speculative(*features: str, product: str | None = "gb10", **wishes: Any) -> str:
        wanted = settings.ServerWishes(**({"version": "0.20.2", "gpus": ("sm121",)} | wishes))
        server = settings.server(tmp_path / "q", IMAGE, wanted)
        chosen = recipes.choose(recipes.read(FILE), "", features, product)
        flags = recipes.apply(server, chosen).flags
        return next((f.value for f in flags if f.name == "--speculative-config"), "")

    assert speculative() == ""
    assert '"moe_backend":"triton"' in speculative("spec_decoding")
    assert "triton" not in speculative("spec_decoding", product="rtx5090")
    assert "ngram" in speculative("spec_decoding", speculative="ngram")  # the option goes first
    names = {flag.name for flag in applied(tmp_path, "text_only").flags}
    assert "--language-model-only" in names


def test_speculation_that_the_family_does_not_know_is_left_out(tmp_path: Path) -> None:
    """Gemma-4 has no MTP in 0.20.2, and an unmounted drafter is of no use."""
    server = applied(tmp_path, "spec_decoding")
    assert "--speculative-config" not in {flag.name for flag in server.flags}
    assert "not known to work for Gemma 4" in "\n".join(server.notes)
    other = applied(tmp_path / "e", "spec_decoding=eagle3", variant="default", product=None)
    assert "its drafter is not mounted" in "\n".join(other.notes)


@pytest.mark.parametrize(
    "flags",
    [
        '["--tensor-parallel-size", "2"]',
        '["--api-key", "s3cret"]',
        '["--quantization", "awq"]',
        '["--middleware", "os.system"]',
        '["--gpu-memory-utilization", "0.99"]',
        '["--max-model-len", "999999999"]',
        '["--max-num-batched-tokens", "x"]',
        '["--kv-cache-dtype", "nvfp4"]',
        '["--speculative-config", "{"]',
    ],
)
def test_what_would_pass_by_the_checks_is_left_out(flags: str, tmp_path: Path) -> None:
    text = FILE.read_text()
    old = 'base_args: ["--max-num-seqs", "16", "--trust-remote-code"]'
    assert old in text
    path = tmp_path / "recipe.yaml"
    variables = "base_env: {HF_TOKEN: abc, LD_PRELOAD: /x, VLLM_API_KEY: k, VLLM_LOGGING_LEVEL: A}"
    text = text.replace("base_env: {VLLM_LOGGING_LEVEL: INFO}", variables)
    path.write_text(
        text.replace(old, f"base_args: {flags}").replace("[--kv-cache-dtype, fp8]", "[]")
    )
    model = write(tmp_path / "m", gemma4(TINY), TINY)
    before = settings.server(model, IMAGE, settings.ServerWishes(version="0.20.2"))
    found = recipes.apply(before, recipes.choose(recipes.read(path), "", (), None))
    name, value = json.loads(flags)
    assert value not in [flag.value for flag in found.flags if flag.name == name]
    assert f"{name} of the recipe is left out" in "\n".join(found.notes)
    assert "abc" not in json.dumps(found.as_json())
    added = {v.name for v in found.environment} - {v.name for v in before.environment}
    assert added == {"VLLM_LOGGING_LEVEL"}


@pytest.mark.parametrize(
    ("features", "variant", "says"),
    [
        (("thinking",), "", "no feature"),
        (("text_only=mtp",), "", "no modes"),
        (("spec_decoding=medusa",), "", "medusa"),
        (("spec_decoding=eagle3",), "nvfp4", "not for variant"),
        ((), "int4", "no variant"),
    ],
)
def test_what_the_recipe_does_not_have(
    features: tuple[str, ...], variant: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        applied(tmp_path, *features, variant=variant)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("  base_args:", "  bsae_args:", "bsae_args"),
        ("vram_minimum_gb: 16", "vram_minimum_gb: much", "vram_minimum_gb"),
        ("opt_in_features: [", "opt_in_features: {", "line"),
        ('["--max-num-seqs", "16"', '["16"', "begin with '16'"),
        ("VLLM_LOGGING_LEVEL: INFO", "'A; rm -rf /': INFO", "base_env"),
    ],
)
def test_a_broken_recipe_gets_one_message(old: str, new: str, says: str, tmp_path: Path) -> None:
    text = FILE.read_text()
    assert old in text
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        recipes.choose(recipes.read(path), "", (), None)
    assert says in caught.value.message + str(caught.value.rule)


@pytest.mark.parametrize("name", release.names())
def test_every_release_has_its_switches_and_the_families_parsers(name: str) -> None:
    version = release.load(name).vllm_version
    known = switches.load(version)
    assert known
    assert known.flag("--max_model_len") and known.flag("--no-enable-prefix-caching")
    assert known.flag("--speculative-config.method") and not known.flag("--no-such-flag")
    for family_name, one in family.table().items():
        for parser, names in (
            (one.tool_parser, known.tool_parsers),
            (one.reasoning_parser, known.reasoning_parsers),
        ):
            assert not parser or not parser.holds(version) or parser.name in names, family_name
    for switch in settings_switches():
        names = known.flags if switch.name.startswith("--") else known.environment
        assert switch.known(version) == (switch.name in names), switch.name


def settings_switches() -> Any:
    from fp4forge.models.switch_history import known

    return known().values()


def tree(folder: Path, **changes: str) -> Path:
    files = {
        "vllm/engine/arg_utils.py": 'p.add_argument("--model", "-m")\ngroup.add_argument(name)\n',
        "vllm/entrypoints/openai/cli_args.py": "class FrontendArgs:\n    api_key: str = ''\n",
        "vllm/envs.py": 'environment_variables: dict = {"VLLM_A": lambda: 1}\n',
        "vllm/tool_parsers/__init__.py": '_TOOL_PARSERS_TO_REGISTER = {"hermes": ("a", "b")}\n',
        "vllm/reasoning/__init__.py": '_REASONING_PARSERS_TO_REGISTER = {"qwen3": ("a", "b")}\n',
        "vllm/model_executor/models/registry.py": (
            '_TEXT = {"AForCausalLM": ("a", "A")}\n_DRAFTERS = {"BModel": ("b", "B")}\n'
            "_VLLM_MODELS = {**_TEXT, **_DRAFTERS}\n"
        ),
        "vllm/config/cache.py": 'CacheDType = Literal["auto", "fp8"]\n',
        "vllm/v1/metrics/loggers.py": (
            "def make(self):\n    self._counter_cls(name='vllm:a')\n    Gauge(name='vllm:b')\n"
            "    Histogram(name='vllm:d_seconds', documentation='See vllm:x.')\n"
        ),
        "vllm/v1/spec_decode/metrics.py": (
            "def make(self):\n    specs = [('vllm:c', 'Text of vllm:y.')]\n"
            "    for name, _ in specs:\n        self._counter_cls(name=name)\n"
            "    self._counter_cls(name='vllm:e_total')\n"
        ),
    }
    for name, text in (files | changes).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_switches_are_read_from_the_sources(tmp_path: Path) -> None:
    assert extracting.extract(tree(tmp_path)) == {
        "flags": ["--api-key", "--model", "-m"],
        "environment": ["VLLM_A"],
        "tool_parsers": ["hermes"],
        "reasoning_parsers": ["qwen3"],
        "architectures": ["AForCausalLM", "BModel"],
        "kv_cache_types": ["auto", "fp8"],
        "metrics": [
            "vllm:a_total",
            "vllm:b",
            "vllm:c_total",
            "vllm:d_seconds_bucket",
            "vllm:d_seconds_count",
            "vllm:d_seconds_sum",
            "vllm:e_total",
        ],
    }


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("vllm/envs.py", "environment_variables = make()\n"),
        ("vllm/tool_parsers/__init__.py", "PARSERS = {}\n"),
        ("vllm/engine/arg_utils.py", "def (:\n"),
        ("vllm/model_executor/models/registry.py", "_VLLM_MODELS = {**_GONE}\n"),
        ("vllm/config/cache.py", "CacheDType = str\n"),
        ("vllm/v1/metrics/loggers.py", "def make():\n    Timer(name='vllm:a')\n"),
    ],
)
def test_a_source_that_is_built_another_way_is_an_error(
    file: str, text: str, tmp_path: Path
) -> None:
    with pytest.raises(ReleaseError) as caught:
        extracting.extract(tree(tmp_path, **{file: text}))
    assert file in caught.value.message
