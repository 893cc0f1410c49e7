//! What a file says beside its factors: how their product is scaled.
//!
//! kohya has a tensor `alpha` for each layer. diffusers writes PEFT's configuration into the file's metadata, and PEFT itself into
//! `adapter_config.json` beside its `adapter_model.safetensors`. Where nothing is said the product is taken as it is.

use serde_json::Value;
use std::{fs::File, io::Read, path::Path};

/// Far beyond any configuration.
const LARGEST: u64 = 16 << 20;

/// PEFT's configurations, each with what stands before the names that it is about.
pub(crate) struct Alphas(Vec<(String, Value)>);

impl Alphas {
    /// Of a file whose header is sound. `Err` says what makes no sense.
    pub(crate) fn read(file: &Path) -> Result<Self, String> {
        if let Some(text) = metadata(file).and_then(|all| all.get("lora_adapter_metadata").cloned()) {
            let parsed: Value = serde_json::from_str(&text).map_err(|e| format!("lora_adapter_metadata: {e}"))?;
            return Ok(Self(split(&parsed)));
        }
        if file.file_name().is_some_and(|name| name == "adapter_model.safetensors")
            && let Some(text) = text(&file.with_file_name("adapter_config.json"))
        {
            let parsed = serde_json::from_str(&text).map_err(|e| format!("adapter_config.json beside it: {e}"))?;
            return Ok(Self(vec![(String::new(), parsed)]));
        }
        Ok(Self(Vec::new()))
    }

    /// What a layer's product is multiplied by; `None`: nothing is said about it.
    pub(crate) fn scale(&self, layer: &str, rank: usize) -> Option<f64> {
        let (prefix, config) = self.0.iter().find(|(prefix, _)| layer.starts_with(prefix))?;
        let layer = &layer[prefix.len()..];
        let pattern = config.get("alpha_pattern").and_then(Value::as_object);
        // Keys of the pattern are ends of names.
        let own = pattern.and_then(|pattern| {
            let ends = |key: &str| layer == key || layer.ends_with(&format!(".{key}"));
            pattern.iter().find(|(key, _)| ends(key)).and_then(|(_, alpha)| alpha.as_f64())
        });
        let alpha = own.or_else(|| config.get("lora_alpha").and_then(Value::as_f64))?;
        let rank = rank as f64;
        let rooted = config.get("use_rslora").and_then(Value::as_bool) == Some(true);
        Some(alpha / if rooted { rank.sqrt() } else { rank })
    }
}

/// `transformer.r`, `transformer.lora_alpha`, `text_encoder.r`: one configuration for each component.
fn split(flat: &Value) -> Vec<(String, Value)> {
    let mut all: Vec<(String, Value)> = Vec::new();
    for (key, value) in flat.as_object().into_iter().flatten() {
        let (prefix, key) = key.rsplit_once('.').map_or(("", &**key), |(component, key)| (component, key));
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}.") };
        let at = all.iter().position(|(known, _)| *known == prefix).unwrap_or_else(|| {
            all.push((prefix, Value::Object(Default::default())));
            all.len() - 1
        });
        all[at].1[key] = value.clone();
    }
    // What is said of one component comes before what is said of all.
    all.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
    all
}

fn metadata(file: &Path) -> Option<std::collections::HashMap<String, String>> {
    let mut open = File::open(file).ok()?;
    let mut header = [0; 8];
    open.read_exact(&mut header).ok()?;
    let length = u64::from_le_bytes(header);
    let mut bytes = header.to_vec();
    // Reads what is there, whatever the length claims.
    open.take(length).read_to_end(&mut bytes).ok()?;
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).ok()?;
    metadata.metadata().clone()
}

fn text(file: &Path) -> Option<String> {
    let found = std::fs::metadata(file).ok()?;
    (found.is_file() && found.len() <= LARGEST).then(|| std::fs::read_to_string(file).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_said_of_a_component_and_of_a_layer_counts() {
        let alphas = Alphas(split(&json!({
            "transformer.lora_alpha": 4, "transformer.r": 8, "transformer.alpha_pattern": {"to_q": 16},
            "text_encoder.lora_alpha": 8, "text_encoder.use_rslora": true,
        })));
        assert_eq!(alphas.scale("transformer.layers.0.to_k", 8), Some(0.5));
        assert_eq!(alphas.scale("transformer.layers.0.to_q", 8), Some(2.0));
        assert_eq!(alphas.scale("text_encoder.layers.0.q", 4), Some(4.0));
        assert_eq!(alphas.scale("unet.to_q", 4), None);
        let whole = Alphas(split(&json!({"lora_alpha": 2.0})));
        assert_eq!(whole.scale("anything", 4), Some(0.5));
        assert_eq!(Alphas(split(&json!([1]))).scale("a", 1), None);
    }
}
