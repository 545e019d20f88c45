"""Where the randomness of a release comes from: the operating system, and nothing else.

Integers come from ``os.urandom`` (by :mod:`secrets`): the kernel's generator, on Linux ChaCha20 under a 256-bit key
that never leaves the kernel, safe across forks. opendp, which draws the discrete Gaussian, uses OpenSSL's AES-256
counter generator, seeded by the operating system and re-seeded after a fork. Neither takes a seed here, and this
package holds, logs and writes no state of theirs.
"""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt


class Entropy:
    """Integers from the operating system; takes no seed and has no state to copy.

    Raises:
        TypeError: given any argument, such as a seed.
    """

    def __init__(self, *arguments: object, **named: object) -> None:
        if arguments or named:
            raise TypeError(
                "a release takes no seed and no generator: whoever knows it subtracts the noise. "
                "Leave it out; for reproducible figures use research noise (Mechanism.privatize)."
            )

    def below(self, bound: int, count: int) -> list[int]:
        """Return ``count`` integers, each uniform in [0, bound)."""
        return [secrets.randbelow(bound) for _ in range(count)]

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """Return a uniform permutation of 0 .. count - 1."""
        order = list(range(count))
        secrets.SystemRandom().shuffle(order)
        return np.asarray(order, dtype=np.int64)
