"""Small environments with one peculiarity each, as users of similar programs have met them.

PYTHONPATH=tests python ppo_vanilla.py --env-id field_envs:NanEnd-v0 --total-timesteps 6000
"""

import random
import threading

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple


class Base(gym.Env):
    """Ten steps of noise, in which action 1 is worth 1 and any other nothing."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Discrete(2)
    limit = 10

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.obs(), {}

    def obs(self):
        return self.np_random.normal(size=3).astype(np.float32)

    def reward(self, action):
        return float(action == 1)

    def info(self, action):
        return {}

    def step(self, action):
        self.t += 1
        end = self.t >= self.limit
        return self.obs(), self.reward(action), end, False, self.info(action) if end else {}


class NanEnd(Base):
    """A simulation that ends because it has diverged."""

    def obs(self):
        x = super().obs()
        x[0] = np.nan if self.t >= self.limit else x[0]
        return x


class Endless(Base):
    """A continuing task without a time limit."""

    limit = 10**18


class Repeat(gym.Env):
    """Holds a MuJoCo environment: a pickle of it loses its state without an error."""

    def __init__(self):
        self.inner = gym.make("Hopper-v5")
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space

    def reset(self, *, seed=None, options=None):
        return self.inner.reset(seed=seed)

    def step(self, action):
        return self.inner.step(action)


class Forgets(Base):
    """Its pickle has lost the generator of random numbers."""

    def __getstate__(self):
        return vars(self) | {"_np_random": None}


class OnlySuccess(Base):
    """`success` is in info only where there was one, and lengths differ."""

    def reset(self, **kwargs):
        result = super().reset(**kwargs)
        self.limit = int(self.np_random.integers(5, 15))
        return result

    def info(self, action):
        return {"success": True} if action == 1 else {}


class Reuse(Base):
    """One buffer for all observations, which are the time. Episodes end by truncation."""

    def __init__(self):
        self.buffer = np.zeros(3, np.float32)

    def obs(self):
        self.buffer[:] = self.t
        return self.buffer

    def step(self, action):
        obs, reward, end, _, info = super().step(action)
        return obs, reward, False, end, info


class Lock(Reuse):
    """pickle refuses its state."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Inf(Base):
    """A sensor that overflows now and then."""

    def obs(self):
        x = super().obs()
        x[0] = np.inf if self.t == 7 else x[0]
        return x


class NanReward(Base):
    def reward(self, action):
        return float("nan") if self.t == 5 else 1.0


class GlobalRandom(Base):
    """Draws from numpy's global stream."""

    def obs(self):
        return np.random.normal(size=3).astype(np.float32)  # noqa: NPY002


class PyRandom(Base):
    """Draws from Python's global stream."""

    def obs(self):
        return np.array([random.random() for _ in range(3)], np.float32)


class Far(Base):
    """Actions far from 0, of which 15 is the best."""

    action_space = Box(10.0, 20.0, (1,), np.float32)

    def reward(self, action):
        return -abs(float(action[0]) - 15)


class From5(Base):
    """Actions 5, 6 and 7, of which 6 is the best."""

    action_space = Discrete(3, start=5)

    def reward(self, action):
        assert self.action_space.contains(action)
        return float(action == 6)


class Records(Base):
    """Keeps the actions that it gets and the observations that it gives, of any spaces."""

    def __init__(self, observations=Base.observation_space, actions=Base.action_space):
        self.observation_space, self.action_space = observations, actions
        self.given, self.got = [], []

    def obs(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.given.append(self.observation_space.sample())
        return self.given[-1]

    def reward(self, action):
        self.got.append(action)
        return 0.0


class NeedsArgument(Base):
    def __init__(self, path):
        self.path = path


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

for name, cls in list(globals().items()):
    if isinstance(cls, type) and issubclass(cls, gym.Env) and cls is not Base:
        gym.register(f"{name}-v0", entry_point=f"field_envs:{name}")
for name, space in SPACES.items():
    gym.register(f"{name}Observations-v0", entry_point="field_envs:Records", kwargs={"observations": space})
for name, space in BOXES.items():
    gym.register(f"{name}Actions-v0", entry_point="field_envs:Records", kwargs={"actions": space})
gym.register("CartPoleNoLimit-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv")  # no max_episode_steps
