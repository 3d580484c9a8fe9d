"""dps-eval end to end on the real environment with a tiny policy: what is on disk afterwards, also after a crash."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from diffpolicy_spec.eval import evaluate as evaluate_module
from diffpolicy_spec.eval.episode_table import read_stores
from diffpolicy_spec.eval.errors import RunError
from diffpolicy_spec.eval.evaluate import Interrupted, evaluate
from diffpolicy_spec.eval.picture import draw_picture
from diffpolicy_spec.eval.report import FILES
from diffpolicy_spec.eval.report.markdown import markdown_table
from diffpolicy_spec.eval.results import labels, video_path, write_json
from diffpolicy_spec.eval.store import Store, StoreError

SEEDS = (100000, 100001)
SAMPLERS = ["ddpm100", "paradigms", "asd", "speculative"]
PNG = b"\x89PNG"
QUIET = ("video=false", "report=false")


def run_config(checkpoint, output, *overrides):
    given = [f"policy={checkpoint}", f"output={output}", "num_episodes=2", "max_steps=10", *overrides]
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        return OmegaConf.to_container(compose("eval", overrides=given), resolve=True)


def by_sampler(results):
    """Sampler -> its episodes."""
    return {cell.sampler: results.tables[key] for key, cell in results.cells.items()}


def counted(table):
    """What must repeat of the episodes and their chunks."""
    chunks = {name: table.chunks[name].tolist() for name in ("calls", "evaluations", "accepted", "rejected")}
    return table.actions_sha.tolist(), table.success.tolist(), chunks, table.accepted_at.tolist()


@pytest.fixture(scope="module")
def comparison(checkpoint, tmp_path_factory):
    """(output folder, results, log) of four samplers."""
    output = tmp_path_factory.mktemp("eval") / "out"
    results = evaluate(run_config(checkpoint, output, f"samplers=[{','.join(SAMPLERS)}]"))
    return output, results, json.loads((output / "eval_log.json").read_text())


def test_files(comparison):
    output, results, _ = comparison
    assert [cell.sampler for cell in results.cells.values()] == SAMPLERS  # in their order, not by name
    for key, cell in results.cells.items():
        assert cell.timesteps == tuple(range(9, -1, -1))
        table = results.tables[key]
        assert tuple(table.seed) == SEEDS
        assert len(table.chunks) == 4
        assert len(set(table.chunks.call.tolist())) == 4
    for name in FILES:
        assert (output / name).stat().st_size > 0
    assert {p.name for p in output.iterdir() if p.is_dir()} <= {"store", "videos"}
    assert not list(output.rglob("*.tmp"))


def test_episodes_say_what_they_ran_on(comparison, checkpoint):
    _, results, _ = comparison
    for table in results.tables.values():
        (described,) = table.environments
        assert described["device"] == "cpu"
        assert described["config"]["policy"] == str(checkpoint)
        assert described["versions"]["torch"]


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
    assert [e["seed"] for e in log["samplers"]["asd"]["episodes"]] == list(SEEDS)
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


def test_report(comparison):
    output, _, _ = comparison
    text = (output / "report.md").read_text()
    for name in SAMPLERS:
        assert re.search(rf"^\| {name} ", text, re.MULTILINE)
    assert "0/2 [0, 66] %" in text
    assert "nan" not in text.lower().replace("nanosecond", "")


def test_videos(comparison):
    """Where this machine draws offscreen: 10 steps and the first frame, at 20 Hz."""
    output, _, log = comparison
    if "test/sim_video_100000" not in log:
        pytest.skip("no offscreen OpenGL on this machine")
    import imageio.v2 as imageio

    assert log["test/sim_video_100000"] == f"videos/lift/ddpm100 [{log['samplers']['ddpm100']['cell'][:6]}]/100000.mp4"
    for name in SAMPLERS:
        with imageio.get_reader(output / log["samplers"][name]["files"]["video"]) as video:
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


def test_a_cell_s_name_tells_it_apart(comparison):
    _, results, _ = comparison
    cells = results.cells
    assert list(labels(cells).values()) == SAMPLERS
    first = next(iter(cells))
    assert labels({first: cells[first], "0123456789": cells[first]}) == {
        first: f"ddpm100 ({first[:6]})", "0123456789": "ddpm100 (012345)",
    }  # fmt: skip


def interrupt_after(monkeypatch, episodes, error=KeyboardInterrupt):
    """End the run with an error when so many episodes are stored."""
    original, count = Store.append, [0]

    def append(self, *args):
        if count[0] == episodes:
            raise error
        original(self, *args)
        count[0] += 1

    monkeypatch.setattr(Store, "append", append)


def test_an_interrupted_run_goes_on(checkpoint, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    config = run_config(checkpoint, output, "samplers=[speculative,asd]", *QUIET)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interrupted, match=r"stopped: 3 of 4 episodes are stored in \S+; run the same command"):
            evaluate(config)
    log = json.loads((output / "eval_log.json").read_text())
    assert log["finished"] is False
    assert list(log["samplers"]) == ["speculative"]  # of finished cells
    assert len(log["samplers"]["speculative"]["episodes"]) == 2
    kept = by_sampler(read_stores([output / "store"]))
    assert kept["asd"].seed.tolist() == [100000]

    results = by_sampler(evaluate(config))
    assert "3 of 4 episodes are in" in capsys.readouterr().out
    assert json.loads((output / "eval_log.json").read_text())["finished"] is True
    whole = by_sampler(evaluate(run_config(checkpoint, tmp_path / "whole", "samplers=[speculative,asd]", *QUIET)))
    assert {name: counted(t) for name, t in results.items()} == {name: counted(t) for name, t in whole.items()}


def test_more_episodes_are_added(checkpoint, tmp_path):
    config = run_config(checkpoint, tmp_path / "out", *QUIET)
    first = by_sampler(evaluate(config))["speculative"]
    calls = first.chunks.call.tolist()
    again = by_sampler(evaluate(config))["speculative"]
    assert again.chunks.call.tolist() == calls
    more = by_sampler(evaluate({**config, "num_episodes": 3}))["speculative"]
    assert more.seed.tolist() == [100000, 100001, 100002]
    assert more.chunks.call.tolist()[:4] == calls
    assert len(set(more.chunks.call.tolist())) == 6


def test_overwriting_begins_again(checkpoint, tmp_path):
    config = run_config(checkpoint, tmp_path / "out", *QUIET)
    first = by_sampler(evaluate(config))["speculative"]
    (tmp_path / "out" / "notes.txt").write_text("mine")
    second = by_sampler(evaluate({**config, "overwrite": True, "max_steps": 9}))["speculative"]
    assert first.steps.tolist() == [10, 10]
    assert second.steps.tolist() == [9, 9]
    assert len(read_stores([tmp_path / "out" / "store"]).cells) == 1
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_full_disk_loses_nothing(checkpoint, tmp_path, monkeypatch):
    import pyarrow.parquet

    config = run_config(checkpoint, tmp_path / "out", *QUIET)
    original, count = pyarrow.parquet.write_table, [0]

    def write_table(*args, **kwargs):
        if count[0] == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        count[0] += 1
        original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.parquet, "write_table", write_table)
        with pytest.raises(StoreError, match="the disk is full: make room, then run the same command again"):
            evaluate(config)
    assert by_sampler(read_stores([tmp_path / "out" / "store"]))["speculative"].seed.tolist() == [100000]
    assert by_sampler(evaluate(config))["speculative"].seed.tolist() == list(SEEDS)


def test_a_runtime_of_fixed_shapes_drives_the_same_episodes(checkpoint, tmp_path):
    runs = [
        by_sampler(evaluate(run_config(checkpoint, tmp_path / name, f"runtime={name}", *QUIET)))["speculative"]
        for name in ("eager", "static")
    ]
    assert runs[0].steps.tolist() == runs[1].steps.tolist()
    assert counted(runs[0])[2:] == counted(runs[1])[2:]


def test_a_missing_film_is_made_without_counting_the_episode_again(checkpoint, tmp_path):
    config = run_config(checkpoint, tmp_path / "out", "report=false")
    first = by_sampler(evaluate(config))["speculative"]
    films = list((tmp_path / "out" / "videos").rglob("*.mp4"))
    if not films:
        pytest.skip("no offscreen OpenGL on this machine")
    films[0].unlink()
    second = by_sampler(evaluate(config))["speculative"]
    assert films[0].exists()
    assert second.chunks.call.tolist() == first.chunks.call.tolist()


@pytest.fixture(scope="module")
def can_checkpoint(policy, tmp_path_factory):
    """The tiny policy with the observation of Can."""
    from diffpolicy_spec.policies import DiffusionPolicy
    from diffpolicy_spec.policies.diffusion import build_network
    from diffpolicy_spec.policies.normalizer import LinearNormalizer, fit_limits

    config = replace(policy.config, obs_dims={**policy.config.obs_dims, "object": 14}, task="can")
    wide = fit_limits(np.stack([-np.ones(14), np.ones(14)]))
    normalizer = LinearNormalizer({**policy.normalizer.params, "object": wide})
    path = tmp_path_factory.mktemp("can") / "tiny"
    DiffusionPolicy(config, build_network(config), normalizer, policy.scheduler_config).save(path)
    return path


def test_one_command_for_tasks_samplers_and_seeds(checkpoint, can_checkpoint, tmp_path):
    policies = f"policy={{lift:{checkpoint},can:{can_checkpoint}}}"
    config = run_config(checkpoint, tmp_path / "out", policies, "tasks=[lift,can]", "samplers=[ddpm100,asd]", *QUIET)
    results = evaluate(config)
    assert [(c.task, c.sampler) for c in results.cells.values()] == [
        ("lift", "ddpm100"), ("lift", "asd"), ("can", "ddpm100"), ("can", "asd"),
    ]  # fmt: skip
    assert [table.seed.tolist() for table in results.tables.values()] == [list(SEEDS)] * 4
    assert len({cell.policy_fingerprint for cell in results.cells.values()}) == 2
    log = json.loads((tmp_path / "out" / "eval_log.json").read_text())
    assert list(log["samplers"]) == ["lift/ddpm100", "lift/asd", "can/ddpm100", "can/asd"]


def test_a_log_that_cannot_be_written_loses_nothing(checkpoint, tmp_path, monkeypatch):
    config = run_config(checkpoint, tmp_path / "out", *QUIET)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module, "write_json", full)
        with pytest.raises(RunError, match=r"cannot write to \S+ \(No space left on device\): .* same command again"):
            evaluate(config)
    assert by_sampler(read_stores([tmp_path / "out" / "store"]))["speculative"].seed.tolist() == list(SEEDS)
    evaluate(config)
    assert json.loads((tmp_path / "out" / "eval_log.json").read_text())["finished"] is True


def test_lockstep_run(checkpoint, tmp_path):
    overrides = ("num_envs=2", "num_episodes=3", "report=false", "samplers=[ddpm100,speculative]")
    results = evaluate(run_config(checkpoint, tmp_path / "out", *overrides))
    for table in results.tables.values():
        assert table.seed.tolist() == [*SEEDS, 100002]
        assert table.chunks["batch"].tolist() == [2, 2, 2, 2, 1, 1]
        assert len(set(table.chunks.call.tolist())) == 4
    films = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.mp4")}
    assert films in (set(), {video_path(cell, 100000) for cell in results.cells.values()})


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_markdown_table():
    text = markdown_table(["name", "n"], [["a", "10"], ["long name", "2"]])
    assert text.splitlines() == ["| name      |  n |", "|-----------|---:|", "| a         | 10 |", "| long name |  2 |"]
