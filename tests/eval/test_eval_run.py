"""dps-eval end to end on the real environment with a tiny policy: what is on disk afterwards, also after a crash."""

from __future__ import annotations

import json
import re

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from diffpolicy_spec.eval import evaluate as evaluate_module
from diffpolicy_spec.eval.evaluate import evaluate
from diffpolicy_spec.eval.picture import draw_picture
from diffpolicy_spec.eval.records import load_chunks, load_episodes
from diffpolicy_spec.eval.results import write_json
from diffpolicy_spec.eval.table import markdown_table

SEEDS = (100000, 100001)
PNG = b"\x89PNG"


def run_config(checkpoint, output, *overrides):
    given = [f"policy={checkpoint}", f"output={output}", "num_episodes=2", "max_steps=10", *overrides]
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        return OmegaConf.to_container(compose("eval", overrides=given), resolve=True)


@pytest.fixture(scope="module")
def comparison(checkpoint, tmp_path_factory):
    """(output folder, runs, log) of four samplers."""
    output = tmp_path_factory.mktemp("eval") / "out"
    runs = evaluate(run_config(checkpoint, output, "samplers=[ddpm100,paradigms,asd,speculative]"))
    return output, runs, json.loads((output / "eval_log.json").read_text())


def test_files(comparison):
    output, runs, _ = comparison
    names = ["ddpm100", "paradigms", "asd", "speculative"]
    assert [r.name for r in runs] == names
    for run in runs:
        folder = output / run.name
        assert tuple(load_episodes(folder / "episodes.jsonl")) == run.episodes
        chunks, timesteps = load_chunks(folder / "chunks.npz")
        assert (tuple(chunks), tuple(timesteps)) == (run.chunks, run.timesteps)
        assert run.timesteps == tuple(range(9, -1, -1))
    for plot in ("latency.png", "acceptance.png", "time_split.png"):
        assert (output / plot).read_bytes().startswith(PNG)
    assert {p.name for p in output.iterdir() if p.is_dir()} == set(names)
    assert not list(output.rglob("*.tmp"))


def test_log_has_diffusion_policy_s_keys(comparison):
    _, _, log = comparison
    for section in (log, *log["samplers"].values()):
        assert section["test/mean_score"] == 0.0
        for seed in SEEDS:
            assert section[f"test/sim_max_reward_{seed}"] == 0.0
    assert log["finished"] is True


def test_log_says_what_was_run(comparison, checkpoint):
    _, _, log = comparison
    about = log["environment"]
    assert {"python", "torch", "numpy", "mujoco", "robosuite"} <= set(about["versions"])
    assert (about["device"], about["num_threads"]) == ("cpu", 1)
    assert about["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", about["commit"])
    assert log["config"]["policy"] == str(checkpoint)
    assert log["samplers"]["asd"]["sampler"]["options"]["drafter"] == "parent"
    assert {n: s["exact"] for n, s in log["samplers"].items()} == {
        "ddpm100": True, "paradigms": False, "asd": True, "speculative": True,
    }  # fmt: skip


def test_summaries(comparison):
    _, _, log = comparison
    sections = {name: s["summary"] for name, s in log["samplers"].items()}
    for s in sections.values():
        assert (s["episodes"], s["successes"], s["chunks"], s["steps_mean"]) == (2, 0, 4, 10)
        assert 0 < s["latency"]["p50"] <= s["latency"]["p95"] <= s["latency"]["p99"] <= s["latency"]["max"]
        assert 0 < s["overhead"] < 1
        assert sum(s["shares"].values()) == pytest.approx(s["latency"]["mean"])
    reference = sections["ddpm100"]
    assert (reference["calls_mean"], reference["rows_mean"]) == (10, 10)
    assert (reference["algorithmic_speedup"], reference["wall_clock_speedup"]) == (1, 1)
    assert reference["shares"]["draft"] == reference["shares"]["verify"] == 0
    assert reference["acceptance_rate"] is reference["rejection_waste"] is reference["acceptance"] is None
    # ParaDiGMS drops rows too, but it tests nothing.
    assert sections["paradigms"]["acceptance_rate"] is sections["paradigms"]["acceptance"] is None
    assert 0 <= sections["paradigms"]["rejection_waste"] < 1
    for name in ("asd", "speculative"):
        s = sections[name]
        assert 1 <= s["calls_mean"] <= 11
        assert s["algorithmic_speedup"] == pytest.approx(10 / s["calls_mean"])
        assert s["wall_clock_speedup"] == pytest.approx(reference["latency"]["p50"] / s["latency"]["p50"])
        assert 0 <= s["acceptance_rate"] <= 1
        assert 0 <= s["rejection_waste"] < 1
        assert s["acceptance"]["timesteps"] == list(range(9, -1, -1))


