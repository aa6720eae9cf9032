#!/usr/bin/env python3
"""What transformers writes from the tiny models: generation.json. Needs PyPI torch and transformers.

  make_generation.py GOLDEN_DIR > generation.json

For each model and prompt (ids): `greedy`, the most likely token each time; `penalised`, the same with a repetition
penalty of 1.3; `margin`, the smallest gap between the two largest logits on the way, so that it is known that rounding
decides nothing. And `filtered`: ids and probabilities that temperature 0.7, top-k 40 and top-p 0.8 with the penalty leave
of the first token.
"""
import json
import sys

import torch
import transformers
from transformers import (LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper,
                          TopPLogitsWarper)

TOKENS, PENALTY = 20, 1.3


def write(model, prompt, **options):
    ids = torch.tensor([prompt])
    # With the mask spelled out: else transformers takes the padding's id in a prompt for padding.
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None,
                         pad_token_id=0, output_scores=True, return_dict_in_generate=True, **options)
    gaps = [float(top[0] - top[1]) for top in (torch.topk(s[0], 2).values for s in out.scores)]
    return out.sequences[0, len(prompt):].tolist(), min(gaps)


result = {"torch": torch.__version__, "transformers": transformers.__version__, "penalty": PENALTY, "models": {}}
for name in ("llama_tiny", "gpt2_tiny"):
    model = transformers.AutoModelForCausalLM.from_pretrained(f"{sys.argv[1]}/{name}", dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(3)
    rows = []
    for length in (1, 3, 17, 38, 39):
        prompt = torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()
        greedy, margin = write(model, prompt)
        penalised, penalised_margin = write(model, prompt, repetition_penalty=PENALTY)
        ids = torch.tensor([prompt])
        processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(PENALTY), TemperatureLogitsWarper(0.7), TopKLogitsWarper(40), TopPLogitsWarper(0.8)])
        with torch.no_grad():
            p = torch.softmax(processors(ids, model(ids).logits[:, -1].float()), -1)[0]
        rows.append({"prompt": prompt, "greedy": greedy, "penalised": penalised, "margin": min(margin, penalised_margin),
                     "filtered": {str(i): float(p[i]) for i in torch.nonzero(p).flatten().tolist()}})
    result["models"][name] = rows
json.dump(result, sys.stdout)
print()
