"""What the tests of worker processes and of ray share: a prepared run, and who listens to it."""

from __future__ import annotations

from contextlib import contextmanager

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from diffpolicy_spec.eval.jobs import Job
from diffpolicy_spec.eval.settings import prepare
from diffpolicy_spec.eval.spread import Spread, run_jobs


class Listener:
    """Keeps what is finished; calls back with each job that is dealt and each episode that is finished."""

    def __init__(self, when_dealt=None, when_finished=None):
        self.done = []
        self._dealt, self._finished = when_dealt, when_finished

    def dealt(self, job):
        if self._dealt is not None:
            self._dealt(job)

    def finished(self, done):
        self.done.append(done)
        if self._finished is not None:
            self._finished(done)

    def episodes(self):
        """Everything that must repeat, by job."""
        return {
            (d.job.cell, d.job.seed): (
                d.record.actions_sha, d.record.steps, d.record.max_reward, d.record.success,
                [(c.chunk, c.calls, c.evaluations, c.accepted_at, c.tested_at) for c in d.chunks],
            )
            for d in self.done
        }  # fmt: skip

    def calls(self):
        """The number of each policy call."""
        return [chunk.call for done in self.done for chunk in done.chunks]


@contextmanager
def prepared(checkpoint, output, *overrides):
    """Three short episodes with each of two samplers, ready to run."""
    given = [f"policy={checkpoint}", f"output={output}", "num_episodes=3", "max_steps=20", "video=false",
             "report=false", "samplers=[ddpm100,speculative]", *overrides]  # fmt: skip
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        settings = prepare(OmegaConf.to_container(compose("eval", overrides=given), resolve=True))
    try:
        yield settings
    finally:
        settings.worker.close()


def all_jobs(settings):
    return [Job(key, seed) for key in settings.works for seed in settings.seeds]


def alone(settings):
    """What one process comes to."""
    listener = Listener()
    run_jobs(settings.worker, settings.works, all_jobs(settings), listener, Spread())
    assert [done.job for done in listener.done] == all_jobs(settings)
    return listener.episodes()
