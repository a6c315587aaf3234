"""LoRA with transformers and peft on one GPU, or on all of them: Qwen-7B's shape, a bf16 base of random weights, a plain training loop.

usage: peer_gpu.py [--balanced] [ROW ...], rows as in PLANS; without any: all. --balanced: device_map="balanced" over all GPUs.
Prints one JSON line a row: median milliseconds of an optimizer step, real tokens (no padding) a second, peak GiB. Rows are padded to the longest of their batch, as the Trainer does.
"""
import gc
import json
import random
import statistics
import sys
import time

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

VOCAB = 151936
WARM_UP, TIMED = 3, 6
# row: (gradient checkpointing, lengths of the rows of each batch of a step, from a generator)
tutorial = lambda rng: [[min(250, max(29, int(rng.lognormvariate(4.15, 0.36)))) for _ in range(8)] for _ in range(2)]
PLANS = {
    "tutorial-on": (True, tutorial),
    "tutorial-off": (False, tutorial),
    "8x384-on": (True, lambda rng: [[384] * 8]),
    "8x384-off": (False, lambda rng: [[384] * 8]),
    "4x2048-on": (True, lambda rng: [[2048] * 4]),
}


def make_model(balanced):
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=8192, rms_norm_eps=1e-6, tie_word_embeddings=False, use_cache=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        base = Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    if balanced:
        whole = ["Qwen2DecoderLayer"]
        budgets = get_balanced_memory(base, no_split_module_classes=whole)
        base = dispatch_model(base, infer_auto_device_map(base, max_memory=budgets, no_split_module_classes=whole))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, lora_dropout=0.1, target_modules=targets))
    model.enable_input_require_grads()
    return base, model.train()


def padded(lengths):
    width = max(lengths)
    ids = torch.randint(0, VOCAB, (len(lengths), width), device="cuda")
    real = torch.arange(width, device="cuda") < torch.tensor(lengths, device="cuda")[:, None]
    return dict(input_ids=ids, attention_mask=real.long(), labels=ids.masked_fill(~real, -100))


def synchronise():
    for device in range(torch.cuda.device_count()):
        torch.cuda.synchronize(device)


def time_row(name, base, model):
    checkpointing, draw = PLANS[name]
    if checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        base.gradient_checkpointing_disable()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    rng = random.Random(1)
    torch.cuda.reset_peak_memory_stats()
    seconds, rates = [], []
    for step in range(WARM_UP + TIMED):
        plan = draw(rng)
        batches = [padded(lengths) for lengths in plan]
        synchronise()
        started = time.perf_counter()
        for batch in batches:
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(**batch).loss / len(batches)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronise()
        if step >= WARM_UP:
            seconds.append(time.perf_counter() - started)
            rates.append(sum(map(sum, plan)) / seconds[-1])
    peak = torch.cuda.max_memory_allocated() / 2**30
    del optimizer, batches, loss
    gc.collect()
    torch.cuda.empty_cache()
    return dict(
        peer="transformers + peft, bf16 base", devices=len({str(p.device) for p in model.parameters()}), row=name,
        checkpointing=checkpointing, dropout=0.1,
        step_ms=round(statistics.median(seconds) * 1e3, 2), tokens_per_s=round(statistics.median(rates)), peak_GiB=round(peak, 2),
    )


def main(args):
    torch.manual_seed(0)
    rows = [name for name in args if name != "--balanced"] or list(PLANS)
    base, model = make_model("--balanced" in args)
    for name in rows:
        print(json.dumps(time_row(name, base, model)), flush=True)


main(sys.argv[1:])
