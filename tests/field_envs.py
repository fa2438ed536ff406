"""Small environments with one peculiarity each, as users of similar programs have met them.

PYTHONPATH=tests python ppo_vanilla.py --env-id field_envs:NanEnd-v0 --total-timesteps 6000
"""

import random
import threading

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Sequence, Tuple


class Noise(gym.Env):
    """Ten steps of noise, in which action 1 is worth 1 and any other nothing, where the arguments say nothing else."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(self, obs=lambda x, t: x, reward=lambda action, t: action == 1, limit=10, actions=Discrete(2)):  # noqa: B008
        self.make_obs, self.make_reward, self.limit, self.action_space = obs, reward, limit, actions

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.obs(), {}

    def obs(self):
        return np.array(self.make_obs(self.np_random.normal(size=3), self.t), np.float32)

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        return self.obs(), float(self.make_reward(action, self.t)), self.t >= self.limit, False, {}


class Forgets(Noise):
    """Its pickle has lost the generator of random numbers."""

    def __getstate__(self):
        return vars(self) | {"_np_random": None}


class OnlySuccess(Noise):
    """`success` is in info only where there was one, and lengths differ."""

    def reset(self, **kwargs):
        result = super().reset(**kwargs)
        self.limit = int(self.np_random.integers(5, 15))
        return result

    def step(self, action):
        *result, end, truncated, _ = super().step(action)
        return *result, end, truncated, {"success": True} if end and action == 1 else {}


class Reuse(Noise):
    """One buffer for all observations, which are the time. Episodes end by truncation."""

    def obs(self):
        self.buffer = vars(self).get("buffer", np.zeros(3, np.float32))
        self.buffer[:] = self.t
        return self.buffer

    def step(self, action):
        obs, reward, end, _, info = super().step(action)
        return obs, reward, False, end, info


class Lock(Reuse):
    """pickle refuses its state."""

    def reset(self, **kwargs):
        self.lock = threading.Lock()
        return super().reset(**kwargs)


class Walk(Noise):
    """A random walk that terminates far from its start and is truncated after 11 steps. The reward is the position."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)

    def obs(self):
        self.position = 5.0 if self.t == 0 else self.position + self.np_random.normal()
        return np.array([self.position, 10.0 * self.t], np.float32)

    def step(self, action):
        obs, *_ = super().step(action)
        return obs, self.position, abs(self.position - 5) > 3, self.t == 11, {}


class Records(Noise):
    """Keeps the actions that it gets and the observations that it gives."""

    def __init__(self, observations, actions):
        super().__init__(reward=lambda action, t: 0, actions=actions)
        self.observation_space, self.given, self.got = observations, [], []

    def obs(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.given.append(self.observation_space.sample())
        return self.given[-1]

    def step(self, action):
        self.got.append(action)
        return super().step(action)


NOISE = {
    "NanEnd": {"obs": lambda x, t: np.where(t == 10, np.nan, x)},  # a simulation that ends because it has diverged
    "Inf": {"obs": lambda x, t: np.where(t == 7, np.inf, x)},  # a sensor that overflows now and then
    "GlobalRandom": {"obs": lambda x, t: np.random.normal(size=3)},  # noqa: NPY002
    "PyRandom": {"obs": lambda x, t: [random.random() for _ in range(3)]},
    "NanReward": {"reward": lambda action, t: np.nan if t == 5 else 1},
    "Far": {"reward": lambda action, t: -abs(action[0] - 15), "actions": Box(10.0, 20.0, (1,), np.float32)},
    "From5": {"reward": lambda action, t: action == 6, "actions": Discrete(3, start=5)},
    "Endless": {"limit": 10**18},  # a continuing task without a time limit
}
SPACES = {
    "Image": Box(0, 255, (4, 5, 3), np.uint8),
    "Dict": Dict({"position": Box(-1, 1, (2,)), "door": Discrete(3)}),
    "Tuple": Tuple([Discrete(2), Box(0, 1, (2, 2))]),
    "Discrete": Discrete(5, start=2),
    "MultiBinary": MultiBinary(4),
    "Bool": Box(0, 1, (3,), bool),
}
BOXES = {
    "Unit": Box(-1, 1, (3,)),
    "Mixed": Box(np.float32([-2, -np.inf, 0, 10]), np.float32([np.inf, 0.5, np.inf, 20])),
}

for cls in (Forgets, OnlySuccess, Reuse, Lock, Walk):
    gym.register(f"{cls.__name__}-v0", cls)
for name, options in NOISE.items():
    gym.register(f"{name}-v0", Noise, kwargs=options)
for name, space in SPACES.items():
    gym.register(f"{name}Observations-v0", Records, kwargs={"observations": space, "actions": Discrete(2)})
for name, space in BOXES.items():
    gym.register(f"{name}Actions-v0", Records, kwargs={"observations": Noise.observation_space, "actions": space})
gym.register("NeedsArgument-v0", Records)
gym.register("NoActions-v0", Records, kwargs={"observations": Discrete(2), "actions": MultiDiscrete([2, 3])})
gym.register("NoVectors-v0", Records, kwargs={"observations": Sequence(Discrete(2)), "actions": Discrete(2)})
gym.register("CartPoleNoLimit-v0", "gymnasium.envs.classic_control:CartPoleEnv")  # no max_episode_steps
