r"""Reinforcement learning: PPO, GRPO and their variants.

    python -m experiments.rl --recipe=ppo --base=runs/small_talk --run_dir=runs/ppo \
        --rewards=name=model,source=runs/reward --data.sources=name=mine,path=prompts.jsonl
    python -m experiments.rl --recipe=grpo --base=checkpoints/llama \
        --rewards=name=right,source=llmjax.rl.rewards:matches_answer \
        --data.sources=name=sums,path=sums.jsonl

A record has a prompt, and any data that a reward needs to judge an answer. A reward is a run of
`experiments.reward`, the mean of several (source=runs/reward_*), or a Python function of
`llmjax.rl.Sample`s; several are added with weights. The rewards in --gold are only computed on
held-out prompts: they show whether the policy exploits the reward.
"""

from experiments import flags, launch
from experiments.recipes import REINFORCING

flags.define(REINFORCING)

if __name__ == "__main__":
    flags.run(launch.main)
