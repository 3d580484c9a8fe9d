"""A run spread with ray over local cores is the local run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

ray = pytest.importorskip("ray")

from diffpolicy_spec.eval.settings import prepare  # noqa: E402
from diffpolicy_spec.eval.spread import Spread, run_jobs, run_on_ray  # noqa: E402
from diffpolicy_spec.eval.workers import Job, pack  # noqa: E402


class Listener:
    def __init__(self, when_finished=None):
        self.done, self._finished = [], when_finished

    def dealt(self, job):
        pass

    def finished(self, done):
        self.done.append(done)
        if self._finished is not None:
            self._finished(done)

    def episodes(self):
        return {
            (d.job.cell, d.job.seed): (d.record.actions_sha, [(c.calls, c.accepted_at) for c in d.chunks])
            for d in self.done
        }


@pytest.fixture(scope="module")
def settings(checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("ray") / "out"
    given = [f"policy={checkpoint}", f"output={output}", "num_episodes=3", "max_steps=20", "video=false",
             "report=false", "samplers=[ddpm100,speculative]", "backend=ray", "num_workers=2"]  # fmt: skip
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        prepared = prepare(OmegaConf.to_container(compose("eval", overrides=given), resolve=True))
    yield prepared
    prepared.worker.close()


def kill_a_worker():
    """SIGKILL for one of the actors' processes; its id."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = command.read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::Worker"):
            os.kill(int(command.parent.name), signal.SIGKILL)
            return int(command.parent.name)
    return None


def test_ray_runs_the_same_episodes_even_if_a_worker_is_killed(settings):
    assert settings.spread == Spread("ray", 2)
    jobs = [Job(key, seed) for key in settings.works for seed in settings.seeds]
    local = Listener()
    run_jobs(settings.worker, settings.works, jobs, local, Spread())

    killed = []

    def kill_one(_):
        if not killed:
            killed.append(kill_a_worker())

    spread = Listener(when_finished=kill_one)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        run_on_ray(settings.works, jobs, spread, settings.spread)  # joins what has been started
    finally:
        ray.shutdown()
    assert killed[0] or not Path("/proc/self/cmdline").exists()
    assert len(spread.done) == len(jobs)
    assert spread.episodes() == local.episodes()
    calls = [chunk.call for done in spread.done for chunk in done.chunks]
    assert len(set(calls)) == len(calls)


def test_checkpoints_travel(checkpoint, tmp_path):
    from diffpolicy_spec.eval.workers import _unpack

    packed = pack(checkpoint)
    folder = _unpack(packed, tmp_path)
    assert folder.name == checkpoint.name
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in checkpoint.iterdir()}
    single = tmp_path / "one.ckpt"
    single.write_bytes(b"weights")
    (tmp_path / "there").mkdir()
    assert _unpack(pack(single), tmp_path / "there").read_bytes() == b"weights"


def test_a_cluster_that_is_not_there(settings):
    with pytest.raises(ConnectionError, match=r"no ray cluster answers at 127\.0\.0\.1:1 .*start one with `ray start"):
        run_on_ray(settings.works, [], Listener(), Spread("ray", 2, address="127.0.0.1:1"))
    for wrong in ("here", "host:port"):
        with pytest.raises(ValueError, match=f"address={wrong}: give auto, host:port or ray://host:port"):
            run_on_ray(settings.works, [], Listener(), Spread("ray", 2, address=wrong))
