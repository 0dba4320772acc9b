"""Pretrains a language model: a decoder on next tokens, or an encoder.

    python -m experiments.pretrain --recipe=tiny --run_dir=runs/tiny
    python -m experiments.pretrain --recipe=modernbert_tiny --run_dir=runs/modernbert_tiny
    python -m experiments.pretrain --recipe=deberta_tiny --run_dir=runs/deberta_tiny
    python -m experiments.pretrain --recipe=gpt2_small --data.sources=name=web,path=/data/web

The recipe's objective is clm, mlm (masked tokens: BERT) or rtd (replaced tokens: ELECTRA). Prepares
the recipe's text if needed, trains, evaluates, writes samples (clm), and ends with
RUN_DIR/report.html. After a kill, run the same command again: it resumes from the last checkpoint
and reaches bitwise the same parameters as an uninterrupted run. On SIGTERM or Ctrl-C it saves,
prints how to resume, and exits with 0.
"""

from experiments import flags, launch
from experiments.recipes import RECIPES

flags.define(RECIPES)

if __name__ == "__main__":
    flags.run(launch.main)
