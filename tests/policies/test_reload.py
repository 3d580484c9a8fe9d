"""Checkpoints replaced while they are in use: taken over, or refused and told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from tiny_policy import OBS_DIMS, tiny_obs, tiny_policy

from diffpolicy_spec import SamplerConfig
from diffpolicy_spec.checkpoints import CheckpointError, write_lerobot
from diffpolicy_spec.policies.info import policy_name
from diffpolicy_spec.policies.reload import Refused, Swapped, WatchedPolicy
from diffpolicy_spec.policies.warm_up import warm_up

DDIM = SamplerConfig("ddim", 4)


class Hand:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(path, **options) -> tuple[WatchedPolicy, Hand]:
    hand = Hand()
    return WatchedPolicy(path, sampler=DDIM, clock=hand, **options), hand


def polled(watch: WatchedPolicy, hand: Hand, seconds: float = 1.0, step: float = 0.1):
    """What `poll` says within so many seconds; a policy being loaded is waited for."""
    said = []
    for _ in range(round(seconds / step)):
        hand.now += step
        said.append(watch.poll())
        if watch.loading:
            watch._loading.join(30)
    return [what for what in said if what is not None]


@pytest.fixture
def path(tmp_path):
    tiny_policy(0).save(tmp_path / "policy")
    return tmp_path / "policy"


def test_a_better_one_takes_over(path):
    watch, hand = watched(path)
    before = watch.policy
    assert polled(watch, hand) == []
    better = tiny_policy(1)
    better.save(path)
    (swapped,) = polled(watch, hand)
    assert isinstance(swapped, Swapped)
    assert swapped.info is watch.info
    assert watch.info.policy == policy_name(better, "policy") != swapped.before.policy
    assert watch.info.policy in swapped.message
    assert watch.policy is not before
    chunk, expected = (
        p.predict_action(tiny_obs(1), sampler=p.bind(DDIM), generator=torch.Generator().manual_seed(0)).action
        for p in (watch.policy, better)
    )
    torch.testing.assert_close(chunk, expected)
    assert polled(watch, hand) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"obs_dims": OBS_DIMS | {"object": 11}}, "obs_dims: .*'object': 11.* instead of .*'object': 10"),
        ({"action_dim": 20}, "action_dim: 20 instead of 10"),
        ({"horizon": 32}, "horizon: 32 instead of 16"),
        ({"n_action_steps": 4}, "n_action_steps: 4 instead of 8"),
        ({"n_obs_steps": 3}, "n_obs_steps: 3 instead of 2; another first: 2 instead of 1"),
        ({"action_repr": "raw"}, "action_repr: raw instead of absolute_rot6d"),
    ],
)
def test_one_of_other_shapes_is_refused(path, changes: dict, told: str):
    watch, hand = watched(path)
    before = watch.policy
    tiny_policy(1, **changes).save(path)
    (refused,) = polled(watch, hand)
    assert isinstance(refused, Refused)
    assert re.search(told, refused.reason)
    assert watch.policy is before
    tiny_policy(2).save(path)  # and the next one that fits is taken
    (swapped,) = polled(watch, hand)
    assert isinstance(swapped, Swapped)


def test_half_a_file_is_refused_and_the_whole_one_taken(path):
    watch, hand = watched(path)
    before, file = watch.policy, path / "model.safetensors"
    tiny_policy(1).save(path.with_name("new"))
    whole = (path.with_name("new") / "model.safetensors").read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    (refused,) = polled(watch, hand)
    assert "truncated or damaged" in refused.message
    assert watch.policy is before
    assert torch.isfinite(before.predict_action(tiny_obs(1), sampler=watch.sampler).action).all()
    file.write_bytes(whole)
    (swapped,) = polled(watch, hand)
    assert isinstance(swapped, Swapped)


def test_a_file_being_copied_is_left_alone(path):
    watch, hand = watched(path)
    file = path / "model.safetensors"
    whole = file.read_bytes()
    for part in range(1, 11):
        file.write_bytes(whole[: part * len(whole) // 10])
        assert polled(watch, hand, 0.2) == []
    (swapped,) = polled(watch, hand)
    assert isinstance(swapped, Swapped)


def test_a_checkpoint_that_goes_is_told_once(path):
    watch, hand = watched(path)
    shutil.move(path, path.with_name("gone"))
    (refused,) = polled(watch, hand)
    assert "there is nothing at" in refused.message
    shutil.move(path.with_name("gone"), path)
    assert polled(watch, hand) == []  # the same files: nothing has changed


def test_what_fails_to_prepare_is_refused(path):
    def prepare(policy, sampler):
        warm_up(policy, sampler, 1)

    for in_thread in (True, False):
        watch, hand = watched(path, prepare=prepare, in_thread=in_thread)
        broken = tiny_policy(1)
        with torch.no_grad():
            broken.network.final_conv[1].weight.fill_(1e30)
        broken.save(path)
        (refused,) = polled(watch, hand)
        assert "NaN or infinite" in refused.message
        tiny_policy(0).save(path)
        assert isinstance(polled(watch, hand)[-1], Swapped)


def test_where_policies_are_prepared(path):
    for in_thread in (True, False):
        threads = []
        watch, hand = watched(
            path, prepare=lambda *_, told=threads: told.append(threading.current_thread()), in_thread=in_thread
        )
        tiny_policy(1).save(path)
        assert isinstance(polled(watch, hand)[-1], Swapped)
        first, second = threads
        assert first is threading.main_thread()
        assert (second is first) is not in_thread


def test_a_sampler_the_new_one_cannot_serve_is_refused(path):
    policy = tiny_policy(0)
    policy.save(path)
    hand = Hand()
    watch = WatchedPolicy(path, sampler=SamplerConfig("ddpm", 50), clock=hand)
    tiny_policy(1, scheduler={**policy.scheduler_config, "num_train_timesteps": 20}).save(path)
    (refused,) = polled(watch, hand)
    assert "num_inference_steps" in refused.message


def test_another_sampler_is_told(path):
    hand = Hand()
    watch = WatchedPolicy(path, clock=hand)
    scheduler = {**watch.policy.scheduler_config, "_class_name": "DDIMScheduler"}
    tiny_policy(1, scheduler=scheduler, num_inference_steps=10).save(path)
    (swapped,) = polled(watch, hand)
    assert swapped.message.endswith(", drawn by ddim, 10 steps, eta 0 instead of speculative, 100 steps")


def test_formats_of_others_are_watched_as_well(tmp_path):
    folder = tmp_path / "policy"
    write_lerobot(tiny_policy(0), folder)
    watch, hand = watched(folder)
    write_lerobot(tiny_policy(1), tmp_path / "other")
    shutil.rmtree(folder)
    os.rename(tmp_path / "other", folder)
    (swapped,) = polled(watch, hand)
    assert isinstance(swapped, Swapped)


def test_without_a_policy_there_is_nothing_to_watch(tmp_path):
    with pytest.raises(CheckpointError, match="neither an existing path"):
        WatchedPolicy(tmp_path / "none")


def test_looking_is_quick_and_seldom(path, monkeypatch):
    watch, hand = watched(path, look_every=0.5)
    looks = []
    monkeypatch.setattr("diffpolicy_spec.policies.reload._marks", lambda p: looks.append(p) or watch._marks)
    polled(watch, hand, 5.0, 0.01)
    assert len(looks) <= 11
    assert np.isfinite(watch.info.action_dim)


ENDS_WHILE_LOADING = """
import sys, threading, time, torch
from diffpolicy_spec.policies.reload import WatchedPolicy

busy = threading.Event()

def prepare(policy, sampler):
    if threading.current_thread() is threading.main_thread():
        return
    busy.set()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        torch.randn(300, 300) @ torch.randn(300, 300)

watched = WatchedPolicy(sys.argv[1], prepare=prepare, settle=0.0, look_every=0.0)
(watched._path / "config.json").touch()
while not busy.wait(0.01):
    watched.poll()
print("ends")
"""


def test_a_program_may_end_while_a_policy_is_being_loaded(path):
    """torch aborts a process that ends under one of its threads."""
    ended = subprocess.run(
        [sys.executable, "-c", ENDS_WHILE_LOADING, str(path)], capture_output=True, text=True, timeout=60
    )
    assert (ended.stdout, ended.returncode) == ("ends\n", 0), ended.stderr
