"""What diffusers makes of the checkpoint of tests/tests/flux.rs. Arguments: FOLDER OUT, and `bf16` to compute in that.

FOLDER is written by
  cargo xtask fixtures flux-dev --out FOLDER --layers 2 --dim 144 --scale 0.0001 --fill random
"""
import sys
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file
from pathlib import Path

folder, out = Path(sys.argv[1]), sys.argv[2]
dtype = torch.bfloat16 if sys.argv[3:] == ["bf16"] else torch.float32
marker = folder / "scaled"
if not marker.exists():
    for file in folder.rglob("*.safetensors"):
        tensors = {name: t if bool((t == 1).all()) else t * 4 for name, t in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    marker.touch()
torch.manual_seed(0)
pipe = FluxPipeline.from_pretrained(folder, dtype=dtype)
pipe.set_progress_bar_config(disable=True)
prompt, guidance, steps, width, height = "a red cat under an Umbrella", 3.5, 2, 48, 32
rows, columns = height // 8, width // 8
latents = torch.randn(1, 16, rows, columns).to(dtype)
packed = FluxPipeline._pack_latents(latents, 1, 16, rows, columns)
ids = pipe.tokenizer(prompt, padding="max_length", max_length=pipe.tokenizer_max_length, truncation=True, return_tensors="pt").input_ids
ids_2 = pipe.tokenizer_2(prompt, padding="max_length", max_length=512, truncation=True, return_tensors="pt").input_ids
trace, seen = {"input_ids": ids[0], "input_ids_2": ids_2[0], "initial_latents": latents}, []
unpack = lambda x: FluxPipeline._unpack_latents(x, height, width, pipe.vae_scale_factor)
with torch.no_grad():
    embeds, pooled, text_ids = pipe.encode_prompt(prompt, prompt)
    trace["prompt_embeds"], trace["pooled_prompt_embeds"] = embeds, pooled
    image_ids = FluxPipeline._prepare_latent_image_ids(1, rows // 2, columns // 2, "cpu", dtype)
    velocity = pipe.transformer(
        hidden_states=packed, timestep=torch.tensor([0.25], dtype=dtype), guidance=torch.tensor([guidance]), pooled_projections=pooled,
        encoder_hidden_states=embeds, txt_ids=text_ids, img_ids=image_ids).sample
    trace["transformer_out_t0.25"] = unpack(velocity)
    def keep(pipe, step, timestep, values):
        seen.append(unpack(values["latents"])[0])
        return values
    image = pipe(prompt, guidance_scale=guidance, num_inference_steps=steps, width=width, height=height, latents=packed,
        output_type="pt", callback_on_step_end=keep).images
trace["timesteps"], trace["sigmas"] = pipe.scheduler.timesteps, pipe.scheduler.sigmas
trace["latents"], trace["image"] = torch.stack(seen), image[0].permute(1, 2, 0)
for name, t in trace.items():
    print(name, tuple(t.shape), t.dtype, float(t.float().mean()), float(t.float().std()))
trace["prompt_embeds"] = trace["prompt_embeds"][:, :64]
if dtype == torch.bfloat16:
    trace = {name: trace[name].float() for name in ["initial_latents", "transformer_out_t0.25", "latents"]}
metadata = {"prompt": prompt, "guidance_scale": str(guidance), "steps": str(steps), "width": str(width), "height": str(height)}
save_file({name: t.contiguous() for name, t in trace.items()}, out, metadata=metadata)
