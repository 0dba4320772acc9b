r"""Fine-tunes a model on examples: instructions with answers, conversations, or plain text.

    python -m experiments.finetune --base=runs/quickstart --recipe=small_talk
    python -m experiments.finetune --recipe=lora --base=checkpoints/llama \
        --data.sources=name=mine,path=examples.jsonl --data.template=chatml

The base is the folder of a run, or of a Hugging Face checkpoint with its tokenizer. Only the
assistant's turns are trained, including their end. With --peft.name=lora (or adapter, prefix, ia3)
only the added parameters are trained and saved. As in `experiments.pretrain`, the same command
continues after a kill.
"""

from experiments import flags, launch
from experiments.recipes import FINETUNING

flags.define(FINETUNING)

if __name__ == "__main__":
    flags.run(launch.main)
