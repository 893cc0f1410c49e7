//! A Diffusers folder: which classes it holds, their configuration, and the files of their weights.

use crate::Error;
use mm_probe::{Library, weight_files};
use serde::de::DeserializeOwned;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Far beyond any tokenizer in use, which are the largest texts: some tens of megabytes.
const LARGEST_TEXT: u64 = 256 << 20;

/// An opened folder; only `model_index.json` has been read.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
    index: serde_json::Map<String, serde_json::Value>,
    variant: Option<String>,
}

impl Folder {
    /// Opens a folder that `save_pretrained` wrote.
    ///
    /// # Errors
    /// The folder or its `model_index.json` is missing or broken.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = root.into();
        if !root.is_dir() {
            return Err(Error::Missing { path: root, needed: "a folder with a model_index.json".into() });
        }
        let index = read_json(&root.join("model_index.json"))?;
        Ok(Self { root, index, variant: None })
    }

    /// Weights of this variant (`fp16`) are taken where a component has it.
    #[must_use]
    pub fn variant(self, variant: Option<String>) -> Self {
        Self { variant, ..self }
    }

    /// The pipeline's class, `ZImagePipeline` for example.
    ///
    /// # Errors
    /// `model_index.json` names none.
    pub fn pipeline_class(&self) -> Result<&str, Error> {
        match self.index.get("_class_name").and_then(|v| v.as_str()) {
            Some(class) => Ok(class),
            None => Err(Error::Config {
                file: self.path("model_index.json"),
                key: "_class_name".into(),
                found: self.index.get("_class_name").map_or_else(|| "nothing".into(), ToString::to_string),
                reason: "the name of a pipeline class belongs here".into(),
            }),
        }
    }

    /// Checks that a component is of one of these classes.
    pub(crate) fn expect(&self, component: &str, supported: &[&str]) -> Result<(), Error> {
        let entry = self.index.get(component);
        let class = self.class(component);
        match class {
            Some(class) if supported.contains(&class) => Ok(()),
            _ => Err(Error::Unsupported {
                file: self.path("model_index.json"),
                key: component.to_owned(),
                found: class.map(str::to_owned).or(entry.map(ToString::to_string)).unwrap_or("nothing".into()),
                supported: supported.join(", "),
            }),
        }
    }

    /// The class of a component.
    pub(crate) fn class(&self, component: &str) -> Option<&str> {
        self.index.get(component)?.get(1)?.as_str()
    }

    /// An entry of `model_index.json` that is on or off.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.index.get(key)?.as_bool()
    }

    /// Whether the pipeline was saved without this component.
    pub(crate) fn lacks(&self, component: &str) -> bool {
        let class = self.index.get(component).and_then(|entry| entry.get(1));
        class.is_some_and(serde_json::Value::is_null)
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A configuration file. The path comes back too, for messages about its values.
    pub(crate) fn config<T: DeserializeOwned>(&self, relative: &str) -> Result<(T, PathBuf), Error> {
        let file = self.path(relative);
        Ok((read_json(&file)?, file))
    }

    /// The files of a component's weights, as `library` would load them.
    pub(crate) fn weights(&self, component: &str, library: Library) -> Result<Vec<PathBuf>, Error> {
        let folder = self.path(component);
        match weight_files(&folder, library, self.variant.as_deref())? {
            Some(weights) => Ok(weights.files),
            None => Err(Error::Missing {
                path: folder.join(library.file_name()),
                needed: format!("the weights of {component}, or an index of shards"),
            }),
        }
    }
}

/// A text file that must be there.
pub(crate) fn read_text(file: &Path) -> Result<String, Error> {
    let read = || {
        let found = fs::metadata(file)?;
        // A pipe would wait for its writer.
        if !found.is_file() || found.len() > LARGEST_TEXT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "no regular file, or too large to be what it should be",
            ));
        }
        fs::read_to_string(file)
    };
    read().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            Error::Missing { path: file.to_owned(), needed: "part of every checkpoint of this kind".into() }
        }
        _ => Error::Io { path: file.to_owned(), source },
    })
}

pub(crate) fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T, Error> {
    serde_json::from_str(&read_text(file)?).map_err(|source| Error::Json { file: file.to_owned(), source })
}
