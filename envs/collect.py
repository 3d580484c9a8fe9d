"""`dps-collect`: demonstrations of a scripted expert into a robomimic hdf5."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from diffpolicy_spec.atomic import write_atomically
from diffpolicy_spec.command import command
from diffpolicy_spec.optional import require

__all__ = ["CollectConfig", "CollectError", "CollectSummary", "collect", "main", "run"]


class CollectError(ValueError):
    """A collection that cannot start or go on; the message says what to change."""


@dataclass(frozen=True)
class CollectConfig:
    """What to collect.

    Attributes:
        task: name in the task table.
        num_demos: successful episodes wanted.
        output: the hdf5 to write.
        seed: episodes use the seeds seed, seed + 1, ... (evaluation starts at 100000).
        num_workers: processes; the result does not depend on it.
        max_steps: an episode that takes longer is a failure.
        images: "<camera>_image" -> (height, width) of the images to record, pixels.
    """

    task: str
    num_demos: int
    output: Path
    seed: int = 0
    num_workers: int = 1
    max_steps: int = 200
    images: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("num_demos", 1), ("seed", 0), ("num_workers", 1), ("max_steps", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise CollectError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if self.output.suffix not in (".hdf5", ".h5"):
            raise CollectError(f"output must end in .hdf5, got {str(self.output)!r}")
        if self.output.is_dir():
            raise CollectError(f"output is a folder: {self.output}")


@dataclass(frozen=True)
class CollectSummary:
    """What a collection came to.

    Attributes:
        output: the file.
        demos: demonstrations in it.
        attempts: episodes run for it; demos / attempts is the expert's success rate.
        lengths: steps of each demonstration.
    """

    output: Path
    demos: int
    attempts: int
    lengths: tuple[int, ...]


def collect(config: CollectConfig, *, progress: bool = True) -> CollectSummary:
    """Collect demonstrations; the file appears at the end, in one piece.

    Until then each episode is a file of its own in `<output>.parts`. Killed at any time and run again with the same
    arguments, it goes on where it was: an episode is a function of its seed, so the result is the same.

    Raises:
        CollectError: the output is there already, or `<output>.parts` belongs to another collection.
        UnknownTaskError, UnknownExpertError: nothing to run.
        ImportError: robosuite, h5py or tqdm is not installed.
    """
    import numpy as np

    from diffpolicy_spec.envs.demonstrate import demonstration_env
    from diffpolicy_spec.envs.experts import make_expert
    from diffpolicy_spec.envs.recording import load_episode, save_episode, write_robomimic

    tqdm = require("tqdm", extra="sim").tqdm
    require("h5py", extra="sim")  # missing, it should be missed now and not in half an hour
    if config.output.exists():
        raise CollectError(f"{config.output} is there already: remove it or choose another output")
    with demonstration_env(
        config.task, config.max_steps, config.images
    ) as env:  # also the check that task and simulator exist
        make_expert(config.task, np.random.default_rng(0))
        env_args, model_xml = env.unwrapped.env_args(), env.unwrapped.model_xml()
    parts = _open_parts(config)

    kept: list[Path] = []
    with tqdm(total=config.num_demos, unit="demo", desc=f"{config.task}", disable=not progress) as bar:
        for seed, episode in _episodes(config, parts):
            if episode is not None:
                save_episode(_part(parts, seed), episode)
            if episode.success if episode is not None else load_episode(_part(parts, seed)).success:
                kept.append(_part(parts, seed))
                bar.update()
            attempts = seed - config.seed + 1
            bar.set_postfix_str(f"success {len(kept)}/{attempts}")
            if len(kept) == config.num_demos:
                break
            if attempts >= 20 and len(kept) < 0.05 * attempts:
                raise CollectError(f"the expert solved {len(kept)} of {attempts} episodes: something is broken")

    lengths = []

    def chosen() -> Iterator[Any]:
        for path in kept:
            episode = load_episode(path)
            lengths.append(len(episode.actions))
            yield episode

    write_robomimic(config.output, chosen(), env_args=env_args, model_xml=model_xml, seed=config.seed)
    shutil.rmtree(parts)
    return CollectSummary(config.output, len(kept), attempts, tuple(lengths))


def _open_parts(config: CollectConfig) -> Path:
    """The folder of finished episodes, made if missing; refuses one that was begun with other arguments."""
    parts = config.output.with_name(config.output.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    # Neither the number of workers nor how many are wanted changes any episode.
    mine = {key: value for key, value in asdict(config).items() if key in ("task", "seed", "max_steps")}
    if config.images:
        mine["images"] = {key: list(size) for key, size in config.images.items()}
    note = parts / "collection.json"
    if note.exists():
        theirs = json.loads(note.read_text())
        if theirs != mine:
            raise CollectError(f"{parts} was begun with {theirs}, not {mine}: remove it or choose another output")
    else:
        write_atomically(note, lambda temporary: temporary.write_text(json.dumps(mine)))
    return parts


def _part(parts: Path, seed: int) -> Path:
    return parts / f"episode_{seed:09d}.npz"


def _episodes(config: CollectConfig, parts: Path) -> Iterator[tuple[int, Any]]:
    """(seed, episode) in the order of the seeds, without end; the episode is None where its part is there already."""
    pool: ProcessPoolExecutor | None = None
    pending: deque[tuple[int, Future[Any] | None]] = deque()
    seeds = count(config.seed)
    try:
        while True:
            while len(pending) < 2 * config.num_workers:
                seed = next(seeds)
                if _part(parts, seed).exists():
                    pending.append((seed, None))
                    continue
                if pool is None:
                    pool = ProcessPoolExecutor(
                        config.num_workers,
                        mp_context=multiprocessing.get_context("spawn"),
                        initializer=_start_worker,
                        initargs=(config.task, config.max_steps, config.images),
                    )
                pending.append((seed, pool.submit(_work, seed)))
            seed, future = pending.popleft()
            try:
                yield seed, None if future is None else future.result()
            except BrokenProcessPool as error:
                raise CollectError(
                    "a worker process died (killed, or out of memory): run the same command again to go on"
                ) from error
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


_worker_env: Any = None


def _start_worker(task: str, max_steps: int, images: dict[str, tuple[int, int]]) -> None:
    global _worker_env
    from diffpolicy_spec.envs.demonstrate import demonstration_env

    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_env = demonstration_env(task, max_steps, images)


def _end_with_parent() -> None:
    # A worker keeps its own queue open, so it would wait for ever after its parent was killed.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(seed: int) -> Any:
    from diffpolicy_spec.envs.demonstrate import demonstrate

    return demonstrate(_worker_env, seed)


def run(cfg: dict[str, Any]) -> CollectSummary:
    """Collect as configs/collect.yaml says (resolved, as plain data), and say what came of it."""
    summary = collect(
        CollectConfig(
            task=cfg["task"]["name"],
            num_demos=cfg["num_demos"],
            output=Path(cfg["output"] if cfg["output"] is not None else cfg["task"]["dataset"]),
            seed=cfg["seed"],
            num_workers=cfg["num_workers"],
            max_steps=cfg["max_steps"],
            images={key: (int(h), int(w)) for key, (_, h, w) in (cfg["task"].get("images") or {}).items()},
        )
    )
    low, middle, high = np.percentile(summary.lengths, [5, 50, 95])
    print(
        f"{summary.output}: {summary.demos} demonstrations of {summary.attempts} episodes, "
        f"{sum(summary.lengths)} steps; length {middle:.0f} (5-95 %: {low:.0f}-{high:.0f})"
    )
    return summary


def main() -> None:
    """Command line: `dps-collect task=lift num_demos=300 output=data/lift.hdf5 seed=0 num_workers=2`.

    With task=lift_image and the like, the images of that task are recorded, too.
    """
    command("dps-collect", "collect", "sim", run)


if __name__ == "__main__":
    main()
