r"""Trains a policy on preferences without a reward model: DPO, IPO, KTO, ORPO, SimPO.

    python -m experiments.preference --base=runs/small_talk --preference.kind=dpo \
        --data.sources=name=mine,path=pairs.jsonl --run_dir=runs/dpo

A record has a prompt with chosen and rejected answers, or, for KTO, an answer and whether it is
good. The reference is the base: the same weights with --peft.name=lora, otherwise a frozen copy.
"""

from experiments import flags, launch
from experiments.recipes import PREFERENCE

flags.define(PREFERENCE, default="dpo")

if __name__ == "__main__":
    flags.run(launch.main)
