"""The report and the comparison: every file, from stores on the disk, through the commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from diffpolicy_spec.eval.compare_cli import compare
from diffpolicy_spec.eval.comparison import compare_successes
from diffpolicy_spec.eval.report import FILES, load_report, words, write_reports
from diffpolicy_spec.eval.report.glance import cards, summary_lines
from diffpolicy_spec.eval.report.latex import escape
from diffpolicy_spec.eval.report.markdown import markdown_table
from diffpolicy_spec.eval.report.svg import linear, logarithmic
from diffpolicy_spec.eval.results import video_path
from diffpolicy_spec.eval.store import Store, StoreError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
COMPARE = {"a": "ddpm100", "b": "speculative", "stores": None, "tasks": None, "margin": 5, "alpha": 0.05}


@pytest.fixture(scope="module")
def made_up():
    sys.path.insert(0, str(BENCHMARKS))
    import report_store

    yield report_store
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def output(made_up, tmp_path_factory):
    """An output folder as dps-eval leaves it: two tasks, one of them also in real time at two rates."""
    folder = tmp_path_factory.mktemp("eval") / "out"
    made_up.make_store(folder / "store", "lift", 60, chunks=6, hz=(20, 50))
    made_up.make_store(folder / "store", "pusht", 30, chunks=4, graded=True, metrics=True, seed=1)
    for cell in Store.open(folder / "store").cells().values():
        if cell.title in ("ddpm100", "speculative") and cell.task == "lift":
            film = folder / video_path(cell, 100000)
            film.parent.mkdir(parents=True)
            film.write_bytes(b"film of " + cell.title.encode() * 50)
    write_reports([folder], folder)
    return folder


class Page(HTMLParser):
    """Elements that stay open, attributes that load something, and text."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.tables, self.text = [], [], 0, []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.tables += tag == "table"
        self.loads += [value for name, value in attrs if name in ("src", "href", "data", "poster", "srcset", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(html):
    page = Page()
    page.feed(html)
    page.close()
    return page


def test_files(output):
    assert {p.name for p in output.iterdir()} == {*FILES, "store", "videos"}


def test_page_is_whole_and_loads_nothing(output):
    html = (output / "report.html").read_text()
    page = parse(html)
    assert page.open == []
    assert all(load.startswith(("#", "data:")) for load in page.loads), page.loads
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert html.count("<svg") == html.count('role="img" aria-label=') - html.count('class="sign" role="img"')
    assert html.count("<table") == html.count('class="scroll"') > 8
    anchors = {load[1:] for load in page.loads if load.startswith("#")}
    assert anchors == {i for i in re.findall(r' id="([^"]+)"', html) if f'href="#{i}"' in html}


def test_pictures_hold_numbers(output):
    html = (output / "report.html").read_text()
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert "nan" not in svg
        assert "inf" not in re.sub("infinite", "", svg)
        assert len(svg) < 60_000
        numbers = [float(v) for v in re.findall(r'(?:cx|cy)="([^"]+)"', svg)]
        width, height = (float(v) for v in re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())
        assert all(-6 <= v <= max(width, height) + 6 for v in numbers)


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_what_it_was_measured_on(output, name):
    text = (output / name).read_text()
    for what in ("made up", "0" * 40, "torch", "task"):
        assert what in text, what
    assert re.search(r"num_threads|threads", text)
    assert "num_episodes" in text  # of the configuration


def test_json_agrees_with_the_store(output):
    data = json.loads((output / "report.json").read_text())
    report = load_report([output])
    assert [g["title"] for g in data["groups"]] == [g.title for g in report.groups]
    lift = data["groups"][0]
    assert (lift["task"], lift["baseline"], lift["cells"][0]["label"]) == ("lift", "ddpm100", "ddpm100")
    for section, line in zip(lift["cells"], report.groups[0].lines, strict=True):
        s, chunks = section["summary"], line.table.chunks
        assert s["successes"] == int(line.table.success.sum())
        assert s["latency"]["p95"] == pytest.approx(np.percentile(chunks["latency_ms"], 95))
        assert s["calls_mean"] == pytest.approx(chunks["calls"].mean())
        assert s["acceptance"] is None or s["acceptance"]["accepted"] == line.table.accepted_at.tolist()
    for found in lift["comparisons"]:
        a, b = (next(x for x in report.groups[0].lines if x.label == found[k]).table.success for k in "ab")
        expected = compare_successes(a, b, margin=0.05)
        assert (found["success"]["low"], found["success"]["only_b"]) == (expected.low, expected.only_b)
        assert found["success"]["p_value"] >= expected.p_value  # Holm's is no smaller


def test_markdown(output):
    text = (output / "report.md").read_text()
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = table.splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert len({len(line) for line in lines}) == 1
    assert "ddpm100" in text
    assert "baseline" in text
    assert "50 Hz" in text
    assert "p_1" in text
    assert "episodes would be needed to say equal within ±5 points" in text
    assert "nan" not in text.lower()


def test_latex_is_balanced(output):
    text = (output / "report.tex").read_text()
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    for a, b in (("{", "}"), (r"\begin{tabular}", r"\end{tabular}"), (r"\toprule", r"\bottomrule")):
        assert body.count(a) == body.count(b) > 0
    assert len(re.findall(r"(?<!\\)\$", body)) % 2 == 0
    assert not re.search(r"(?<!\\)[%#_]", re.sub(r"\$[^$]*\$|\\label\{[^}]*\}", "", body))
    for table in re.findall(r"\\begin\{tabular\}\{(l?r*)\}(.*?)\\end\{tabular\}", body, re.DOTALL):
        for row in re.findall(r"^(.*?) \\\\$", table[1], re.MULTILINE):
            assert row.count("&") == len(table[0]) - 1, row
    assert body.count(r"$^{\dagger}$") >= 2  # DDIM approximates


def test_latex_escapes():
    assert escape("a_b & 50 % {x} \\ ±") == r"a\_b \& 50 \% \{x\} \textbackslash{} $\pm$"


def test_names_cannot_break_the_page(made_up, tmp_path):
    from dataclasses import replace

    odd = [replace(s, name=s.name + " <b>&\"'|_$") for s in made_up.SAMPLERS]
    made_up.make_store(tmp_path / "store", "lift", 20, chunks=3, samplers=odd)
    write_reports([tmp_path], tmp_path, title="<script>alert(1)</script> $title $css")
    html = (tmp_path / "report.html").read_text()
    assert parse(html).open == []
    assert "<script>alert" not in html
    assert '<b>&"' not in html
    rows = [x for x in (tmp_path / "report.md").read_text().splitlines() if x.startswith("| speculative")]
    assert all(r"\|" in row for row in rows)


def test_films_are_embedded_up_to_the_limit_and_linked_beyond(output, tmp_path):
    page = (output / "report.html").read_text()
    films = json.loads(re.search(r'id="films">(.*?)</script>', page, re.DOTALL)[1])
    assert list(films["lift"]) == ["ddpm100", "speculative"]
    assert films["lift"]["speculative"]["100000"]["src"].startswith("data:video/mp4;base64,")
    assert re.fullmatch(r"(not )?solved, \d+ steps", films["lift"]["ddpm100"]["100000"]["text"])
    write_reports([output], output, videos_mb=0)
    linked = json.loads(re.search(r'id="films">(.*?)</script>', (output / "report.html").read_text(), re.DOTALL)[1])
    link = linked["lift"]["speculative"]["100000"]["src"]
    assert re.fullmatch(r"videos/lift/speculative \[[0-9a-f]{6}\]/100000\.mp4", link)
    assert (output / link).exists()
    write_reports([output], tmp_path, videos_mb=0)  # elsewhere there is nothing to link to
    assert 'id="films"' not in (tmp_path / "report.html").read_text()
    write_reports([output], output)


def test_glance(output):
    report = load_report([output])
    lift = report.groups[0]
    found = {c.line.label: {f.name: f for f in c.facts} for c in cards(lift)}
    assert set(found) == {"asd", "ddim10", "speculative"}
    assert found["speculative"]["latency"].kind == "faster"
    assert (found["speculative"]["law"].kind, found["ddim10"]["law"].kind) == ("same", "near")
    assert found["speculative"]["success"].kind in ("same", "open", "better", "worse")
    lines = summary_lines(report)
    assert [line.split()[0] for line in lines] == list(report.labels[1:])
    assert any("exactly the same law" in line for line in lines)


def test_stores_of_several_machines_are_one_report(made_up, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    made_up.make_store(one / "store", "lift", 20, chunks=3)
    made_up.make_store(two / "store", "lift", 20, chunks=3)  # the same cells and seeds again
    made_up.make_store(two / "store", "can", 20, chunks=3, environment={**made_up.ENVIRONMENT, "device": "another"})
    report = load_report([one, two / "store"])
    assert report.tasks == ("can", "lift")
    assert [line.summary.episodes for line in report.groups[1].lines] == [20] * 4  # each seed once
    assert sorted(m.environment["device"] for m in report.machines) == ["another", "made up"]


def test_different_machines_are_said_and_not_compared(made_up, tmp_path):
    there = {**made_up.ENVIRONMENT, "num_threads": 8}
    made_up.make_store(tmp_path, "lift", 10, chunks=3, samplers=made_up.SAMPLERS[:1])
    made_up.make_store(tmp_path, "lift", 10, chunks=3, samplers=made_up.SAMPLERS[3:], environment=there)
    report = load_report([tmp_path])
    assert report.groups[0].lines[1].summary.wall_clock_speedup is None
    assert any("different machines" in note for note in report.notes)


def test_one_sampler_alone(made_up, tmp_path):
    made_up.make_store(tmp_path / "store", "lift", 5, chunks=2, samplers=made_up.SAMPLERS[3:])
    write_reports([tmp_path], tmp_path)
    assert parse((tmp_path / "report.html").read_text()).open == []
    assert "baseline" not in (tmp_path / "report.md").read_text().split("\n\n- *exact*")[0]


def test_cells_without_a_common_seed_are_noted(made_up, tmp_path):
    made_up.make_store(tmp_path, "lift", 5, chunks=2, samplers=made_up.SAMPLERS[:1])
    made_up.make_store(tmp_path, "lift", 5, chunks=2, samplers=made_up.SAMPLERS[3:], first=500)
    report = load_report([tmp_path])
    assert report.groups[0].pairs == ()
    assert any("share no seeds" in note for note in report.notes)
    with pytest.raises(ValueError, match=r"ddpm100 \(5 seeds from 100000 to 100004\) .* share no seeds"):
        compare({**COMPARE, "output": str(tmp_path), "stores": [str(tmp_path)]})


def test_compare(output, tmp_path):
    text = compare({**COMPARE, "output": str(tmp_path), "stores": [str(output)], "tasks": ["lift"]})
    assert text == (tmp_path / "compare.md").read_text()
    data = json.loads((tmp_path / "compare.json").read_text())
    assert [c["title"].split(",")[0] for c in data["comparisons"]] == ["lift"] * 3  # lockstep and two control rates
    line = {x.label: x for x in load_report([output]).groups[0].lines}
    expected = compare_successes(line["ddpm100"].table.success, line["speculative"].table.success, margin=0.05)
    first = data["comparisons"][0]["success"]
    assert (first["p_value"], first["low"], first["verdict"]) == (expected.p_value, expected.low, expected.verdict)
    assert words.sentence(expected, "ddpm100", "speculative") in text
    keys = [line[name].key for name in ("ddpm100", "asd")]
    by_id = compare({**COMPARE, "output": str(tmp_path), "stores": [str(output)], "a": keys[0][:6], "b": keys[1]})
    assert "asd" in by_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": "picard"}, r"(?s)'picard' is not in the store; .*speculative"),
        ({"b": "ddpm100"}, "a and b are both 'ddpm100'"),
        ({"margin": 0}, "between 0 and 100"),
        ({"margin": "five"}, "between 0 and 100"),
        ({"alpha": 1}, "alpha must lie between"),
        ({"tasks": ["tidy"]}, "there is no task tidy in the store; there are: lift, pusht"),
        ({"tasks": "lift"}, r"tasks must be a list such as \[lift,can\]"),
        ({"stores": "x"}, r"stores must be a list of folders"),
    ],
)
def test_compare_says_what_is_wrong(output, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        compare({**COMPARE, "output": str(tmp_path), "stores": [str(output)], **changes})
    assert not list(tmp_path.iterdir())


def test_cells_of_two_tasks_do_not_compare(output, tmp_path):
    report = load_report([output])
    a, b = (next(g for g in report.groups if g.task == task).lines[0].key for task in ("lift", "pusht"))
    with pytest.raises(ValueError, match=r"of task 'lift' and .* of 'pusht'"):
        compare({**COMPARE, "output": str(tmp_path), "stores": [str(output)], "a": a, "b": b})


def test_no_results_say_where_to_look(tmp_path):
    with pytest.raises(StoreError, match="does not exist: give the output folder of dps-eval"):
        write_reports([tmp_path / "nowhere"], tmp_path)
    (tmp_path / "x").mkdir()
    with pytest.raises(StoreError, match="holds no results of dps-eval"):
        write_reports([tmp_path / "x"], tmp_path)
    Store.open(tmp_path / "empty")
    with pytest.raises(StoreError, match="no finished episode yet"):
        write_reports([tmp_path / "empty"], tmp_path)


def test_a_newer_store_is_refused(tmp_path):
    Store.open(tmp_path / "store")
    (tmp_path / "store" / "store.json").write_text(json.dumps({"schema": "diffpolicy_spec.eval", "version": 99}))
    with pytest.raises(StoreError, match="version 99, this package reads"):
        write_reports([tmp_path], tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_report_of_a_real_evaluation(checkpoint, tmp_path):
    """The tiny policy on Lift: what dps-eval stores is what the report reads."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from diffpolicy_spec.eval.evaluate import evaluate

    given = [
        f"policy={checkpoint}", f"output={tmp_path}", "samplers=[ddpm100,speculative]", "num_episodes=2",
        "max_steps=10", "video=false", "report=false",
    ]  # fmt: skip
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        evaluate(OmegaConf.to_container(compose("eval", overrides=given), resolve=True))
    write_reports([tmp_path], tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    (group,) = data["groups"]
    assert [c["label"] for c in group["cells"]] == ["ddpm100", "speculative"]
    assert [c["summary"]["chunks"] for c in group["cells"]] == [4, 4]
    assert group["comparisons"][0]["success"]["pairs"] == 2
    assert group["comparisons"][0]["success"]["verdict"] == "undecided"
    assert group["cells"][1]["summary"]["wall_clock_speedup"] > 0
    assert data["machines"][0]["environment"]["versions"]["torch"]
    for name in FILES:
        assert "samplers" in (tmp_path / name).read_text()  # of the configuration


def run(*arguments):
    command = [sys.executable, "-m", f"diffpolicy_spec.eval.{arguments[0]}_cli", *arguments[1:]]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)


def test_commands(output, tmp_path):
    done = run("report", f"stores=[{output}]", f"output={tmp_path}", "margin=10")
    assert (done.returncode, done.stderr) == (0, "")
    assert "report.html, report.md, report.tex, report.json" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["margin"] == 0.1
    done = run("compare", f"stores=[{output}]", f"output={tmp_path}", "b=ddim10", "tasks=[pusht]")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Success of ddim10 is" in done.stdout
    done = run("report", f"output={tmp_path / 'nothing'}")
    assert done.returncode == 1
    assert done.stderr.startswith("dps-report: ")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["report", "compare"])
def test_help_names_every_setting_and_shows_examples(name):
    done = run(name, "--help")
    assert done.returncode == 0
    assert f"  dps-{name} " in done.stdout
    settings = re.findall(
        r"^(\w+):", (Path(__file__).parents[2] / "configs" / f"{name}.yaml").read_text(), re.MULTILINE
    )
    for setting in set(settings) - {"defaults", "hydra"}:
        assert re.search(rf"^  (\w, )*{setting}\b", done.stdout, re.MULTILINE), setting


def test_words():
    assert [words.milliseconds(v) for v in (None, 3.14159, 85.84, 1234.5)] == ["-", "3.14", "85.8", "1234"]
    assert [words.times(v) for v in (3.14159, 123.4)] == ["3.1x", "123x"]
    assert [words.round_up(n) for n in (7, 96, 101, 1849, 25696)] == [7, 96, 110, 1900, 26000]
    differ = compare_successes(np.ones(100, bool), np.arange(100) < 60, margin=0.05)
    assert words.verdict(differ) == "worse"
    assert words.sentence(differ, "a", "b").endswith("p < 0.001). They differ.")


def test_axes():
    assert [name for _, name in linear(0, 100).ticks] == ["0", "20", "40", "60", "80", "100"]
    assert [name for _, name in linear(-7, 3).ticks] == ["-6", "-4", "-2", "0", "2"]
    assert [name for _, name in logarithmic(4, 330).ticks] == ["5", "10", "20", "50", "100", "200"]
    assert len(logarithmic(33.1, 33.2).ticks) >= 2
    axis = logarithmic(10, 1000)
    assert axis.place(100.0, 0, 100) == pytest.approx(50.0)
    assert linear(3, 3).high > linear(3, 3).low


def test_markdown_table():
    text = markdown_table(["sampler", "ms"], [["a|b", "1"], ["c", "10"]])
    assert text.splitlines() == ["| sampler | ms |", "|---------|---:|", r"| a\|b    |  1 |", "| c       | 10 |"]
