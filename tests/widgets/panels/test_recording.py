"""What a GPU recorded stands beside a run of the same work, dotted; of other work, not at all."""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
from pathlib import Path

import pytest

from minserve.bench.gpu import command, recorded
from minserve.bench.gpu.cases.chapter_runs import CHAPTERS
from minserve.bench.gpu.parts import PARTS
from minserve.bench.workloads.traffic import Traffic, at_once, fixed_length
from minserve.clock import WallClock
from minserve.hardware import describe_machine
from minserve.trace import RunTrace
from widgets import theme
from widgets.figures import throughput
from widgets.figures.sides import Twin
from widgets.panels import Compare, Slide
from widgets.panels.comparison import recording as recording_module
from widgets.panels.comparison.view import MORE
from widgets.workers import raise_panel_errors

RUN = next(run for run in CHAPTERS if run.chapter == "45a")
BASE = RUN.base.with_values({"kernels.backend": "torch", "device": "cpu"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `labs` directory in which a dry run left recordings of this very processor."""
    labs = tmp_path_factory.mktemp("labs")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    folder = recorded.folder_of(labs)
    args = parser.parse_args(["--dry-run", "--out", str(folder), "--commit", "abc", "chapters"])
    assert command.run_part(PARTS["chapters"], folder, args, WallClock()) == 0
    return labs


@pytest.fixture
def labs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them that panels read."""
    folder = recorded.folder_of(tmp_path / "labs")
    folder.mkdir(parents=True)
    for path in recorded.folder_of(made).glob("chapter-*"):
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(recording_module, "labs_directory", lambda: tmp_path / "labs")
    return tmp_path / "labs"


def workload(count: int = 3, tokens: int = 4) -> Traffic:
    """What a dry run makes of the chapter's workload."""
    few = [one.prompt_token_ids for one in RUN.workload().requests[:count]]
    return at_once(few, [fixed_length(tokens)] * count)


def panel(traffic=None, **more) -> Compare:
    given = {"names": RUN.names, "rounds": 3, "recorded": "45a"} | more
    return Compare(BASE, RUN.switch, traffic or workload(), **given)


def done(compare: Compare) -> Compare:
    compare.run()
    assert compare.wait(60)
    raise_panel_errors()
    return compare


MEMORY = ("used", "allocated", "memory", "hits")


def lines(figure) -> dict[str, tuple[str, str]]:
    """Name of each line -> its colour and dash."""
    return {
        trace.name.split(":")[0]: (trace.line.color, trace.line.dash)
        for trace in figure.figure.data
        if trace.mode != "markers" and trace.name and trace.name.split(" ")[-1] not in MEMORY
    }


@pytest.mark.parametrize("shown", ["throughput", "latency"])
def test_recorded_sides_are_dotted_in_the_colour_of_their_side(labs, shown):
    compare = done(panel())
    compare.view.more.selected_index = list(MORE).index(shown)
    figure = compare.view.figures[shown].shown
    blue, vermilion = theme.SIDES["A"], theme.SIDES["B"]
    assert lines(figure) == {
        "static": (blue, "solid"),
        "continuous": (vermilion, "solid"),
        "static, recorded": (blue, "dot"),
        "continuous, recorded": (vermilion, "dot"),
    }
    here = describe_machine().cpu_model
    assert f"Recorded on {here}, " in figure.caption and "commit abc" in figure.caption
    assert figure.caption.startswith(f"Measured on {here}")
    assert figure.caption.count("3 requests, 72 tokens in, 12 out") == 1
    assert "measured and recorded" in str(figure.figure.layout)
    assert f"Dotted: recorded on {here}, 20" in compare.view.recording.value
    counted = compare.view.figures["kv_bytes"]
    compare.view.more.selected_index = list(MORE).index("kv_bytes")
    assert not any("recorded" in (trace.name or "") for trace in counted.shown.figure.data)


def test_the_strips_show_what_was_recorded_in_the_colour_of_its_side(labs):
    compare = done(panel())
    assert lines(compare.view.strips.shown)["continuous, recorded"] == (theme.SIDES["B"], "dot")
    labels = [note.text for note in compare.view.strips.shown.figure.layout.annotations]
    assert sum("(recorded)" in text for text in labels) == 2


def test_facts_name_the_device_and_the_recorded_values(labs, headless):
    facts = done(panel()).facts()
    here = describe_machine().cpu_model
    assert facts["recorded"].startswith(f"on {here}, 20")
    traces = recorded.chapter_traces(recorded.folder_of(labs), "45a", RUN.names)
    rate = theme.format_rate(traces["continuous"].summary().output_tokens_per_s)
    assert facts["continuous, recorded: output tokens per second"] == rate
    assert facts == done(panel()).facts(), "the same in every run"


def test_the_gaps_between_tokens_are_recorded_too(labs, headless):
    facts = done(panel(headline="itl_max_s")).facts()
    assert "static, recorded: longest stall between two tokens" in facts


def test_where_nothing_is_recorded_the_panel_is_silent(labs):
    for path in recorded.folder_of(labs).glob("chapter-45a-*"):
        path.unlink()
    compare = done(panel())
    assert compare.view.recording.value == "" and "recorded" not in compare.facts()
    assert len(lines(compare.view.strips.shown)) == 2


def test_a_panel_that_asks_for_no_recording_says_nothing(labs):
    compare = done(panel(recorded=""))
    assert compare.view.recording.value == "" and "recorded" not in compare.facts()


def test_another_workload_is_not_drawn_beside_the_recorded_one(labs):
    slider = Slide("count", 1, 6, 3, label="requests")
    compare = done(panel(lambda count: workload(count), workload_controls=[slider]))
    assert len(lines(compare.view.strips.shown)) == 4
    compare.controls["count"].value = 5
    said = done(compare).view.recording.value
    assert "for 3 requests, 72 tokens in, 12 out" in said
    assert "another workload (5 requests, 120 tokens in, 20 out)" in said
    assert len(lines(compare.view.strips.shown)) == 2
    compare.controls["count"].value = 3
    assert len(lines(done(compare).view.strips.shown)) == 4


def test_another_configuration_is_not_drawn_beside_the_recorded_one(labs):
    compare = panel(controls=["scheduling.max_num_seqs"])
    compare.controls["scheduling.max_num_seqs"].value = 2
    said = done(compare).view.recording.value
    assert "scheduling.max_num_seqs=2, and it had 8" in said
    assert len(lines(compare.view.strips.shown)) == 2


def test_on_modelled_time_nothing_recorded_is_shown(labs):
    compare = done(panel(clock="virtual"))
    assert compare.view.recording.value == ""
    assert {dash for _, dash in lines(compare.view.strips.shown).values()} == {"dash"}


def damaged(content: bytes) -> dict[str, bytes]:
    """Ways in which a file is no recording."""
    text = gzip.decompress(content).decode()
    data = json.loads(text)
    measured = data | {"header": data["header"] | {"provenance": "measured"}}
    elsewhere = data | {"header": data["header"] | {"device": "another card"}}
    short = data | {"steps": [row[:-1] for row in data["steps"]]}

    def packed(value: object) -> bytes:
        return gzip.compress(json.dumps(value).encode())

    return {
        "is damaged": content[: len(content) // 2],
        "Not a gzipped file": b"hello",
        "the JSON breaks off": gzip.compress(text[:100].encode()),
        "not a minserve trace": packed({"schema": "another"}),
        "this minserve reads version": packed(data | {"version": 1}),
        "missing or unknown part": packed(short),
        "measured, not recorded": packed(measured),
        "the sides are of 2 devices": packed(elsewhere),
    }


def test_a_file_that_is_no_recording_is_a_sentence_and_no_traceback(labs, headless):
    path = recorded.trace_path(recorded.folder_of(labs), "45a", "static")
    for reason, content in damaged(path.read_bytes()).items():
        path.write_bytes(content)
        compare = done(panel())
        said = compare.facts()["recorded"]
        assert said.startswith(
            "What a GPU recorded is not shown: chapter-45a-static.json.gz cannot"
        )
        assert reason in said and "make gpu PARTS=chapters ARGS=--fresh" in said
        assert str(labs) not in said and compare.problem.value == ""


def test_a_twin_needs_its_side(labs):
    trace = RunTrace.from_json(recorded.trace_path(recorded.folder_of(labs), "45a", "static"))
    other = dataclasses.replace(trace.header, provenance="measured")
    own = RunTrace(header=other)
    with pytest.raises(ValueError, match="a twin of 'B', and the runs are A"):
        throughput({"A": own, "B, recorded": Twin("B", trace)})


def test_the_badge_lists_what_is_recorded_and_says_how(labs, tmp_path):
    found = recording_module.Recordings()
    assert found.chapters == sorted(run.chapter for run in CHAPTERS) and "45a" in found.text
    empty = recording_module.Recordings(tmp_path / "empty")
    assert empty.text == "GPU recordings: none yet"
    for each in (found, empty):
        assert each.text in each.widget.value and "PARTS=chapters" in each.widget.value
        assert repr(each).startswith(each.text)
