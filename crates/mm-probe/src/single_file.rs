//! A whole pipeline in one file, in the names of its original code: which tensors are which component's.

use crate::tensor::Tensor;

/// A component's name and the prefixes its tensors have in files of this kind; of two that fit the first counts.
///
/// From the checkpoints of Stability AI (`sd_xl_base_1.0`, `sd3.5_large`), CompVis and ComfyUI's all-in-one files.
const PREFIXES: &[(&str, &str)] = &[
    ("model.diffusion_model.", DENOISER),
    ("first_stage_model.", "vae"),
    ("vae.", "vae"),
    ("cond_stage_model.transformer.", "text_encoder"),
    ("cond_stage_model.model.", "text_encoder"),
    ("conditioner.embedders.0.transformer.", "text_encoder"),
    ("conditioner.embedders.1.model.", "text_encoder_2"),
    // SDXL's refiner has only the second encoder.
    ("conditioner.embedders.0.model.", "text_encoder_2"),
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_l.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("text_encoders.clip_g.", "text_encoder_2"),
    ("text_encoders.t5xxl.transformer.", T5),
    ("text_encoders.t5xxl.", T5),
    ("text_encoders.qwen3_4b.transformer.", "text_encoder"),
    ("text_encoders.qwen3_4b.", "text_encoder"),
    ("text_encoders.umt5xxl.transformer.", "text_encoder"),
    ("text_encoders.umt5xxl.", "text_encoder"),
];

/// `transformer`, or `unet` where there are levels.
const DENOISER: &str = "transformer";
/// FLUX has two encoders, SD3 three; this is the last.
const T5: &str = "text_encoder_3";

/// A part of a file.
pub(crate) struct Part {
    pub(crate) name: String,
    /// Its tensors, with what says which component they are of cut off their names.
    pub(crate) tensors: Vec<Tensor>,
}

/// Splits the tensors of an all-in-one file into its components, sorted by name, and what belongs to none.
///
/// A file whose names have at most one of the prefixes is one model: it comes back whole as `Err`, without the prefix.
pub(crate) fn split(tensors: Vec<Tensor>) -> Result<(Vec<Part>, Vec<Tensor>), Vec<Tensor>> {
    let owner = |tensor: &Tensor| PREFIXES.iter().find(|(prefix, _)| tensor.name.starts_with(prefix));
    let mut found: Vec<&str> = tensors.iter().filter_map(owner).map(|(_, name)| *name).collect();
    found.sort_unstable();
    found.dedup();
    if found.len() < 2 {
        return Err(without_common_prefix(tensors));
    }
    let is_unet = tensors.iter().any(|tensor| tensor.name.starts_with("model.diffusion_model.input_blocks."));
    let has_second = found.contains(&"text_encoder_2");
    let rename = |name: &'static str| match name {
        DENOISER if is_unet => "unet",
        T5 if !has_second => "text_encoder_2",
        name => name,
    };
    let mut parts: Vec<Part> = Vec::new();
    let mut stray = Vec::new();
    for mut tensor in tensors {
        let Some((prefix, name)) = owner(&tensor) else {
            stray.push(tensor);
            continue;
        };
        tensor.name.drain(..prefix.len());
        let name = rename(name);
        match parts.iter_mut().find(|part| part.name == name) {
            Some(part) => part.tensors.push(tensor),
            None => parts.push(Part { name: name.to_owned(), tensors: vec![tensor] }),
        }
    }
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((parts, stray))
}

/// Denoisers alone in a file often keep the prefix they had beside others.
fn without_common_prefix(mut tensors: Vec<Tensor>) -> Vec<Tensor> {
    let prefix = "model.diffusion_model.";
    if tensors.iter().all(|tensor| tensor.name.starts_with(prefix)) {
        tensors.iter_mut().for_each(|tensor| drop(tensor.name.drain(..prefix.len())));
    }
    tensors
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::tensor::Stored;

    /// Components with the number of their tensors, and how many tensors are stray.
    type Parts = (Vec<(String, usize)>, usize);

    fn parts(names: &[&str]) -> Result<Parts, Vec<String>> {
        let tensor = |name: &&str| Tensor {
            name: (*name).to_owned(),
            shape: [1].into(),
            stored: Stored::Safetensors(Dtype::U8),
            bytes: 1,
        };
        split(names.iter().map(tensor).collect())
            .map(|(parts, stray)| {
                (parts.into_iter().map(|part| (part.name, part.tensors.len())).collect(), stray.len())
            })
            .map_err(|whole| whole.into_iter().map(|tensor| tensor.name).collect())
    }

    #[test]
    fn all_in_one_files() {
        let sdxl = [
            "model.diffusion_model.input_blocks.0.0.weight",
            "conditioner.embedders.0.transformer.text_model.x",
            "conditioner.embedders.1.model.ln_final.weight",
            "first_stage_model.decoder.conv_in.weight",
            "alphas_cumprod",
        ];
        let names = ["text_encoder", "text_encoder_2", "unet", "vae"].map(|name| (name.to_owned(), 1));
        assert_eq!(parts(&sdxl), Ok((names.to_vec(), 1)));
        let flux =
            ["model.diffusion_model.double_blocks.0.w", "vae.x", "text_encoders.clip_l.a", "text_encoders.t5xxl.b"];
        let names = ["text_encoder", "text_encoder_2", "transformer", "vae"].map(|name| (name.to_owned(), 1));
        assert_eq!(parts(&flux), Ok((names.to_vec(), 0)));
        let sd3 = [&flux[..], &["text_encoders.clip_g.c"]].concat();
        assert_eq!(parts(&sd3).expect("parts").0[2], ("text_encoder_3".to_owned(), 1));
    }

    #[test]
    fn one_model_is_one() {
        assert_eq!(
            parts(&["double_blocks.0.w", "img_in.weight"]),
            Err(vec!["double_blocks.0.w".into(), "img_in.weight".into()])
        );
        assert_eq!(parts(&["model.diffusion_model.blocks.0.w"]), Err(vec!["blocks.0.w".into()]));
        assert_eq!(parts(&["model.diffusion_model.x", "y"]), Err(vec!["model.diffusion_model.x".into(), "y".into()]));
        assert_eq!(parts(&[]), Err(vec![]));
    }
}
