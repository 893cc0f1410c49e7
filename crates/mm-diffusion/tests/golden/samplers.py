"""What diffusers' samplers make of made-up outputs, for src/sampler/tests.rs. Prints it."""
import json
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

base = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
cases = []


def case(cls, steps, **config):
    sampler = cls(**config)
    sampler.set_timesteps(steps)
    sample, samples = torch.tensor([0.3, -1.2, 2.1]) * sampler.init_noise_sigma, []
    for i, t in enumerate(sampler.timesteps):
        given = sampler.scale_model_input(sample, t)
        out = given * 0.5 + torch.sin(torch.tensor([1.0, 2.0, 3.0]) + i)
        sample = sampler.step(out, t, sample).prev_sample
        samples.append([float(f"{x:.7g}") for x in sample])
    timesteps = [float(t) for t in sampler.timesteps]
    cases.append({"class": cls.__name__, "config": config, "steps": steps, "timesteps": timesteps[:8], "first": samples[0], "last": samples[-1]})


for spacing in ("leading", "trailing", "linspace"):
    for steps in (1, 2, 3, 7):
        case(PNDMScheduler, steps, **base, skip_prk_steps=True, steps_offset=1, timestep_spacing=spacing)
    for steps in (1, 7):
        case(DDIMScheduler, steps, **base, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction", timestep_spacing=spacing)
        case(EulerDiscreteScheduler, steps, **base, steps_offset=1, timestep_spacing=spacing)
for cls in (DDIMScheduler, EulerDiscreteScheduler):
    case(cls, 5)
    case(cls, 1000, **base)
    case(cls, 4, **base, prediction_type="sample")
case(EulerDiscreteScheduler, 5, **base, prediction_type="v_prediction", timestep_spacing="leading")
case(PNDMScheduler, 6, **base, skip_prk_steps=True, prediction_type="v_prediction", set_alpha_to_one=True)
print("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]")
