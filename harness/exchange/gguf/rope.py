"""Llama 3's scaling of rotary frequencies, found again in the factors that GGUF files hold in its place."""

import numpy as np


def llama3_factors(settings: dict, theta: float, head_dim: int) -> np.ndarray:
    """What Llama 3's scaling divides each rotary frequency by, float64 (D / 2)."""
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = settings["original_max_position_embeddings"] * frequency / (2 * np.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - share) / settings["factor"] + share)


def llama3_settings(factors: np.ndarray, theta: float, head_dim: int) -> dict | None:
    """The settings of Llama 3's scaling that give these factors; None if none are found.

    factors: float (D / 2), what the converter computed from the settings

    In the knee the share of the unscaled frequency is a straight line over the frequency, so two factors there give
    `original / low` and `high / low`; only these count. Without two, the published models' are tried.
    """
    factors = factors.astype(np.float64)
    factor = float(f"{factors.max():.6g}") if factors.size else 1.0
    if factors.shape != (head_dim // 2,) or not factor > 1:
        return None
    candidates = [(4.0, 8192)]
    knee = (factors > 1 + 1e-6) & (factors < factor * (1 - 1e-6))
    if knee.sum() > 1:
        share = (1 / factors[knee] - 1 / factor) / (1 - 1 / factor)
        turns = theta ** (-np.arange(0, head_dim, 2) / head_dim)[knee] / (2 * np.pi)
        slope, start = np.polyfit(turns, share, 1)  # original / (high - low), -low / (high - low)
        if start < 0 < slope:
            candidates.append((float(f"{1 - 1 / start:.5g}"), round(-slope / start)))
    for high, original in candidates:
        settings = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
        if high > 1 and np.allclose(llama3_factors(settings, theta, head_dim), factors, rtol=1e-5, atol=0):
            return settings
    return None
