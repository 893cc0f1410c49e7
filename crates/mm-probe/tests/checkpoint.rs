//! What is said of a checkpoint is what its headers say.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mm_plan::{Component, DType, Granularity};
use mm_probe::{Checkpoint, CheckpointComponent, inspect};
use safetensors::{SafeTensors, tensor::TensorView};

fn demo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints/shapes").join(path)
}

fn component<'a>(checkpoint: &'a Checkpoint, name: &str) -> &'a CheckpointComponent {
    checkpoint.components.iter().find(|component| component.name == name).expect("a component")
}

/// Stack name, number of blocks, device bytes of each, stored bytes of each. All blocks of a stack are checked to be
/// equal, as they are in the demo checkpoint.
fn stacks(component: &Component) -> Vec<(&str, usize, u64, u64)> {
    let summary = |stack: &mm_plan::Stack| {
        let first = stack.groups.first().expect("a block");
        assert!(stack.groups.iter().all(|group| group == first), "{stack:?}");
        (first.bytes(), first.host_bytes)
    };
    component
        .stacks
        .iter()
        .map(|stack| (stack.name.as_str(), stack.groups.len(), summary(stack).0, summary(stack).1))
        .collect()
}

/// Figures computed once by a script of a few lines from the shapes in the files.
#[test]
fn the_demo_checkpoint_as_bf16() {
    let checkpoint = inspect(demo(""), Some(DType::Bf16)).expect("inspects");
    assert_eq!(checkpoint.class.as_deref(), Some("ZImagePipeline"));
    let summary: Vec<_> = checkpoint
        .components
        .iter()
        .map(|c| (c.name.as_str(), c.class.as_deref(), c.files.len(), c.tensors, c.device_bytes, c.component.phase))
        .collect();
    assert_eq!(
        summary,
        [
            ("text_encoder", Some("Qwen3Model"), 1, 101, 1_841_568, Some(0)),
            ("transformer", Some("ZImageTransformer2DModel"), 3, 221, 9_900_032, Some(1)),
            ("vae", Some("AutoencoderKL"), 1, 152, 1_618_774, Some(2)),
        ]
    );
    let encoder = &component(&checkpoint, "text_encoder").component;
    assert_eq!(stacks(encoder), [("layers", 9, 203_776, 203_232)]);
    assert_eq!(encoder.rest, 12_544);
    let transformer = &component(&checkpoint, "transformer").component;
    assert_eq!(
        stacks(transformer),
        [
            ("context_refiner", 2, 500_224, 498_912),
            ("layers", 10, 667_392, 665_952),
            ("noise_refiner", 2, 667_392, 665_952)
        ]
    );
    assert_eq!((transformer.rest, transformer.granularity), (912_384, Granularity::Blocks));
    let vae = &component(&checkpoint, "vae").component;
    let blocks = |stack: &mm_plan::Stack| stack.groups.iter().map(|group| (group.bytes(), group.host_bytes)).collect();
    let unequal: Vec<(&str, Vec<(u64, u64)>)> = vae.stacks.iter().map(|s| (s.name.as_str(), blocks(s))).collect();
    let expected = [
        ("decoder.mid_block.resnets", vec![(148_992, 148_224), (148_992, 148_224)]),
        ("decoder.up_blocks.0.resnets", vec![(148_992, 148_224), (148_992, 148_224)]),
        ("decoder.up_blocks.1.resnets", vec![(104_704, 103_648), (84_480, 83_520)]),
        ("decoder.up_blocks.2.resnets", vec![(35_328, 33_840), (22_528, 21_024)]),
        ("encoder.down_blocks", vec![(33_280, 31_440), (108_032, 106_656), (136_960, 136_000)]),
        ("encoder.mid_block.resnets", vec![(148_992, 148_224), (148_992, 148_224)]),
    ];
    assert_eq!(unequal, expected);
    assert_eq!(vae.rest, 217_088);
    assert_eq!(checkpoint.to_plan()[1], *transformer);
}

#[test]
fn the_demo_checkpoint_as_f32_is_twice_the_size_but_for_the_alignment() {
    let checkpoint = inspect(demo(""), Some(DType::F32)).expect("inspects");
    let transformer = component(&checkpoint, "transformer");
    assert_eq!((transformer.device_bytes, transformer.stored_bytes()), (2 * 9_900_032, 9_900_032));
    assert_eq!(
        stacks(&transformer.component),
        [
            ("context_refiner", 2, 998_912, 498_912),
            ("layers", 10, 1_332_992, 665_952),
            ("noise_refiner", 2, 1_332_992, 665_952)
        ]
    );
    assert_eq!(transformer.component.rest, 1_822_976);
}

