//! Tokenizers that spell: each small letter is a token, other characters are unknown.

use super::Part;
use serde_json::{Map, Value, json};

const LETTERS: std::ops::RangeInclusive<char> = 'a'..='z';

/// As CLIP's are published: a vocabulary and merges, of which there are none. `vocabulary`: tokens of the text encoder, whose
/// last two are the beginning and the end of a prompt.
pub(super) fn clip(name: &'static str, vocabulary: usize) -> Part {
    let (bos, eos) = ("<|startoftext|>", "<|endoftext|>");
    let ends = LETTERS.map(|letter| format!("{letter}</w>"));
    let tokens = LETTERS.map(String::from).chain(ends).enumerate().map(|(id, token)| (token, id.into()));
    let mut vocab: Map<String, Value> = tokens.collect();
    vocab.insert(bos.into(), (vocabulary - 2).into());
    vocab.insert(eos.into(), (vocabulary - 1).into());
    let special = json!({ "bos_token": bos, "eos_token": eos, "pad_token": eos, "unk_token": eos });
    let mut config = special.clone();
    config["model_max_length"] = 77.into();
    config["tokenizer_class"] = "CLIPTokenizer".into();
    part(
        name,
        "CLIPTokenizer",
        [("vocab.json", vocab.into()), ("merges.txt", "#version: 0.2\n".into())],
        config,
        special,
    )
}

/// As T5's are: one file of everything.
pub(super) fn t5(name: &'static str) -> Part {
    let special = json!({ "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>" });
    let control = ["<pad>", "</s>", "<unk>"];
    let added = control.iter().enumerate().map(|(id, token)| {
        json!({
            "id": id, "content": token, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false
        })
    });
    let words = LETTERS.map(String::from).chain(["▁".to_owned()]).map(|token| json!([token, -3.0]));
    let vocab: Vec<Value> = control.iter().map(|token| json!([token, 0.0])).chain(words).collect();
    let whole = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "SpecialToken": { "id": "</s>", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "SpecialToken": { "id": "</s>", "type_id": 0 } }],
            "special_tokens": { "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } }
        },
        "decoder": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
        "model": { "type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": false }
    });
    let mut config = special.clone();
    config["model_max_length"] = 512.into();
    config["tokenizer_class"] = "T5Tokenizer".into();
    part(name, "T5TokenizerFast", [("tokenizer.json", whole)], config, special)
}

fn part<const N: usize>(
    name: &'static str,
    class: &'static str,
    files: [(&'static str, Value); N],
    config: Value,
    special: Value,
) -> Part {
    let mut files: Vec<_> = files.into();
    files.push(("tokenizer_config.json", config));
    files.push(("special_tokens_map.json", special));
    Part { name, library: "transformers", class, files }
}
