"""What diffusers makes of the checkpoint of tests/tests/wuerstchen.rs. Arguments: FOLDER NOISE OUT.

FOLDER is written by
  cargo xtask fixtures wuerstchen --out FOLDER --layers 2 --dim 32 --scale 0.0001 --fill random
and changed here, once. NOISE is what `mm run --dump` writes with the same request, for the noise in it.
"""
import sys
import diffusers
import torch
from diffusers import WuerstchenCombinedPipeline
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior
from diffusers.schedulers import scheduling_ddpm_wuerstchen as ddpm
from safetensors.torch import load_file, save_file
from pathlib import Path

folder, noise, out = Path(sys.argv[1]), load_file(sys.argv[2]), sys.argv[3]
for file in folder.rglob("*.safetensors"):
    # The prior's last layer stays as it is: its outputs are divided by each other, and must not come near zero.
    stays = lambda name, t: bool((t == 1).all()) or (file.parent.name == "prior_prior" and name.startswith("out.1"))
    tensors = {name: t if stays(name, t) else t * 4 for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
for kind in (PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior):
    # The fixture says that they are of diffusers' own module.
    setattr(diffusers, kind.__name__, kind)
pipe = WuerstchenCombinedPipeline.from_pretrained(folder, torch_dtype=torch.float32)
prior, decoder = pipe.prior_pipe, pipe.decoder_pipe
for part in (prior, decoder):
    part.set_progress_bar_config(disable=True)
prompt, guidance, steps, side = "a red cat under an Umbrella", 3.5, 6, 128
trace = {}
for name, tokenizer in [("input_ids", pipe.prior_tokenizer), ("input_ids_2", pipe.tokenizer)]:
    trace[name] = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids[0]
queue = list(noise["prior_noise"][1:]) + list(noise["decoder_noise"][1:])
ddpm.randn_tensor = lambda shape, **_: queue.pop(0)[None]
with torch.no_grad():
    trace["prompt_embeds"] = prior.encode_prompt(torch.device("cpu"), 1, False, prompt)[0]
    trace["prompt_embeds_2"] = decoder.encode_prompt([prompt], torch.device("cpu"), 1, False)[0]
    image = prior(prompt, height=side, width=side, num_inference_steps=steps, guidance_scale=guidance, latents=noise["prior_noise"][:1].clone(), output_type="pt")[0]
    trace["image_embeddings"] = image
    arguments = dict(prompt=prompt, num_inference_steps=-(-steps // 5), guidance_scale=0.0)
    begin = list(queue)
    latents = noise["decoder_noise"][:1].clone()
    trace["latents"] = decoder(image, latents=latents, output_type="latent", **arguments)[0]
    queue[:] = begin
    trace["image"] = decoder(image, latents=latents, output_type="pt", **arguments)[0][0].permute(1, 2, 0)[:16]
if trace["latents"].dim() == 3:
    trace["latents"] = trace["latents"][None]
for name, t in trace.items():
    print(name, tuple(t.shape), t.dtype, float(t.float().mean()), float(t.float().std()))
save_file({name: t.contiguous() for name, t in trace.items()}, out)
