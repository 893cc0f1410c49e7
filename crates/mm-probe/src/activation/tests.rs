//! Which names are which architecture, and that figures behave.

use mm_plan::{DType, DeviceKind};
use serde_json::{Value, json};

use super::{Architecture, Facts, Workload, estimate, recognize};

/// Tensors as `name` and its shape, `[out, in]`.
type Tensors = Vec<(String, Vec<usize>)>;

fn tensors(prefix: &str, list: &[(&str, &[usize])]) -> Tensors {
    list.iter().map(|(name, shape)| (format!("{prefix}{name}"), shape.to_vec())).collect()
}

fn found(tensors: &Tensors, config: Option<&Value>) -> Option<Architecture> {
    let tensors = tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
    recognize(&Facts::new(tensors, config, None))
}

/// All forms of names are the same architecture of the same sizes.
fn all_are(name: &str, forms: &[Tensors]) -> Architecture {
    let architectures: Vec<_> = forms.iter().map(|form| found(form, None).expect(name)).collect();
    for architecture in &architectures {
        assert_eq!(architecture.name(), name);
        assert_eq!(architecture, &architectures[0]);
    }
    architectures[0].clone()
}

fn flux() -> Architecture {
    let original: &[(&str, &[usize])] = &[
        ("double_blocks.0.img_mod.lin.weight", &[18432, 3072]),
        ("double_blocks.0.img_attn.qkv.weight", &[9216, 3072]),
        ("double_blocks.0.img_attn.norm.query_norm.scale", &[128]),
        ("double_blocks.0.img_mlp.0.weight", &[12288, 3072]),
        ("single_blocks.0.linear1.weight", &[21504, 3072]),
    ];
    let diffusers = tensors(
        "",
        &[
            ("transformer_blocks.0.norm1.linear.weight", &[18432, 3072]),
            ("transformer_blocks.0.attn.add_q_proj.weight", &[3072, 3072]),
            ("transformer_blocks.0.attn.norm_q.weight", &[128]),
            ("single_transformer_blocks.0.proj_mlp.weight", &[12288, 3072]),
        ],
    );
    // GGUF has the original names.
    all_are("flux", &[tensors("", original), tensors("model.diffusion_model.", original), diffusers])
}

fn sd3_large() -> Architecture {
    let original: &[(&str, &[usize])] = &[
        ("joint_blocks.0.x_block.attn.qkv.weight", &[7296, 2432]),
        ("joint_blocks.0.x_block.attn.ln_q.weight", &[64]),
        ("joint_blocks.0.x_block.mlp.fc1.weight", &[9728, 2432]),
    ];
    let diffusers = tensors(
        "",
        &[
            ("pos_embed.proj.weight", &[2432, 16, 2, 2]),
            ("transformer_blocks.0.attn.add_q_proj.weight", &[2432, 2432]),
            ("transformer_blocks.0.attn.norm_q.weight", &[64]),
            ("transformer_blocks.0.ff.net.0.proj.weight", &[9728, 2432]),
        ],
    );
    all_are("sd3", &[tensors("", original), tensors("model.diffusion_model.", original), diffusers])
}

fn z_image() -> Architecture {
    let common: &[(&str, &[usize])] = &[
        ("cap_embedder.1.weight", &[3840, 2560]),
        ("layers.0.adaLN_modulation.0.weight", &[15360, 256]),
        ("layers.0.feed_forward.w1.weight", &[10240, 3840]),
        ("noise_refiner.0.feed_forward.w1.weight", &[10240, 3840]),
    ];
    let norm = |prefix, name| [tensors(prefix, common), tensors(prefix, &[(name, &[128])])].concat();
    all_are(
        "z_image",
        &[
            norm("", "layers.0.attention.norm_q.weight"),
            norm("model.diffusion_model.", "layers.0.attention.q_norm.weight"),
        ],
    )
}

