"""Loss spikes."""

from math import sqrt


class SpikeDetector:
    """Detects loss spikes: a loss far above its recent running mean, after a short instability.

    Far means more than `DEVIATIONS` running standard deviations, and at least `MIN_JUMP` nats. Mean and deviation
    follow every loss; one beyond the limit counts as the limit, so that a spike does not hide the next one, while
    harder text soon becomes the norm.

    first: number of losses that are not judged, since they fall fast
    """

    DEVIATIONS, MIN_JUMP = 8, 0.1
    # The mean follows a falling loss within some 10 steps, the spread within some 100.
    MEAN_WEIGHT, VARIANCE_WEIGHT = 0.1, 0.01

    def __init__(self, first: int = 50):
        self._first = first
        self._mean, self._variance, self._seen = 0.0, 0.0, 0

    def update(self, loss: float) -> bool:
        """Take the next loss, in nats. returns: whether it is a spike"""
        limit = self._mean + max(self.DEVIATIONS * sqrt(self._variance), self.MIN_JUMP)
        spike = self._seen >= self._first and loss > limit
        loss = min(loss, limit) if spike else loss
        if self._seen:
            above = (loss - self._mean) ** 2
            self._variance += max(self.VARIANCE_WEIGHT, 1 / self._seen) * (above - self._variance)
        self._seen += 1
        self._mean += max(self.MEAN_WEIGHT, 1 / self._seen) * (loss - self._mean)
        return spike
