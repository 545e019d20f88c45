"""De-ID losses: how far a decoded image is from its target."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..number_checks import require_whole
from ..registry import closest, parse_weights

KEY = "privacy.deid.loss"
_SSIM_WINDOW = 11  # pixels; with sigma 1.5, Wang et al. 2004


class DeIDLoss(nn.Module):
    r"""Distance between a decoded image and its de-identified target, a weighted sum of one or several losses.

    .. math:: L_\text{mse} = \frac{1}{BCHW} \sum (\hat x - T(x))^2, \quad
              L_\text{l1} = \frac{1}{BCHW} \sum |\hat x - T(x)|, \quad
              L_\text{ssim} = 1 - \text{SSIM}(\hat x, T(x))

    With several ``scales``, the mean of that over the images and versions of them that are 2, 4, ... times smaller
    (averages of 2 x 2, 4 x 4, ... pixels): smaller versions weigh coarse errors more. The paper names no norm; ``mse``
    at one scale is our default.

    Args:
        kind: ``mse``, ``l1`` or ``ssim``, or several with weights such as ``mse:1.0,ssim:0.2``. SSIM is torchmetrics',
            with a Gaussian window of 11 x 11 pixels, averaged over images, channels and all pixels; images are
            reflected at their borders, where the leakage figures leave pixels out.
        scales: number of scales, >= 1.

    Shape:
        decoded, target: (B, C, H, W), in [0, 1]: undo the ImageNet normalization first. Output: scalar, 0 = equal.

    Raises:
        ValueError: unknown ``kind``, ``scales`` below 1, shapes that differ, images too small for the scales or SSIM.

    Source:
        Kansal, Wong, Kankanhalli, WACV 2024 (De-ID decoder); SSIM: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004.

    Example:
        >>> DeIDLoss()(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2))
        tensor(1.)
        >>> DeIDLoss("mse:1.0,l1:0.5", scales=2)(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5))
        tensor(0.5000)
    """

    def __init__(self, kind: str = "mse", scales: int = 1) -> None:
        super().__init__()
        self.weights = parse_deid_loss(kind)
        self.kind = kind
        self.scales = require_whole("privacy.deid.scales", scales)

    def check_size(self, height: int, width: int) -> None:
        """Check that images of that size can be compared.

        Raises:
            ValueError: the size is no multiple of 2^(scales - 1), or SSIM's window does not fit the smallest scale.
        """
        factor = 2 ** (self.scales - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"privacy.deid.scales is {self.scales}, for which images of {height} x {width} must be multiples of "
                f"{factor} pixels. Use fewer scales, or another privacy.deid.height and privacy.deid.width."
            )
        if "ssim" in self.weights and min(height, width) // factor < _SSIM_WINDOW:
            raise ValueError(
                f"{KEY} has ssim, whose window of {_SSIM_WINDOW} pixels does not fit images of {height // factor} x "
                f"{width // factor} (scale {self.scales}). Use larger images or fewer privacy.deid.scales."
            )

    def forward(self, decoded: Tensor, target: Tensor) -> Tensor:
        """Mean distance over the batch."""
        if decoded.shape != target.shape:
            raise ValueError(f"decoded has shape {tuple(decoded.shape)}, target {tuple(target.shape)}; must be equal.")
        self.check_size(*decoded.shape[-2:])
        found = []
        for scale in range(self.scales):
            pair = [F.avg_pool2d(images, 2**scale) if scale else images for images in (decoded, target)]
            found += [weight * _LOSSES[name](*pair) for name, weight in self.weights.items()]
        return torch.stack(found).sum() / self.scales


def parse_deid_loss(kind: str) -> dict[str, float]:
    """Parse ``"mse"`` or ``"mse:1.0,ssim:0.2"`` into names and weights.

    Raises:
        ValueError: an unknown name (the nearest is suggested), a weight that is no number > 0, a name given twice.
    """

    def check(name: str) -> None:
        if name not in _LOSSES:
            names = sorted(_LOSSES)
            raise ValueError(f"{KEY} is '{name}'; allowed: {', '.join(names)}.{closest(name, names)}")

    return parse_weights(kind, key=KEY, check=check)


def _ssim_loss(decoded: Tensor, target: Tensor) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure  # imports for a second

    found = structural_similarity_index_measure(decoded, target, sigma=1.5, data_range=1.0)
    return 1 - found if isinstance(found, Tensor) else 1 - found[0]


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "ssim": _ssim_loss}
