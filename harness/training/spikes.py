"""Losses that lie far above those before them."""

from math import sqrt


class SpikeDetector:
    """Detects loss spikes, which a short-lived instability leaves behind.

    A spike lies more than `DEVIATIONS` running standard deviations, and at least `MIN_JUMP` nats, above the
    running mean. Both follow every loss; one beyond the limit counts as the limit, so that a spike does not hide
    the next one, while a text that has become harder, or a rarer kind of text, is soon the usual.

    first: losses that are not judged, as they fall fast
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