/// SDXL's, in Diffusers' names: three levels, two residuals each on the way down.
fn sdxl() -> Tensors {
    let channels = [320, 640, 1280];
    let mut all = tensors(
        "",
        &[("conv_in.weight", &[320, 4, 3, 3]), ("down_blocks.0.resnets.0.time_emb_proj.weight", &[320, 1280])],
    );
    let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
    for (level, to) in channels.into_iter().enumerate() {
        for layer in 0..2 {
            let from = if layer == 0 && level > 0 { channels[level - 1] } else { to };
            add(format!("down_blocks.{level}.resnets.{layer}.conv1.weight"), &[to, from, 3, 3]);
        }
        if level < 2 {
            add(format!("down_blocks.{level}.downsamplers.0.conv.weight"), &[to, to, 3, 3]);
            add(format!("up_blocks.{level}.upsamplers.0.conv.weight"), &[channels[2 - level]; 2]);
        }
        for layer in 0..3 {
            let (to, below) = (channels[2 - level], channels[1usize.saturating_sub(level)]);
            let own = if layer == 0 { channels[3usize.saturating_sub(level).min(2)] } else { to };
            add(
                format!("up_blocks.{level}.resnets.{layer}.conv1.weight"),
                &[to, own + if layer == 2 { below } else { to }, 3, 3],
            );
        }
    }
    add("mid_block.resnets.0.conv1.weight".into(), &[1280, 1280, 3, 3]);
    let places =
        [("down_blocks.1", 2, 640), ("down_blocks.2", 2, 1280), ("up_blocks.0", 3, 1280), ("up_blocks.1", 3, 640)];
    for (block, layers, channels) in places.into_iter().chain([("mid_block", 1, 1280)]) {
        for layer in 0..layers {
            let at = format!("{block}.attentions.{layer}.transformer_blocks.0");
            add(format!("{at}.ff.net.0.proj.weight"), &[8 * channels, channels]);
            add(format!("{at}.attn2.to_k.weight"), &[channels, 2048]);
        }
    }
    all
}

/// The same in the original names.
fn sdxl_original() -> Tensors {
    let rename = |name: &str| {
        let parts: Vec<&str> = name.split('.').collect();
        let number = |at: usize| parts[at].parse::<usize>().unwrap();
        let residual = "0.in_layers.2.weight";
        match parts[0] {
            "conv_in" => "input_blocks.0.0.weight".to_owned(),
            "mid_block" if parts[1] == "resnets" => format!("middle_block.{residual}"),
            "mid_block" => format!("middle_block.1.{}", parts[3..].join(".")),
            direction => {
                let (blocks, layers, first) =
                    if direction == "up_blocks" { ("output_blocks", 3, 0) } else { ("input_blocks", 3, 1) };
                let index = |layer: usize| number(1) * layers + layer + first;
                match parts[2] {
                    "resnets" if parts[4] == "time_emb_proj" => "input_blocks.1.0.emb_layers.1.weight".to_owned(),
                    "resnets" => format!("{blocks}.{}.{residual}", index(number(3))),
                    "attentions" => format!("{blocks}.{}.1.{}", index(number(3)), parts[4..].join(".")),
                    "downsamplers" => format!("{blocks}.{}.0.op.weight", index(2)),
                    _ => format!("{blocks}.{}.2.conv.weight", index(2)),
                }
            }
        }
    };
    sdxl().into_iter().map(|(name, shape)| (format!("model.diffusion_model.{}", rename(&name)), shape)).collect()
}

fn wan() -> Architecture {
    let original: &[(&str, &[usize])] = &[
        ("blocks.0.self_attn.q.weight", &[5120, 5120]),
        ("blocks.0.cross_attn.q.weight", &[5120, 5120]),
        ("blocks.0.ffn.0.weight", &[13824, 5120]),
        ("patch_embedding.weight", &[5120, 16, 1, 2, 2]),
    ];
    let diffusers = tensors(
        "",
        &[
            ("blocks.0.attn1.to_q.weight", &[5120, 5120]),
            ("blocks.0.attn2.to_q.weight", &[5120, 5120]),
            ("blocks.0.ffn.net.0.proj.weight", &[13824, 5120]),
            ("patch_embedding.weight", &[5120, 16, 1, 2, 2]),
        ],
    );
    // GGUF has at most four sides.
    let mut gguf = tensors("", original);
    gguf[3].1 = vec![5120, 16, 2, 2];
    all_are("wan", &[tensors("", original), tensors("model.diffusion_model.", original), diffusers, gguf])
}

fn t5() -> Architecture {
    let transformers = tensors(
        "",
        &[
            ("encoder.block.0.layer.0.SelfAttention.q.weight", &[4096, 4096]),
            ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", &[32, 64]),
            ("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", &[10240, 4096]),
        ],
    );
    let gguf = tensors(
        "",
        &[
            ("enc.blk.0.attn_q.weight", &[4096, 4096]),
            ("enc.blk.0.attn_rel_b.weight", &[32, 64]),
            ("enc.blk.0.ffn_gate.weight", &[10240, 4096]),
        ],
    );
    all_are("t5", &[transformers, gguf])
}

