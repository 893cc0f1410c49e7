//! A refused option is named, with what to give instead.

use mm_fixtures::{Fill, Fixture, Layout, Model, Options};
use safetensors::Dtype;

#[track_caller]
fn refused(options: Options, flag: &str, why: &str) {
    let error = Fixture::new(Model::FluxDev, &options).unwrap_err().to_string();
    assert!(error.starts_with(flag) && error.contains(why), "{error}");
}

#[test]
fn refused_options_name_the_flag() {
    let default = Options::default;
    for layers in [0, usize::MAX] {
        refused(Options { layers: Some(layers), ..default() }, "--layers", "give 1 to");
    }
    for dim in [0, 4, 100, usize::MAX - 7] {
        refused(Options { dim: Some(dim), ..default() }, "--dim", "multiple of 8");
    }
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
        refused(Options { scale, ..default() }, "--scale", "above 0");
    }
    refused(Options { dtype: Some(Dtype::I64), ..default() }, "--dtype", "bf16");
    refused(Options { shard: Some(0), ..default() }, "--shard", "5GB");
    refused(Options { shard: Some(1), layout: Layout::Single, ..default() }, "--shard", "single");
    refused(Options { only: vec!["unet".into()], ..default() }, "--only unet", "text_encoder_2, transformer, vae");
    // The single file of FLUX has no text encoders.
    refused(Options { only: vec!["vae".into()], layout: Layout::Single, ..default() }, "--only vae", "has transformer");
}

#[test]
fn extremes_make_a_checkpoint_or_an_error() {
    for model in Model::ALL {
        for scale in [f64::MIN_POSITIVE, 1e-9, 10_000.0] {
            for dim in [None, Some(8), Some(1 << 20)] {
                for layers in [None, Some(1)] {
                    let options = Options { scale, dim, layers, ..Options::default() };
                    let fixture = Fixture::new(model, &options).unwrap();
                    assert!(fixture.components.iter().flat_map(|c| &c.tensors).all(|t| !t.shape.contains(&0)));
                }
            }
        }
    }
    let vast = Options { layers: Some(10_000), dim: Some(1 << 20), ..Options::default() };
    let error = Fixture::new(Model::Sdxl, &vast).unwrap_err().to_string();
    assert!(error.contains("more than a file system holds"), "{error}");
}

#[test]
fn only_keeps_what_is_named() {
    let only = vec!["vae".to_owned(), "text_encoder".to_owned()];
    let fixture = Fixture::new(Model::FluxDev, &Options { only, ..Options::default() }).unwrap();
    assert_eq!(fixture.components.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["text_encoder", "vae"]);
}

#[test]
fn the_dtype_is_for_floats() {
    let options = Options { dtype: Some(Dtype::F32), layout: Layout::Single, ..Options::default() };
    let fixture = Fixture::new(Model::Sdxl, &options).unwrap();
    for tensor in fixture.components.iter().flat_map(|c| &c.tensors) {
        let expected = if tensor.name.ends_with("position_ids") { Dtype::I64 } else { Dtype::F32 };
        assert_eq!(tensor.dtype, expected, "{}", tensor.name);
    }
}

#[test]
fn names_are_read_as_they_are_shown() {
    for model in Model::ALL {
        assert_eq!(model.name().parse::<Model>().unwrap(), model);
    }
    for layout in Layout::ALL {
        assert_eq!(layout.name().parse::<Layout>().unwrap(), layout);
    }
    for fill in Fill::ALL {
        assert_eq!(fill.name().parse::<Fill>().unwrap(), fill);
    }
    let error = "flux".parse::<Model>().unwrap_err().to_string();
    assert!(error.contains("flux-dev") && error.contains("qwen3-4b"), "{error}");
}
