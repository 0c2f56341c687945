"""Suites, prompts, the load generator's result, figures and comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from fp4forge.bench import (
    charts,
    compare,
    figures,
    identity,
    inside,
    load_command,
    load_result,
    metrics,
    needle,
    reference_card,
    suite,
    tables,
)
from fp4forge.bench import result as results
from fp4forge.bench.load_command import LoadGenerator
from fp4forge.bench.prompts import PromptWriter
from fp4forge.bench.result import BenchResult, MeasuredIdentity, ServerCounters, TimedRequest, Trial
from fp4forge.bench.suite import NamedSuite, TrialLoad
from fp4forge.core.errors import BenchError, UsageError
from fp4forge.core.paths import BENCHMARKS
from fp4forge.serve.client import ChatAnswer
from tests.bench_fakes import ITL, TTFT, raw, tokens

SUITES = suite.names()
UNKNOWN = ServerCounters()


def load(**changes: Any) -> TrialLoad:
    given = {"prompt": 64, "output": 16, "requests": 4, "concurrency": 2}
    return TrialLoad(table="t", label="p", **(given | changes))


# Suites


def test_the_suites_are_there() -> None:
    assert SUITES == ["card", "quick", "regression", "soak"]


@pytest.mark.parametrize("name", SUITES)
def test_suites_measure(name: str) -> None:
    found = suite.load(name)
    assert found.loads()
    for point in found.loads():
        assert point.requests >= point.concurrency >= 1
    assert found.hash == suite.load(name).hash


def test_every_row_of_the_card_has_its_point() -> None:
    found = suite.load("card")
    sources = {table.id: table.of or table.id for table in found.tables}
    points = {(point.table, point.label) for point in found.loads()}
    shown = {table.id: table.show for table in found.tables}
    for row in reference_card.card().rows:
        assert (sources[row.table], row.label) in points, row
        assert set(row.figures) <= set(shown[row.table]), row


def test_the_hash_is_of_values_alone(tmp_path: Path) -> None:
    text = (BENCHMARKS / "suites/quick.yaml").read_text()
    (tmp_path / "quick.yaml").write_text("# another comment\n" + text)
    assert suite.load(str(tmp_path / "quick.yaml")).hash == suite.load("quick").hash
    (tmp_path / "quick.yaml").write_text(text.replace("output: 100", "output: 101"))
    assert suite.load(str(tmp_path / "quick.yaml")).hash != suite.load("quick").hash


BAD_SUITES = {
    "unknown field": ("requests: 5", "request: 5", "request is not a field"),
    "unknown figure": ("[hit_rate, ttft_median]", "[hit_rate, speed]", "speed"),
    "of nothing": ("of: concurrency", "of: nowhere", "have no 'nowhere'"),
    "an id twice": ("id: prefix", "id: decode", "have an id twice"),
    "no requests": ("requests: 5}", "requests: 0}", "is 0"),
}


@pytest.mark.parametrize("name", BAD_SUITES)
def test_bad_suites_are_one_message(name: str, tmp_path: Path) -> None:
    old, new, said = BAD_SUITES[name]
    text = (BENCHMARKS / "suites/quick.yaml").read_text()
    assert old in text
    (tmp_path / "bad.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(BenchError) as caught:
        suite.load(str(tmp_path / "bad.yaml"))
    assert said in caught.value.message
    assert "suites/bad.yaml line" in caught.value.message


def test_only_takes_tables_that_there_are() -> None:
    found = suite.load("quick", ("concurrency",))
    assert {point.table for point in found.loads()} == {"concurrency"}
    assert [table.id for table in found.tables] == ["concurrency", "scaling"]
    with pytest.raises(UsageError, match="no table nothing"):
        suite.load("quick", ("nothing",))
    with pytest.raises(UsageError, match="no suite 'fast'"):
        suite.load("fast")


# Prompts


def bytewise(text: str) -> int:
    return 9 + len(text.encode())


@pytest.mark.parametrize("count", [tokens, bytewise])
@pytest.mark.parametrize("wanted", [14, 19, 49, 465, 3172])
def test_prompts_have_the_exact_length(count: Any, wanted: int) -> None:
    prompts = PromptWriter(count, 0).write(load(prompt=wanted, requests=3), 1)
    assert [count(prompt) for prompt in prompts] == [wanted] * 3


def test_prompts_are_seeded_and_never_alike() -> None:
    point = load(prompt=200, requests=8)
    first = PromptWriter(tokens, 0).write(point, 1)
    assert PromptWriter(tokens, 0).write(point, 1) == first
    other = PromptWriter(tokens, 0).write(point, 2) + PromptWriter(tokens, 1).write(point, 1)
    assert len({prompt[:12] for prompt in first + other}) == 24


def test_shared_prompts_begin_alike() -> None:
    prompts = PromptWriter(tokens, 0).write(load(prompt=100, shared=70, prompts="shared"), 1)
    assert [tokens(prompt) for prompt in prompts] == [100] * 4
    assert len({" ".join(prompt.split()[:60]) for prompt in prompts}) == 1
    assert len(set(prompts)) == 4


def test_a_prompt_shorter_than_the_template_is_refused() -> None:
    with pytest.raises(BenchError, match="template alone has 9"):
        PromptWriter(bytewise, 0).write(load(prompt=9), 1)


# The load generator's command line and its result


def test_the_command_lines() -> None:
    line = LoadGenerator("image:tag").line(Path("/w"))
    assert line[:4] == ["docker", "run", "--rm", "--interactive"]
    assert line[-2:] == ["image:tag", "/inside.py"]
    assert not any("OPENAI_API_KEY=" in part for part in line)
    with pytest.raises(UsageError, match="--out"):
        LoadGenerator("image").line(Path("/w,readonly"))
    given = load_command.options("http://h:1", "--odd", load(), "t-p-1", 7, {})
    assert "--model=--odd" in given  # a value, not an option
    assert '--extra-body={"max_completion_tokens": 16}' in given
    assert {"--ignore-eos", "--save-detailed", "--ready-check-timeout-sec=0"} <= set(given)
    stops = load_command.options("http://h:1", "m", load(eos="stop"), "t-p-1", 0, {})
    assert "--ignore-eos" not in stops


def test_what_stands_in_for_pandas(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a\\nb"}\n{"prompt": "c"}\n')
    rows = inside._Pandas.read_json(path_or_buf=str(tmp_path / "p.jsonl"), lines=True)
    assert "prompt" in rows.columns
    assert [row.to_dict()["prompt"] for _, row in rows.iterrows()] == ["a\nb", "c"]


@pytest.mark.parametrize("bad", ["-v", "a b", "", "a;b", "$(x)", "A" * 400])
def test_names_that_are_no_images(bad: str) -> None:
    with pytest.raises(UsageError, match="--image"):
        LoadGenerator(bad)
    with pytest.raises(UsageError, match="--network"):
        LoadGenerator("image", network=bad)


def judged(changes: dict[str, Any], server: ServerCounters = UNKNOWN, **of: Any) -> Trial:
    point = load(**of)
    found = msgspec.convert(
        raw(point.prompt, point.output, point.requests, **changes), load_result.LoadResult
    )
    return load_result.judge(found, point, server)


def test_a_good_result() -> None:
    made = judged({})
    assert made.valid and made.failed == 0 and not made.notes
    # The decode rate is that of the time from the first token, not of the mean interval.
    assert made.requests[0].rate == pytest.approx(1 / ITL, rel=1e-3)
    assert made.requests[0].ttft == TTFT


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "failed": (
        {
            "completed": 3,
            "failed": 1,
            "errors": ["", "Traceback\nClientOSError: reset by peer\n", "", ""],
            "output_lens": [16, 0, 16, 16],
            "input_lens": [64, 1, 64, 64],
        },
        "1 request failed (2): ClientOSError: reset by peer",
    ),
    "truncated": (
        {"input_lens": [64, 64, 1, 1], "output_lens": [16, 16, 1, 1]},
        "2 requests trunc",
    ),
    "empty": ({"generated_texts": ["a", "", "b", "c"]}, "1 request with an empty answer (2)"),
    "short": ({"output_lens": [16, 16, 16, 9]}, "1 request short (4): 9 of 16 tokens"),
    "long": ({"output_lens": [16, 16, 16, 99]}, "99 tokens, 16 asked"),
    "no token": ({"ttfts": [0.0, 1.0, 1.0, 1.0]}, "1 request without a token (1)"),
    "another prompt": ({"input_lens": [64, 65, 64, 64]}, "65 tokens in the prompt, not 64"),
    "fewer sent": ({"num_prompts": 3, "completed": 3}, "3 of 4 requests were completed"),
    "arrays of other lengths": ({"ttfts": [1.0]}, "reports 1, 4 requests, 4 were asked"),
    "no time": ({"duration": 0.0}, "it took 0 s"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name: str) -> None:
    changes, said = FAULTS[name]
    made = judged(changes)
    assert not made.valid
    assert said in "; ".join(made.problems)


def test_what_is_no_fault() -> None:
    early = judged({"output_lens": [16, 16, 16, 9]}, eos="stop")
    assert early.valid and early.notes == ("1 of 4 answers ended by themselves",)
    point = load()
    thought = msgspec.convert(raw(64, 16, 4, generated_texts=[""] * 4), load_result.LoadResult)
    assert load_result.judge(thought, point, ServerCounters(), may_be_empty=True).valid


def test_another_client_and_a_slow_one_are_told() -> None:
    assert "another client" in judged({}, ServerCounters(requests=5)).problems[0]
    slow = judged({}, ServerCounters(requests=4, ttft=0.02))
    assert slow.valid and "30 ms longer than the engine counts" in slow.notes[0]


def test_a_result_that_is_none(tmp_path: Path) -> None:
    for content in ("", "{}", '{"completed": "x"}', "[" * 5000):
        (tmp_path / "raw.json").write_text(content)
        with pytest.raises(BenchError, match="the load generator's result"):
            load_result.read(tmp_path / "raw.json")


# The server's counters


def test_counters_of_a_trial() -> None:
    text = (
        '# HELP x\nvllm:{n}_total{{engine="0",model_name="a b"}} {v}\n'
        'vllm:{n}_total{{engine="1",model_name="a b"}} 1.0\nbroken\nvllm:kv_cache_usage_perc 0.5\n'
    )
    before = metrics.parse(text.format(n="generation_tokens", v=10))
    after = metrics.parse(text.format(n="generation_tokens", v=110))
    assert before["vllm:generation_tokens_total"] == 11
    found = metrics.changes([0.0, 2.0], [before, after])
    assert found.generation_peak == 50 and found.cache_peak == 0.5
    assert found.hit_rate is None and found.requests is None
    assert metrics.changes([0.0, 2.0], [{}, {}]) == ServerCounters()
    # A restarted server counts from 0: that is no change.
    assert metrics.changes([0.0, 2.0], [after, before]).ttft is None


# Figures and comparisons


def trial(rate: float, ttft: float = 0.05, **more: Any) -> Trial:
    request = TimedRequest(prompt=100, output=101, ttft=ttft, decode=100 / rate)
    return Trial(requests=(request,), seconds=2.0, **more)


def test_figures() -> None:
    trials = [trial(50), trial(52), trial(60), trial(1, problems=("x",), failed=1)]
    assert figures.value("decode_median", trials) == pytest.approx(52)
    assert figures.value("ttft_median", trials) == 50
    assert figures.value("prefill", trials) == 2000
    assert figures.value("errors", trials) == 1
    assert figures.value("aggregate", trials) == 50.5
    assert figures.value("hit_rate", trials) is None
    two = [Trial(requests=trial(50).requests * 4, seconds=2.0)]
    assert figures.value("gain", two, trials, 4) == 4
    assert figures.value("efficiency", two, trials, 4) == 100
    assert figures.quantile([1, 2, 3, 4], 0.5) == 2.5


def result(*rates: float, **changes: Any) -> BenchResult:
    found = suite.load("quick", ("decode",))
    who = MeasuredIdentity(model="m", client_version="0.20.2")
    made = BenchResult(
        suite=found.name,
        suite_hash=found.hash,
        measured=found.suite,
        fp4forge="0",
        date="2026-11-27",
        identity=msgspec.structs.replace(who, **changes),
        complete=True,
    )
    made.trials("decode", "100 tokens").extend(trial(rate) for rate in rates)
    return made


def test_tables_group_what_is_alike() -> None:
    made = result(50, 51)
    made.trials("decode", "100 tokens")[:] = [
        trial(50, notes=(f"late by {number} ms",)) for number in (10, 12, 14)
    ]
    (row,) = tables.tables(made)[0].rows
    assert row.marks == ("late by 10 ms (3 trials alike)",)
    assert "\\* 100 tokens: late by 10 ms (3 trials alike)" in tables.markdown(made)


CHANGES = {
    "the same": ((50, 51, 52, 50), (50, 51, 52, 50), "same"),
    "slower": ((50, 51, 52, 50), (40, 41, 42, 40), "worse"),
    "faster": ((50, 51, 52, 50), (60, 61, 62, 60), "better"),
    "scattered": ((50, 60, 40, 50), (40, 55, 52, 45), "unsure"),
    "too few": ((50, 51), (40, 41), "unsure"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_have_verdicts(name: str) -> None:
    old, new, verdict = CHANGES[name]
    found = compare.changes(result(*old), result(*new), 0.05, False)
    rate = next(each for each in found if each.figure == "decode_median")
    assert rate.verdict == verdict
    assert found == compare.changes(result(*old), result(*new), 0.05, False)


def test_a_longer_time_is_worse() -> None:
    assert compare.verdict("low", 1.2, 1.3, 0.05) == "worse"
    assert compare.verdict("low", 0.7, 0.8, 0.05) == "better"
    assert compare.verdict("low", 0.99, 1.01, 0.05) == "same"


def test_results_that_do_not_compare() -> None:
    good, faulty, open_ = result(50), result(50), result(50)
    compare.check(good, good)
    faulty.trials("decode", "100 tokens")[0] = trial(50, problems=("cut",))
    open_.complete = False
    other = result(50)
    other.suite_hash = "f" * 64
    for bad, said in (
        (faulty, "has faults"),
        (open_, "not complete"),
        (other, "suites differ"),
        (result(50, model="n"), "models differ"),
        (result(50, client_version="0.33.0"), "load generators differ"),
    ):
        with pytest.raises(BenchError, match=said):
            compare.check(good, bad)


def test_results_are_kept(tmp_path: Path) -> None:
    results.save(result(50), tmp_path)
    assert results.load(tmp_path) == results.load(tmp_path / "result.json") == result(50)
    (tmp_path / "result.json").write_text((tmp_path / "result.json").read_text()[:200])
    with pytest.raises(BenchError, match="is not JSON"):
        results.load(tmp_path)
    named = NamedSuite("x", result(50).measured)
    assert named.hash == result(50).suite_hash


# Identity and charts


def test_what_is_known_of_a_machine() -> None:
    rows = "NVIDIA GB10, 580.95.05, 2411 MHz, 3003 MHz, [N/A], [Not Supported]\nbroken\n"
    (gpu,) = identity.parse_gpus(rows)
    assert (gpu.name, gpu.driver, gpu.clock, gpu.power_limit) == (
        "NVIDIA GB10",
        "580.95.05",
        "2411 MHz",
        "",
    )
    assert identity.flags(["serve", "--api-key", "secret", "--hf-token=x", "-tp"]) == (
        "serve",
        "--api-key",
        "...",
        "--hf-token=...",
        "-tp",
    )


def test_charts_escape_and_scale() -> None:
    one = charts.ChartSeries("<b>", ((1.0, 10.0), (256.0, 1776.0), (0.0, 1.0)))
    two = charts.ChartSeries("limit", ((1.0, 82.0),), dashed=True)
    svg = charts.lines([one, two], charts.ChartAxis("a&b", log=True), charts.ChartAxis("y"))
    assert "<b>" not in svg and "&lt;b&gt;" in svg and "a&amp;b" in svg
    assert svg.count("<circle") == 3  # 0 has no place on a logarithmic axis
    assert ">2,000</text>" in svg
    assert (
        charts.lines([charts.ChartSeries("x", ())], charts.ChartAxis("x"), charts.ChartAxis("y"))
        == ""
    )


@pytest.mark.parametrize("tokens", [1024, 8192, 32768])
@pytest.mark.parametrize("per_word", [1.0, 1.3, 2.5])
def test_a_needle_fills_a_length_and_is_found(tokens: int, per_word: float) -> None:
    def count(text: str) -> int:
        return 9 + round(len(text.split()) * per_word)

    made = needle.of_length(7, tokens, count)
    assert made == needle.of_length(7, tokens, count)
    assert 0.9 * tokens <= count(made.text) <= tokens
    assert made.text.count(f"The keeper's number is {made.number}.") == 1
    assert not made.wrong(ChatAnswer(text=f"It is {int(made.number):,}."))
    assert made.wrong(ChatAnswer(text="It is 7."))


@pytest.mark.parametrize("count", [0, -5, 10**18])
def test_a_tokenizer_that_counts_nonsense_ends(count: int) -> None:
    assert len(needle.of_length(7, 32768, lambda _: count).text.split()) < 40_000


def test_metrics_by_label() -> None:
    text = 'a{x="1",y="2"} 3\na{x="2",y="2"} 4\nb 5\nc{y="\\"" 6\n'
    assert metrics.parse(text) == {"a": 7, "b": 5}
    assert metrics.parse(text, "x") == {'a{x="1"}': 3, 'a{x="2"}': 4, "b": 5}
