//! Which names make stacks.

use safetensors::Dtype;

use super::*;
use crate::tensor::Stored;

/// `name@side` is a square of that side; others have one dimension of one byte.
fn tensors(names: &[&str]) -> Vec<Tensor> {
    let tensor = |name: &&str| {
        let (name, shape) = match name.split_once('@') {
            Some((name, side)) => (name, vec![side.parse().expect("a number"); 2]),
            None => (*name, vec![1]),
        };
        let bytes = shape.iter().product::<usize>() as u64;
        Tensor { name: name.to_owned(), stored: Stored::Safetensors(Dtype::U8), shape: shape.into(), bytes }
    };
    names.iter().map(tensor).collect()
}

fn found(names: &[&str]) -> (Vec<(String, usize)>, usize) {
    let (stacks, rest) = find(&tensors(names));
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
    let (stacks, _) = find(&tensors(&names.iter().map(String::as_str).collect::<Vec<_>>()));
    let order: Vec<usize> = stacks[0].blocks.concat();
    assert_eq!(order, (0..12).rev().collect::<Vec<_>>());
}

/// `prefix.N.suffix` for each index and suffix.
fn blocks(prefix: &str, indices: std::ops::Range<usize>, suffixes: &[&str]) -> Vec<String> {
    indices.flat_map(|i| suffixes.iter().map(move |suffix| format!("{prefix}.{i}.{suffix}"))).collect()
}

fn found_in(names: &[Vec<String>]) -> (Vec<(String, usize)>, usize) {
    found(&names.iter().flatten().map(String::as_str).collect::<Vec<_>>())
}

fn named(stacks: &[(&str, usize)]) -> Vec<(String, usize)> {
    stacks.iter().map(|(name, blocks)| ((*name).to_owned(), *blocks)).collect()
}

#[test]
fn blocks_need_not_be_equal() {
    // T5: the first block has the table of relative positions. SD3: the last has no second half.
    let t5 = [blocks("block", 0..1, &["layer.0.bias@3"]), blocks("block", 0..24, &["layer.0.q@2", "layer.1.w@2"])];
    assert_eq!(found_in(&t5), (named(&[("block", 24)]), 0));
    let half = ["attn.q@4", "attn.k@4", "ff.a@4", "ff.b@4"];
    let whole = [&half[..], &["attn.add_q@4", "attn.add_k@4", "context.a@4"]].concat();
    assert_eq!(found_in(&[blocks("b", 0..37, &whole), blocks("b", 37..38, &half)]), (named(&[("b", 38)]), 0));
    // Widths differ from level to level.
    assert_eq!(found(&["a.0.w@2", "a.1.w@3", "a.2.w@9"]), (named(&[("a", 3)]), 0));
    // Mixtures of experts: the first layers are dense, and a layer stays one unit.
    let attention = ["attn.q@2", "attn.k@2", "attn.v@2", "attn.o@2", "norm.w"];
    let experts: Vec<String> = (0..4).flat_map(|e| ["up", "down"].map(|w| format!("mlp.experts.{e}.{w}@9"))).collect();
    let experts: Vec<&str> = experts.iter().map(String::as_str).collect();
    let moe =
        [blocks("l", 0..1, &["mlp.up@9", "mlp.down@9"]), blocks("l", 0..9, &attention), blocks("l", 1..9, &experts)];
    assert_eq!(found_in(&moe), (named(&[("l", 9)]), 0));
}

#[test]
fn sequences_of_different_layers_are_no_stack() {
    is_rest(&["embed.0.weight", "embed.1.weight@4", "embed.1.bias"]);
    is_rest(&["mlp.0.weight@4", "mlp.0.bias", "mlp.2.weight@4", "mlp.2.bias"]);
    is_rest(&["a.0.w", "a.1.x", "a.1.y", "a.1.z"]);
}

/// A UNet's levels are few and differ; what streams is inside them.
#[test]
fn stacks_inside_stacks() {
    let inner = ["attn.q@9", "attn.k@9", "ff.w@9"];
    let resnet = ["conv1.w@9", "conv2.w@9", "norm.w"];
    let level = |level: usize, attentions: usize, depth: usize| {
        let at = format!("down_blocks.{level}");
        let transformers = (0..attentions).flat_map(|a| {
            let attention = format!("{at}.attentions.{a}");
            [blocks(&format!("{attention}.transformer_blocks"), 0..depth, &inner), vec![format!("{attention}.proj@3")]]
        });
        [transformers.flatten().collect(), blocks(&format!("{at}.resnets"), 0..2, &resnet)].concat()
    };
    let (stacks, rest) = found_in(&[level(0, 0, 0), level(1, 2, 2), level(2, 2, 10)]);
    let expected = [
        ("down_blocks.0.resnets", 2),
        ("down_blocks.1.attentions.0.transformer_blocks", 2),
        ("down_blocks.1.attentions.1.transformer_blocks", 2),
        ("down_blocks.1.resnets", 2),
        ("down_blocks.2.attentions.0.transformer_blocks", 10),
        ("down_blocks.2.attentions.1.transformer_blocks", 10),
        ("down_blocks.2.resnets", 2),
    ];
    assert_eq!((stacks, rest), (named(&expected), 4));
    // A short stack that holds others but little of its bytes in them stays.
    let few = ["a.0.w@9", "a.0.r.0.v", "a.0.r.1.v", "a.1.w@9", "a.1.r.0.v", "a.1.r.1.v"];
    assert_eq!(found(&few), (named(&[("a", 2)]), 0));
    // Levels of other names: indices directly within indices.
    let ldm = ["i.0.0.w@9", "i.1.0.conv@9", "i.1.1.t.0.q@9", "i.1.1.t.1.q@9", "i.2.0.op@9"];
    assert_eq!(found(&ldm), (named(&[("i.1.1.t", 2)]), 3));
}

#[test]
fn no_name_is_too_deep() {
    let deep = "a.0.".repeat(100_000);
    is_rest(&[&format!("{deep}w")]);
    let zeros = "0.".repeat(100_000);
    is_rest(&[&format!("a.{zeros}w"), &format!("b.{zeros}w")]);
}

#[test]
fn what_does_not_repeat_is_rest() {
    is_rest(&["a.0.w"]);
    is_rest(&["a.0.w", "a.2.w"]);
    is_rest(&["a.1.w", "a.2.w"]);
    is_rest(&["a.0.w", "a.1.w@2"]);
    is_rest(&["a.0", "a.1"]);
    is_rest(&["0.w", "1.w"]);
    is_rest(&["a.00.w", "a.01.w", "a.+1.w", "a.-1.w", "a.1e0.w", "a..w", "", "."]);
    is_rest(&["a.99999999999999999999.w", "a.18446744073709551615.w"]);
    is_rest(&["a.0.", "a.é.w"]);
}
