//! What the tensors of a LoRA are called: kohya's, PEFT's and diffusers' names.

use std::collections::BTreeSet;

/// Which part of a layer's adapter a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// From the layer's inputs to the rank: PEFT's A.
    Down,
    /// From the rank to the layer's outputs: PEFT's B.
    Up,
    /// What the product is divided by the rank for, and multiplied by.
    Alpha,
    /// A part of some other kind of adapter.
    Foreign(&'static str),
}

/// Of kohya's, PEFT's and diffusers' files, with the names that earlier versions of those wrote.
const ENDS: &[(&str, Role)] = &[
    (".lora_down", Role::Down),
    (".lora_up", Role::Up),
    (".lora_A", Role::Down),
    (".lora_B", Role::Up),
    (".lora.down", Role::Down),
    (".lora.up", Role::Up),
    (".lora_linear_layer.down", Role::Down),
    (".lora_linear_layer.up", Role::Up),
    ("_lora.down", Role::Down),
    ("_lora.up", Role::Up),
];

const FOREIGN: &[(&str, &str)] = &[
    (".lora_mid", "a LoRA with a third factor (Tucker)"),
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    (".hada_", "LoHa"),
    (".lokr_", "LoKr"),
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".lora_embedding_", "a LoRA of an embedding"),
    (".on_input", "IA3"),
    (".ia3_", "IA3"),
];

const FOREIGN_ENDS: &[(&str, &str)] = &[
    (".diff", "differences of whole weights"),
    (".diff_b", "differences of whole biases"),
    (".lora_B.bias", "a LoRA with biases"),
    (".lora_up.bias", "a LoRA with biases"),
];

/// What stands before a layer's name.
const WRAPPERS: &[&str] = &[
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "model.",
    "transformer.",
    "unet.",
    "text_encoder.",
    "text_encoder_2.",
    "text_encoder_3.",
];

/// The same in kohya's names.
const UNDERSCORED: &[&str] =
    &["lora_unet_", "lora_transformer_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lycoris_"];

/// The layer that a tensor belongs to, as the file calls it, and which part it is; `None`: no part of an adapter.
pub(crate) fn parse(tensor: &str) -> Option<(String, Role)> {
    if let Some(layer) = tensor.strip_suffix(".alpha") {
        return Some((layer.to_owned(), Role::Alpha));
    }
    let ends = FOREIGN_ENDS.iter().find(|(end, _)| tensor.ends_with(end));
    let holds = || FOREIGN.iter().find(|(part, _)| tensor.contains(part));
    if let Some((part, kind)) = ends.or_else(holds) {
        let layer = tensor.split(part).next().unwrap_or(tensor);
        return Some((layer.to_owned(), Role::Foreign(kind)));
    }
    let bare = tensor.strip_suffix(".weight").unwrap_or(tensor);
    let whole = ENDS.iter().find_map(|(end, role)| Some((bare.strip_suffix(end)?, *role)));
    // PEFT may name the adapter too: `lora_A.default.weight`.
    let named = || {
        let (rest, _adapter) = bare.rsplit_once('.')?;
        let peft = ENDS.iter().filter(|(end, _)| end.starts_with(".lora_A") || end.starts_with(".lora_B"));
        peft.into_iter().find_map(|(end, role)| Some((rest.strip_suffix(end)?, *role)))
    };
    let (layer, role) = whole.or_else(named)?;
    (!layer.is_empty()).then(|| (layer.to_owned(), role))
}

/// What a layer may be called, so that a file's name and a model's can be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// With dots.
    pub(crate) dotted: BTreeSet<String>,
    /// Where every dot is an underscore.
    pub(crate) underscored: BTreeSet<String>,
}

impl Names {
    /// Of a layer in a file.
    pub(crate) fn of_file(layer: &str) -> Self {
        if let Some(rest) = UNDERSCORED.iter().find_map(|prefix| layer.strip_prefix(prefix)) {
            return Self { dotted: BTreeSet::new(), underscored: [rest.to_owned()].into() };
        }
        // Attention processors, as diffusers saved them before it took over PEFT's names.
        let layer = match layer.split_once(".processor.") {
            Some((module, "to_out")) => format!("{module}.to_out.0"),
            Some((module, rest)) => format!("{module}.{rest}"),
            None => layer.to_owned(),
        };
        let underscored = if layer.contains('.') { BTreeSet::new() } else { [layer.clone()].into() };
        Self { dotted: unwrapped(&layer), underscored }
    }

