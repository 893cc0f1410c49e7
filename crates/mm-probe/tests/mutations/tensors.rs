//! Faults in the entries of tensors.

use crate::checkpoint::{Checkpoint, Node};
use crate::gguf;
use crate::header::Header;
use crate::mutate::{Fault, a_file};
use crate::random::Random;

/// Changes one header, if there is one that can still be read.
fn edit(
    checkpoint: &mut Checkpoint,
    random: &mut Random,
    change: impl FnOnce(&mut Header, usize, &mut Random) -> Fault,
) -> Fault {
    let Some(file) = a_file(checkpoint, random, ".safetensors") else { return Fault::Somewhere };
    let Some(mut header) = Header::parse(checkpoint.bytes(&file)) else { return Fault::Somewhere };
    let at = random.below(header.entries.len());
    let fault = change(&mut header, at, random);
    checkpoint.set(&file, header.file());
    fault
}

/// Overlapping, out of range, the wrong way round, not a pair of numbers.
pub(crate) fn offsets(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    edit(checkpoint, random, |header, at, random| {
        let entry = &mut header.entries[at];
        let (from, to) = entry.offsets;
        let by = *random.pick(&[1, 8, 4096, 1 << 60]);
        entry.offsets = match random.below(6) {
            0 => (from.wrapping_sub(by), to.wrapping_sub(by)),
            1 => (from.saturating_add(by), to.saturating_add(by)),
            2 => (from, to.saturating_add(by)),
            3 => (to.saturating_add(1), from),
            4 => (random.number(), random.number()),
            _ => {
                let odd = ["null", "[]", "[0]", "[0,1,2]", "[0.5,1]", "[-1,8]", "\"0,8\"", "[0,1e30]", "{}"];
                entry.raw_offsets = Some((*random.pick(&odd)).to_owned());
                return Fault::Tensor(entry.name.clone());
            }
        };
        // Moved as a whole, what is wrong is the gap or the overlap, which is its neighbour's as well.
        let length = to.wrapping_sub(from);
        let moved = entry.offsets.1.checked_sub(entry.offsets.0) == Some(length);
        if moved { Fault::Somewhere } else { Fault::Tensor(entry.name.clone()) }
    })
}

pub(crate) fn shape(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    edit(checkpoint, random, |header, at, random| {
        let entry = &mut header.entries[at];
        entry.shape = match random.below(9) {
            0 => format!("[{}]", random.number()),
            1 => format!("[{},{}]", random.number(), random.number()),
            2 => "[18446744073709551616]".into(),
            3 => "[-1]".into(),
            4 => "[1.5]".into(),
            5 => "null".into(),
            6 => format!("[{}1]", "1,".repeat(random.below(100_000))),
            7 => format!("[{}2]", "2,".repeat(random.below(80))),
            _ => format!("[0,{}]", random.number()),
        };
        Fault::Tensor(entry.name.clone())
    })
}

pub(crate) fn dtype(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    const DTYPES: [&str; 16] = [
        "\"F4\"",
        "\"F6_E2M3\"",
        "\"F8_E8M0\"",
        "\"C64\"",
        "\"BOOL\"",
        "\"F64\"",
        "\"U8\"",
        "\"BF16\"",
        "\"bf16\"",
        "\"F31\"",
        "\"\"",
        "null",
        "16",
        "[]",
        "\"F32\\u0000\"",
        "{\"F32\":1}",
    ];
    edit(checkpoint, random, |header, at, random| {
        let entry = &mut header.entries[at];
        entry.dtype = (*random.pick(&DTYPES)).to_owned();
        Fault::Tensor(entry.name.clone())
    })
}

