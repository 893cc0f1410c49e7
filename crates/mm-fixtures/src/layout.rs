//! Where the files of a checkpoint lie.

use crate::{
    Component, Error, Fixture, Layout, Model, Quantization, Tensor, Written,
    error::at,
    file::{write_bytes, write_file},
    gguf::write_gguf,
    models::{Part, Pipeline},
    variants,
};
use serde_json::{Map, Value, json};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

const DIFFUSERS_SHARD: u64 = 10_000_000_000;
const TRANSFORMERS_SHARD: u64 = 5_000_000_000;

pub(crate) fn write(fixture: &Fixture, out: &Path) -> Result<Written, Error> {
    let mut target = Target::new(fixture, out)?;
    if fixture.is_single() {
        write_single(fixture, &mut target)?;
    } else {
        if let Some(pipeline) = &fixture.pipeline {
            write_pipeline(fixture, pipeline, &mut target)?;
        }
        for component in &fixture.components {
            write_component(fixture, component, &mut target)?;
        }
    }
    if fixture.options.variants {
        variants::write(fixture, &mut target)?;
    }
    target.finish()
}

/// All components' tensors in one file; their names begin differently, so that one seed does.
fn write_single(fixture: &Fixture, target: &mut Target) -> Result<(), Error> {
    let tensors: Vec<Tensor> = fixture.components.iter().flat_map(|c| c.tensors.clone()).collect();
    target.weights(fixture.model.single_file(), &tensors, fixture.options.seed)
}

fn write_pipeline(fixture: &Fixture, pipeline: &Pipeline, target: &mut Target) -> Result<(), Error> {
    let mut index = pipeline.extra.as_object().cloned().unwrap_or_default();
    index.insert("_class_name".into(), pipeline.class.into());
    index.insert("_diffusers_version".into(), "0.36.0".into());
    for component in &fixture.components {
        let library = if component.transformers { "transformers" } else { "diffusers" };
        index.insert(component.name.clone(), json!([library, component.class]));
    }
    for Part { name, library, class, .. } in &pipeline.parts {
        index.insert((*name).into(), json!([library, class]));
    }
    target.json("model_index.json", &Value::Object(index))?;
    for part in &pipeline.parts {
        for (file, value) in &part.files {
            let path = format!("{}/{file}", part.name);
            match value {
                Value::String(text) => target.bytes(&path, text.as_bytes())?,
                value => target.json(&path, value)?,
            }
        }
    }
    Ok(())
}

/// The component's folder: of a lone model the root.
pub(crate) fn folder(fixture: &Fixture, component: &Component) -> String {
    if fixture.pipeline.is_some() { format!("{}/", component.name) } else { String::new() }
}

/// What the component's weight files are called, without extension.
pub(crate) fn stem(component: &Component) -> &'static str {
    if component.transformers { "model" } else { "diffusion_pytorch_model" }
}

fn write_component(fixture: &Fixture, component: &Component, target: &mut Target) -> Result<(), Error> {
    target.json(&format!("{}config.json", folder(fixture, component)), &component.config)?;
    if let Some(quantization) = fixture.options.gguf.filter(|_| component.gguf) {
        let file =
            format!("{}{}-{}.gguf", folder(fixture, component), fixture.model, quantization.name().to_uppercase());
        return target.gguf(&file, &component.tensors, quantization, fixture.seed(&component.name));
    }
    write_shards(fixture, component, &component.tensors, None, target)
}

/// One file, or shards with an index, named as diffusers and transformers name them.
pub(crate) fn write_shards(
    fixture: &Fixture,
    component: &Component,
    tensors: &[Tensor],
    variant: Option<&str>,
    target: &mut Target,
) -> Result<(), Error> {
    let (folder, stem) = (folder(fixture, component), stem(component));
    let dotted = variant.map(|v| format!(".{v}")).unwrap_or_default();
    let seed = fixture.seed(&component.name);
    let most = match fixture.model {
        // Older than shards.
        Model::Sd15 | Model::Sd21 | Model::Sdxl => u64::MAX,
        _ if component.transformers => TRANSFORMERS_SHARD,
        _ => DIFFUSERS_SHARD,
    };
    let shards = shards(tensors, fixture.options.shard.unwrap_or(most));
    if let [whole] = shards[..] {
        return target.weights(&format!("{folder}{stem}{dotted}.safetensors"), whole, seed);
    }
    let mut places = Map::new();
    for (number, shard) in shards.iter().enumerate() {
        let file = format!("{stem}{dotted}-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        target.weights(&format!("{folder}{file}"), shard, seed)?;
        places.extend(shard.iter().map(|tensor| (tensor.name.clone(), file.as_str().into())));
    }
    let total: u64 = tensors.iter().filter_map(Tensor::bytes).sum();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": places });
    target.json(&format!("{folder}{stem}.safetensors.index{dotted}.json"), &index)
}

/// Runs of tensors that are at most `most` bytes, or one tensor. At least one run.
fn shards(tensors: &[Tensor], most: u64) -> Vec<&[Tensor]> {
    let (mut shards, mut start, mut size) = (Vec::new(), 0, 0u64);
    for (index, tensor) in tensors.iter().enumerate() {
        let bytes = tensor.bytes().unwrap_or(u64::MAX);
        if index > start && size.saturating_add(bytes) > most {
            shards.push(&tensors[start..index]);
            (start, size) = (index, 0);
        }
        size = size.saturating_add(bytes);
    }
    shards.push(&tensors[start..]);
    shards
}

/// Puts each file where the layout wants it.
pub(crate) struct Target<'a> {
    fixture: &'a Fixture,
    /// The folder that the files' relative paths begin at.
    root: PathBuf,
    /// Of the hub's cache: the folder of blobs, and the one of `refs`.
    cache: Option<Cache>,
    written: Written,
}

