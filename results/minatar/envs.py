"""MinAtar's games as Gymnasium environments: results.minatar.envs:MinAtar/Breakout-v1, for example.

Gymnasium loads no plugins since its version 1.0, so MinAtar's function that registers them is called here.
"""

from minatar.gym import register_envs

register_envs()
