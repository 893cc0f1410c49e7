//! Tensors that are in the files and that the model never loads: counting them is how estimates come out twice too high.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::tensor::Tensor;

/// Tensors that lie in the files but don't count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unloaded {
    /// Why they are not loaded.
    pub reason: &'static str,
    /// How many there are.
    pub tensors: usize,
    /// Their bytes in the files; saturating.
    pub bytes: u64,
}

const BUFFER: &str = "buffers that the model makes itself";
const TRAINING: &str = "left over from training";
const OTHER_HALF: &str = "parts of the whole model that this class does not have";
const TIED: &str = "tied to a tensor that is loaded already";
const NOBODYS: &str = "of no component";

/// Splits off what a model of this class does not load.
pub(crate) fn take(tensors: Vec<Tensor>, class: Option<&str>, config: Option<&Value>) -> (Vec<Tensor>, Vec<Unloaded>) {
    let context = Context::of(&tensors, config);
    let mut sums = Sums::default();
    let loaded = tensors.into_iter().filter(|tensor| match reason(&tensor.name, class, &context) {
        Some(reason) => {
            sums.add(reason, tensor);
            false
        }
        None => true,
    });
    (loaded.collect(), sums.into_list())
}

/// What an all-in-one file holds besides its components.
pub(crate) fn stray(tensors: &[Tensor]) -> Vec<Unloaded> {
    let mut sums = Sums::default();
    for tensor in tensors {
        let training = tensor.name.starts_with("model_ema.");
        sums.add(if training { TRAINING } else { NOBODYS }, tensor);
    }
    sums.into_list()
}

#[derive(Default)]
struct Sums(BTreeMap<&'static str, (usize, u64)>);

impl Sums {
    fn add(&mut self, reason: &'static str, tensor: &Tensor) {
        let (tensors, bytes) = self.0.entry(reason).or_default();
        (*tensors, *bytes) = (*tensors + 1, bytes.saturating_add(tensor.bytes));
    }

    fn into_list(self) -> Vec<Unloaded> {
        self.0.into_iter().map(|(reason, (tensors, bytes))| Unloaded { reason, tensors, bytes }).collect()
    }
}

/// What only the names of the others tell.
struct Context {
    /// T5's table of tokens, under its second name, where the first is there too.
    embedding: bool,
    /// A head that is the table of tokens.
    head: bool,
    /// Z-Image's original file has a norm that its model, grown from Lumina's, has no more.
    lumina: bool,
}

impl Context {
    fn of(tensors: &[Tensor], config: Option<&Value>) -> Self {
        let find = |name: &str| tensors.iter().find(|tensor| tensor.name == name);
        let same = |a: &str, b: &str| match (find(a), find(b)) {
            (Some(a), Some(b)) => (&a.shape, a.stored) == (&b.shape, b.stored),
            _ => false,
        };
        let declared = config.and_then(|config| config.get("tie_word_embeddings")?.as_bool()) == Some(true);
        Self {
            embedding: same("shared.weight", "encoder.embed_tokens.weight"),
            lumina: find("cap_embedder.1.weight").is_some() && find("layers.0.attention.qkv.weight").is_some(),
            head: declared && same("model.embed_tokens.weight", "lm_head.weight"),
        }
    }
}

fn reason(name: &str, class: Option<&str>, context: &Context) -> Option<&'static str> {
    let last = name.rsplit('.').next().unwrap_or(name);
    // Registered by old versions of the libraries; new ones make them and ignore those of the file.
    if last == "position_ids" || name.ends_with("rotary_emb.inv_freq") {
        return Some(BUFFER);
    }
    if name.starts_with("model_ema.") || name.starts_with("loss.") || (context.lumina && name == "norm_final.weight") {
        return Some(TRAINING);
    }
    if (context.embedding && name == "encoder.embed_tokens.weight") || (context.head && name == "lm_head.weight") {
        return Some(TIED);
    }
    // What compares texts with images is of no text encoder.
    if name == "logit_scale" && class.is_none_or(|class| class != "CLIPModel") {
        return Some(OTHER_HALF);
    }
    other_half(name, class).then_some(OTHER_HALF)
}

/// Checkpoints of a whole model from which a class takes a part.
fn other_half(name: &str, class: Option<&str>) -> bool {
    let Some(class) = class else { return false };
    let under = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    match class {
        "T5EncoderModel" | "UMT5EncoderModel" | "MT5EncoderModel" => under(&["decoder.", "lm_head."]),
        "CLIPTextModel" => under(&["vision_model.", "visual_projection.", "text_projection."]),
        "CLIPTextModelWithProjection" => under(&["vision_model.", "visual_projection."]),
        "CLIPVisionModel" | "CLIPVisionModelWithProjection" => under(&["text_model.", "text_projection."]),
        // A bare model, without the head of its `…ForCausalLM`.
        class if class.ends_with("Model") => under(&["lm_head."]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;
    use serde_json::json;

    use super::*;
    use crate::tensor::Stored;

    fn loaded(names: &[&str], class: &str, config: Value) -> (Vec<String>, Vec<(&'static str, usize)>) {
        let tensor = |name: &&str| Tensor {
            name: (*name).to_owned(),
            shape: [1].into(),
            stored: Stored::Safetensors(Dtype::U8),
            bytes: 1,
        };
        let (loaded, unloaded) = take(names.iter().map(tensor).collect(), Some(class), Some(&config));
        (
            loaded.into_iter().map(|tensor| tensor.name).collect(),
            unloaded.into_iter().map(|some| (some.reason, some.tensors)).collect(),
        )
    }

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn each_class_loads_its_part() {
        let t5 = [
            "shared.weight",
            "encoder.embed_tokens.weight",
            "encoder.block.0.w",
            "decoder.block.0.w",
            "lm_head.weight",
        ];
        let (names, unloaded) = loaded(&t5, "T5EncoderModel", json!({}));
        assert_eq!(names, owned(&["shared.weight", "encoder.block.0.w"]));
        assert_eq!(unloaded, [(OTHER_HALF, 2), (TIED, 1)]);
        assert_eq!(loaded(&t5, "T5ForConditionalGeneration", json!({})).0.len(), 4);
        let clip = ["text_model.embeddings.position_ids", "text_model.x", "vision_model.x", "text_projection.weight"];
        assert_eq!(loaded(&clip, "CLIPTextModel", json!({})).0, owned(&["text_model.x"]));
        assert_eq!(
            loaded(&clip, "CLIPTextModelWithProjection", json!({})).0,
            owned(&["text_model.x", "text_projection.weight"])
        );
        let qwen = ["model.embed_tokens.weight", "lm_head.weight"];
        assert_eq!(loaded(&qwen, "Qwen3Model", json!({})).0.len(), 1);
        assert_eq!(loaded(&qwen, "Qwen3ForCausalLM", json!({"tie_word_embeddings": true})).0.len(), 1);
        assert_eq!(loaded(&qwen, "Qwen3ForCausalLM", json!({"tie_word_embeddings": false})).0.len(), 2);
        assert_eq!(loaded(&["encoder.embed_tokens.weight"], "T5EncoderModel", json!({})).0.len(), 1, "the only name");
    }
}
