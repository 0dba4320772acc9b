"""What a compiled program costs and moves, read from its text."""

from llmjax.planning.program.collectives import Collective, collectives
from llmjax.planning.program.cost import ProgramCost, program_cost

__all__ = ["Collective", "ProgramCost", "collectives", "program_cost"]
