"""Cost and communication of a compiled program, read from its HLO text."""

from llmjax.planning.program.collectives import Amounts, Collective, collectives
from llmjax.planning.program.cost import ProgramCost, program_cost

__all__ = ["Amounts", "Collective", "ProgramCost", "collectives", "program_cost"]
