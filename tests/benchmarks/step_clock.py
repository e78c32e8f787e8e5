"""`step_clock`: what the steps of a training take, without those that compile."""

import time

import numpy as np


def step_clock(library):
    """A callback of `library`, Keras or tf_keras; afterwards its `seconds` are (by the clock, of the processor).

    They last from the end of the second step, after which nothing is compiled, to the end of the last: two steps fewer
    than there were.
    """

    class StepClock(library.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            now = np.array([time.perf_counter(), time.process_time()])
            if batch == 1:
                self.started = now
            elif batch > 1:
                self.seconds = now - self.started

    return StepClock()
