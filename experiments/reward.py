r"""Trains a reward model on comparisons of answers (Bradley and Terry).

    python -m experiments.reward --base=runs/small_talk \
        --data.sources=name=mine,path=pairs.jsonl --run_dir=runs/reward

A record has a prompt with chosen and rejected answers, or with responses from best to worst, and
optionally a margin. The base is the folder of a run, or of a Hugging Face checkpoint.
"""

from experiments import flags, launch
from experiments.recipes import REWARD

flags.define(REWARD, default="pairs")

if __name__ == "__main__":
    flags.run(launch.main)