fn umt5() -> Architecture {
    let positions =
        |block: usize| format!("encoder.block.{block}.layer.0.SelfAttention.relative_attention_bias.weight");
    let transformers = tensors(
        "",
        &[
            ("encoder.block.0.layer.0.SelfAttention.q.weight", &[4096, 4096]),
            (&positions(0), &[32, 64]),
            (&positions(1), &[32, 64]),
            ("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", &[10240, 4096]),
        ],
    );
    let original = tensors(
        "",
        &[
            ("blocks.0.attn.q.weight", &[4096, 4096]),
            ("blocks.0.pos_embedding.embedding.weight", &[32, 64]),
            ("blocks.1.pos_embedding.embedding.weight", &[32, 64]),
            ("blocks.0.ffn.gate.0.weight", &[10240, 4096]),
        ],
    );
    all_are("umt5", &[transformers, original])
}

fn qwen3() -> Architecture {
    let transformers: &[(&str, &[usize])] = &[
        ("layers.0.self_attn.q_norm.weight", &[128]),
        ("layers.0.self_attn.q_proj.weight", &[4096, 2560]),
        ("layers.0.self_attn.k_proj.weight", &[1024, 2560]),
        ("layers.0.mlp.gate_proj.weight", &[9728, 2560]),
    ];
    let gguf = tensors(
        "",
        &[
            ("blk.0.attn_q_norm.weight", &[128]),
            ("blk.0.attn_q.weight", &[4096, 2560]),
            ("blk.0.attn_k.weight", &[1024, 2560]),
            ("blk.0.ffn_gate.weight", &[9728, 2560]),
        ],
    );
    all_are("qwen3", &[tensors("", transformers), tensors("model.", transformers), gguf])
}

fn clip() -> Architecture {
    let transformers: &[(&str, &[usize])] = &[
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", &[1280, 1280]),
        ("text_model.encoder.layers.0.mlp.fc1.weight", &[5120, 1280]),
    ];
    let original = tensors(
        "conditioner.embedders.1.model.",
        &[
            ("transformer.resblocks.0.attn.in_proj_weight", &[3840, 1280]),
            ("transformer.resblocks.0.mlp.c_fc.weight", &[5120, 1280]),
        ],
    );
    all_are("clip", &[tensors("", transformers), tensors("text_encoders.clip_g.transformer.", transformers), original])
}

/// Blocks of two residuals with these channels, in Diffusers' names or the original ones.
fn kl(prefix: &str, channels: &[usize], diffusers: bool) -> Tensors {
    let (last, mut from) = (channels.len() - 1, channels[0]);
    let mut all = vec![(format!("{prefix}decoder.conv_in.weight"), vec![channels[0], 16, 3, 3])];
    for (block, &to) in channels.iter().enumerate() {
        let (at, upsample) = match diffusers {
            true => (format!("up_blocks.{block}.resnets"), format!("up_blocks.{block}.upsamplers.0.conv")),
            false => (format!("up.{}.block", last - block), format!("up.{}.upsample.conv", last - block)),
        };
        for layer in 0..3 {
            all.push((format!("{prefix}decoder.{at}.{layer}.conv1.weight"), vec![to, from, 3, 3]));
            from = to;
        }
        if block < last {
            all.push((format!("{prefix}decoder.{upsample}.weight"), vec![to, to, 3, 3]));
        }
    }
    all
}

fn autoencoder_kl() -> Architecture {
    let channels = [512, 512, 256, 128];
    let vae = all_are(
        "autoencoder_kl",
        &[kl("", &channels, true), kl("", &channels, false), kl("first_stage_model.", &channels, false)],
    );
    assert_eq!(vae.pixels_per_latent(), Some(8));
    vae
}

