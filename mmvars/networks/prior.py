"""What the top-down signal looks for: the prior vector of Section 2.5."""

import torch
from torch import Tensor, nn

from mmvars.errors import InputError, check_number
from mmvars.layers.tracing import can_look

__all__ = ['PRIORS', 'ClassPrototype', 'GivenVector', 'LearnedQuery', 'Prior', 'token_mask']

_EPS = 1e-12


def token_mask(tokens: Tensor, prior: Tensor) -> Tensor:
    """Cosine similarity of every token with the prior, clamped to [0, 1] (Section 2.5).

    Args:
        tokens: ``(B, N, C)``.
        prior: ``(B, C)`` or ``(1, C)``, of any precision: text embeddings often have another one.

    Returns:
        ``(B, N, 1)`` in the precision of the tokens. Differentiable in both arguments.
    """
    # (x . p) / |x| needs no normalised copy of the tokens.
    direction = prior / torch.linalg.vector_norm(prior, dim=-1, keepdim=True).clamp_min(_EPS)
    dot = (tokens * direction.unsqueeze(1)).sum(dim=-1, keepdim=True)
    length = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True).clamp_min(_EPS)
    return (dot / length).clamp(0, 1).to(tokens.dtype)


class Prior(nn.Module):
    """A source of prior vectors. A vector given for the call always wins over the module's own.

    Args:
        embed_dim: Width C of the vectors.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim

    def forward(self, given: Tensor | None, batch_size: int) -> Tensor:
        """The prior of each image.

        Args:
            given: ``None`` for the module's own; a float tensor ``(C,)`` or ``(B, C)``; or, for
                :class:`ClassPrototype`, integer class ids of shape ``()`` or ``(B,)``.
            batch_size: B.

        Returns:
            ``(1, C)``, one prior for the batch, or ``(B, C)``.

        Raises:
            InputError: If type or shape do not fit, or nothing was given where something must be.
        """
        if given is None:
            return self.own()
        if not isinstance(given, Tensor) or given.dtype == torch.bool or given.is_complex():
            found = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise InputError(f'prior must be a tensor, a float vector of width {self.embed_dim} or '
                             f'integer class ids, such as torch.tensor(3); got {found}')
        if not given.is_floating_point():
            return self.of_classes(given.reshape(-1) if given.ndim == 0 else given, batch_size)
        vectors = given.unsqueeze(0) if given.ndim == 1 else given
        if vectors.shape not in ((batch_size, self.embed_dim), (1, self.embed_dim)):
            raise InputError(f'prior must have shape ({self.embed_dim},) or ({batch_size}, '
                             f'{self.embed_dim}), got {tuple(given.shape)}')
        return vectors

    def own(self) -> Tensor:
        """The prior ``(1, C)`` where none is given for the call."""
        raise InputError(f'{type(self).__name__} has no prior of its own; give one for the call: '
                         f'prior=<tensor of width {self.embed_dim}>')

    def of_classes(self, class_ids: Tensor, batch_size: int) -> Tensor:
        """The priors ``(1 or B, C)`` of integer ids."""
        del class_ids, batch_size
        raise InputError(f'{type(self).__name__} knows no classes; give a float vector of width '
                         f'{self.embed_dim}, or build the network with prior="class_prototype"')


class LearnedQuery(Prior):
    """One vector, learned with the network: the prior of the released classifiers (xi)."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__(embed_dim)
        self.query = nn.Parameter(torch.empty(embed_dim))
        nn.init.normal_(self.query)

    def own(self) -> Tensor:
        return self.query.unsqueeze(0)


class ClassPrototype(Prior):
    """Rows of a classifier's weight: "look for class k" (Sections 2.5 and 2.6).

    Args:
        embed_dim: Width C.
        num_classes: Rows K of the table.

    Attributes:
        prototypes: Buffer ``(K, C)``, to be loaded or copied from a classifier.
    """

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__(embed_dim)
        check_number('num_classes of the class prototypes', num_classes, 1, 1_000_000, whole=True)
        self.register_buffer('prototypes', torch.zeros(num_classes, embed_dim))

    @classmethod
    def from_classifier(cls, classifier: nn.Linear) -> 'ClassPrototype':
        """A copy of the weight ``(K, C)`` of a linear classifier."""
        prior = cls(classifier.in_features, classifier.out_features)
        prior.prototypes.copy_(classifier.weight.detach())
        return prior

    def of_classes(self, class_ids: Tensor, batch_size: int) -> Tensor:
        num_classes = len(self.prototypes)
        if class_ids.shape not in ((batch_size,), (1,)):
            raise InputError(f'prior must be one class id or {batch_size} of them, got shape '
                             f'{tuple(class_ids.shape)}')
        # Where no number can be read, the gather itself refuses an id that is out of range.
        if can_look(class_ids) and (class_ids.min() < 0 or class_ids.max() >= num_classes):
            raise InputError(f'prior names class {class_ids.tolist()}; the classes are 0 to '
                             f'{num_classes - 1}')
        return self.prototypes.index_select(0, class_ids.long())


class GivenVector(Prior):
    """No prior of its own: every call brings one, for instance a text embedding."""


PRIORS: dict[str, type[Prior]] = {
    'learned_query': LearnedQuery,
    'class_prototype': ClassPrototype,
    'given': GivenVector,
}
