"""Compiled transformers + peft at the shapes of families beyond Qwen 1-2 and Llama: random weights in bf16, 8 x 384 tokens, r = 16.

usage: peer_families.py [phi-4] [gemma-3-12b] [qwen3-30b-a3b]. Prints a JSON line a model. The rows beside it are
cuda_step --model NAME --rank 16 8x384-off.
"""

import json
import sys
import time

import torch
import transformers
from peft import LoraConfig, get_peft_model

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
MODELS = {
    "phi-4": (
        "Phi3",
        dict(vocab_size=100352, hidden_size=5120, intermediate_size=17920, num_hidden_layers=40, num_attention_heads=40, num_key_value_heads=10,
             max_position_embeddings=16384, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    ),
    "gemma-3-12b": (
        "Gemma3Text",
        dict(vocab_size=262208, hidden_size=3840, intermediate_size=15360, num_hidden_layers=48, num_attention_heads=16, num_key_value_heads=8,
             head_dim=256, sliding_window=1024),
        ATTENTION + MLP,
    ),
    "qwen3-30b-a3b": (
        "Qwen3Moe",
        dict(vocab_size=151936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, num_hidden_layers=48, num_attention_heads=32,
             num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True, tie_word_embeddings=False),
        ATTENTION,
    ),
}
CLASSES = {"Gemma3Text": "Gemma3ForCausalLM"}


def measure(name):
    family, sizes, targets = MODELS[name]
    config = getattr(transformers, family + "Config")(use_cache=False, **sizes)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        base = getattr(transformers, CLASSES.get(family, family + "ForCausalLM"))._from_config(config, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.1, target_modules=targets))
    model.train()
    for layer in model.get_base_model().model.layers:
        layer.compile(dynamic=False)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-5, fused=True)
    times = []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(12):
        ids = torch.randint(0, 50000, (8, 384), device="cuda")
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    step = sorted(times[5:])[3]
    print(json.dumps(dict(peer="compiled transformers + peft, bf16, dropout 0.1", model=name, r=16, step_ms=round(step * 1e3, 1),
                          tokens_per_s=round(3072 / step), peak_GiB=round(torch.cuda.max_memory_allocated() / 2**30, 1))), flush=True)


for wanted in sys.argv[1:] or MODELS:
    try:
        measure(wanted)
    except Exception as error:  # one model's failure is told, and the next is measured
        print(json.dumps(dict(model=wanted, error=f"{type(error).__name__}: {error}"[:400])), flush=True)
    torch._dynamo.reset()
    torch.cuda.empty_cache()
