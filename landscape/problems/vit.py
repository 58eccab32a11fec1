"""Vision transformer (arXiv:2010.11929) in the Tiny width of arXiv:2012.12877, for small images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.errors import LandscapeError


class Attention(nn.Module):
    """Multi-head self-attention with one joint projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, dim) -> (n, tokens, dim)."""
        n, tokens, dim = x.shape
        qkv = self.qkv(x).view(n, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, dim))


class EncoderBlock(nn.Module):
    """Pre-norm attention and a GELU MLP of four times the width."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, dim) -> (n, tokens, dim)."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, a class token, learned positions, `depth` blocks, LayerNorm, linear; no dropout."""

    def __init__(
        self,
        *,
        image: tuple[int, ...],
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        channels, height, width = image
        if height % patch or width % patch:
            raise LandscapeError(
                f"Images of {height} x {width} cannot be cut into patches of {patch} x {patch}; "
                f"give sides that are multiples of {patch}."
            )
        tokens = (height // patch) * (width // patch) + 1
        self.patches = nn.Conv2d(channels, dim, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, tokens, dim))
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, num_classes)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit_tiny(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """ViT-Ti/4 (dim 192, depth 12, 3 heads): 5 362 762 parameters on 3x32x32 with 10 classes.

    Images of 3x224x224 are cut into patches of 16: 5 717 416 with 1 000 classes (DeiT-Ti).
    """
    return _vit(192, 3, num_classes, input_shape)


def vit_small(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """ViT-S (dim 384, depth 12, 6 heads): 21 342 346 parameters on 3x32x32 with 10 classes.

    Images of 3x224x224 are cut into patches of 16: 22 050 664 with 1 000 classes (DeiT-S).
    """
    return _vit(384, 6, num_classes, input_shape)


def _vit(dim: int, heads: int, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    patch = 16 if input_shape[1] >= 224 else 4
    return ViT(
        image=input_shape, patch=patch, dim=dim, depth=12, heads=heads, num_classes=num_classes
    )
