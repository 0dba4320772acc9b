"""A signal saves the step under way, says how to go on, and ends the process with 0."""

import os
import signal

import pytest

from llmjax.train.checkpoint import Checkpointer
from llmjax.train.loop import Pause
from llmjax.train.preemption import SaveOnSignal
from tests.train.states import abstract, make_state


class Batches:
    def get_state(self):
        return {"position": 4}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_under_way_and_exits(number, tmp_path, capsys):
    before = signal.getsignal(number)
    with Checkpointer(tmp_path) as checkpointer:
        hook = SaveOnSignal(checkpointer, "python -m train --run_dir=here")
        try:
            assert not hook.due(3)
            os.kill(os.getpid(), number)
            assert hook.due(4)
            assert signal.getsignal(number) == before  # a second one ends the process
            pause = Pause(4, {"loss": 2.0}, 0.1, state=make_state(4), batches=Batches())
            with pytest.raises(SystemExit) as ended:
                hook(pause)
        finally:
            hook.restore_handlers()
        assert ended.value.code == 0
        said = capsys.readouterr().err
        assert f"{number.name}: saved step 4" in said
        assert said.splitlines()[-1].strip() == "python -m train --run_dir=here"
        restored = checkpointer.restore_latest(abstract(make_state(0)))
        assert (restored.step, restored.data) == (4, {"position": 4})