struct Cache {
    blobs: PathBuf,
    refs: PathBuf,
    revision: String,
    links: bool,
}

impl<'a> Target<'a> {
    fn new(fixture: &'a Fixture, out: &Path) -> Result<Self, Error> {
        at(out, fs::create_dir_all(out))?;
        if at(out, fs::read_dir(out))?.next().is_some() {
            return Err(Error::NotEmpty(out.into()));
        }
        let links = fixture.options.layout == Layout::HfCache;
        if !links && fixture.options.layout != Layout::HfCacheCopies {
            return Ok(Target { fixture, root: out.into(), cache: None, written: Written::default() });
        }
        let (owner, name) = fixture.model.repository();
        let repository = out.join(format!("models--{owner}--{name}"));
        let revision = digest(&[&format!("{:?}", fixture.options)])[..40].to_owned();
        let root = repository.join("snapshots").join(&revision);
        let cache = Cache { blobs: repository.join("blobs"), refs: repository.join("refs"), revision, links };
        for folder in [&root, &cache.blobs, &cache.refs] {
            at(folder, fs::create_dir_all(folder))?;
        }
        Ok(Target { fixture, root, cache: Some(cache), written: Written::default() })
    }

    fn finish(mut self) -> Result<Written, Error> {
        if let Some(cache) = &self.cache {
            let main = cache.refs.join("main");
            self.written.bytes += write_bytes(&main, cache.revision.as_bytes())?;
            self.written.paths.push(main);
        }
        Ok(self.written)
    }

    /// A safetensors file.
    pub(crate) fn weights(&mut self, path: &str, tensors: &[Tensor], seed: u64) -> Result<(), Error> {
        let fill = self.fixture.fill();
        self.file(path, 64, |place| write_file(place, tensors, fill, seed))
    }

    pub(crate) fn gguf(
        &mut self,
        path: &str,
        tensors: &[Tensor],
        quantization: Quantization,
        seed: u64,
    ) -> Result<(), Error> {
        let fill = self.fixture.fill();
        self.file(path, 64, |place| write_gguf(place, tensors, quantization, fill, seed))
    }

    /// A small file as the libraries write JSON.
    pub(crate) fn json(&mut self, path: &str, value: &Value) -> Result<(), Error> {
        self.bytes(path, format!("{value:#}\n").as_bytes())
    }

    pub(crate) fn bytes(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        self.file(path, 40, |place| write_bytes(place, bytes))
    }

    /// `path` has slashes. A blob has a name of `digits`: 64 for large files as on the hub, 40 for others.
    fn file(
        &mut self,
        path: &str,
        digits: usize,
        write: impl FnOnce(&Path) -> Result<u64, Error>,
    ) -> Result<(), Error> {
        let place = path.split('/').fold(self.root.clone(), |place, part| place.join(part));
        if let Some(folder) = place.parent() {
            at(folder, fs::create_dir_all(folder))?;
        }
        match &self.cache {
            Some(cache) if cache.links => {
                // Named after what makes the content: hashing hundreds of sparse gigabytes would take minutes.
                let name = digest(&[&cache.revision, path])[..digits].to_owned();
                let blob = cache.blobs.join(&name);
                self.written.bytes += write(&blob)?;
                let up: PathBuf = std::iter::repeat_n("..", 2 + path.matches('/').count()).collect();
                at(&place, link(&up.join("blobs").join(name), &place))?;
                self.written.paths.extend([blob, place]);
            }
            _ => {
                self.written.bytes += write(&place)?;
                self.written.paths.push(place);
            }
        }
        Ok(())
    }
}

/// 64 hexadecimal digits.
fn digest(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part.as_bytes()).update(b"\n");
    }
    hasher.finalize().to_string()
}

#[cfg(unix)]
fn link(target: &Path, place: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, place)
}

#[cfg(windows)]
fn link(target: &Path, place: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, place)
}
