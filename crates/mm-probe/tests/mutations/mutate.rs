//! What is done to a checkpoint: a fault anywhere in its files or its folders.

use crate::checkpoint::{Checkpoint, Node};
use crate::header::{self, Header};
use crate::names;
use crate::random::Random;
use crate::tensors;

/// What an error about a mutated checkpoint has to name besides a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This tensor's entry says something impossible.
    Tensor(String),
    /// Anything.
    Somewhere,
}

type Mutation = fn(&mut Checkpoint, &mut Random) -> Fault;

/// Every kind, and how often it is drawn.
const KINDS: &[(&str, usize, Mutation)] = &[
    ("truncated", 3, truncated),
    ("offsets", 3, tensors::offsets),
    ("shape", 3, tensors::shape),
    ("dtype", 2, tensors::dtype),
    ("huge claim", 2, tensors::huge),
    ("same name twice", 1, tensors::twice),
    ("odd names", 2, tensors::odd_names),
    ("GGUF tensor", 4, tensors::gguf),
    ("header length", 2, header_length),
    ("flipped bytes", 6, flipped),
    ("splice", 4, splice),
    ("not UTF-8", 1, not_utf8),
    ("deep JSON", 1, deep),
    ("large JSON", 1, large),
    ("empty file", 1, |checkpoint, random| put(checkpoint, random, Node::file(Vec::new()))),
    ("hole", 1, hole),
    ("removed", 1, removed),
    ("cyclic link", 1, cyclic),
    ("dangling link", 1, |checkpoint, random| put(checkpoint, random, Node::Link("nowhere/at/all".into()))),
    ("folder", 1, |checkpoint, random| put(checkpoint, random, Node::Folder)),
    ("pipe", 1, |checkpoint, random| put(checkpoint, random, Node::Pipe)),
    ("socket", 1, |checkpoint, random| put(checkpoint, random, Node::Socket)),
    ("file for folder", 1, file_for_folder),
    ("index", 3, names::index),
    ("model_index", 2, names::pipeline),
];

/// One mutation; its kind comes with what an error has to name.
pub(crate) fn mutate(checkpoint: &mut Checkpoint, random: &mut Random) -> (&'static str, Fault) {
    let mut at = random.below(KINDS.iter().map(|(_, weight, _)| weight).sum());
    for (kind, weight, mutation) in KINDS {
        if at < *weight {
            return (kind, mutation(checkpoint, random));
        }
        at -= weight;
    }
    unreachable!("below the sum")
}

/// A file, one with more to go wrong in rather than a README.
pub(crate) fn a_file(checkpoint: &Checkpoint, random: &mut Random, extension: &str) -> Option<String> {
    let files: Vec<&str> =
        checkpoint.files().into_iter().filter(|path| is_weights(checkpoint, path, extension)).collect();
    (!files.is_empty()).then(|| (*random.pick(&files)).to_owned())
}

/// In the cache with links the blobs have no extensions: their content tells.
fn is_weights(checkpoint: &Checkpoint, path: &str, extension: &str) -> bool {
    let Some(Node::File(bytes, _)) = checkpoint.nodes.get(path) else { return false };
    match extension {
        "" => true,
        ".safetensors" => path.ends_with(extension) || bytes.get(8..10) == Some(b"{\"") || bytes.get(8) == Some(&b'{'),
        _ => path.ends_with(extension) || (extension == ".json" && bytes.starts_with(b"{")),
    }
}

fn truncated(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    if let Some(file) = a_file(checkpoint, random, "") {
        let bytes = checkpoint.bytes(&file).clone();
        checkpoint.set(&file, bytes[..random.below(bytes.len())].to_vec());
    }
    Fault::Somewhere
}

fn header_length(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    if let Some(file) = a_file(checkpoint, random, ".safetensors") {
        let mut bytes = checkpoint.bytes(&file).clone();
        if bytes.len() >= 8 {
            let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight"));
            let lie = if random.one_in(2) {
                length.wrapping_add(random.below(5) as u64).wrapping_sub(2)
            } else {
                random.number()
            };
            bytes[..8].copy_from_slice(&lie.to_le_bytes());
            let size = if random.one_in(2) { random.number() } else { 0 };
            checkpoint.nodes.insert(file, Node::File(bytes, size));
        }
    }
    Fault::Somewhere
}

/// Half of them where headers are.
fn position(bytes: &[u8], random: &mut Random) -> usize {
    let end = if random.one_in(2) { bytes.len().min(2048) } else { bytes.len() };
    random.below(end)
}

fn flipped(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    if let Some(file) = a_file(checkpoint, random, "") {
        let mut bytes = checkpoint.bytes(&file).clone();
        for _ in 0..=random.below(8) {
            let at = position(&bytes, random);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = if random.one_in(2) { random.byte() } else { *byte ^ (1 << random.below(8)) };
            }
        }
        checkpoint.set(&file, bytes);
    }
    Fault::Somewhere
}

/// A piece of one file, or of another, in place of a piece.
fn splice(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    if let (Some(from), Some(into)) = (a_file(checkpoint, random, ""), a_file(checkpoint, random, "")) {
        let (source, mut bytes) = (checkpoint.bytes(&from).clone(), checkpoint.bytes(&into).clone());
        let start = position(&source, random);
        let piece = &source[start..(start + random.below(200)).min(source.len())];
        let at = position(&bytes, random);
        let end = (at + random.below(100)).min(bytes.len());
        bytes.splice(at..end, piece.iter().copied());
        checkpoint.set(&into, bytes);
    }
    Fault::Somewhere
}

