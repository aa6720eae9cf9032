#!/usr/bin/env python3
"""The same training run in PyTorch: GPT-2 from the same initial weights, on the same batches, with the same update.

  torch_curve.py init DIR                              writes a GPT-2 124M (config.json, model.safetensors) to DIR
  torch_curve.py train DIR TOKENS.h5 [--steps N ...]   prints one loss a line, as metrics.jsonl has them

bf16 autocast with float32 weights, moments and gradients; AdamW with decay of matrices alone; gradients clipped at 1; a
cosine to 0 after the warm-up.
The order of samples is lib/data/sampler.cpp's, written again here.
"""
import argparse
import struct

import numpy as np


def philox(key, stream, index):
    c = [index & 0xFFFFFFFF, index >> 32, stream & 0xFFFFFFFF, stream >> 32]
    k = list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def permutation(seed, epoch, size):
    import xxhash
    h = xxhash.xxh3_64_intdigest(b"sample order", seed=seed)
    key = (h & 0xFFFFFFFF, h >> 32)
    keys = [(b[1] << 32) | b[0] for b in (philox(key, epoch, r) for r in range(ROUNDS))]
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask, full = (1 << half) - 1, (1 << 64) - 1

    def scramble(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & full
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & full
        return x ^ (x >> 31)

    def at(i):
        x = i
        while True:
            left, right = x >> half, x & mask
            for k in keys:
                left, right = right, left ^ (scramble(right ^ k) & mask)
            x = left << half | right
            if x < size:
                return x

    return at


ROUNDS = 6  # Permutation::kRounds


def init(directory):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(1)
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    GPT2LMHeadModel(config).save_pretrained(directory, safe_serialization=True)


def train(a):
    import h5py
    import torch
    import torch.nn.functional as F
    from transformers import GPT2LMHeadModel
    tokens = h5py.File(a.tokens)["tokens"][:].astype(np.int64)
    samples = (len(tokens) - 2) // a.length + 1
    order = {}

    def sample(i):
        epoch = i // samples
        if epoch not in order:
            order[epoch] = permutation(a.seed, epoch, samples)
        begin = order[epoch](i % samples) * a.length
        piece = tokens[begin:begin + a.length + 1]
        return np.pad(piece, (0, a.length + 1 - len(piece))), len(piece) - 1

    model = GPT2LMHeadModel.from_pretrained(a.directory, attn_implementation="sdpa").cuda().float().train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                                  lr=a.lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(1, a.steps + 1):
        batch = [sample((step - 1) * a.batch + b) for b in range(a.batch)]
        x = torch.from_numpy(np.stack([s for s, _ in batch])).cuda()
        weights = torch.zeros(a.batch, a.length, device="cuda")
        for b, (_, n) in enumerate(batch):
            weights[b, :n] = 1
        for group in optimizer.param_groups:
            fall = 0.5 * (1 + np.cos(np.pi * max(0, step - a.warmup) / (a.steps - a.warmup)))
            group["lr"] = a.lr * (step / a.warmup if step < a.warmup else fall)
        with torch.autocast("cuda", torch.bfloat16, enabled=a.precision == "bfloat16"):
            logits = model(x[:, :-1]).logits
        loss = (F.cross_entropy(logits.float().flatten(0, 1), x[:, 1:].flatten(), reduction="none") *
                weights.flatten()).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(f"{loss.item():.6f}", flush=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("command", choices=["init", "train"])
    ap.add_argument("directory")
    ap.add_argument("tokens", nargs="?")
    ap.add_argument("--steps", type=int, default=300)
    ap.add_argument("--length", type=int, default=1024)
    ap.add_argument("--batch", type=int, default=16)
    ap.add_argument("--lr", type=float, default=6e-4)
    ap.add_argument("--warmup", type=int, default=30)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    a = ap.parse_args()
    init(a.directory) if a.command == "init" else train(a)


if __name__ == "__main__":
    main()
