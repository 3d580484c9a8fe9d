"""dps-eval killed, stopped, started again: no finished episode is lost, none counts twice, no process is left over."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffpolicy_spec.eval.episode_table import read_stores

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for left over processes in /proc")

EPISODES = 5
SAMPLERS = ("ddpm100", "speculative")


def _hears_ctrl_c():
    """A shell starts what it runs in the background with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Run:
    """A dps-eval process in a session of its own."""

    def __init__(self, checkpoint, output, *overrides, **environment):
        self.parts = output / "store" / "parts"
        options = [override for override in overrides if override.startswith("-")]
        overrides = [override for override in overrides if override not in options]
        command = [
            sys.executable, "-m", "diffpolicy_spec.eval.cli", *options, f"policy={checkpoint}", f"output={output}",
            f"samplers=[{','.join(SAMPLERS)}]", f"num_episodes={EPISODES}", "max_steps=24", "video=false",
            "report=false", *overrides,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, **environment}, preexec_fn=_hears_ctrl_c,
        )  # fmt: skip

    def wait_for_episodes(self, count):
        while len(list(self.parts.glob("*.parquet"))) < count and self.process.poll() is None:
            time.sleep(0.02)

    def end(self):
        """Exit code, stdout, stderr; everything of the session must be gone soon."""
        out, err = self.process.communicate(timeout=300)
        deadline = time.monotonic() + 20
        while left := self._left():
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.1)
        return self.process.returncode, out, err

    def _left(self):
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found


def episodes(output):
    """(sampler, seed) -> what must repeat; a (cell, seed) that counted twice would be an error of its own."""
    results, found = read_stores([output / "store"]), {}
    for key, cell in results.cells.items():
        table = results.tables[key]
        assert len(set(table.seed.tolist())) == len(table)
        alone = table.chunks.call[table.chunks["batch"] == 1].tolist()
        assert len(set(alone)) == len(alone)
        steps = table.chunks["calls"]
        for i, seed in enumerate(table.seed.tolist()):
            found[cell.sampler, seed] = (
                table.actions_sha[i], table.steps[i], table.success[i], steps[table.chunks.episode == i].tolist(),
            )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def uninterrupted(checkpoint, tmp_path_factory):
    """(episodes, seconds) of a run that nobody disturbs."""
    output = tmp_path_factory.mktemp("whole") / "out"
    started = time.monotonic()
    code, _, err = Run(checkpoint, output).end()
    assert code == 0, err
    found = episodes(output)
    assert len(found) == EPISODES * len(SAMPLERS)
    return found, time.monotonic() - started


def kill_at_random(checkpoint, output, uninterrupted, kills, *overrides, seed=0):
    """Kill the process again and again, then let it finish; what is stored only grows."""
    expected, seconds = uninterrupted
    rng, stored = random.Random(seed), {}
    for _ in range(kills):
        run = Run(checkpoint, output, *overrides)
        if rng.random() < 0.7:  # most of a short run is imports: start the clock at the next episode
            run.wait_for_episodes(len(stored) + 1)
            time.sleep(rng.uniform(0, 0.5))
        else:
            time.sleep(rng.uniform(0, seconds))
        run.process.kill()
        run.end()
        now = episodes(output) if (output / "store" / "store.json").exists() else {}
        assert now.items() >= stored.items()
        assert now.items() <= expected.items()
        stored = now
    code, out, err = Run(checkpoint, output, *overrides).end()
    assert code == 0, err
    assert f"{len(stored)} of {len(expected)} episodes are in" in out or not stored
    assert episodes(output) == expected


def test_killed_at_random_moments_it_goes_on(checkpoint, tmp_path, uninterrupted):
    kill_at_random(checkpoint, tmp_path / "out", uninterrupted, 2, "num_workers=2")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_many_times_it_goes_on(checkpoint, tmp_path, uninterrupted, seed):
    workers = ("num_workers=1", "num_workers=2")[seed % 2]
    kill_at_random(checkpoint, tmp_path / "out", uninterrupted, 6, workers, seed=seed + 1)


@pytest.mark.parametrize("override", ["num_workers=1", "num_workers=2", "num_envs=2"])
def test_ctrl_c_ends_it_in_one_line(checkpoint, tmp_path, uninterrupted, override):
    run = Run(checkpoint, tmp_path / "out", override)
    run.wait_for_episodes(1)
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does it: to every process
    code, _, err = run.end()
    assert code == 130
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    stored = episodes(tmp_path / "out")
    assert last.startswith(f"dps-eval: stopped: {len(stored)} of 10 episodes are stored in")
    assert last.endswith("run the same command to go on")
    assert stored
    if override != "num_envs=2":  # batched, the last bits may differ
        assert stored.items() <= uninterrupted[0].items()


def test_a_sweep_shares_one_store(checkpoint, tmp_path, uninterrupted):
    """dps-eval -m: one job after the other, each its own cell, none removes what another wrote."""
    output = tmp_path / "out"
    code, _, err = Run(checkpoint, output, "-m", "samplers=[ddpm100],[speculative]", "num_episodes=2").end()
    assert code == 0, err
    stored = episodes(output)
    assert {key: uninterrupted[0][key] for key in stored} == stored
    assert set(stored) == {(name, seed) for name in SAMPLERS for seed in (100000, 100001)}
    code, _, err = Run(checkpoint, output, "-m", "seed=100000,100002", "overwrite=true").end()
    assert code != 0
    assert "overwrite=true in a sweep (-m) would remove what its other jobs wrote" in err
    assert episodes(output) == stored
