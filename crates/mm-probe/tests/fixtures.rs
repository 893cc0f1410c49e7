//! Every model that fixtures exist for, in every layout: components and blocks are, to the byte, what the model loads.
//!
//! The truth is the fixture's own: which block a tensor is in is known from how the model is built, not from its name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mm_fixtures::{Component, Fixture, Layout, Model, Options};
use mm_plan::DType;
use mm_probe::{Checkpoint, inspect, inspect_variant};

/// Bytes per stack and block, those outside as `None`.
type Sums = BTreeMap<Option<(String, usize)>, u64>;

/// What the model loads, in the stored types or in f32.
fn truth(component: &Component, f32: bool) -> Sums {
    let mut sums = Sums::new();
    for tensor in component.tensors.iter().filter(|tensor| tensor.loaded) {
        let bytes = if f32 { tensor.elements().map(|elements| elements * 4) } else { tensor.bytes() };
        *sums.entry(tensor.block.clone()).or_default() += bytes.expect("a size");
    }
    sums
}

fn seen(component: &mm_probe::CheckpointComponent) -> Sums {
    let blocks = component.stacks.iter().flat_map(|stack| {
        let blocks = stack.blocks.iter().enumerate();
        blocks.map(|(index, block)| (Some((stack.name.clone(), index)), block.device))
    });
    let rest = (component.rest_bytes > 0).then_some((None, component.rest_bytes));
    blocks.chain(rest).collect()
}

fn check(fixture: &Fixture, checkpoint: &Checkpoint, f32: bool, what: &str) {
    let mut expected: Vec<_> = fixture.components.iter().map(|c| (c.name.as_str(), truth(c, f32))).collect();
    expected.sort();
    let mut found: Vec<_> = checkpoint.components.iter().map(|c| (c.name.as_str(), seen(c))).collect();
    // Alone, a component has the name of its folder or file.
    if let ([one], [(name, _)]) = (&mut found[..], &expected[..]) {
        one.0 = name;
    }
    // In an all-in-one file the truth has the component's prefix before each stack, which is not part of its path.
    for ((_, expected), (_, found)) in expected.iter_mut().zip(&found) {
        let path = |stack: &str| found.keys().flatten().map(|(s, _)| s).find(|s| stack.ends_with(&format!(".{s}")));
        let rename = |key: Option<(String, usize)>| key.map(|(s, index)| (path(&s).cloned().unwrap_or(s), index));
        *expected = std::mem::take(expected).into_iter().map(|(key, bytes)| (rename(key), bytes)).collect();
    }
    let names = |all: &[(&str, Sums)]| all.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected), "{what}");
    for ((name, expected), (_, found)) in expected.iter().zip(&found) {
        let keys = |sums: &Sums| sums.keys().flatten().map(|(stack, _)| stack.clone()).collect::<Vec<_>>();
        let (mut want, mut got) = (keys(expected), keys(found));
        want.dedup();
        got.dedup();
        assert_eq!(got, want, "{what}: stacks of {name}");
        assert_eq!(found, expected, "{what}: {name}");
    }
}

/// Where a written fixture's checkpoint lies.
fn root(fixture: &Fixture, folder: &Path) -> PathBuf {
    match fixture.options.layout {
        Layout::Single => folder.join(fixture.model.single_file()),
        Layout::Diffusers => folder.to_owned(),
        Layout::HfCache | Layout::HfCacheCopies => {
            let (owner, name) = fixture.model.repository();
            folder.join(format!("models--{owner}--{name}"))
        }
    }
}

/// Those of which more than bytes is known.
fn models() -> impl Iterator<Item = Model> {
    Model::ALL.into_iter().filter(|model| *model != Model::Wuerstchen)
}

fn for_each(layout: Layout, options: &Options) {
    models().for_each(|model| inspected(model, layout, options));
}

fn inspected(model: Model, layout: Layout, options: &Options) {
    let options = Options { layout, ..options.clone() };
    let fixture = Fixture::new(model, &options).expect("a fixture");
    let folder = tempfile::tempdir().expect("a folder");
    fixture.write(folder.path()).expect("writes");
    let (path, what) = (root(&fixture, folder.path()), format!("{model} as {layout}"));
    let stored = inspect(&path, None).unwrap_or_else(|error| panic!("{what}: {error}"));
    check(&fixture, &stored, false, &what);
    let single = inspect(&path, Some(DType::F32)).unwrap_or_else(|error| panic!("{what}: {error}"));
    check(&fixture, &single, true, &what);
}