def test_report(comparison, capsys):
    output, runs, _ = comparison
    text = (output / "report.md").read_text()
    for run in runs:
        assert len(re.findall(rf"^\| {run.name} ", text, re.MULTILINE)) == 2
    assert "0/2 [0, 66] %" in text
    assert "nan" not in text.lower().replace("nanosecond", "")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert max(map(len, tables)) <= 120


def test_videos(comparison):
    """Where this machine draws offscreen: 10 steps and the first frame, at 20 Hz."""
    output, runs, log = comparison
    if runs[0].video is None:
        pytest.skip("no offscreen OpenGL on this machine")
    import imageio.v2 as imageio

    assert log["test/sim_video_100000"] == "ddpm100/video.mp4"
    for run in runs:
        with imageio.get_reader(output / run.video) as video:
            assert video.get_meta_data()["fps"] == 20
            frames = list(video.iter_data())  # list(video) would believe its length, infinity
        assert len(frames) == 11
        assert frames[0].shape == (256, 256, 3)
        assert frames[0].std() > 10


def test_picture(comparison, tmp_path):
    _, _, log = comparison
    draw_picture(log, tmp_path / "docs" / "cost.png")
    assert (tmp_path / "docs" / "cost.png").read_bytes().startswith(PNG)
    for wrong in ({}, {"samplers": {"x": 3}}, {"samplers": []}):
        with pytest.raises(ValueError, match=r"not an eval_log.json"):
            draw_picture(wrong, tmp_path / "x.png")
    with pytest.raises(ValueError, match="no sampler with finished episodes"):
        draw_picture({"samplers": {}}, tmp_path / "x.png")


def test_a_crash_loses_nothing_finished(checkpoint, tmp_path, monkeypatch):
    output, original = tmp_path / "out", evaluate_module.run_episodes
    calls = []

    def second_crashes(policy, sampler, envs, seeds, **kwargs):
        calls.append(seeds)
        original(policy, sampler, envs, seeds if len(calls) == 1 else seeds[:1], **kwargs)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_module, "run_episodes", second_crashes)
    config = run_config(checkpoint, output, "samplers=[speculative,asd]", "video=false", "plots=false")
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    log = json.loads((output / "eval_log.json").read_text())
    assert log["finished"] is False
    assert list(log["samplers"]) == ["speculative"]
    assert len(log["samplers"]["speculative"]["episodes"]) == 2
    assert "| speculative " in (output / "report.md").read_text()
    assert [e.seed for e in load_episodes(output / "asd" / "episodes.jsonl")] == [100000]


def test_results_repeat_and_overwrite(checkpoint, tmp_path):
    overrides = ("video=false", "plots=false", "overwrite=true")
    first, second = (evaluate(run_config(checkpoint, tmp_path / "out", *overrides))[0] for _ in range(2))
    assert first.episodes == second.episodes
    counts = [[(c.seed, c.calls, c.evaluations, c.accepted_at) for c in r.chunks] for r in (first, second)]
    assert counts[0] == counts[1]


def test_a_runtime_of_fixed_shapes_drives_the_same_episodes(checkpoint, tmp_path):
    runs = [
        evaluate(run_config(checkpoint, tmp_path / name, f"runtime={name}", "video=false", "plots=false"))[0]
        for name in ("eager", "static")
    ]
    assert runs[0].episodes == runs[1].episodes
    counts = [[(c.seed, c.calls, c.evaluations, c.accepted_at) for c in run.chunks] for run in runs]
    assert counts[0] == counts[1]


def test_a_crash_leaves_no_log_of_an_earlier_run(checkpoint, tmp_path, monkeypatch):
    config = run_config(checkpoint, tmp_path / "out", "video=false", "overwrite=true")
    evaluate(config)

    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_module, "run_episodes", crash)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["speculative"]
    assert load_episodes(tmp_path / "out" / "speculative" / "episodes.jsonl") == []


def test_lockstep_run(checkpoint, tmp_path):
    (run,) = evaluate(run_config(checkpoint, tmp_path / "out", "num_envs=2", "video=false", "plots=false"))
    assert [e.seed for e in run.episodes] == list(SEEDS)
    assert {c.batch for c in run.chunks} == {2}


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_markdown_table():
    text = markdown_table(["name", "n"], [["a", "10"], ["long name", "2"]])
    assert text.splitlines() == ["| name      |  n |", "|-----------|---:|", "| a         | 10 |", "| long name |  2 |"]