/// Against the safetensors crate's own reader, which reads whole files.
#[test]
fn sums_agree_with_a_reader_of_whole_files() {
    let checkpoint = inspect(demo(""), None).expect("inspects");
    for component in &checkpoint.components {
        let mut stored: BTreeMap<String, u64> = BTreeMap::new();
        let (mut tensors, mut slabs) = (0, 0);
        for file in &component.files {
            let bytes = fs::read(file).expect("reads");
            for (_, view) in SafeTensors::deserialize(&bytes).expect("parses").iter() {
                *stored.entry(view.dtype().to_string().to_lowercase()).or_default() += view.data().len() as u64;
                slabs += view.data().len().next_multiple_of(256) as u64;
                tensors += 1;
            }
        }
        assert_eq!((&component.stored, component.tensors), (&stored, tensors), "{}", component.name);
        assert_eq!(component.component.bytes(), slabs, "{}: every tensor is in a block or in the rest", component.name);
        assert_eq!(component.device_bytes, component.stored_bytes(), "as stored, where no type is asked for");
    }
}

#[test]
fn a_part_of_the_checkpoint_can_be_named_in_four_ways() {
    let whole = inspect(demo(""), Some(DType::F16)).expect("inspects");
    let transformer = component(&whole, "transformer");
    for path in ["transformer", "transformer/", "transformer/diffusion_pytorch_model.safetensors.index.json"] {
        let part = inspect(demo(path), Some(DType::F16)).expect("inspects");
        assert_eq!((part.components.len(), part.class), (1, None), "{path}");
        assert_eq!(part.components[0].component, transformer.component, "{path}");
        assert_eq!(part.components[0].class, transformer.class, "{path}");
    }
    let file = inspect(demo("text_encoder/model.safetensors"), Some(DType::F16)).expect("inspects");
    assert_eq!(file.to_plan(), [component(&whole, "text_encoder").component.clone()]);
    let shard =
        inspect(demo("transformer/diffusion_pytorch_model-00001-of-00003.safetensors"), None).expect("inspects");
    assert_eq!(
        (shard.components[0].name.as_str(), shard.components[0].tensors),
        ("diffusion_pytorch_model-00001-of-00003", 90)
    );
}

/// Element type, shape, bytes.
type Tensor = (safetensors::Dtype, Vec<usize>, Vec<u8>);

fn tensor(dtype: safetensors::Dtype, elements: usize) -> Tensor {
    (dtype, vec![elements], vec![0; elements * dtype.bitsize() / 8])
}

fn write(path: &Path, tensors: &[(&str, Tensor)]) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("creates");
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (*name, TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor")));
    fs::write(path, safetensors::serialize(views, None).expect("serializes")).expect("writes");
}

#[test]
fn floats_are_cast_and_all_else_stays() {
    use safetensors::Dtype as S;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("mixed.safetensors");
    let block = |i: usize| {
        [
            (["b.0.f32", "b.1.f32"][i], tensor(S::F32, 100)),
            (["b.0.f8", "b.1.f8"][i], tensor(S::F8_E4M3, 300)),
            (["b.0.i64", "b.1.i64"][i], tensor(S::I64, 3)),
            (["b.0.f4", "b.1.f4"][i], tensor(S::F4, 6)),
        ]
    };
    write(&path, &[block(0), block(1)].concat());
    let slabs = |dtype| {
        let mut checkpoint = inspect(&path, dtype).expect("inspects");
        let component = checkpoint.components.remove(0);
        assert_eq!(component.name, "mixed");
        let group = component.component.stacks[0].groups[1].clone();
        assert_eq!(group.host_bytes, 400 + 300 + 24 + 3);
        (component.device_bytes, group.slabs.iter().map(|slab| (slab.dtype, slab.bytes)).collect::<Vec<_>>())
    };
    let cast = vec![(DType::Bytes, 256), (DType::Bf16, 256 + 768), (DType::I64, 256)];
    assert_eq!(slabs(Some(DType::Bf16)), (2 * (200 + 600 + 24 + 3), cast));
    let kept = vec![(DType::Bytes, 256), (DType::F32, 512), (DType::F8e4m3, 512), (DType::I64, 256)];
    assert_eq!(slabs(None), (2 * (400 + 300 + 24 + 3), kept));
    let stored = inspect(&path, None).expect("inspects").components.remove(0).stored;
    let expected =
        [("f32", 800), ("f8e4m3", 600), ("i64", 48), ("f4", 6)].map(|(name, bytes)| (name.to_owned(), bytes));
    assert_eq!(stored, BTreeMap::from(expected));
}

