"""A run spread with ray over local cores is the local run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from spread_runs import Listener, all_jobs, alone, prepared

ray = pytest.importorskip("ray")

from diffpolicy_spec.eval.spread import Spread, run_on_ray  # noqa: E402
from diffpolicy_spec.eval.workers import pack  # noqa: E402


@pytest.fixture(scope="module")
def settings(checkpoint, tmp_path_factory):
    with prepared(checkpoint, tmp_path_factory.mktemp("ray") / "out", "backend=ray", "num_workers=2") as settings:
        yield settings


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
    jobs, local, killed = all_jobs(settings), alone(settings), []

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
    assert spread.episodes() == local
    assert len(set(spread.calls())) == len(spread.calls())


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
