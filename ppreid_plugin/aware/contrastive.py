"""The supervised contrastive loss of queries against gallery rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..number_checks import require_positive


def supervised_contrastive(scores: Tensor, pids: Tensor, temperature: float) -> Tensor:
    r"""Loss of ranking the rows of a batch for each of its images as a query; an image's own row is left out.

    .. math:: L = \frac{1}{|Q|} \sum_{i \in Q} \frac{-1}{|P(i)|} \sum_{p \in P(i)}
              \log \frac{\exp(s_{ip} / \tau)}{\sum_{j \ne i} \exp(s_{ij} / \tau)}

    P(i) are the other rows of i's person, Q the images that have any. A number added to all scores of a query changes
    nothing.

    Args:
        scores: score s of row j for query i.
        pids: person of each row.
        temperature: tau, in the unit of the scores, > 0.

    Shape:
        scores: (B, B); pids: (B,). Output: scalar, at least 0; natural logarithm.

    Raises:
        ValueError: the temperature is not > 0, shapes do not fit, or nobody has two images.

    Source:
        Khosla et al., NeurIPS 2020, arXiv 2004.11362, equation 2. Scores that differ by side are ours.

    Example:
        >>> supervised_contrastive(torch.zeros(4, 4), torch.tensor([0, 0, 1, 1]), 0.1).exp()
        tensor(3.)
    """
    require_positive("temperature", temperature, hint="such as 0.3")
    if scores.shape != (len(pids), len(pids)):
        raise ValueError(f"scores have shape {tuple(scores.shape)}, must be {(len(pids), len(pids))}: one row a pid.")
    own = torch.eye(len(pids), dtype=torch.bool, device=scores.device)
    positive = (pids[:, None] == pids[None]) & ~own
    counts = positive.sum(1)
    if not bool(counts.any()):
        raise ValueError(
            f"none of the {len(pids)} images of the batch shows the person of another one, so there is no pair to "
            "bring together. Use sampler.train_sampler RandomIdentitySampler with sampler.num_instances >= 2."
        )
    log_shares = F.log_softmax((scores / temperature).masked_fill(own, -torch.inf), dim=1)
    each = -torch.where(positive, log_shares, 0.0).sum(1)[counts > 0] / counts[counts > 0]
    return each.mean()
