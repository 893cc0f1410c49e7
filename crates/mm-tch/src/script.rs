//! TorchScript files.

use crate::{Error, Result, kind::stored_dtype};
use mm_cache::{WeightStore, Weights};
use safetensors::{View, serialize_to_file};
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::Arc,
};
use tch::{CModule, Tensor};

/// A script and what its parameters are filled from.
pub(crate) struct Script {
    pub(crate) module: CModule,
    pub(crate) parameters: Vec<(String, Tensor)>,
    pub(crate) weights: Arc<Weights>,
}

/// Loads a script. Where there are no `files`, its parameters are copied to one that nobody else has the name of.
pub(crate) fn open(script: &Path, files: &[PathBuf], store: &WeightStore) -> Result<Script> {
    let fail = |reason: String| Error::Script { file: script.to_owned(), reason };
    let module = CModule::load(script).map_err(|e| fail(e.to_string()))?;
    let parameters = module.named_parameters().map_err(|e| fail(e.to_string()))?;
    if parameters.is_empty() {
        let reason = "it has no parameters to manage; a frozen script keeps its weights as constants: save it unfrozen";
        return Err(fail(reason.to_owned()));
    }
    if !files.is_empty() {
        return Ok(Script { module, parameters, weights: store.open(files)? });
    }
    let copy = tempfile::Builder::new().prefix("mm-tch-").suffix(".safetensors").tempfile();
    let copy = copy.map_err(|e| fail(format!("no file for a copy of its parameters in {}: {e}", temporary())))?;
    let stored = parameters.iter().map(|(name, tensor)| Ok((name.as_str(), Stored::new(name, tensor)?)));
    let stored = stored.collect::<Result<Vec<_>>>()?;
    serialize_to_file(stored, None, copy.path())
        .map_err(|e| fail(format!("its parameters can't be copied to {}: {e}", temporary())))?;
    // The file stays while it is open.
    let weights = Weights::open(&[copy.path()])?;
    Ok(Script { module, parameters, weights })
}

fn temporary() -> String {
    std::env::temp_dir().display().to_string()
}

/// A tensor as safetensors wants to see it.
struct Stored<'a> {
    tensor: &'a Tensor,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
}

impl<'a> Stored<'a> {
    fn new(name: &str, tensor: &'a Tensor) -> Result<Self> {
        let kind = tensor.f_kind()?;
        let dtype = stored_dtype(kind).ok_or_else(|| Error::Variable {
            variable: name.to_owned(),
            reason: format!("can't be managed as {kind:?}"),
        })?;
        Ok(Self { tensor, dtype, shape: tensor.size().iter().map(|d| *d as usize).collect() })
    }
}

impl View for Stored<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        self.tensor.copy_data_u8(&mut bytes, self.tensor.numel());
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}
