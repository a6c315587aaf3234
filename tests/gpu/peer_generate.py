"""transformers' generate with a peft adapter at Qwen-7B's shape, bf16: prefill and tokens/s. Random weights: speed does not depend on them.

usage: peer_generate.py [BATCH …]. Prints a JSON line a batch, context and kind of cache. "static" compiles the decoding step, as transformers does by
itself for such a cache. The rows beside it are cuda_step decode-BATCH (nf4 weights).
"""

import json
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

NEW = 100


def timed(model, ids, new, cache):
    torch.cuda.synchronize()
    start = time.perf_counter()
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0,
                   **({"cache_implementation": "static"} if cache == "static" else {}))
    torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def main(batches):
    config = Qwen2Config(vocab_size=151936, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
                         num_key_value_heads=32, max_position_embeddings=32768, tie_word_embeddings=False, rms_norm_eps=1e-6)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        base = Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, target_modules=targets)).eval().to(torch.bfloat16)
    for cache in ("dynamic", "static"):
        for batch in batches:
            for context in (64, 4096):
                if batch * context > 8 * 4096:
                    continue  # all prompts at once: their logits alone would fill the card
                ids = torch.randint(10, 150000, (batch, context), device="cuda")
                try:
                    timed(model, ids, 8, cache)
                    first = min(timed(model, ids, 1, cache) for _ in range(2))
                    both = timed(model, ids, NEW + 1, cache)
                except torch.OutOfMemoryError:
                    print(json.dumps(dict(batch=batch, context=context, cache=cache, error="out of memory")), flush=True)
                    continue
                step = (both - first) / NEW
                print(json.dumps(dict(peer="transformers + peft generate, bf16", batch=batch, context=context, cache=cache, prefill_ms=round(first * 1e3, 1),
                                      ms_per_token=round(step * 1e3, 2), tokens_per_s=round(batch / step, 1))), flush=True)


main([int(argument) for argument in sys.argv[1:]] or [1, 4, 8, 32])
