//! The tensors on the way to an image, for comparison with another implementation.

use crate::{Error, Request};
use candle_core::{Device, Tensor};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

/// Tensors by name: `input_ids`, `prompt_embeds`, `negative_prompt_embeds`, `initial_latents`,
/// `transformer_out_t0.25`, `timesteps`, `sigmas`, `latents`, `image`; other families' `input_ids_2`, `input_ids_3`, `pooled_prompt_embeds`,
/// `unet_out_t250`; Würstchen's `prompt_embeds_2`, `image_embeddings`, `prior_noise` and `decoder_noise`.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The tensors.
    pub tensors: BTreeMap<String, Tensor>,
    /// What was asked for.
    pub metadata: BTreeMap<String, String>,
}

impl Trace {
    pub(crate) fn start(request: &Request) -> Self {
        let metadata = [
            ("prompt", request.prompt.clone()),
            ("negative_prompt", request.negative.clone()),
            ("guidance_scale", format!("{:?}", request.guidance)),
            ("steps", request.steps.to_string()),
            ("seed", request.seed.to_string()),
            ("width", request.width.to_string()),
            ("height", request.height.to_string()),
        ];
        Self { metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(), ..Self::default() }
    }

    /// Token ids, in the dtype in which the reference keeps them.
    pub(crate) fn add_ids(&mut self, name: &str, ids: &[u32]) -> Result<(), Error> {
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let count = ids.len();
        self.add(name, Tensor::from_vec(ids, count, &Device::Cpu)?);
        Ok(())
    }

    pub(crate) fn add(&mut self, name: &str, tensor: Tensor) {
        self.tensors.insert(name.to_owned(), tensor);
    }

    /// Writes a safetensors file, which appears whole or not at all.
    ///
    /// # Errors
    /// `Save`: the folder is missing, not writable, or full.
    pub fn save(&self, file: &Path) -> Result<(), Error> {
        let failed = |reason: String| Error::Save { file: file.to_owned(), reason };
        let folder = match file.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let metadata: HashMap<String, String> = self.metadata.clone().into_iter().collect();
        let bytes = safetensors::serialize(&self.tensors, Some(metadata)).map_err(|e| failed(e.to_string()))?;
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any new file; the umask applies.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let temporary = builder.tempfile_in(folder).map_err(|e| failed(e.to_string()))?;
        fs::write(temporary.path(), bytes).map_err(|e| failed(e.to_string()))?;
        temporary.as_file().sync_all().map_err(|e| failed(e.to_string()))?;
        temporary.persist(file).map_err(|e| failed(e.error.to_string()))?;
        Ok(())
    }
}
