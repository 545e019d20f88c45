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
        self._offered: torch.Tensor | None = None

    def offer(self, memory: torch.Tensor) -> None:
        """Let the next :meth:`normal` draw into ``memory`` and return it, if shape, type and device fit; once."""
        self._offered = memory

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, sigma: float = 1.0) -> torch.Tensor:
        """Return normal numbers of ``shape`` with standard deviation ``sigma``; ``dtype`` is float32 or float64."""
        offered, self._offered = self._offered, None
        if isinstance(self._generator, torch.Generator):
            device = self._generator.device
            if offered is not None and (offered.shape, offered.dtype, offered.device) == (shape, dtype, device):
                return offered.normal_(0.0, sigma, generator=self._generator)
            drawn = torch.empty(shape, device=device, dtype=dtype)
            return drawn.normal_(0.0, sigma, generator=self._generator).to(self._device)
        if dtype == torch.float64:
            drawn = torch.from_numpy(self._generator.standard_normal(shape))
        else:
            drawn = torch.from_numpy(self._generator.standard_normal(shape, dtype=np.float32))
        return drawn.mul_(sigma).to(self._device)

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Return ``count`` uniform numbers in (0, 1], always on the CPU."""
        if isinstance(self._generator, torch.Generator):
            device = self._generator.device
            drawn = torch.rand(count, generator=self._generator, device=device, dtype=torch.float64).cpu().numpy()
        else:
            drawn = self._generator.random(count)
        return 1.0 - drawn