/// A terabyte that is not there: were more than the header read, this would not end.
#[test]
fn only_headers_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("huge.safetensors");
    let terabyte = 1u64 << 40;
    let header = format!(r#"{{"a":{{"dtype":"BF16","shape":[{}],"data_offsets":[0,{terabyte}]}}}}"#, terabyte / 2);
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).expect("writes");
    let file = fs::OpenOptions::new().write(true).open(&path).expect("opens");
    file.set_len(8 + header.len() as u64 + terabyte).expect("grows");
    let checkpoint = inspect(&path, Some(DType::F32)).expect("inspects");
    assert_eq!(checkpoint.components[0].device_bytes, 2 * terabyte);
    assert_eq!(checkpoint.components[0].component, Component { phase: None, ..Component::whole("huge", 2 * terabyte) });
}

#[test]
fn only_what_is_named_is_counted() {
    use safetensors::Dtype::U8;
    let folder = tempfile::tempdir().expect("a folder");
    let at = |path: &str| folder.path().join(path);
    write(&at("unet/1.safetensors"), &[("a", tensor(U8, 1))]);
    write(&at("unet/2.safetensors"), &[("b", tensor(U8, 2))]);
    write(&at("unet/diffusion_pytorch_model.safetensors"), &[("c", tensor(U8, 40))]);
    fs::write(at("unet/3.safetensors"), "no weights at all").expect("writes");
    let index = r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    fs::write(at("unet/diffusion_pytorch_model.safetensors.index.json"), index).expect("writes");
    write(&at("vae_2/model.safetensors"), &[("a", tensor(U8, 4))]);
    write(&at("left_out/model.safetensors"), &[("a", tensor(U8, 80))]);
    write(&at("forgotten/model.safetensors"), &[("a", tensor(U8, 80))]);
    fs::create_dir_all(at("scheduler")).expect("creates");
    let pipeline = r#"{"_class_name": "P", "_diffusers_version": "0", "left_out": [null, null], "flag": false,
        "sizes": [1, 2], "unet": ["diffusers", "UNet"], "vae_2": ["diffusers", "V"], "scheduler": ["diffusers", "S"]}"#;
    fs::write(at("model_index.json"), pipeline).expect("writes");

    let checkpoint = inspect(folder.path(), None).expect("inspects");
    let found: Vec<_> = checkpoint
        .components
        .iter()
        .map(|c| (c.name.as_str(), c.class.as_deref(), c.stored_bytes(), c.component.phase))
        .collect();
    assert_eq!(found, [("unet", Some("UNet"), 3, Some(1)), ("vae_2", Some("V"), 4, Some(2))]);
    assert_eq!(checkpoint.components[0].files, [at("unet/1.safetensors"), at("unet/2.safetensors")]);
    let json = serde_json::to_value(&checkpoint).expect("serializes");
    assert_eq!(json["components"][0]["stored"]["u8"], 3);
}

#[test]
fn phases_go_by_the_usual_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let phase = |name: &str| {
        let path = folder.path().join(format!("{name}.safetensors"));
        write(&path, &[("a", tensor(safetensors::Dtype::U8, 1))]);
        inspect(&path, None).expect("inspects").components[0].component.phase
    };
    for (name, expected) in [
        ("text_encoder", Some(0)),
        ("text_encoder_3", Some(0)),
        ("image_encoder", Some(0)),
        ("transformer_2", Some(1)),
        ("unet", Some(1)),
        ("vae", Some(2)),
        ("vaery", None),
        ("controlnet", None),
    ] {
        assert_eq!(phase(name), expected, "{name}");
    }
}

/// As the Hugging Face cache lays a snapshot out: links to content-addressed files elsewhere.
#[cfg(unix)]
#[test]
fn links_are_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |path: &str| folder.path().join(path);
    write(&at("blobs/abc"), &[("a", tensor(safetensors::Dtype::U8, 5))]);
    fs::create_dir_all(at("snapshots/1/unet")).expect("creates");
    fs::write(at("blobs/def"), r#"{"unet": ["diffusers", "UNet"]}"#).expect("writes");
    std::os::unix::fs::symlink("../../../blobs/abc", at("snapshots/1/unet/model.safetensors")).expect("links");
    std::os::unix::fs::symlink("../../blobs/def", at("snapshots/1/model_index.json")).expect("links");
    let checkpoint = inspect(at("snapshots/1"), None).expect("inspects");
    assert_eq!(checkpoint.components[0].stored_bytes(), 5);
}
