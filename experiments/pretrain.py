"""Pretrains a language model: a decoder by the next token, or an encoder.

    python -m experiments.pretrain --recipe=tiny --run_dir=runs/tiny
    python -m experiments.pretrain --recipe=modernbert_tiny --run_dir=runs/modernbert_tiny
    python -m experiments.pretrain --recipe=deberta_tiny --run_dir=runs/deberta_tiny
    python -m experiments.pretrain --recipe=gpt2_small --data.sources=name=web,path=/data/web

The recipe's objective is clm, mlm (tokens are hidden: BERT) or rtd (tokens are replaced: ELECTRA).
Prepares the recipe's text if that is not done, trains, evaluates, writes samples (clm), and ends
with RUN_DIR/report.html. Run the same command again after a kill: it goes on from the last
checkpoint and arrives at the same parameters, byte for byte, as a run never interrupted. On SIGTERM
or Ctrl-C it saves, says how to go on, and exits with 0.
"""

from experiments import flags, launch
from experiments.recipes import RECIPES

flags.define(RECIPES)

if __name__ == "__main__":
    flags.run(launch.main)
