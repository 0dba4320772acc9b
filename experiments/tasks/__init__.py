"""Tasks: what a run of each kind of recipe learns."""

import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any

from experiments.recipe import Recipe, Training
from experiments.tasks.comparing import (
    PreferenceTask,
    Preferring,
    RewardModelling,
    RewardTask,
)
from experiments.tasks.finetuning import Finetuning, finetuning
from experiments.tasks.policy import PolicyTask
from experiments.tasks.pretraining import Pretraining
from experiments.tasks.reinforcing import Reinforcing
from experiments.tasks.task import Task

# Tasks by the type of the recipe.
TASKS: Mapping[type[Training], Callable[[Any, pathlib.Path], Task]] = types.MappingProxyType(
    {
        Recipe: Pretraining,
        Finetuning: finetuning,
        RewardModelling: RewardTask,
        Preferring: PreferenceTask,
        Reinforcing: PolicyTask,
    }
)
KINDS: Mapping[str, type[Training]] = types.MappingProxyType(
    {kind.__name__: kind for kind in TASKS}
)
