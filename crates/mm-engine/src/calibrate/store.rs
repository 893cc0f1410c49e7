//! Figures on disk: a file for each component of a machine, and one for the machine's links.
//!
//! A file appears whole or not at all, the last who writes one wins, and what can't be read or written is a note. The folder
//! holds a bounded number of files, each of bounded size.

use super::figures::ComponentFigures;
use mm_cache::{Key, component_hash};
use mm_plan::{Links, MAX_GROUPS, Note};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

const SCHEMA: u32 = 1;
const SUFFIX: &str = ".figures.json";
const UNFINISHED: &str = ".figures-";

/// Bytes of a file; one of [`MAX_GROUPS`] groups takes less.
const LARGEST: u64 = 4 << 20;

/// Files in the folder; those written longest ago make room.
const FILES: usize = 512;

/// Where figures are kept between processes.
#[derive(Clone, Debug)]
pub(crate) struct FigureStore {
    folder: PathBuf,
    machine: String,
    workload: String,
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    schema: u32,
    machine: String,
    workload: String,
    /// The key of what the component is made of; empty: of the machine alone.
    component: String,
    links: Option<LinkRecord>,
    compute_ns: Vec<Option<u64>>,
    rest_ns: Option<u64>,
    activation: Option<u64>,
    passes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LinkRecord {
    h2d: u64,
    staging: Option<u64>,
    disk: Option<u64>,
    copy_fixed_ns: u64,
}

/// What was kept of a component, with the links as they were when it ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) figures: ComponentFigures,
    pub(crate) links: Option<Links>,
}

/// Why a file was not used.
enum Refused {
    Unreadable(io::Error),
    Damaged(String),
    Schema(u32),
    Stranger,
}

impl FigureStore {
    /// Figures of this machine and workload in `folder`, which need not exist.
    pub(crate) fn new(folder: PathBuf, machine: &str, workload: &str) -> Self {
        Self { folder, machine: machine.to_owned(), workload: workload.to_owned() }
    }

    /// What is kept of a component of `groups` groups. A file that can't be used is a note.
    pub(crate) fn component(&self, component: Key, groups: usize) -> (Option<Kept>, Option<Note>) {
        self.kept(&component.to_string(), groups)
    }

    /// The links of this machine as they were measured last, whatever ran.
    pub(crate) fn links(&self) -> (Option<Links>, Option<Note>) {
        let (kept, note) = self.kept("", 0);
        (kept.and_then(|kept| kept.links), note)
    }

    /// Keeps a component's figures, and the links beside it and for the machine. What can't be written is a note.
    pub(crate) fn keep(&self, component: Key, figures: &ComponentFigures, links: Option<Links>) -> Option<Note> {
        let written = self.write(&component.to_string(), figures, links).and_then(|()| match links {
            Some(_) => self.write("", &ComponentFigures::default(), links),
            None => Ok(()),
        });
        let written = written.and_then(|()| self.make_room());
        written.err().map(|error| {
            let text = format!(
                "what was measured can't be kept in {}: {error}; the next process measures anew.",
                self.folder.display()
            );
            Note::new("figures_not_kept", &[], text)
        })
    }

    /// The machine's links don't depend on the workload.
    fn workload(&self, component: &str) -> &str {
        if component.is_empty() { "" } else { &self.workload }
    }

    fn path(&self, component: &str) -> PathBuf {
        let identity = format!("{:?} {:?} {component:?}", self.machine, self.workload(component));
        self.folder.join(format!("{}{SUFFIX}", component_hash(&identity)))
    }

    fn kept(&self, component: &str, groups: usize) -> (Option<Kept>, Option<Note>) {
        let path = self.path(component);
        let why = match self.read(&path, component, groups) {
            Ok(record) => return (record.map(Kept::from), None),
            Err(why) => why,
        };
        let (code, why) = match why {
            Refused::Unreadable(error) => ("figures_unreadable", format!("can't be read: {error}")),
            Refused::Damaged(what) => ("figures_damaged", format!("is damaged: {what}")),
            Refused::Schema(schema) => ("figures_of_another_version", format!("has schema {schema}, not {SCHEMA}")),
            Refused::Stranger => ("figures_of_another", "is of another machine, workload or component".to_owned()),
        };
        let text =
            format!("the figures kept in {} are not used: the file {why}; they are measured anew.", path.display());
        (None, Some(Note::new(code, &[], text)))
    }