fn not_utf8(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    if let Some(file) = a_file(checkpoint, random, "") {
        let mut bytes = checkpoint.bytes(&file).clone();
        // Behind a quotation mark, so that most of them are within a name.
        let quotes: Vec<usize> =
            bytes.iter().enumerate().filter(|(_, byte)| **byte == b'"').map(|(at, _)| at).collect();
        let at = if quotes.is_empty() { position(&bytes, random) } else { *random.pick(&quotes) + 1 };
        let faults: [&[u8]; 5] = [b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\0"];
        let bad = *random.pick(&faults);
        let (at, end) = (at.min(bytes.len()), (at + bad.len()).min(bytes.len()));
        bytes.splice(at..end, bad.iter().copied());
        checkpoint.set(&file, bytes);
    }
    Fault::Somewhere
}

/// A document, or a header, in whose place `json` comes.
fn replace_json(checkpoint: &mut Checkpoint, random: &mut Random, json: &str) {
    if random.one_in(2) {
        if let Some(file) = a_file(checkpoint, random, ".json") {
            checkpoint.set(&file, json.as_bytes().to_vec());
        }
    } else if let Some(file) = a_file(checkpoint, random, ".safetensors") {
        let data = Header::parse(checkpoint.bytes(&file)).map(|header| header.data).unwrap_or_default();
        checkpoint.set(&file, header::file(json.as_bytes(), &data));
    }
}

fn deep(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    let depth = *random.pick(&[100, 127, 128, 129, 10_000, 200_000]);
    let (open, close) = *random.pick(&[("[", "]"), (r#"{"a":"#, "}")]);
    let (open, close) = (open.repeat(depth), if random.one_in(2) { close.repeat(depth) } else { String::new() });
    let key = *random.pick(&["__metadata__", "weight_map", "_class_name", "x"]);
    replace_json(checkpoint, random, &format!(r#"{{"{key}":{open}1{close}}}"#));
    Fault::Somewhere
}

/// Megabytes that are really there: values that take more room in memory than in text.
fn large(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    let count = 1 << (10 + random.below(12));
    let key = *random.pick(&["__metadata__", "weight_map", "_class_name", "x"]);
    let value = match random.below(5) {
        0 => format!("[{}0]", "0,".repeat(count)),
        1 => format!("\"{}\"", "a".repeat(count)),
        2 => format!("{}1", " ".repeat(count)),
        3 => format!(r#"{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}"#, "1,".repeat(count)),
        _ => format!(r#"{{{}"b":1}}"#, (0..count / 8).map(|n| format!(r#""{n}":"a","#)).collect::<String>()),
    };
    let key = if random.one_in(4) { "k".repeat(4 * count) } else { key.to_owned() };
    replace_json(checkpoint, random, &format!(r#"{{"{key}":{value}}}"#));
    Fault::Somewhere
}

/// A hole behind a file, up to the size that no file system has.
fn hole(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    if let Some(file) = a_file(checkpoint, random, "") {
        let mut bytes = checkpoint.bytes(&file).clone();
        bytes.truncate(random.below(bytes.len() * 2));
        let size = *random.pick(&[1 << 20, 32 << 20, 1 << 40, 1 << 60]);
        checkpoint.nodes.insert(file, Node::File(bytes, size));
    }
    Fault::Somewhere
}

/// Anything at all: a file or a link.
fn anything(checkpoint: &Checkpoint, random: &mut Random) -> String {
    let paths: Vec<&String> = checkpoint.nodes.keys().collect();
    (*random.pick(&paths)).clone()
}

fn put(checkpoint: &mut Checkpoint, random: &mut Random, node: Node) -> Fault {
    let path = anything(checkpoint, random);
    checkpoint.nodes.insert(path, node);
    Fault::Somewhere
}

fn removed(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    let path = anything(checkpoint, random);
    let whole = path.rsplit_once('/').map(|(folder, _)| format!("{folder}/")).filter(|_| random.one_in(3));
    checkpoint
        .nodes
        .retain(|other, _| *other != path && whole.as_ref().is_none_or(|folder| !other.starts_with(folder)));
    if checkpoint.nodes.is_empty() {
        checkpoint.nodes.insert(path, Node::Folder);
    }
    Fault::Somewhere
}

/// To itself, around a second link, or up to a folder it lies in.
fn cyclic(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    let path = anything(checkpoint, random);
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    let target = match random.below(4) {
        0 => name,
        1 => {
            checkpoint.nodes.insert(format!("{path}.other"), Node::Link(name.into()));
            format!("{}.other", path.rsplit('/').next().unwrap_or_default())
        }
        2 => ".".into(),
        _ => "..".into(),
    };
    checkpoint.nodes.insert(path, Node::Link(target.into()));
    Fault::Somewhere
}

fn file_for_folder(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    let path = anything(checkpoint, random);
    if let Some((folder, _)) = path.rsplit_once('/') {
        let below = format!("{folder}/");
        checkpoint.nodes.retain(|other, _| !other.starts_with(&below));
        checkpoint.set(folder, b"a file".to_vec());
    }
    Fault::Somewhere
}
