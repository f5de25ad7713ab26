"""What can be chosen: regimes, heads, and the settings of training."""

from __future__ import annotations

REGIMES = ("frozen", "finetuned", "lora")
TRAINED = REGIMES[1:]  # those in which the backbone itself learns
