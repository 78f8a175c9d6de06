"""The network that the zoo trains: a plain Llama, written for the speed of training on a CPU.

Knows the layout (RMSNorm, rotary positions, grouped queries, SwiGLU, tied embeddings) and its
Hugging Face names; knows nothing about serving, caches, tokenizers, data or optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class NetConfig:
    """The shape of a model. The defaults are those of `zoo/base` (7.3 M parameters)."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_layers: int = 8
    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 32
    intermediate_size: int = 768
    max_positions: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


def rotary_table(config: NetConfig, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head_dim], in the halves convention of Hugging Face's Llama."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    # The sign of `rotate_half` is folded into the sine so that rotating is a roll.
    sign = torch.ones(config.head_dim)
    sign[: config.head_dim // 2] = -1.0
    return angles.cos(), angles.sin() * sign


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `x` [batch, length, heads, head_dim]."""
    half = x.shape[-1] // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
    return x * cos[:, None, :] + swapped * sin[:, None, :]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x` divided by its root mean square along the last dimension, times `weight`."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


class Block(nn.Module):
    """One decoder layer. Query, key and value share a matrix, and so do gate and up: fewer, larger
    products; `Net.hf_state_dict` separates them again."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        query, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.norm1 = nn.Parameter(torch.ones(c.hidden_size))
        self.norm2 = nn.Parameter(torch.ones(c.hidden_size))
        self.qkv = nn.Parameter(torch.empty(query + 2 * kv, c.hidden_size))
        self.out = nn.Parameter(torch.zeros(c.hidden_size, query))
        self.gate_up = nn.Parameter(torch.empty(2 * c.intermediate_size, c.hidden_size))
        self.down = nn.Parameter(torch.zeros(c.hidden_size, c.intermediate_size))
        bound = math.sqrt(3.0 / c.hidden_size)
        nn.init.uniform_(self.qkv, -bound, bound)
        nn.init.uniform_(self.gate_up, -bound, bound)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The layer's output [batch, length, hidden] for `x` of the same shape."""
        c = self.config
        batch, length, _ = x.shape
        qkv = F.linear(rms_norm(x, self.norm1, c.norm_eps), self.qkv)
        qkv = qkv.view(batch, length, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        turned = c.num_heads + c.num_kv_heads
        qk = rotate(qkv[:, :, :turned], cos, sin)
        q = qk[:, :, : c.num_heads].transpose(1, 2)
        k = self._expand(qk[:, :, c.num_heads :])
        v = self._expand(qkv[:, :, turned:])
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.linear(mixed.transpose(1, 2).reshape(batch, length, -1), self.out)
        gate, up = F.linear(rms_norm(x, self.norm2, c.norm_eps), self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down)

    def _expand(self, kv: Tensor) -> Tensor:
        """[batch, length, kv_heads, d] -> [batch, heads, length, d]: consecutive query heads share
        a KV head. Written out, because `enable_gqa` is slower on a CPU."""
        c = self.config
        repeats = c.num_heads // c.num_kv_heads
        batch, length, heads, d = kv.shape
        wide = kv[:, :, :, None].expand(batch, length, heads, repeats, d)
        return wide.reshape(batch, length, c.num_heads, d).transpose(1, 2)


class Net(nn.Module):
    """Embedding, blocks, final norm. The head is the embedding, applied by `head_loss`."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        nn.init.normal_(self.embed, std=0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Normed hidden states [batch, length, hidden] of `tokens` [batch, length]."""
        x = F.embedding(tokens, self.embed)
        for block in self.blocks:
            x = block(x, cos, sin)
        return rms_norm(x, self.norm, self.config.norm_eps)

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [batch, length, vocab] of `tokens` [batch, length]."""
        cos, sin = rotary_table(self.config, tokens.shape[1])
        return F.linear(self(tokens, cos, sin), self.embed)

    def hf_state_dict(self) -> dict[str, Tensor]:
        """The weights under Hugging Face's Llama names; the tied head is not repeated."""
        c = self.config
        query, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        state: dict[str, Tensor] = {
            "model.embed_tokens.weight": self.embed,
            "model.norm.weight": self.norm,
        }
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            at = f"model.layers.{index}."
            q, k, v = torch.split(block.qkv, [query, kv, kv])
            gate, up = torch.chunk(block.gate_up, 2)
            state[at + "self_attn.q_proj.weight"] = q
            state[at + "self_attn.k_proj.weight"] = k
            state[at + "self_attn.v_proj.weight"] = v
            state[at + "self_attn.o_proj.weight"] = block.out
            state[at + "mlp.gate_proj.weight"] = gate
            state[at + "mlp.up_proj.weight"] = up
            state[at + "mlp.down_proj.weight"] = block.down
            state[at + "input_layernorm.weight"] = block.norm1
            state[at + "post_attention_layernorm.weight"] = block.norm2
        return {name: tensor.detach() for name, tensor in state.items()}

    @torch.no_grad()
    def load_hf_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights of an `hf_state_dict`, in any number format."""
        for name, ours in self.hf_state_dict().items():
            ours.copy_(state[name])  # slices of the parameters: writing to them sets these


class _HeadLoss(torch.autograd.Function):
    """Mean cross-entropy over a tied head; gradients are computed in the forward pass.

    Logits of a batch would be 16 KB per row. In chunks they stay in the cache, and the softmax
    overwrites them, so that nothing of that size is ever written to memory twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        rows = hidden.shape[0]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        total = hidden.new_zeros(())
        for start in range(0, rows, chunk):
            h = hidden[start : start + chunk]
            t = targets[start : start + chunk, None]
            p = h @ weight.t()
            p.sub_(p.amax(-1, keepdim=True))
            total += -p.gather(1, t).sum()
            p.exp_()
            norm = p.sum(-1, keepdim=True)
            total += norm.log().sum()
            p.mul_(1.0 / (norm * rows))
            p.scatter_add_(1, t, p.new_full(t.shape, -1.0 / rows))
            torch.mm(p, weight, out=grad_hidden[start : start + chunk])
            grad_weight.addmm_(p.t(), h)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total / rows

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0], None, None


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 512) -> Tensor:
    """Mean cross-entropy in nats of `targets` [rows] under `hidden` [rows, hidden_size]."""
    loss: Tensor = _HeadLoss.apply(hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
    return loss
