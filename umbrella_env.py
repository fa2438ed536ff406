"""Umbrella Length, bsuite's pure credit-assignment task, for Gymnasium.

    env = gym.make("umbrella_env:UmbrellaLength-v0", chain_length=50)
    envs = gym.make_vec("umbrella_env:UmbrellaLength-v0", num_envs=20,
                        vectorization_mode="vector_entry_point", chain_length=50)

Two ids, the same task at two scales of reward:
    umbrella_env:UmbrellaLength-v0         noise 0.1, final 10, no distractors (the MetaIRN paper, section 4)
    umbrella_env:UmbrellaLengthBsuite-v0   noise 1, final 1, 20 distractors    (bsuite)

References:
    Osband et al., "Behaviour Suite for Reinforcement Learning", ICLR 2020
    google-deepmind/bsuite: bsuite/environments/umbrella_chain.py
"""

import math

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space


def check_arguments(chain_length, n_distractor, noise_reward, final_reward):
    """Raises ValueError, naming the argument, unless the four describe a legal Umbrella chain."""
    for name, value, least in [("chain_length", chain_length, 1), ("n_distractor", n_distractor, 0)]:
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    for name, value in [("noise_reward", noise_reward), ("final_reward", final_reward)]:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is the size of a reward, a finite number of at least 0, got {value!r}")


