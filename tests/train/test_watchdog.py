"""The watchdog ends a process that hangs, and only that."""

import subprocess
import sys
import textwrap
import time

import pytest

from llmjax.train.loop import Tick
from llmjax.train.watchdog import Watchdog

HANGS = """
    import sys, time
    from llmjax.train.loop import Tick
    from llmjax.train.watchdog import Watchdog

    def waits_for_a_peer_that_is_gone():
        time.sleep(60)

    with Watchdog(0.3, sys.argv[1]) as watchdog:
        time.sleep(0.6)  # compiles
        watchdog(Tick(7, {}, 0.6))
        waits_for_a_peer_that_is_gone()
"""


def test_a_hang_ends_with_124_and_all_stacks(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(HANGS), str(tmp_path)]
    began = time.monotonic()
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert time.monotonic() - began < 50
    assert run.returncode == 124
    for text in (run.stderr, (tmp_path / "watchdog.txt").read_text()):
        assert "nothing completed for 0.3 s after step 7" in text
        assert "waits_for_a_peer_that_is_gone" in text


def test_steps_and_batches_feed_it_and_off_is_off(tmp_path):
    with Watchdog(0.5, tmp_path) as watchdog:
        for step in watchdog.watched(range(12)):
            if step < 6:
                watchdog(Tick(step, {}, 0.1))
            time.sleep(0.15)
    with Watchdog(None, tmp_path) as watchdog:
        watchdog(Tick(1, {}, 0.1))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="seconds=0"):
        Watchdog(0, tmp_path)