    fn read(&self, path: &Path, component: &str, groups: usize) -> Result<Option<Record>, Refused> {
        match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Refused::Unreadable(error)),
            // A pipe would keep us waiting.
            Ok(metadata) if !metadata.is_file() => return Err(Refused::Damaged("it is no regular file".to_owned())),
            Ok(_) => {}
        }
        let mut text = Vec::new();
        let file = File::open(path).map_err(Refused::Unreadable)?;
        file.take(LARGEST + 1).read_to_end(&mut text).map_err(Refused::Unreadable)?;
        if text.len() as u64 > LARGEST {
            return Err(Refused::Damaged(format!("it has more than {LARGEST} bytes")));
        }
        /// All that every version has.
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let damaged = |error: serde_json::Error| Refused::Damaged(error.to_string());
        let Version { schema } = serde_json::from_slice(&text).map_err(damaged)?;
        if schema != SCHEMA {
            return Err(Refused::Schema(schema));
        }
        let record: Record = serde_json::from_slice(&text).map_err(damaged)?;
        let expected = (&*self.machine, self.workload(component), component);
        if (&*record.machine, &*record.workload, &*record.component) != expected {
            return Err(Refused::Stranger);
        }
        if record.compute_ns.len() != groups {
            return Err(Refused::Damaged(format!("it has {} groups, not {groups}", record.compute_ns.len())));
        }
        Ok(Some(record))
    }

    fn write(&self, component: &str, figures: &ComponentFigures, links: Option<Links>) -> io::Result<()> {
        if figures.compute_ns.len() > MAX_GROUPS {
            return Err(io::Error::other(format!("{} groups are too many", figures.compute_ns.len())));
        }
        let record = Record {
            schema: SCHEMA,
            machine: self.machine.clone(),
            workload: self.workload(component).to_owned(),
            component: component.to_owned(),
            links: links.map(LinkRecord::from),
            compute_ns: figures.compute_ns.clone(),
            rest_ns: figures.rest_ns,
            activation: figures.activation,
            passes: figures.passes,
        };
        let text = serde_json::to_vec(&record)?;
        if text.len() as u64 > LARGEST {
            return Err(io::Error::other(format!("{} bytes are too many", text.len())));
        }
        fs::create_dir_all(&self.folder)?;
        // Not forced to the disk: what a power cut damages is measured anew.
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.folder)?;
        file.write_all(&text)?;
        file.persist(self.path(component)).map_err(|error| error.error)?;
        Ok(())
    }

    /// Takes the oldest files of ours away where there are too many. Files of processes that were killed while writing are
    /// among them.
    fn make_room(&self) -> io::Result<()> {
        let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let is_ours = entry.file_name().to_str().is_some_and(|n| n.ends_with(SUFFIX) || n.starts_with(UNFINISHED));
            // What another process took away meanwhile is gone, as it should be.
            if let Ok(metadata) = entry.metadata()
                && is_ours
                && metadata.is_file()
            {
                files.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
            }
        }
        let excess = files.len().saturating_sub(FILES);
        files.sort();
        for (_, path) in files.into_iter().take(excess) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl From<Record> for Kept {
    fn from(record: Record) -> Self {
        let Record { links, compute_ns, rest_ns, activation, passes, .. } = record;
        Self {
            figures: ComponentFigures { compute_ns, rest_ns, activation, passes },
            links: links.map(|LinkRecord { h2d, staging, disk, copy_fixed_ns }| Links {
                h2d,
                staging,
                disk,
                copy_fixed_ns,
            }),
        }
    }
}

impl From<Links> for LinkRecord {
    fn from(Links { h2d, staging, disk, copy_fixed_ns }: Links) -> Self {
        Self { h2d, staging, disk, copy_fixed_ns }
    }
}
