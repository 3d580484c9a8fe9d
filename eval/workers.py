"""Who runs episodes: a worker with its own policy and environment, one episode at a time, and processes of them."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffpolicy_spec.eval.cells import fingerprint_of
from diffpolicy_spec.eval.errors import Retries, RunError
from diffpolicy_spec.eval.jobs import Done, Job, Listener, Work
from diffpolicy_spec.eval.pacing import Pace, pace_of
from diffpolicy_spec.eval.processes import DeadPeerError, Peer
from diffpolicy_spec.eval.results import environment
from diffpolicy_spec.eval.rollout import run_episodes, warm_up
from diffpolicy_spec.eval.subscribers import Recorder, Subscriber
from diffpolicy_spec.eval.video import VideoRecorder, offscreen_backend
from diffpolicy_spec.eval.worlds import LocalWorld

if TYPE_CHECKING:
    from diffpolicy_spec.envs.config import EnvConfig

__all__ = ["Worker", "first_call", "make_environment", "pace", "pack", "renders", "run_here", "run_on_processes"]


def first_call() -> int:
    """A number from which policy calls are counted, so that each has a number of its own in a store."""
    return uuid.uuid4().int >> 88 << 22  # 62 bits, the lower 22 of them free


def renders(env: Any, seed: int) -> str | None:
    """Why the environment gives no frame; None where it does."""
    from diffpolicy_spec.envs.rendering import RenderUnavailable

    env.reset(seed=seed)
    try:
        env.render()
    except RenderUnavailable as error:
        return str(error)
    return None


def pack(path: Path) -> dict[str, bytes]:
    """A checkpoint's files by their path below its parent, to be unpacked on another machine."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {p.relative_to(path.parent).as_posix(): p.read_bytes() for p in files}


