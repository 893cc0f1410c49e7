"""What diffusers makes of the checkpoints of tests/tests/sd3.rs. Arguments: FOLDER OUT, and `x` for the one of MMDiT-X.

FOLDER is written by
  cargo xtask fixtures sd3.5-large --out FOLDER --layers 3 --dim 72 --scale 0.0001 --fill random
and changed here, once.
"""
import json
import sys
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from pathlib import Path

folder, out, is_x = Path(sys.argv[1]), sys.argv[2], sys.argv[3:] == ["x"]
for file in folder.rglob("*.safetensors"):
    tensors = {name: t if bool((t == 1).all()) else t * 4 for name, t in load_file(file).items()}
    if is_x and file.parent.name == "transformer":
        for name, t in list(tensors.items()):
            block, part = name[:21], name[21:]
            if block not in ("transformer_blocks.0.", "transformer_blocks.1."):
                continue
            if part.startswith(("attn.to_", "attn.norm_q", "attn.norm_k")) and "to_add" not in part:
                tensors[block + part.replace("attn.", "attn2.")] = t.clone()
            if part.startswith("norm1.linear"):
                tensors[name] = torch.cat([t, t.chunk(2)[0]])
        config = json.loads((file.parent / "config.json").read_text())
        config["dual_attention_layers"] = [0, 1]
        (file.parent / "config.json").write_text(json.dumps(config))
    save_file(tensors, file, metadata={"format": "pt"})
torch.manual_seed(0)
pipe = StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
prompt, guidance, steps, width, height = "a red cat under an Umbrella", 3.5, 2, 48, 32
latents = torch.randn(1, 16, height // 8, width // 8)
trace, seen = {"initial_latents": latents}, []
for name, tokenizer, length in [("input_ids", pipe.tokenizer, 77), ("input_ids_2", pipe.tokenizer_2, 77), ("input_ids_3", pipe.tokenizer_3, 256)]:
    trace[name] = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids[0]
with torch.no_grad():
    embeds, _, pooled, _ = pipe.encode_prompt(prompt, prompt, prompt)
    trace["prompt_embeds"], trace["pooled_prompt_embeds"] = embeds, pooled
    trace["transformer_out_t0.25"] = pipe.transformer(
        hidden_states=latents, timestep=torch.tensor([250.0]), encoder_hidden_states=embeds, pooled_projections=pooled).sample
    def keep(pipe, step, timestep, values):
        seen.append(values["latents"][0])
        return values
    image = pipe(prompt, guidance_scale=guidance, num_inference_steps=steps, width=width, height=height, latents=latents,
        output_type="pt", callback_on_step_end=keep).images
trace["timesteps"], trace["sigmas"] = pipe.scheduler.timesteps, pipe.scheduler.sigmas
trace["latents"], trace["image"] = torch.stack(seen), image[0].permute(1, 2, 0)
for name, t in trace.items():
    print(name, tuple(t.shape), t.dtype, float(t.float().mean()), float(t.float().std()))
trace["prompt_embeds"] = trace["prompt_embeds"][:, :128]
if is_x:
    trace = {name: trace[name] for name in ["initial_latents", "transformer_out_t0.25", "latents", "image"]}
metadata = {"prompt": prompt, "guidance_scale": str(guidance), "steps": str(steps), "width": str(width), "height": str(height)}
save_file({name: t.contiguous() for name, t in trace.items()}, out, metadata=metadata)