fn autoencoder_kl_wan() -> Architecture {
    let blocks = [(384, 384, 192, true), (192, 384, 192, true), (192, 192, 96, false), (96, 96, 0, false)];
    let mut diffusers =
        tensors("", &[("decoder.conv_in.weight", &[384, 16, 3, 3, 3]), ("decoder.conv_out.weight", &[3, 96, 3, 3, 3])]);
    let mut original =
        tensors("", &[("decoder.conv1.weight", &[384, 16, 3, 3, 3]), ("decoder.head.2.weight", &[3, 96, 3, 3, 3])]);
    let mut index = 0;
    for (block, (first, to, halved, frames)) in blocks.into_iter().enumerate() {
        for layer in 0..3 {
            let shape = vec![to, if layer == 0 { first } else { to }, 3, 3, 3];
            diffusers.push((format!("decoder.up_blocks.{block}.resnets.{layer}.conv1.weight"), shape.clone()));
            original.push((format!("decoder.upsamples.{index}.residual.2.weight"), shape));
            index += 1;
        }
        if halved > 0 {
            for (part, there) in [("resample.1.weight", true), ("time_conv.weight", frames)] {
                if there {
                    diffusers.push((format!("decoder.up_blocks.{block}.upsamplers.0.{part}"), vec![halved, to, 3, 3]));
                    original.push((format!("decoder.upsamples.{index}.{part}"), vec![halved, to, 3, 3]));
                }
            }
            index += 1;
        }
    }
    let vae = all_are("autoencoder_kl_wan", &[diffusers, original]);
    assert_eq!(vae.pixels_per_latent(), Some(8));
    vae
}

fn all() -> Vec<Architecture> {
    let unet = all_are("unet", &[sdxl(), sdxl_original()]);
    let denoisers = [flux(), sd3_large(), z_image(), unet, wan()];
    let encoders = [t5(), umt5(), qwen3(), clip()];
    denoisers.into_iter().chain(encoders).chain([autoencoder_kl(), autoencoder_kl_wan()]).collect()
}

fn at(width: u32, height: u32, batch: u32) -> Workload {
    Workload { width, height, batch, ..Workload::default() }
}

#[test]
fn every_form_of_names_is_recognized() {
    let names: Vec<_> = all().iter().map(Architecture::name).collect();
    assert_eq!(
        names,
        [
            "flux",
            "sd3",
            "z_image",
            "unet",
            "wan",
            "t5",
            "umt5",
            "qwen3",
            "clip",
            "autoencoder_kl",
            "autoencoder_kl_wan"
        ]
    );
}

#[test]
fn others_are_not() {
    let unknown = |list: &[(&str, &[usize])]| assert_eq!(found(&tensors("", list), None), None, "{list:?}");
    unknown(&[]);
    unknown(&[("", &[]), (".", &[1]), ("weight", &[1, 1])]);
    // Chroma, Lumina 2, Gemma 3, a CLIP vision model; a Qwen3 of experts.
    unknown(&[
        ("double_blocks.0.img_attn.qkv.weight", &[9216, 3072]),
        ("double_blocks.0.img_mlp.0.weight", &[12288, 3072]),
    ]);
    unknown(&[("layers.0.adaLN_modulation.1.weight", &[9216, 1024]), ("cap_embedder.1.weight", &[2304, 2304])]);
    let gemma = "layers.0.pre_feedforward_layernorm.weight";
    let (norm, q, k) =
        ("layers.0.self_attn.q_norm.weight", "layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight");
    unknown(&[
        (norm, &[256]),
        (q, &[2048, 2560]),
        (k, &[1024, 2560]),
        ("layers.0.mlp.gate_proj.weight", &[10240, 2560]),
        (gemma, &[2560]),
    ]);
    unknown(&[(norm, &[128]), (q, &[4096, 2560]), (k, &[1024, 2560]), ("layers.0.mlp.gate.weight", &[128, 2560])]);
    unknown(&[("vision_model.encoder.layers.0.self_attn.q_proj.weight", &[1280, 1280])]);
    // Right names with sides missing or of no size.
    unknown(&[("joint_blocks.0.x_block.attn.qkv.weight", &[]), ("joint_blocks.0.x_block.mlp.fc1.weight", &[4])]);
    unknown(&[("joint_blocks.0.x_block.attn.qkv.weight", &[]), ("joint_blocks.0.x_block.mlp.fc1.weight", &[0, 4])]);
}

