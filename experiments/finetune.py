r"""Fine-tunes a model on examples: instructions with answers, conversations, or plain text.

    python -m experiments.finetune --base=runs/quickstart --recipe=small_talk
    python -m experiments.finetune --recipe=lora --base=checkpoints/llama \
        --data.sources=name=mine,path=examples.jsonl --data.template=chatml

The base is the folder of a run, or of a Hugging Face checkpoint with its tokenizer. Only what the
assistant says is trained, the end of its turn included. With --peft.name=lora (or adapter, prefix,
ia3) what is added to the model is all that trains and all that checkpoints hold. Looked after as
`experiments.pretrain` is: the same command goes on after a kill.
"""

from experiments import flags, launch
from experiments.recipes import FINETUNING

flags.define(FINETUNING)

if __name__ == "__main__":
    flags.run(launch.main)
