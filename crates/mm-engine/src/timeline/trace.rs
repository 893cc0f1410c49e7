//! A recording as a whole: taken from a timeline or read from a Chrome trace.

use super::{Event, Kind, chrome, page, summary::Summary};
use serde_json::Value;
use std::{collections::HashMap, path::Path};

/// Version of the documents written.
pub(super) const SCHEMA: u32 = 1;

/// A recording: what a timeline kept, against which plan and budget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    pub(super) budget: u64,
    pub(super) planned: u64,
    pub(super) dropped: u64,
    /// Component and group.
    pub(super) labels: Vec<(String, String)>,
    /// In the order of the recording, which is that of their ends.
    pub(super) spans: Vec<Span>,
    pub(super) levels: Vec<Level>,
}

/// Something that took time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) kind: Kind,
    pub(super) lane: usize,
    /// Index of its label.
    pub(super) label: usize,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    pub(super) bytes: u64,
}

/// Bytes on the device from a moment on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) kind: Kind,
    pub(super) at_ns: u64,
    pub(super) in_use: u64,
}

/// Why a document is no recording: record it again, or give another.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// It is not a Chrome trace with what this crate writes into it.
    #[error("is no timeline: {0}")]
    Document(#[from] serde_json::Error),
    /// It is of another version.
    #[error("is a timeline of schema {0}; this version reads {SCHEMA}")]
    Schema(u32),
    /// One of its events can't be.
    #[error("event {index}: {reason}")]
    Event {
        /// Its place in `traceEvents`.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// How a recording is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Form {
    /// Chrome trace JSON: `.json`.
    Chrome,
    /// A page of its own: `.html`.
    Page,
}

impl Form {
    /// The form that a file's extension says; `None` for any other.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?;
        let is = |name: &str| extension.eq_ignore_ascii_case(name);
        match (is("json"), is("html")) {
            (true, _) => Some(Self::Chrome),
            (_, true) => Some(Self::Page),
            _ => None,
        }
    }
}

impl Trace {
    /// Reads a Chrome trace that [`Trace::to_json`] wrote. What other tools have added is passed over.
    ///
    /// # Errors
    /// What is wrong with it; the caller knows the file.
    pub fn parse(document: &[u8]) -> Result<Self, TraceError> {
        chrome::read(document)
    }

    pub(super) fn of(events: &[Event], budget: u64, planned: u64, dropped: u64) -> Self {
        let mut trace = Self { budget, planned, dropped, ..Self::default() };
        let mut labels = Labels::default();
        for event in events {
            let &Event { kind, lane, start_ns, end_ns, bytes, .. } = event;
            if let Some(in_use) = event.in_use {
                trace.levels.push(Level { kind, at_ns: start_ns, in_use });
                continue;
            }
            let label = event.label.as_ref().map_or(("", ""), |label| (&*label.component, &*label.group));
            trace.spans.push(Span { kind, lane, label: labels.index(label), start_ns, end_ns, bytes });
        }
        trace.labels = labels.list;
        trace
    }

    /// Sums over it.
    pub fn summary(&self) -> Summary {
        Summary::of(self)
    }

    /// As Chrome trace JSON, which Perfetto opens. Times are microseconds there, as that format wants; `otherData`
    /// holds `schema`, the `budget` and `planned` bytes, and how many events were dropped.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(chrome::document(self)).unwrap_or_default()
    }

    /// As a page for people: one HTML file that needs nothing else, no network either.
    pub fn to_html(&self) -> String {
        page::render(self)
    }

    /// The document to be written to a file.
    pub fn render(&self, form: Form) -> String {
        match form {
            // Written as it is walked: a tree of values takes many times the room.
            Form::Chrome => serde_json::to_string(&chrome::document(self)).unwrap_or_default(),
            Form::Page => self.to_html(),
        }
    }
}

/// Labels met so far, each once.
#[derive(Default)]
pub(super) struct Labels<'a> {
    known: HashMap<(&'a str, &'a str), usize>,
    pub(super) list: Vec<(String, String)>,
}

impl<'a> Labels<'a> {
    pub(super) fn index(&mut self, label: (&'a str, &'a str)) -> usize {
        *self.known.entry(label).or_insert_with(|| {
            self.list.push((label.0.to_owned(), label.1.to_owned()));
            self.list.len() - 1
        })
    }
}
