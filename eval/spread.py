"""Where the episodes of a run take place: this process, batches in lockstep, processes, or a ray cluster."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from diffpolicy_spec.checkpoints.shipped import resolve
from diffpolicy_spec.eval.errors import Retries
from diffpolicy_spec.eval.jobs import Done, Job, Listener, Work
from diffpolicy_spec.eval.records import ChunkRecord, EpisodeRecord
from diffpolicy_spec.eval.rollout import run_episodes, warm_up
from diffpolicy_spec.eval.subscribers import Recorder
from diffpolicy_spec.eval.video import VideoRecorder
from diffpolicy_spec.eval.workers import (
    Worker,
    first_call,
    make_environment,
    pace,
    pack,
    run_here,
    run_on_processes,
)
from diffpolicy_spec.eval.worlds import ProcessWorld
from diffpolicy_spec.optional import require

__all__ = ["Spread", "run_jobs", "run_lockstep", "run_on_ray"]


@dataclass(frozen=True)
class Spread:
    """Over what a run is spread.

    Attributes:
        backend: "local" or "ray".
        num_workers: processes, each with its own policy and environment; None for one per core.
        num_envs: environments that share one batched policy call; more than 1 only with one worker.
        address: of a ray cluster ("auto", "host:port", "ray://host:port"); None starts one of this machine's cores.
        gpus_per_worker: GPUs that ray reserves for each worker; a fraction shares one.

    Raises:
        ValueError: what cannot be had together.
    """

    backend: str = "local"
    num_workers: int | None = 1
    num_envs: int = 1
    address: str | None = None
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        if self.backend not in ("local", "ray"):
            raise ValueError(f"backend must be local or ray, got {self.backend!r}")
        if self.backend == "local" and self.address is not None:
            raise ValueError(f"address={self.address} is that of a ray cluster: give backend=ray as well")
        if self.gpus_per_worker < 0:
            raise ValueError(f"gpus_per_worker must not be negative, got {self.gpus_per_worker}")
        if self.num_envs > 1 and (self.num_workers != 1 or self.backend != "local"):
            raise ValueError(
                f"num_envs={self.num_envs} is one process with a batched policy call for all environments, "
                "num_workers and backend=ray are processes with one environment each: give one or the other"
            )


def run_jobs(worker: Worker, works: Mapping[str, Work], jobs: Sequence[Job], listener: Listener, how: Spread) -> None:
    """Run the jobs and tell the listener, in this process, of each as soon as it is finished.

    Args:
        worker: of this process, used where the run takes place in it.
        works: by cell id.

    Raises:
        EpisodeLostError: too many processes died over one episode.
    """
    if how.backend == "ray":
        run_on_ray(works, jobs, listener, how)
    elif how.num_envs > 1:
        run_lockstep(worker, works, jobs, listener, how.num_envs)
    elif how.num_workers == 1:
        run_here(worker, jobs, listener)
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        run_on_processes(works, jobs, listener, min(how.num_workers or cores, len(jobs)))


def run_lockstep(
    worker: Worker, works: Mapping[str, Work], jobs: Iterable[Job], listener: Listener, num_envs: int
) -> None:
    """Run the jobs of one cell after the other; environments, one a process, share one batched policy call."""
    world, where = None, None
    try:
        for cell, group in groupby(jobs, key=lambda job: job.cell):
            work, cell_jobs = works[cell], list(group)
            looks = worker.policy(work).config.n_obs_steps
            wanted = (work.env, work.video), min(num_envs, len(cell_jobs)), looks
            if world is None or where != wanted:
                if world is not None:
                    world.close()
                world, where = ProcessWorld(make_environment, *wanted[0], size=wanted[1], looks=looks), wanted
            for job in cell_jobs[:1]:
                listener.dealt(job)
            _lockstep_cell(worker, work, world, cell_jobs, listener)
    finally:
        if world is not None:
            world.close()


def _lockstep_cell(worker: Worker, work: Work, world: ProcessWorld, jobs: list[Job], listener: Listener) -> None:
    torch.set_num_threads(work.num_threads)
    policy = worker.policy(work)
    sampler, by_seed = policy.bind(work.sampler), {job.seed: job for job in jobs}
    fps = worker.env(work).metadata["render_fps"]
    video = VideoRecorder(fps)

    def finished(record: EpisodeRecord, chunks: tuple[ChunkRecord, ...]) -> None:
        job = by_seed[record.seed]
        mp4 = video.mp4 if job.film else None
        listener.finished(Done(job, record, chunks, worker.environment(work), mp4))

    warm_up(policy, sampler, world, jobs[0].seed, work.warmup_calls, len(world))
    run_episodes(
        policy, sampler, world, list(by_seed), subscribers=[video, Recorder(finished)], max_steps=work.cell.max_steps,
        film=[job.seed for job in jobs if job.film], first_call=first_call(), pace=pace(work),
    )  # fmt: skip


def run_on_ray(works: Mapping[str, Work], jobs: Iterable[Job], listener: Listener, how: Spread) -> None:
    """Deal the jobs to actors of a ray cluster, each a `Worker`; this package must be installed on its machines.

    Checkpoints travel with the job. A job whose actor dies goes to another one.

    Raises:
        ImportError: ray is not installed.
        ConnectionError: no cluster at the address.
        EpisodeLostError: too many actors died over one job.
    """
    ray = require("ray", extra="ray", needed_by="backend=ray")
    lost = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
    waiting, retries = deque(jobs), Retries()
    ours = not ray.is_initialized()
    if ours:
        _check_address(how.address)
        ray.init(
            address=how.address or "local", num_cpus=None if how.address else how.num_workers,
            include_dashboard=False if how.address is None else None, log_to_driver=False, logging_level="ERROR",
        )  # fmt: skip
    busy: dict[Any, tuple[Any, Job]] = {}
    idle: list[Any] = []
    try:
        packed = ray.put({w.policy: pack(resolve(w.policy)) for w in works.values()})
        shared = ray.put(dict(works))
        actor = ray.remote(num_cpus=1, num_gpus=how.gpus_per_worker, max_restarts=0)(Worker)
        places = _places(ray.cluster_resources(), how)
        while waiting or busy:
            while waiting and len(busy) < places:
                worker = idle.pop() if idle else actor.remote(shared, packed)
                job = waiting.popleft()
                listener.dealt(job)
                busy[worker.run.remote(job)] = worker, job
            ready, _ = ray.wait(list(busy))
            for reference in ready:
                worker, job = busy.pop(reference)
                try:
                    done = ray.get(reference)
                except lost as error:
                    waiting.appendleft(job)
                    retries.died(job, job.seed, f"said: {str(error).splitlines()[0]}")
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error  # its text is the traceback from there
                else:
                    idle.append(worker)
                    listener.finished(done)
    finally:
        if ours:
            ray.shutdown()
        else:
            for worker in [*idle, *(worker for worker, _ in busy.values())]:
                ray.kill(worker)


def _check_address(address: str | None) -> None:
    """ray itself would try for many minutes."""
    if address is None or address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"address={address}: give auto, host:port or ray://host:port")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(
            f"no ray cluster answers at {address} ({error}): start one with `ray start --head`, or leave address out"
        ) from error


def _places(resources: Mapping[str, float], how: Spread) -> int:
    """Actors that the cluster can hold at once, at most as many as are wanted."""
    most = int(resources.get("CPU", 1))
    if how.gpus_per_worker:
        most = min(most, int(resources.get("GPU", 0) / how.gpus_per_worker))
        if not most:
            raise ValueError(f"gpus_per_worker={how.gpus_per_worker}, but the cluster has no GPU: give 0")
    return max(1, min(how.num_workers or most, most))
