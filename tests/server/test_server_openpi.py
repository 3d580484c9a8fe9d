"""openpi's published client, broker and runtime, as they are, against this server."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.runtime import environment, subscriber
from openpi_client.runtime.agents.policy_agent import PolicyAgent
from openpi_client.runtime.runtime import Runtime
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from policy_servers import TOKEN, observation, served_policy, serving, total, until
from tiny_policy import CAMERAS
from websockets.exceptions import ConnectionClosed, InvalidStatus


def openpi(server, **options):
    return WebsocketClientPolicy("127.0.0.1", server.port, **options)


def test_the_real_client_gets_chunks(server):
    policy = openpi(server)
    metadata = policy.get_server_metadata()
    assert metadata["info"]["n_action_steps"] == 8
    assert metadata["actions_returned"] == "n_action_steps"
    first = policy.infer(observation(0, steps=None) | {"prompt": "lift the cube"})
    assert first["actions"].shape == (8, 10)
    assert first["actions"].dtype == np.float64
    assert first["exact"] is True
    assert first["server_timing"]["infer_ms"] > 0
    again = policy.infer(observation(0, steps=None))
    assert again["server_timing"]["prev_total_ms"] > 0
    policy.reset()


def test_stacks_are_taken_too_and_all_usable_actions_can_be_had():
    with serving(actions_returned="usable") as server:
        assert openpi(server).infer(observation(0, steps=2))["actions"].shape == (15, 10)


def test_a_history_of_consecutive_requests_is_what_the_policy_sees():
    seen = []
    with serving(history="consecutive", history_gap_s=30.0) as server:
        engine = server._engine._engine
        submit = engine.submit
        engine.submit = lambda obs, **more: seen.append(obs) or submit(obs, **more)
        policy = openpi(server)
        steps = [observation(seed, steps=None) for seed in range(3)]
        for step in steps:
            policy.infer(step)
    for index, (obs, before, now) in enumerate(zip(seen, [steps[0], *steps], steps, strict=False)):
        for key in now:
            np.testing.assert_array_equal(obs[key], np.stack([before[key], now[key]]), err_msg=f"{index} {key}")


def test_images_have_channels_last_and_are_uint8():
    policy = served_policy(**CAMERAS)
    with serving(policy) as server:
        rng = np.random.default_rng(0)
        images = {"front": (40, 40, 3), "wrist": (38, 40, 3)}
        obs = observation(0, steps=None) | {key: rng.integers(0, 255, s, np.uint8) for key, s in images.items()}
        assert openpi(server).infer(obs)["actions"].shape == (8, 10)


def test_names_are_mapped():
    given = {
        "robot0_eef_pos": "observation/state[0:3]", "robot0_eef_quat": "observation/state[3:7]",
        "robot0_gripper_qpos": ["observation/left", "observation/right"],
    }  # fmt: skip
    with serving(obs_map=given) as server:
        obs = {
            "object": np.zeros(10), "observation/state": np.arange(7.0), "observation/left": 0.5,
            "observation/right": np.float32(0.5), "prompt": "lift",
        }  # fmt: skip
        assert openpi(server).infer(obs)["actions"].shape == (8, 10)


def test_the_broker_hands_out_action_by_action(server):
    broker = ActionChunkBroker(openpi(server), action_horizon=8)
    before = total(server, "chunks_total", protocol="openpi", exact="yes")
    taken = [broker.infer(observation(0, steps=None))["actions"] for _ in range(16)]
    assert {action.shape for action in taken} == {(10,)}
    until(lambda: total(server, "chunks_total", protocol="openpi", exact="yes") == before + 2)


class Cart(environment.Environment):
    """Remembers what it was told; an episode is 20 steps."""

    def __init__(self) -> None:
        self.actions: list[np.ndarray] = []

    def reset(self) -> None:
        self.steps = 0

    def is_episode_complete(self) -> bool:
        return self.steps >= 20

    def get_observation(self) -> dict:
        return observation(self.steps, steps=None)

    def apply_action(self, action: dict) -> None:
        self.steps += 1
        self.actions.append(action["actions"])


class Counts(subscriber.Subscriber):
    def __init__(self) -> None:
        self.steps = self.episodes = 0

    def on_episode_start(self) -> None:
        self.episodes += 1

    def on_step(self, observation: dict, action: dict) -> None:
        self.steps += 1

    def on_episode_end(self) -> None:
        pass


def test_the_runtime_drives_episodes(server):
    cart, counts = Cart(), Counts()
    agent = PolicyAgent(ActionChunkBroker(openpi(server), action_horizon=8))
    Runtime(cart, agent, [counts], num_episodes=2).run()
    assert (counts.episodes, counts.steps) == (2, 40)
    assert all(action.shape == (10,) and np.isfinite(action).all() for action in cart.actions)


@pytest.mark.parametrize(
    ("obs", "told"),
    [
        ({"object": np.zeros(10)}, "bad_observation: observations lack robot0_eef_pos"),
        (observation(0, steps=None) | {"object": np.zeros(9)}, r"bad_observation: 'object' must be \(10,\)"),
        (observation(0, steps=None) | {"object": np.full(10, np.nan)}, "bad_observation: .*NaN"),
    ],
)
def test_errors_are_text_and_close_the_connection(server, obs, told):
    policy = openpi(server)
    with pytest.raises(RuntimeError, match=told):
        policy.infer(obs)
    with pytest.raises(ConnectionClosed, match="1011"):
        policy.infer(obs)
    assert openpi(server).infer(observation(0, steps=None))["actions"].shape == (8, 10)


def test_the_clients_key_is_the_token():
    with serving(tokens={"arm": TOKEN}) as server:
        assert openpi(server, api_key=TOKEN).infer(observation(0, steps=None))["actions"].shape == (8, 10)
        with pytest.raises(InvalidStatus, match="401"):
            openpi(server, api_key="wrong")
        with pytest.raises(InvalidStatus, match="401"):
            openpi(server)


def test_a_client_that_goes_while_it_waits_frees_its_place(gated):
    server, gate = gated
    policy = openpi(server)
    gate.shut()

    def ask() -> None:
        with pytest.raises(ConnectionClosed):
            policy.infer(observation(0, steps=None))

    waiting = threading.Thread(target=ask)
    waiting.start()
    assert gate.reached.wait(10)
    policy._ws.socket.shutdown(2)
    waiting.join(10)
    until(lambda: total(server, "connections", protocol="openpi") == 0)
    gate.open()
    until(lambda: server._engine.under_way == 0)
    assert total(server, "errors_total", kind="cancelled") == 1


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_the_real_client_lifts_the_cube(steps):
    """The shipped policy by openpi's client and broker, one observation a request or two, as plain evaluation does."""
    from diffpolicy_spec.envs import make_env

    lifted = 0
    with serving("lift") as server, make_env("lift", action_repr="absolute_rot6d") as env:
        for seed in range(100_000, 100_005):
            broker = ActionChunkBroker(openpi(server), action_horizon=8)
            observed, _ = env.reset(seed=seed)
            before = observed
            for _ in range(400):
                keys = server.info.obs_dims
                stacks = {key: np.stack([before[key], observed[key]]) for key in keys}
                action = broker.infer(stacks if steps == 2 else {key: observed[key] for key in keys})["actions"]
                before = observed
                observed, reward, *_ = env.step(action)
                if reward >= 1:
                    lifted += 1
                    break
    assert lifted >= 4