    /// Of a layer of a model's, whose names have dots.
    pub(crate) fn of_model(layer: &str) -> Self {
        let dotted = unwrapped(layer);
        let underscored = dotted.iter().map(|name| name.replace('.', "_")).collect();
        Self { dotted, underscored }
    }
}

/// The name, and what is left of it without any of the wrappers.
fn unwrapped(name: &str) -> BTreeSet<String> {
    let (mut all, mut next) = (BTreeSet::new(), vec![name]);
    while let Some(name) = next.pop() {
        if all.insert(name.to_owned()) {
            next.extend(WRAPPERS.iter().filter_map(|prefix| name.strip_prefix(prefix)).filter(|rest| !rest.is_empty()));
        }
    }
    all
}

/// The layer of a weight: what adapters are named by. `None`: a bias, which has none.
pub(crate) fn layer_of(weight: &str) -> Option<&str> {
    if weight.ends_with(".bias") {
        return None;
    }
    Some(weight.strip_suffix(".weight").unwrap_or(weight))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialect_names_the_same_layer() {
        let model = Names::of_model("layers.0.attention.to_out.0");
        for (down, up) in [
            (
                "lora_unet_layers_0_attention_to_out_0.lora_down.weight",
                "lora_unet_layers_0_attention_to_out_0.lora_up.weight",
            ),
            (
                "lycoris_layers_0_attention_to_out_0.lora_down.weight",
                "lycoris_layers_0_attention_to_out_0.lora_up.weight",
            ),
            (
                "base_model.model.layers.0.attention.to_out.0.lora_A.weight",
                "base_model.model.layers.0.attention.to_out.0.lora_B.weight",
            ),
            (
                "base_model.model.layers.0.attention.to_out.0.lora_A.default.weight",
                "base_model.model.layers.0.attention.to_out.0.lora_B.default.weight",
            ),
            (
                "transformer.layers.0.attention.to_out.0.lora_A.weight",
                "transformer.layers.0.attention.to_out.0.lora_B.weight",
            ),
            (
                "diffusion_model.layers.0.attention.to_out.0.lora_down.weight",
                "diffusion_model.layers.0.attention.to_out.0.lora_up.weight",
            ),
            (
                "transformer.layers.0.attention.to_out.0.lora.down.weight",
                "transformer.layers.0.attention.to_out.0.lora.up.weight",
            ),
            (
                "unet.layers.0.attention.processor.to_out_lora.down.weight",
                "unet.layers.0.attention.processor.to_out_lora.up.weight",
            ),
            ("layers.0.attention.to_out.0.lora_A", "layers.0.attention.to_out.0.lora_B"),
        ] {
            for (tensor, role) in [(down, Role::Down), (up, Role::Up)] {
                let (layer, found) = parse(tensor).unwrap_or_else(|| panic!("{tensor} is no adapter's"));
                assert_eq!(found, role, "{tensor}");
                let names = Names::of_file(&layer);
                let meets = names.dotted.intersection(&model.dotted).next().is_some()
                    || names.underscored.intersection(&model.underscored).next().is_some();
                assert!(meets, "{tensor}: {names:?}");
                let other = Names::of_model("layers.0.attention.to_out.1");
                assert!(names.dotted.is_disjoint(&other.dotted) && names.underscored.is_disjoint(&other.underscored));
            }
        }
    }

    #[test]
    fn other_adapters_are_known_for_what_they_are() {
        for (tensor, kind) in [
            ("lora_unet_a.hada_w1_a", "LoHa"),
            ("lora_unet_a.lokr_w1", "LoKr"),
            ("lora_unet_a.dora_scale", "DoRA"),
            ("a.lora_magnitude_vector.weight", "DoRA"),
            ("lora_unet_a.lora_mid.weight", "a LoRA with a third factor (Tucker)"),
            ("a.diff", "differences of whole weights"),
            ("a.lora_B.bias", "a LoRA with biases"),
            ("emb.lora_embedding_A", "a LoRA of an embedding"),
        ] {
            assert_eq!(parse(tensor).map(|(_, role)| role), Some(Role::Foreign(kind)), "{tensor}");
        }
        for tensor in ["", "weight", "a.weight", ".lora_A.weight", "a.lora_C.weight", "lora_A.weight"] {
            assert_eq!(parse(tensor), None, "{tensor}");
        }
        assert_eq!(parse("x.alpha"), Some(("x".to_owned(), Role::Alpha)));
    }
}
