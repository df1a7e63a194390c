"""Killed at any moment, the next start finds a whole checkpoint."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

# Saves as fast as it can; every value of a checkpoint is a function of its step.
RUN = textwrap.dedent("""
    import sys
    import jax
    import jax.numpy as jnp
    import numpy as np
    from modbrick.checkpoints import CheckpointConfig, CheckpointStore, Metadata
    from modbrick.config import *

    directory, seconds = sys.argv[1], float(sys.argv[2])
    layer = LayerConfig(AttentionConfig(1, 4), FeedForwardConfig(4))
    metadata = Metadata(ModelConfig(8, 4, (SegmentConfig(layer),)))
    def state(step):
        key = jax.random.key(step)
        return {"w": jax.random.normal(key, (300, 1000))}, {"count": jnp.int32(step)}
    abstract = jax.eval_shape(lambda: state(0))
    with CheckpointStore(directory, CheckpointConfig(keep_latest=2), warn=print) as store:
        restored = store.restore_latest(*abstract)
        step = 0
        if restored is not None:
            step = restored.step
            for a, b in zip(jax.tree.leaves(state(step)),
                            jax.tree.leaves((restored.parameters, restored.optimizer_state))):
                assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        print("restored", step, flush=True)
        for step in range(step + 1, step + 10_000) if seconds else ():
            store.save(step, *state(step), metadata)
            print("saved", step, flush=True)
""")


def rounds(directory, count):
    """Starts and kills the run, and checks what every start finds; returns lines of all starts."""
    command = [sys.executable, "-c", RUN, str(directory)]
    rng, asked, restored = random.Random(count), 0, 0
    lines: list[str] = []
    for number in range(count + 1):
        last = number == count
        child = subprocess.Popen(
            [*command, "0" if last else "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            printed: list[str] = []
            assert child.stdout is not None
            for line in child.stdout:
                printed.append(line)
                if line.startswith("saved") and len(printed) >= 6:
                    time.sleep(rng.uniform(0, 0.4))
                    child.send_signal(signal.SIGKILL)
                    break
            output, errors = child.communicate(timeout=100)
        finally:
            child.kill()
            child.wait()
        assert child.returncode == (0 if last else -signal.SIGKILL), errors[-2000:]
        printed += output.splitlines(keepends=True)
        restored = next(int(x.split()[1]) for x in printed if x.startswith("restored"))
        # A call of save waits for the save before it: at most one was on its way.
        assert restored >= asked - 1
        assert not any("damaged" in line for line in printed)
        asked = max([asked, *(int(x.split()[1]) for x in printed if x.startswith("saved"))])
        lines += printed
    assert restored >= 3 * count  # at least four saves a start, of which a kill takes one
    return lines


def test_sigkill_while_saving(tmp_path):
    rounds(tmp_path / "run", 2)
    assert all(name.isdecimal() for name in os.listdir(tmp_path / "run/checkpoints"))


@pytest.mark.verify
def test_sigkill_while_saving_many_times(tmp_path):
    assert any("never finished" in line for line in rounds(tmp_path / "run", 15))