/// A tensor of 2^50 to 2^63 bytes, shape and offsets of one mind; often in a file that really is so large.
pub(crate) fn huge(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    let Some(file) = a_file(checkpoint, random, ".safetensors") else { return Fault::Somewhere };
    let Some(mut header) = Header::parse(checkpoint.bytes(&file)) else { return Fault::Somewhere };
    let last = header.entries.len() - 1;
    let entry = &mut header.entries[last];
    let size = 1u64 << *random.pick(&[50, 60, 60, 60, 62, 63]);
    entry.dtype = "\"U8\"".into();
    entry.shape = format!("[{},4]", size / 4);
    entry.offsets.1 = entry.offsets.0.saturating_add(size);
    let (name, end) = (entry.name.clone(), entry.offsets.1);
    let bytes = header.file();
    let start = (bytes.len() - header.data.len()) as u64;
    let whole = random.one_in(2);
    let size = if whole { start.saturating_add(end) } else { 0 };
    checkpoint.nodes.insert(file, Node::File(bytes, size));
    Fault::Tensor(name)
}

pub(crate) fn twice(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    edit(checkpoint, random, |header, at, random| {
        let name = header.entries[at].name.clone();
        if random.one_in(2) || header.entries.len() == 1 {
            header.entries.push(header.entries[at].clone());
        } else {
            let other = (at + 1) % header.entries.len();
            header.entries[other].name.clone_from(&name);
        }
        Fault::Tensor(name)
    })
}

/// Thousands of dots and indices, and names that are none: no fault, but for an index that has other names.
pub(crate) fn odd_names(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    edit(checkpoint, random, |header, _, random| {
        let (count, dots) = (1 + random.below(20), 1 << random.below(14));
        let kind = random.below(8);
        for n in 0..count.min(header.entries.len()) {
            header.entries[n].name = match kind {
                0 => format!("{}{n}", ".".repeat(dots)),
                1 => format!("{}{n}.w", "0.".repeat(dots)),
                2 => format!("l.{n}{}.w", ".1".repeat(dots)),
                3 => format!("l.{}.w", u64::MAX - n as u64),
                4 => format!("l.{n}"),
                5 => format!(".{n}."),
                6 => format!("\n\u{1b}[31m{n}\u{0}\u{202e}"),
                _ => format!("{}{n}", "ä".repeat(dots)),
            };
        }
        Fault::Somewhere
    })
}

/// One tensor of a GGUF file that lies.
pub(crate) fn gguf(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    let Some(file) = a_file(checkpoint, random, ".gguf") else { return Fault::Somewhere };
    let names: Vec<String> = match file.as_str() {
        "m-00002-of-00002.gguf" => vec!["blk.2.w".into()],
        "m-00001-of-00002.gguf" => vec!["blk.0.w".into(), "blk.1.w".into()],
        _ => (0..3).map(|block| format!("blk.{block}.w")).collect(),
    };
    let mut tensors: Vec<gguf::Tensor> = names.iter().map(|name| gguf::Tensor::q4_0(name)).collect();
    let at = random.below(tensors.len());
    let count = tensors.len();
    let tensor = &mut tensors[at];
    let fault = Fault::Tensor(names[at].clone());
    let fault = match random.below(8) {
        0 => {
            tensor.kind = *random.pick(&[4, 5, 99, u32::MAX]);
            fault
        }
        1 => {
            tensor.shape = vec![random.number(), random.number()];
            fault
        }
        2 => {
            tensor.shape = vec![2; random.below(100)];
            fault
        }
        3 => {
            tensor.offset = Some(random.number());
            Fault::Somewhere
        }
        4 => {
            tensor.shape = vec![1 << 40, 1 << 20];
            Fault::Somewhere
        }
        5 => {
            tensor.name = vec![0xff, 0xfe];
            Fault::Somewhere
        }
        6 => {
            tensor.name = format!("blk{}.w", ".0".repeat(random.below(2000))).into();
            Fault::Somewhere
        }
        _ if count > 1 => {
            tensors[(at + 1) % count].name = names[at].clone().into();
            fault
        }
        _ => Fault::Somewhere,
    };
    let size = if random.one_in(2) { *random.pick(&[1 << 40, 1 << 60]) } else { 0 };
    checkpoint.nodes.insert(file, Node::File(gguf::file(&tensors), size));
    fault
}