#[test]
fn real_models_take_what_is_known_of_them() {
    let gib = |architecture: &Architecture, workload: &Workload| {
        let bytes = architecture.activation(workload).unwrap();
        let gib = bytes as f64 / f64::from(1 << 30);
        println!("{:20} {gib:7.2} GiB  {workload:?}", architecture.name());
        gib
    };
    let image = Workload::default();
    let guided = Workload { guided: true, ..image.clone() };
    let video = Workload { width: 832, height: 480, frames: 81, ..image.clone() };
    let unet = found(&sdxl(), None).unwrap();
    // Two copies of 24 heads' scores of 4608 tokens are 1.9 GiB.
    assert!((1.9..3.0).contains(&gib(&flux(), &image)));
    assert!((5.5..7.5).contains(&gib(&sd3_large(), &guided)));
    assert!((5.0..8.0).contains(&gib(&z_image(), &image)));
    assert!((2.5..4.5).contains(&gib(&unet, &guided)));
    assert!((3.0..10.0).contains(&gib(&wan(), &video)));
    assert!((4.0..8.0).contains(&gib(&autoencoder_kl(), &image)));
    assert!((4.0..20.0).contains(&gib(&autoencoder_kl_wan(), &video)));
    for encoder in [t5(), umt5(), qwen3(), clip()] {
        assert!((0.001..0.5).contains(&gib(&encoder, &image)), "{encoder:?}");
    }
}

#[test]
fn more_never_takes_less() {
    let sizes = [1, 2, 63, 64, 65, 500, 512, 1024, 1040, 4096];
    for architecture in all() {
        let bytes = |workload: &Workload| architecture.activation(workload).unwrap();
        for pair in sizes.windows(2) {
            for other in sizes {
                assert!(
                    bytes(&at(pair[0], other, 1)) <= bytes(&at(pair[1], other, 1)),
                    "width {pair:?} {architecture:?}"
                );
                assert!(
                    bytes(&at(other, pair[0], 1)) <= bytes(&at(other, pair[1], 1)),
                    "height {pair:?} {architecture:?}"
                );
            }
            assert!(bytes(&at(512, 512, pair[0])) < bytes(&at(512, 512, pair[1])), "batch {pair:?} {architecture:?}");
        }
        let base = at(512, 512, 1);
        assert!(bytes(&base) <= bytes(&Workload { guided: true, ..base.clone() }));
        assert!(bytes(&base) <= bytes(&Workload { device: DeviceKind::Host, ..base.clone() }));
        for frames in 1..9 {
            let of = |frames| bytes(&Workload { frames, ..base.clone() });
            assert!(of(frames) <= of(frames + 1), "{architecture:?}");
        }
    }
}

#[test]
fn absurd_sizes_have_no_figure() {
    let largest = Workload { frames: u32::MAX, guided: true, ..at(u32::MAX, u32::MAX, u32::MAX) };
    for architecture in all() {
        for workload in [at(0, 64, 1), at(64, 0, 1), at(64, 64, 0), Workload { dtype: DType::U8, ..at(64, 64, 1) }] {
            assert_eq!(architecture.activation(&workload), None, "{architecture:?}");
        }
        assert_eq!(architecture.activation(&Workload { pixels_per_latent: Some(0), ..at(64, 64, 1) }), None);
        if !["t5", "umt5", "qwen3", "clip"].contains(&architecture.name()) {
            assert_eq!(architecture.activation(&largest), None, "{architecture:?}");
        }
    }
    let huge = tensors(
        "",
        &[
            ("joint_blocks.0.x_block.attn.qkv.weight", &[usize::MAX, usize::MAX]),
            ("joint_blocks.0.x_block.mlp.fc1.weight", &[usize::MAX, usize::MAX]),
        ],
    );
    let huge = huge.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
    assert_eq!(estimate(huge, None, None, &at(64, 64, 1)), None);
}

#[test]
fn configurations_tell_the_heads() {
    let (sdxl, image) = (sdxl(), Workload::default());
    let config = json!({ "attention_head_dim": [5, 10, 20], "num_attention_heads": null });
    assert_eq!(found(&sdxl, Some(&config)), found(&sdxl, None));
    let more = json!({ "attention_head_dim": [50, 100, 200] });
    let bytes = |config| found(&sdxl, config).unwrap().activation(&image).unwrap();
    assert!(bytes(Some(&more)) > 5 * bytes(None));
    for wrong in [json!({ "attention_head_dim": 0 }), json!({ "attention_head_dim": ["x", -1] }), json!([])] {
        assert_eq!(found(&sdxl, Some(&wrong)), found(&sdxl, None));
    }
}
