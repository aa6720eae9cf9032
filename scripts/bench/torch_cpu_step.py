"""The training step of a dstrain job's Llama in PyTorch on the CPU, as fast as PyTorch does it.

    torch_cpu_step.py --steps 5 --threads 2

The model is dstrain's, block for block: RMSNorm, merged query-key-value, rotary embedding by halves, causal attention,
SwiGLU with merged gate and up, untied head, cross-entropy, AdamW, clipping by global norm; float32. Where PyTorch offers
several ways (attention, optimizer), each is timed once and the fastest is used. Prints one line of JSON.
"""
import argparse
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

HIDDEN, LAYERS, HEADS, INNER, VOCAB, LENGTH, BATCH = 512, 8, 8, 1376, 4096, 256, 8
HEAD = HIDDEN // HEADS


def explicit_attention(q, k, v, mask):
    scores = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=1 / math.sqrt(HEAD))
    return torch.bmm(torch.softmax(scores, -1), v.flatten(0, 1)).view_as(q)


def fused_attention(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def explicit_rms_norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def fused_rms_norm(x, weight):
    return F.rms_norm(x, (HIDDEN,), weight, 1e-6)


class RmsNorm(nn.Module):
    def __init__(self, ways):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))
        self.ways = ways

    def forward(self, x):
        return self.ways["norm"](x, self.weight)


class Block(nn.Module):
    def __init__(self, ways):
        super().__init__()
        self.ways = ways
        self.norm1, self.norm2 = RmsNorm(ways), RmsNorm(ways)
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.gate_up = nn.Linear(HIDDEN, 2 * INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x, cos, sin, mask):
        q, k, v = self.qkv(self.norm1(x)).view(BATCH, LENGTH, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)

        def rotate(t):
            a, b = t.chunk(2, -1)
            return t * cos + torch.cat((-b, a), -1) * sin

        o = self.ways["attention"](rotate(q), rotate(k), v, mask)
        x = x + self.out(o.transpose(1, 2).reshape(BATCH, LENGTH, HIDDEN))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, ways):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, HIDDEN)
        self.blocks = nn.ModuleList(Block(ways) for _ in range(LAYERS))
        self.norm = RmsNorm(ways)
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)
        angles = torch.outer(torch.arange(LENGTH), 10000.0 ** (-torch.arange(0, HEAD, 2) / HEAD)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        mask = torch.full((LENGTH, LENGTH), -math.inf).triu(1)
        self.register_buffer("mask", mask.expand(BATCH * HEADS, -1, -1))
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin, self.mask)
        return self.head(self.norm(x))


def make_optimizer(model, **how):
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), **how)


def timed(work, repeats):
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return seconds


def matmul_rate():
    a, b = torch.rand(1024, 1024) - 0.5, torch.rand(1024, 1024) - 0.5
    c = torch.empty(1024, 1024)
    timed(lambda: torch.mm(a, b, out=c), 3)
    return 2 * 1024**3 / statistics.median(timed(lambda: torch.mm(a, b, out=c), 7))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="forward and backward through torch.compile")
    parser.add_argument("--ways", help="what an earlier run chose, as it printed it: not timed again")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)

    norms = {"explicit": explicit_rms_norm}
    attentions = {"explicit": explicit_attention}
    if hasattr(F, "rms_norm"):
        norms["fused"] = fused_rms_norm
    if hasattr(F, "scaled_dot_product_attention"):
        attentions["fused"] = fused_attention
    ways = {"norm": explicit_rms_norm, "attention": explicit_attention}
    model = Llama(ways)
    optimizers = {}
    for name, how in {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}.items():
        try:
            optimizers[name] = make_optimizer(model, **how)
        except (TypeError, RuntimeError):  # this PyTorch does not have it
            pass
    tokens = torch.randint(VOCAB, (BATCH, LENGTH))
    targets = torch.randint(VOCAB, (BATCH * LENGTH,))
    chosen = {}

    def passes():
        loss = F.cross_entropy(model(tokens).view(-1, VOCAB), targets)
        loss.backward()
        return loss

    def step():
        model.zero_grad(set_to_none=True)
        loss = passes()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers[chosen["optimizer"]].step()
        return loss

    def fastest(candidates, use, work):
        best = {}
        for name, candidate in candidates.items():
            use(name, candidate)
            work()
            best[name] = min(timed(work, 2))
        name = min(best, key=best.get)
        use(name, candidates[name])
        return name

    if options.ways:
        chosen.update(json.loads(options.ways))
        ways.update(norm=norms[chosen["norm"]], attention=attentions[chosen["attention"]])
    else:
        chosen["attention"] = fastest(attentions, lambda n, c: ways.update(attention=c), passes)
        chosen["norm"] = fastest(norms, lambda n, c: ways.update(norm=c), passes)
        chosen["optimizer"] = fastest(optimizers, lambda n, c: chosen.update(optimizer=n), lambda: optimizers[chosen["optimizer"]].step())

    if options.compile:
        model.compile()
    step()
    step()
    before = matmul_rate()
    losses = []
    seconds = timed(lambda: losses.append(step().item()), options.steps)
    print(json.dumps({
        "version": torch.__version__,
        "ways": chosen,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "loss": losses[-1],
        "matmul_rate": max(before, matmul_rate()),
    }))


if __name__ == "__main__":
    main()
