"""What diffusers makes of the checkpoints of tests/tests/sd.rs. Arguments: FOLDER OUT.

FOLDER is written, for sd1.5, sd2.1 and sdxl, by
  cargo xtask fixtures MODEL --out FOLDER --layers LAYERS --dim 32 --scale 0.0001 --fill random
with LAYERS 1, 1 and 2, and changed here, once.
"""
import json
import sys
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from pathlib import Path

folder, out = Path(sys.argv[1]), sys.argv[2]
for file in folder.rglob("*.safetensors"):
    tensors = {name: t if bool((t == 1).all()) else t * 4 for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
is_xl = json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionXLPipeline"
torch.manual_seed(0)
pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
prompt, guidance, steps, width, height = "a red cat under an Umbrella", 3.5, 2, 48, 32
latents = torch.randn(1, 4, height // 8, width // 8)
trace, seen = {"initial_latents": latents}, []
tokenizers = [("input_ids", pipe.tokenizer)] + ([("input_ids_2", pipe.tokenizer_2)] if is_xl else [])
for name, tokenizer in tokenizers:
    trace[name] = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids[0]
with torch.no_grad():
    added = None
    if is_xl:
        embeds, _, pooled, _ = pipe.encode_prompt(prompt)
        trace["pooled_prompt_embeds"] = pooled
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)}
    else:
        embeds, _ = pipe.encode_prompt(prompt, torch.device("cpu"), 1, False)
    trace["prompt_embeds"] = embeds
    trace["unet_out_t250"] = pipe.unet(latents, torch.tensor(250.0), embeds, added_cond_kwargs=added).sample
    def keep(pipe, step, timestep, values):
        seen.append(values["latents"][0])
        return values
    image = pipe(prompt, guidance_scale=guidance, num_inference_steps=steps, width=width, height=height, latents=latents,
        output_type="pt", callback_on_step_end=keep).images
trace["timesteps"] = pipe.scheduler.timesteps.float()
if is_xl:
    trace["sigmas"] = pipe.scheduler.sigmas
trace["latents"], trace["image"] = torch.stack(seen), image[0].permute(1, 2, 0)
for name, t in trace.items():
    print(name, tuple(t.shape), t.dtype, float(t.float().mean()), float(t.float().std()))
metadata = {"prompt": prompt, "guidance_scale": str(guidance), "steps": str(steps), "width": str(width), "height": str(height)}
save_file({name: t.contiguous() for name, t in trace.items()}, out, metadata=metadata)
