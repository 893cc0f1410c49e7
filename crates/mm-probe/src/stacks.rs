//! Repeated blocks, recognized by the names of their tensors.

use std::collections::{BTreeMap, BTreeSet};

use crate::header::Tensor;

/// A repeated stack: for each block, in order, the positions of its tensors in the list that was searched.
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) blocks: Vec<Vec<usize>>,
}

/// `prefix.N.suffix`, split at its outermost index.
struct Split<'a> {
    prefix: &'a str,
    index: u64,
    suffix: &'a str,
}

/// What must repeat from block to block: each tensor's suffix and shape.
type Outline<'a> = BTreeSet<(&'a str, &'a [usize])>;

/// All stacks among a component's tensors, sorted by name, and the positions of the tensors in none of them.
///
/// A stack is `prefix.0.…` to `prefix.n-1.…`, n at least 2, with the same suffixes and shapes in each. Indices nested in
/// a block belong to the block; where the outermost ones do not repeat evenly, the tensors are in no stack.
pub(crate) fn find(tensors: &[Tensor]) -> (Vec<Found>, Vec<usize>) {
    let mut candidates: BTreeMap<&str, BTreeMap<u64, (Outline, Vec<usize>)>> = BTreeMap::new();
    let mut rest = Vec::new();
    for (position, tensor) in tensors.iter().enumerate() {
        let Some(split) = split(&tensor.name) else {
            rest.push(position);
            continue;
        };
        let (outline, members) = candidates.entry(split.prefix).or_default().entry(split.index).or_default();
        outline.insert((split.suffix, &tensor.shape));
        members.push(position);
    }
    let mut stacks = Vec::new();
    for (prefix, entries) in candidates {
        let evenly = repeats(&entries);
        let blocks = entries.into_values().map(|(_, members)| members);
        if evenly {
            stacks.push(Found { name: prefix.to_owned(), blocks: blocks.collect() });
        } else {
            rest.extend(blocks.flatten());
        }
    }
    (stacks, rest)
}

fn repeats(entries: &BTreeMap<u64, (Outline, Vec<usize>)>) -> bool {
    let complete = entries.len() >= 2 && entries.keys().copied().eq(0..entries.len() as u64);
    let mut outlines = entries.values().map(|(outline, _)| outline);
    let first = outlines.next();
    complete && outlines.all(|outline| Some(outline) == first)
}

fn split(name: &str) -> Option<Split<'_>> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        if start > 0
            && let Some(index) = index(part)
        {
            let suffix = name.get(end + 1..)?;
            return Some(Split { prefix: &name[..start - 1], index, suffix });
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
mod tests {
    use safetensors::Dtype;

    use super::*;

    fn found(names: &[&str]) -> (Vec<(String, usize)>, usize) {
        let tensor = |name: &&str| {
            // `name@side` sets a shape other than [1].
            let (name, side) = name.split_once('@').unwrap_or((name, "1"));
            let side = side.parse().expect("a number");
            Tensor { name: name.to_owned(), dtype: Dtype::U8, shape: vec![side], bytes: side as u64 }
        };
        let tensors: Vec<Tensor> = names.iter().map(tensor).collect();
        let (stacks, rest) = find(&tensors);
        let in_blocks: usize = stacks.iter().flat_map(|stack| &stack.blocks).map(Vec::len).sum();
        assert_eq!(in_blocks + rest.len(), names.len(), "each tensor is somewhere, once");
        (stacks.into_iter().map(|stack| (stack.name, stack.blocks.len())).collect(), rest.len())
    }

    fn is_rest(names: &[&str]) {
        assert_eq!(found(names), (vec![], names.len()));
    }

    #[test]
    fn a_repeated_set_is_a_stack() {
        let (stacks, rest) = found(&["a.1.x.w", "a.0.x.w", "a.0.y.b", "a.1.y.b", "embed.w"]);
        assert_eq!((stacks, rest), (vec![("a".to_owned(), 2)], 1));
    }

    #[test]
    fn stacks_are_sorted_and_deep_prefixes_kept() {
        let (stacks, rest) = found(&["z.0.w", "z.1.w", "m.b.0.w", "m.b.1.w", "m.b.2.w"]);
        assert_eq!((stacks, rest), (vec![("m.b".to_owned(), 3), ("z".to_owned(), 2)], 0));
    }

    #[test]
    fn blocks_are_in_numeric_order() {
        let names: Vec<String> = (0..12).map(|i| format!("a.{}.w", 11 - i)).collect();
        let tensors: Vec<Tensor> =
            names.into_iter().map(|name| Tensor { name, dtype: Dtype::U8, shape: vec![], bytes: 1 }).collect();
        let (stacks, _) = find(&tensors);
        let order: Vec<usize> = stacks[0].blocks.concat();
        assert_eq!(order, (0..12).rev().collect::<Vec<_>>());
    }

    #[test]
    fn nested_indices_belong_to_the_outer_block() {
        let (stacks, rest) = found(&["a.0.r.0.w", "a.0.r.1.w", "a.1.r.0.w", "a.1.r.1.w"]);
        assert_eq!((stacks, rest), (vec![("a".to_owned(), 2)], 0));
    }

    #[test]
    fn what_does_not_repeat_is_rest() {
        is_rest(&["a.0.w"]);
        is_rest(&["a.0.w", "a.2.w"]);
        is_rest(&["a.1.w", "a.2.w"]);
        is_rest(&["a.0.w", "a.1.w", "a.1.b"]);
        is_rest(&["a.0.w", "a.1.w@2"]);
        is_rest(&["a.0.r.0.w", "a.1.r.0.w", "a.1.r.1.w"]);
        is_rest(&["a.0", "a.1"]);
        is_rest(&["0.w", "1.w"]);
        is_rest(&["a.00.w", "a.01.w", "a.+1.w", "a.-1.w", "a.1e0.w", "a..w", "", "."]);
        is_rest(&["a.99999999999999999999.w", "a.18446744073709551615.w"]);
        is_rest(&["a.0.", "a.é.w"]);
    }
}
