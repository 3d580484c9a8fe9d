"""Run a prepared evaluation: every sampler on the same episodes, results on disk after each."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from diffpolicy_spec.eval.plots import PLOTS, draw_plots
from diffpolicy_spec.eval.records import save_chunks
from diffpolicy_spec.eval.results import SamplerRun, environment, eval_log, summarize_runs, write_json
from diffpolicy_spec.eval.rollout import run_episodes, warm_up
from diffpolicy_spec.eval.settings import NamedSampler, Settings, prepare
from diffpolicy_spec.eval.statistics import latencies
from diffpolicy_spec.eval.subscribers import EpisodeWriter, ProgressBar, Recorder, Subscriber
from diffpolicy_spec.eval.table import report
from diffpolicy_spec.eval.video import VideoRecorder

__all__ = ["evaluate", "run", "run_sampler"]


def run_sampler(settings: Settings, sampler: NamedSampler) -> SamplerRun:
    """All episodes with one sampler; writes its folder (episodes.jsonl, chunks.npz, video.mp4)."""
    folder = settings.output / sampler.name
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    batch = len(settings.envs)
    warm_up(settings.policy, sampler.bound, settings.envs[0], settings.seeds[0], settings.warmup_calls, batch)

    recorder = Recorder()
    subscribers: list[Subscriber] = [recorder, EpisodeWriter(folder / "episodes.jsonl")]
    if settings.video:
        fps = settings.envs[0].metadata["render_fps"]
        subscribers.append(VideoRecorder(folder / "video.mp4", fps))
    subscribers.append(ProgressBar(sampler.name, len(settings.seeds)))
    try:
        run_episodes(
            settings.policy, sampler.bound, settings.envs, settings.seeds,
            subscribers=subscribers, max_steps=settings.max_steps,
        )  # fmt: skip
    finally:
        for subscriber in subscribers:
            subscriber.close()

    schedule = sampler.bound.schedule
    timesteps = tuple(schedule.timesteps.tolist())
    save_chunks(folder / "chunks.npz", recorder.chunks, timesteps)
    full_chain = schedule.kind == "ddpm" and schedule.num_steps == schedule.num_train_timesteps
    return SamplerRun(
        name=sampler.name,
        config=asdict(sampler.config),
        exact=full_chain and sampler.config.method in ("ddpm", "speculative"),
        verifies=sampler.config.method == "speculative",
        reference=full_chain and sampler.config.method == "ddpm",
        reference_steps=schedule.num_train_timesteps,
        timesteps=timesteps,
        # Lockstep finishes episodes out of order; the log lists them by seed.
        episodes=tuple(sorted(recorder.episodes, key=lambda e: e.seed)),
        chunks=tuple(recorder.chunks),
        video=f"{sampler.name}/video.mp4" if settings.video else None,
    )


def run(settings: Settings, config: Mapping[str, Any]) -> list[SamplerRun]:
    """Run all samplers, write the output folder, print the report, close the environments.

    eval_log.json and report.md are complete for the samplers finished so far at any moment.
    """
    torch.set_num_threads(settings.num_threads)
    for notice in settings.notices:
        print(f"note: {notice}")
    settings.output.mkdir(parents=True, exist_ok=True)
    for name in ("eval_log.json", "report.md", *PLOTS):  # of an earlier run: nothing here may describe other episodes
        (settings.output / name).unlink(missing_ok=True)
    described = environment(settings.policy.device, settings.num_threads)
    runs: list[SamplerRun] = []
    text = ""
    try:
        for sampler in settings.samplers:
            runs.append(run_sampler(settings, sampler))
            log = eval_log(runs, config, described, finished=len(runs) == len(settings.samplers))
            write_json(settings.output / "eval_log.json", log)
            text = report(summarize_runs(runs), {r.name: r.exact for r in runs})
            (settings.output / "report.md").write_text(text + "\n")
    finally:
        for env in settings.envs:
            env.close()
    pictures: list[Path] = []
    if settings.plots:
        by_sampler = {r.name: latencies(r.chunks) for r in runs}
        pictures = draw_plots(summarize_runs(runs), by_sampler, settings.output)
    print(f"\n{text}\n")
    print(f"Written to {settings.output}: eval_log.json, report.md", *(p.name for p in pictures), sep=", ", end="")
    print(", and per sampler episodes.jsonl, chunks.npz" + (", video.mp4." if settings.video else "."))
    return runs


def evaluate(config: Mapping[str, Any]) -> list[SamplerRun]:
    """Evaluate as a configuration says.

    Args:
        config: plain data with the keys of configs/eval.yaml.

    Raises:
        ValueError, OSError, ImportError: see `prepare`; nothing has been run or written then.
    """
    return run(prepare(config), config)