#[test]
fn diffusers_folders_at_full_size() {
    for_each(Layout::Diffusers, &Options::default());
}

#[test]
fn small_shards() {
    for_each(Layout::Diffusers, &Options { shard: Some(600 << 20), ..Options::default() });
}

#[test]
fn single_files_in_original_names() {
    for_each(Layout::Single, &Options::default());
}

#[test]
fn the_cache_with_links_and_with_copies() {
    for_each(Layout::HfCache, &Options { scale: 0.1, ..Options::default() });
    for_each(Layout::HfCacheCopies, &Options { scale: 0.1, ..Options::default() });
}

#[test]
fn few_layers_and_small_widths() {
    // A UNet of fewer has levels with one block each, which is no stack.
    let unets = [Model::Sd15, Model::Sd21, Model::Sdxl];
    for (model, layers) in models().filter(|model| !unets.contains(model)).zip([2, 3, 7, 8, 9, 2]) {
        inspected(model, Layout::Diffusers, &Options { layers: Some(layers), scale: 0.01, ..Options::default() });
    }
    for layers in [10, 20] {
        for_each(Layout::Diffusers, &Options { layers: Some(layers), scale: 0.01, ..Options::default() });
    }
}

/// Five sets of the same weights, `.bin` twins, junk and stray files: nothing changes.
#[test]
fn what_lies_beside_the_weights_does_not_count() {
    for_each(Layout::Diffusers, &Options { variants: true, ..Options::default() });
    for_each(Layout::HfCache, &Options { variants: true, scale: 0.1, ..Options::default() });
    for_each(Layout::Single, &Options { variants: true, scale: 0.1, ..Options::default() });
    for model in models() {
        let fixture = Fixture::new(model, &Options { variants: true, ..Options::default() }).expect("a fixture");
        let half = Options { dtype: Some(safetensors::Dtype::F16), ..Options::default() };
        let folder = tempfile::tempdir().expect("a folder");
        fixture.write(folder.path()).expect("writes");
        let checkpoint = inspect_variant(folder.path(), None, Some("fp16")).expect("inspects");
        check(&Fixture::new(model, &half).expect("a fixture"), &checkpoint, false, &format!("{model} as fp16"));
    }
}

/// The architecture of every component, by the names of either layout.
#[test]
fn architectures_are_recognized() {
    for model in models() {
        for layout in [Layout::Diffusers, Layout::Single] {
            let fixture = Fixture::new(model, &Options { layout, ..Options::default() }).expect("a fixture");
            let folder = tempfile::tempdir().expect("a folder");
            fixture.write(folder.path()).expect("writes");
            let checkpoint = inspect(root(&fixture, folder.path()), None).expect("inspects");
            let found: Vec<_> =
                checkpoint.components.iter().map(|c| c.architecture.as_ref().map(|a| a.name())).collect();
            let expected: &[&str] = match (model, layout) {
                (Model::ZImageTurbo, Layout::Diffusers) => &["qwen3", "z_image", "autoencoder_kl"],
                (Model::ZImageTurbo, _) => &["z_image"],
                (Model::FluxDev, Layout::Diffusers) => &["clip", "t5", "flux", "autoencoder_kl"],
                (Model::FluxDev, _) => &["flux"],
                (Model::Sd35Large, _) => &["clip", "clip", "t5", "sd3", "autoencoder_kl"],
                (Model::Sd15 | Model::Sd21, _) => &["clip", "unet", "autoencoder_kl"],
                (Model::Sdxl, _) => &["clip", "clip", "unet", "autoencoder_kl"],
                (Model::Wuerstchen, _) => unreachable!("its architectures are not known"),
                (Model::Wan14b, Layout::Diffusers) => &["umt5", "wan", "autoencoder_kl_wan"],
                (Model::Wan14b, _) => &["wan"],
                (Model::T5Xxl, _) => &["t5"],
                (Model::Qwen3_4b, _) => &["qwen3"],
            };
            assert_eq!(found, expected.iter().map(|name| Some(*name)).collect::<Vec<_>>(), "{model} as {layout}");
            let estimates = checkpoint.activations(&mm_probe::Workload::default());
            assert_eq!(estimates.len(), expected.len(), "{model} as {layout}: {estimates:?}");
        }
    }
}
