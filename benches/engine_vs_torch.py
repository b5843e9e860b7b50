"""One training step of the model in runtime/examples/engine_speed.rs, in PyTorch: engine_vs_torch.py THREADS STEPS.

The same arithmetic: learned positions, pre-layer-norm, fused causal attention, GELU (tanh), biases, untied head without
bias, mean cross-entropy, AdamW with decay on matrices. Prints one line, as the example does.
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

LAYERS, WIDTH, HEADS, VOCAB, SEQUENCES, LENGTH, WARM_UP = 4, 256, 4, 256, 8, 128, 3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.projection = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):  # [sequences, length, width]
        b, t, c = x.shape
        q, k, v = (y.view(b, t, HEADS, c // HEADS).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(c, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens):
        x = self.token(tokens) + self.position.weight
        return self.head(self.norm(self.blocks(x)))


def main():
    threads, steps = (int(x) for x in sys.argv[1:3])
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    model = Gpt()
    for name, p in model.named_parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.02)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
    parts = []
    for step in range(WARM_UP + steps):
        tokens = (torch.arange(SEQUENCES * LENGTH) * 31 + step * 7) % 251
        targets = (tokens + 31) % 251
        began = time.perf_counter()
        loss = F.cross_entropy(model(tokens.view(SEQUENCES, LENGTH)).view(-1, VOCAB), targets)
        value = loss.item()
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        end = time.perf_counter()
        if step >= WARM_UP:
            parts.append((end - began, forward - began, backward - forward, end - backward, value / 1e3))
    ms = [1e3 * statistics.median(part) for part in zip(*parts)]
    keys = ["step_ms", "forward_ms", "backward_ms", "adamw_ms", "loss"]
    print(json.dumps({"threads": threads, **{k: round(v, 4 if k == "loss" else 1) for k, v in zip(keys, ms)}}))


main()
