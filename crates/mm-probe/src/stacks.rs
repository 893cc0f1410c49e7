//! Repeated blocks, recognized by the names and ranks of their tensors.

use std::collections::{BTreeMap, BTreeSet};

use crate::tensor::Tensor;

/// From so many blocks on, a stack is the unit that is planned, whatever is repeated inside its blocks. Fewer, and what is
/// inside them is looked at: a UNet has three or four levels, and the blocks worth streaming are in those.
const MANY: usize = 8;

/// Deeper nesting is in no model, and a name may have any number of indices.
const DEEPEST: usize = 8;

/// A repeated stack: for each block, in order, the positions of its tensors in the list that was searched.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) blocks: Vec<Vec<usize>>,
}

/// All stacks among a component's tensors, sorted by name, and the positions of the tensors in none of them, in order.
///
/// A stack is `prefix.0.…` to `prefix.n-1.…`, n at least 2, whose blocks are mostly alike: they need not be equal, as the
/// first or the last block of many models has a tensor more, or fewer. Where the outermost indices don't make a stack, or
/// only a short one, stacks inside its blocks are taken instead, if most of the bytes are in those.
pub(crate) fn find(tensors: &[Tensor]) -> (Vec<Found>, Vec<usize>) {
    let all = (0..tensors.len()).map(|position| (position, 0)).collect();
    let mut stacks = search(tensors, all, 0);
    stacks.sort_by(|a, b| a.name.cmp(&b.name));
    let mut inside = vec![false; tensors.len()];
    stacks.iter().flat_map(|stack| &stack.blocks).flatten().for_each(|position| inside[*position] = true);
    (stacks, (0..tensors.len()).filter(|position| !inside[*position]).collect())
}

/// A tensor, and where in its name to look for the next index.
type Candidate = (usize, usize);

/// The candidates of one index, by that index.
type Entries = BTreeMap<u64, Vec<Candidate>>;

/// Stacks among these tensors; an index is looked for only behind what was seen of a name already.
fn search(tensors: &[Tensor], candidates: Vec<Candidate>, depth: usize) -> Vec<Found> {
    if depth == DEEPEST {
        return Vec::new();
    }
    let mut prefixes: BTreeMap<&str, Entries> = BTreeMap::new();
    for (position, from) in candidates {
        let name = tensors[position].name.as_str();
        if let Some(split) = split(name, from) {
            let entries = prefixes.entry(&name[..split.prefix]).or_default();
            entries.entry(split.index).or_default().push((position, split.suffix));
        }
    }
    prefixes.into_iter().flat_map(|(prefix, entries)| stacks_at(tensors, prefix, entries, depth)).collect()
}

fn stacks_at(tensors: &[Tensor], prefix: &str, entries: Entries, depth: usize) -> Vec<Found> {
    let positions = |block: &Vec<Candidate>| block.iter().map(|(position, _)| *position).collect();
    let blocks = || entries.values().map(positions).collect();
    let stack = is_stack(tensors, &entries).then(|| Found { name: prefix.to_owned(), blocks: blocks() });
    let many = stack.as_ref().is_some_and(|stack| stack.blocks.len() >= MANY);
    let inside = if many { Vec::new() } else { search(tensors, entries.into_values().flatten().collect(), depth + 1) };
    match stack {
        Some(stack) if inside.is_empty() || bytes_of(tensors, &inside) < bytes_of(tensors, [&stack]).div_ceil(2) => {
            vec![stack]
        }
        _ => inside,
    }
}

fn bytes_of<'a>(tensors: &[Tensor], stacks: impl IntoIterator<Item = &'a Found>) -> u64 {
    let positions = stacks.into_iter().flat_map(|stack| &stack.blocks).flatten();
    positions.fold(0, |sum, position| sum.saturating_add(tensors[*position].bytes))
}

/// What a block consists of: each tensor's suffix, indices inside it left out, and how many dimensions it has. So blocks
/// that hold stacks of different length are alike, and so are layers of different width.
type Outline = BTreeSet<(String, usize)>;

fn outline(tensors: &[Tensor], block: &[Candidate]) -> Outline {
    let entry = |(position, from): &Candidate| {
        let tensor = &tensors[*position];
        let mut suffix = String::new();
        for part in tensor.name[*from..].split('.') {
            suffix.push_str(if index(part).is_some() { "#" } else { part });
            suffix.push('.');
        }
        (suffix, tensor.shape.len())
    };
    block.iter().map(entry).collect()
}

/// Indices without a gap, and in each block at least half of what most blocks have, and little else.
fn is_stack(tensors: &[Tensor], entries: &Entries) -> bool {
    if entries.len() < 2 || !entries.keys().copied().eq(0..entries.len() as u64) {
        return false;
    }
    let outlines: Vec<Outline> = entries.values().map(|block| outline(tensors, block)).collect();
    let mut counts: BTreeMap<&(String, usize), usize> = BTreeMap::new();
    outlines.iter().flatten().for_each(|entry| *counts.entry(entry).or_default() += 1);
    let usual = counts.values().filter(|count| **count * 2 > outlines.len()).count();
    outlines.iter().all(|outline| {
        let common = outline.iter().filter(|entry| counts[entry] * 2 > outlines.len()).count();
        common > 0 && common * 2 >= usual.max(outline.len())
    })
}

/// `prefix.N.suffix`, split at the first index behind `from`: where the prefix ends, the index, where the suffix begins.
struct Split {
    prefix: usize,
    index: u64,
    suffix: usize,
}

fn split(name: &str, from: usize) -> Option<Split> {
    let mut start = from;
    for part in name.get(from..)?.split('.') {
        let end = start + part.len();
        if start > 0
            && let Some(index) = index(part)
        {
            let suffix = end + 1;
            return (suffix < name.len()).then_some(Split { prefix: start - 1, index, suffix });
        }
        start = end + 1;
    }
    None
}

/// A decimal number as it is written for an index: no sign, no leading zeros, so that each is written in one way.
fn index(part: &str) -> Option<u64> {
    let digits = part.bytes().all(|byte| byte.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
    if digits { part.parse().ok() } else { None }
}

#[cfg(test)]
#[path = "stacks_tests.rs"]
mod tests;
