"""What methods with prototypes share: SwAV and DINO tell images apart by which prototype they name.

A prototype is a learned direction. The cosines of a projection with all of them are its logits; the
views of an image are to have the same distribution over prototypes.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.methods.method import scalar
from diptych.runtime.distributed import gather_rows


def build_prototypes(count: int, *, dim: int, seed: int) -> nn.Linear:
    """Prototypes in random directions, as the rows of a weight.

    Args:
        count: of them.
        dim: length of a projection.
        seed: of the directions; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prototypes = nn.Linear(dim, count, bias=False)
    with torch.no_grad():
        normalize_(prototypes)
    return prototypes


@torch.no_grad()
def normalize_(prototypes: nn.Linear) -> None:
    """Gives each prototype length one, in place."""
    prototypes.weight.copy_(nn.functional.normalize(prototypes.weight, dim=1))


def cross_entropy_of_views(
    targets: Float[Tensor, "targets images prototypes"],
    logits: Float[Tensor, "views images prototypes"],
) -> Float[Tensor, ""]:
    """Cross-entropy of each view with the targets of the image's other views, in nats.

    The mean of -sum_k q_k log p_k over images and all pairs of a view and another view's target
    (SwAV, eq. 2 and section 3.2; DINO, eq. 3).

    Args:
        targets: the q, that sum to 1 over prototypes; of the first views. No gradient flows here.
        logits: of the p, divided by their temperature.

    Example:
        >>> sure, flat = torch.tensor([[[1.0, 0.0]]] * 2), torch.zeros(2, 1, 2)
        >>> float(cross_entropy_of_views(sure, flat))  # log(2)
        0.693...
    """
    count, images, _ = targets.shape
    log_predictions = torch.log_softmax(logits, dim=-1)
    # (targets, views), in one product; a view is not compared with its own target.
    products = targets.detach().flatten(1) @ log_predictions.flatten(1).T
    pairs = count * len(logits) - count
    return (products.diagonal().sum() - products.sum()) / (pairs * images)


@torch.no_grad()
def prototype_metrics(
    targets: Float[Tensor, "targets images prototypes"],
    logits: Float[Tensor, "views images prototypes"],
    loss: Tensor,
) -> dict[str, Tensor]:
    """What the distributions of a batch say, collapse included.

    ``prototype_agreement`` is the share of images whose first view's likeliest prototype is that of
    the second view's target, and ``chance_prototype_agreement`` the same share among pairs of
    different images, of all processes: 1 where all images name one prototype, 1 / prototypes where
    all prototypes are named equally often. ``named_prototypes`` is the exponential of the entropy
    of how often the first views name each: how many are in use.

    ``target_entropy`` is that of a target, 0 where it is sure and log(prototypes) where it is flat;
    ``target_divergence`` what the loss is above it (DINO, section 5.3, eq. 5): where both images
    and prototypes are no longer told apart it is 0.

    Args:
        targets: as for ``cross_entropy_of_views``.
        logits: the same.
        loss: what that function gave.
    """
    count = targets.shape[2]
    named, wanted = gather_rows(logits[0].argmax(dim=1)), gather_rows(targets[1].argmax(dim=1))
    alike, images = (named == wanted).sum(), len(named)
    by_view, by_target = (torch.bincount(one, minlength=count) for one in (named, wanted))
    others = ((by_view * by_target).sum() - alike).to(loss.dtype)
    entropy = torch.special.entr(targets).sum(dim=-1).mean()
    shares = by_view.to(loss.dtype) / images
    return {
        "chance_loss": scalar(math.log(count)),
        "prototype_agreement": alike.to(loss.dtype) / images,
        "chance_prototype_agreement": others / max(1, images * (images - 1)),
        "named_prototypes": torch.special.entr(shares).sum().exp(),
        "target_entropy": entropy,
        "target_divergence": loss.detach() - entropy,
    }
