r"""Reinforcement learning: PPO, GRPO and their relatives.

    python -m experiments.rl --recipe=ppo --base=runs/small_talk --run_dir=runs/ppo \
        --rewards=name=model,source=runs/reward --data.sources=name=mine,path=prompts.jsonl
    python -m experiments.rl --recipe=grpo --base=checkpoints/llama \
        --rewards=name=right,source=llmjax.rl.rewards:matches_answer \
        --data.sources=name=sums,path=sums.jsonl

A record has a prompt, and whatever a reward needs to judge an answer. A reward is a run of
`experiments.reward`, the mean of several (source=runs/reward_*), or a Python function of
`llmjax.rl.Sample`s; several are added with weights.
What --gold names is asked on held-out prompts only: it tells whether the policy pleases the reward
alone.
"""

from experiments import flags, launch
from experiments.recipes import REINFORCING

flags.define(REINFORCING)

if __name__ == "__main__":
    flags.run(launch.main)