def _unpack(files: Mapping[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / next(iter(files)).partition("/")[0]


class Worker:
    """Runs one episode at a time with its own policy and environment; keeps both until another cell needs others.

    An episode is a function of its job, whoever runs it.

    Args:
        works: by cell id.
        packed: checkpoints by the name they have in `works`, where this machine may not have them, see `pack`.
    """

    def __init__(self, works: Mapping[str, Work], packed: Mapping[str, Mapping[str, bytes]] | None = None) -> None:
        self._works, self._packed = works, packed or {}
        self._policy: tuple[Any, Any] = (None, None)
        self._env: tuple[Any, Any] = (None, None)
        self._films: tuple[Any, bool] = (None, False)
        self._environment: tuple[Any, dict[str, Any]] = (None, {})
        self._warm: str | None = None

    def policy(self, work: Work) -> Any:
        """The policy of a cell, in its runtime.

        Raises:
            RunError: the checkpoint is not the one that the run began with.
        """
        key = (work.policy, work.weights, work.device)
        if self._policy[0] != key:
            policy = self._load(work)
            self._policy, self._warm = (key, policy), None
        policy = self._policy[1]
        return policy if policy.runtime == work.runtime else policy.use(work.runtime)

    def _load(self, work: Work) -> Any:
        from diffpolicy_spec import load_policy

        if work.policy in self._packed:
            with tempfile.TemporaryDirectory() as folder:
                unpacked = _unpack(self._packed[work.policy], Path(folder))
                policy = load_policy(unpacked, work.device, weights=work.weights)
        else:
            policy = load_policy(work.policy, work.device, weights=work.weights)
        found = fingerprint_of(policy)
        if found != work.cell.policy_fingerprint:
            raise RunError(
                f"the policy {work.policy} has other weights here than when the run was prepared ({found}, not "
                f"{work.cell.policy_fingerprint}): do not change a checkpoint during a run; run the command again"
            )
        return policy

    def env(self, work: Work) -> Any:
        """The environment of a cell."""
        key = (work.env, work.video)
        if self._env[0] != key:
            self.close()
            self._env = (key, make_environment(*key))
        return self._env[1]

    def keep(self, policy: Any, loaded: tuple[str, str, str], env: Any, made: tuple[EnvConfig, bool]) -> None:
        """Use what is there: the policy loaded by (name, weights, device), and what `make_environment(*made)` made."""
        self._policy, self._env, self._warm = (loaded, policy), (made, env), None

    def run(self, job: Job) -> Done:
        """Run an episode."""
        work = self._works[job.cell]
        torch.set_num_threads(work.num_threads)
        policy, env = self.policy(work), self.env(work)
        sampler = policy.bind(work.sampler)
        world = LocalWorld([env], looks=policy.config.n_obs_steps)
        if self._warm != job.cell:
            warm_up(policy, sampler, world, job.seed, work.warmup_calls)
            self._warm = job.cell
        film = job.film and self._can_film(env, job.seed)
        video = VideoRecorder(env.metadata["render_fps"])
        recorder = Recorder()
        subscribers: list[Subscriber] = [recorder, video]
        try:
            run_episodes(
                policy, sampler, world, [job.seed], subscribers=subscribers, max_steps=work.cell.max_steps,
                film=[job.seed] if film else [], first_call=first_call(), pace=pace(work),
            )  # fmt: skip
        except Exception as error:
            error.add_note(f"in the episode with seed {job.seed} of {work.label}")
            raise
        return Done(job, recorder.episodes[0], tuple(recorder.chunks), self.environment(work), video.mp4)

    def environment(self, work: Work) -> dict[str, Any]:
        """What episodes of a cell run on here."""
        key = (work.device, work.num_threads)
        if self._environment[0] != key:
            self._environment = (key, environment(work.device, work.num_threads))
        return self._environment[1]

    def close(self) -> None:
        """Free the environment."""
        if self._env[1] is not None:
            self._env[1].close()
        self._env = (None, None)

    def _can_film(self, env: Any, seed: int) -> bool:
        # The machine that drives the run could; this one may be another.
        if self._films[0] is not env:
            self._films = (env, renders(env, seed) is None)
        return self._films[1]


def make_environment(config: EnvConfig, video: bool) -> Any:
    """An environment, with frames where wanted and possible."""
    images = config.names is not None and config.names.images
    if (video or images) and "MUJOCO_GL" not in os.environ:
        backend = offscreen_backend()  # to be chosen before MuJoCo is imported
        if backend is not None:
            os.environ["MUJOCO_GL"] = backend
    return config.make(render_mode="rgb_array" if video else None)


def pace(work: Work) -> Pace:
    """How time passes in a cell."""
    from diffpolicy_spec.envs.tasks import get_task

    return pace_of(work.cell, zero_holds=get_task(work.cell.task).zero_holds)


def run_here(worker: Worker, jobs: Iterable[Job], listener: Listener) -> None:
    """Run the jobs one after the other in this process."""
    for job in jobs:
        listener.dealt(job)
        listener.finished(worker.run(job))


def run_on_processes(works: Mapping[str, Work], jobs: Iterable[Job], listener: Listener, num_workers: int) -> None:
    """Deal the jobs to worker processes; a job whose process dies goes to another one.

    Raises:
        EpisodeLostError: too many processes died over one job.
        Exception: what a worker raised.
    """
    waiting, retries = deque(jobs), Retries()
    busy: dict[Connection, tuple[Peer, Job]] = {}
    idle: list[Peer] = []

    def deal() -> None:
        while waiting and len(busy) < num_workers:
            peer = idle.pop() if idle else Peer(_worker, works, name="dps-eval worker")
            job = waiting.popleft()
            busy[peer.connection] = peer, job
            listener.dealt(job)
            peer.ask(job)

    try:
        deal()
        while busy:
            for connection in wait(list(busy)):
                peer, job = busy.pop(connection)  # type: ignore[call-overload]
                try:
                    done = peer.answer()
                except DeadPeerError as error:
                    peer.kill()
                    waiting.appendleft(job)
                    retries.died(job, job.seed, str(error))
                    deal()
                    continue
                except BaseException:
                    peer.kill()
                    raise
                idle.append(peer)
                deal()  # the worker is at the next job while this one is stored
                listener.finished(done)
    finally:
        for peer in [*idle, *(peer for peer, _ in busy.values())]:
            peer.kill()


def _worker(works: Mapping[str, Work]) -> Callable[[Job], Done]:
    return Worker(works).run