class UmbrellaEnv(gym.Env):
    """Umbrella Length: take the umbrella or not at the first step, learn whether that was right at the last.

    The contract is bsuite's (google-deepmind/bsuite: bsuite/environments/umbrella_chain.py), reward sizes apart.

    Observation: float32 [3 + n_distractor], each in [0, 1]: `[need, have, 1 - t / chain_length, distractor bits...]`,
        where t counts the steps taken. A fresh array at every call.
    Action: 0 or 1. Only the first of an episode counts: it sets `have`. All others change nothing.
    Reward: steps 1 ... chain_length - 1 pay +noise_reward or -noise_reward by a fair coin, whatever the agent does;
        step chain_length pays +final_reward if have == need, else -final_reward.
    Random draws: `reset` draws need, then have (random until the first action), by fair coins. A step draws its reward
        coin (except the last step, which has none). Every observation, the first and the last of an episode included,
        then draws its distractor bits afresh.
    Termination: after chain_length steps; never truncated. chain_length 1 is legal.
    Info: empty, but for the last step: `regret` (2.0 if the first action was wrong, else 0.0: bsuite's count) and
        `success` (bool).

    hide_umbrella=True is not in bsuite: `have` then reads 0 throughout, so that between the first action and the final
    reward nothing tells what was done. A critic can then no longer shorten the delay by bootstrapping from
    V(s_1), while the policy needs no memory still: the best first action depends on `need` alone.

    invert_umbrella=True is not in bsuite: the final reward is then paid if have != need. What earns it is the same as
    ever, what is right is the opposite: a policy that is carried over starts at 0 % success, a credit assignment that
    is carried over is still right. Observations, random draws and all else stay as they are.

    Raises ValueError for illegal arguments or actions, gymnasium.error.ResetNeeded for a step outside an episode.
    """

    metadata = {"render_modes": []}

    def __init__(
        self,
        chain_length=50,
        n_distractor=0,
        noise_reward=0.1,
        final_reward=10.0,
        hide_umbrella=False,
        invert_umbrella=False,
    ):
        check_arguments(chain_length, n_distractor, noise_reward, final_reward)
        self.chain_length, self.n_distractor = chain_length, n_distractor
        self.noise_reward, self.final_reward = noise_reward, final_reward
        self.hide_umbrella, self.invert_umbrella = hide_umbrella, invert_umbrella
        self.observation_space = gym.spaces.Box(0.0, 1.0, (3 + n_distractor,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.timestep = chain_length  # outside an episode until the first reset

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.timestep = 0
        self.need = self.np_random.integers(2)
        self.have = self.np_random.integers(2)
        return self._observation(), {}

    def step(self, action):
        if self.timestep == self.chain_length:
            raise ResetNeeded("the episode is over or has not begun: call reset() before step()")
        if not self.action_space.contains(action):
            raise ValueError(f"action must be the integer 0 or 1, got {action!r}")
        self.timestep += 1
        if self.timestep == 1:
            self.have = int(action)
        if self.timestep < self.chain_length:
            reward = self.noise_reward * (2.0 * self.np_random.integers(2) - 1.0)
            return self._observation(), float(reward), False, False, {}
        success = bool((self.have == self.need) != self.invert_umbrella)
        reward = self.final_reward if success else -self.final_reward
        return self._observation(), float(reward), True, False, {"regret": 0.0 if success else 2.0, "success": success}

    def _observation(self):
        have = 0 if self.hide_umbrella else self.have
        distractors = self.np_random.integers(2, size=self.n_distractor)
        return np.array([self.need, have, 1 - self.timestep / self.chain_length, *distractors], np.float32)


class UmbrellaVectorEnv(gym.vector.VectorEnv):
    """`num_envs` copies of UmbrellaEnv stepped by a handful of numpy calls; same arguments, same contract.

    All episodes have the same length, so all start and end together and one clock serves them all. One random stream
    serves them too, each draw being made for all environments at once, in UmbrellaEnv's order: with num_envs=1 and the
    same seed the two agree step by step.

    Autoreset is SAME_STEP: `step` returns the first observation of the next episode where one ends, and the last one
    of the old episode in `infos["final_obs"]`, its info in `infos["final_info"]`, laid out as SyncVectorEnv does.
    Shapes: observations float32 [num_envs, 3 + n_distractor]; rewards float64, terminations and truncations bool
    [num_envs]. `reset(seed=...)` takes an integer, or a sequence of integers that together seed the one stream.

    Raises what UmbrellaEnv raises; ValueError too for `options={"reset_mask": ...}`, which the one clock rules out.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        num_envs=1,
        chain_length=50,
        n_distractor=0,
        noise_reward=0.1,
        final_reward=10.0,
        hide_umbrella=False,
        invert_umbrella=False,
    ):
        check_arguments(chain_length, n_distractor, noise_reward, final_reward)
        if not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"num_envs must be an integer of at least 1, got {num_envs!r}")
        self.num_envs = num_envs
        self.chain_length, self.n_distractor = chain_length, n_distractor
        self.noise_reward, self.final_reward = noise_reward, final_reward
        self.hide_umbrella, self.invert_umbrella = hide_umbrella, invert_umbrella
        self.single_observation_space = gym.spaces.Box(0.0, 1.0, (3 + n_distractor,), np.float32)
        self.single_action_space = gym.spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.timestep = chain_length  # outside an episode until the first reset

    def reset(self, *, seed=None, options=None):
        if options and "reset_mask" in options:
            raise ValueError("all environments share one clock: reset_mask is not supported, reset them together")
        if seed is not None:
            self.np_random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        return self._begin_episodes(), {}

    def step(self, actions):
        if self.timestep == self.chain_length:
            raise ResetNeeded("no episode has begun: call reset() before step()")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu" or (actions >> 1).any():
            raise ValueError(f"actions must be {self.num_envs} integers 0 or 1, got {actions!r}")
        self.timestep += 1
        if self.timestep == 1:
            self.have = actions.astype(np.int64)
        if self.timestep < self.chain_length:
            rewards = self.noise_reward * (2.0 * self._coins(self.num_envs) - 1.0)  # [N]
            no = np.zeros(self.num_envs, bool)
            return self._observations(), rewards, no, no.copy(), {}
        success = (self.have == self.need) != self.invert_umbrella  # [N]
        rewards = np.where(success, float(self.final_reward), -float(self.final_reward))
        yes = np.ones(self.num_envs, bool)
        final_obs = np.empty(self.num_envs, object)
        final_obs[:] = list(self._observations())
        final_info = {"regret": np.where(success, 0.0, 2.0), "_regret": yes, "success": success, "_success": yes.copy()}
        infos = {"final_obs": final_obs, "_final_obs": yes.copy(), "final_info": final_info, "_final_info": yes.copy()}
        return self._begin_episodes(), rewards, yes.copy(), np.zeros(self.num_envs, bool), infos

    def _begin_episodes(self):
        self.timestep = 0
        self.need = self._coins(self.num_envs)
        self.have = self._coins(self.num_envs)
        return self._observations()

    def _observations(self):
        obs = np.zeros((self.num_envs, 3 + self.n_distractor), np.float32)
        obs[:, 0] = self.need
        if not self.hide_umbrella:
            obs[:, 1] = self.have
        obs[:, 2] = 1 - self.timestep / self.chain_length
        obs[:, 3:] = self._coins((self.num_envs, self.n_distractor))
        return obs

    def _coins(self, size):
        return self.np_random.integers(2, size=size)


ENTRY_POINTS = {"entry_point": "umbrella_env:UmbrellaEnv", "vector_entry_point": "umbrella_env:UmbrellaVectorEnv"}
gym.register("UmbrellaLength-v0", **ENTRY_POINTS)
BSUITE = {"noise_reward": 1.0, "final_reward": 1.0, "n_distractor": 20}
gym.register("UmbrellaLengthBsuite-v0", **ENTRY_POINTS, kwargs=BSUITE)
