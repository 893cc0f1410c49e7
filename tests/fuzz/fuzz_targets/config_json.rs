//! The `config.json` of a lone model that has tensors of several kinds.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        let tensors = [
            "shared.weight",
            "encoder.embed_tokens.weight",
            "encoder.block.0.layer.0.w",
            "encoder.block.1.layer.0.w",
            "decoder.block.0.w",
            "model.embed_tokens.weight",
            "lm_head.weight",
            "vision_model.x",
            "text_projection.weight",
            "logit_scale",
            "text_model.embeddings.position_ids",
        ];
        mm_fuzz::write_tensors("model/model.safetensors", &tensors.map(|name| (name, 16)));
    },
    |bytes: &[u8]| {
        mm_fuzz::write("model/config.json", bytes);
        mm_fuzz::inspect_and_plan("model");
    }
);
