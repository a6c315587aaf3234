"""An adapter written by this trainer, loaded by peft: python3 check_peft.py MODEL ADAPTER LOGITS.json IDS; exits 1 if they differ."""
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

model, adapter, logits, ids = sys.argv[1:5]
base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
ids = torch.tensor([json.loads(ids)])
with torch.no_grad():
    plain = base(ids).logits[0, -1]
    tuned = PeftModel.from_pretrained(base, adapter).eval()(ids).logits[0, -1]
ours = torch.tensor(json.load(open(logits)))
far = lambda a, b: ((a - b).norm() / b.norm()).item()
print(f"peft against ours {far(ours, tuned):.2e}; the adapter moved the logits by {far(tuned, plain):.2e}")
sys.exit(0 if far(ours, tuned) < 1e-4 < far(tuned, plain) else 1)
