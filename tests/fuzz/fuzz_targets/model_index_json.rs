//! The `model_index.json` of a pipeline, in a folder that has components whole, broken and missing.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        let blocks: Vec<String> = (0..9).map(|block| format!("layers.{block}.w")).collect();
        let blocks: Vec<(&str, usize)> = blocks.iter().map(|name| (name.as_str(), 1000)).collect();
        mm_fuzz::write("pipeline/transformer/config.json", br#"{"_class_name":"ZImageTransformer2DModel"}"#);
        mm_fuzz::write_tensors("pipeline/transformer/diffusion_pytorch_model.safetensors", &blocks);
        mm_fuzz::write("pipeline/text_encoder/config.json", br#"{"architectures":["Qwen3Model"]}"#);
        mm_fuzz::write_tensors("pipeline/text_encoder/model.safetensors", &[("lm_head.weight", 8), ("x", 8)]);
        mm_fuzz::write_tensors("pipeline/vae/diffusion_pytorch_model.fp16.safetensors", &[("x", 8)]);
        mm_fuzz::write_tensors("pipeline/vae_2/a.safetensors", &[("x", 8)]);
        mm_fuzz::write("pipeline/unet/pytorch_model.bin", b"x");
        mm_fuzz::write("pipeline/image_encoder/config.json", b"{}");
        mm_fuzz::write("pipeline/tokenizer/tokenizer_config.json", b"{}");
        mm_fuzz::write("pipeline/safety/model.safetensors", b"short");
        mm_fuzz::write("pipeline/file", b"");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("transformer", mm_fuzz::at("pipeline/transformer_2")).expect("links");
            std::os::unix::fs::symlink("loop", mm_fuzz::at("pipeline/loop")).expect("links");
            std::os::unix::fs::symlink(".", mm_fuzz::at("pipeline/self")).expect("links");
        }
    },
    |bytes: &[u8]| {
        mm_fuzz::write("pipeline/model_index.json", bytes);
        mm_fuzz::inspect_and_plan("pipeline");
    }
);
