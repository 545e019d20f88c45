"""Where noise comes from. *Research* noise: floating point, fast, seedable; for evaluation and sweeps only.

A float sampler is not a release mechanism: the low bits of its output depend on the input in ways that the proof of
the real-valued mechanism does not cover (Mironov, "On significance of the least significant bits for differential
privacy", CCS 2012).
"""

from __future__ import annotations

import secrets
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Generator: TypeAlias = "np.random.Generator | torch.Generator | None"


class ResearchNoise:
    """Standard normal numbers from a given generator, or from a fresh one that no seed in the program controls.

    Args:
        generator: None (default) seeds a torch generator of its own from the operating system (on a CPU torch uses 32
            bits of a seed: enough for research, never for a release). A given one is used as it is, and moves on: the
            same generator twice gives different noise.
        device: where the noise is needed. A generator on another device draws there, and the noise is moved.

    Raises:
        TypeError: ``generator`` is anything else, such as a seed.
    """

    def __init__(self, generator: Generator, device: torch.device) -> None:
        if generator is None:
            generator = torch.Generator(device=device).manual_seed(secrets.randbits(63))
        elif not isinstance(generator, (np.random.Generator, torch.Generator)):
            raise TypeError(
                f"generator is {generator!r}, must be None, a numpy Generator or a torch.Generator. "
                "Pass for example np.random.default_rng(0)."
            )
        self._generator = generator
        self._device = device

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return standard normal numbers of ``shape``; ``dtype`` is float32 or float64."""
        if isinstance(self._generator, torch.Generator):
            drawn = torch.randn(shape, generator=self._generator, device=self._generator.device, dtype=dtype)
        elif dtype == torch.float64:
            drawn = torch.from_numpy(self._generator.standard_normal(shape))
        else:
            drawn = torch.from_numpy(self._generator.standard_normal(shape, dtype=np.float32))
        return drawn.to(self._device)

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Return ``count`` uniform numbers in (0, 1], always on the CPU."""
        if isinstance(self._generator, torch.Generator):
            device = self._generator.device
            drawn = torch.rand(count, generator=self._generator, device=device, dtype=torch.float64).cpu().numpy()
        else:
            drawn = self._generator.random(count)
        return 1.0 - drawn
