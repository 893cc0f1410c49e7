//! A prompt's way to a fixed number of token ids: cut off, or filled up with padding that is attended to.

use crate::{
    Error,
    folder::{Folder, read_json, read_text},
    tokenizer::{in_vocabulary, token_text},
};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use tokenizers::{PostProcessor, TruncationParams};

/// How CLIP cuts a prompt into words, which `vocab.json` and `merges.txt` don't say.
const CLIP_WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A tokenizer of a checkpoint.
pub(crate) struct PaddedTokenizer {
    file: PathBuf,
    tokenizer: tokenizers::Tokenizer,
    length: usize,
    padding: u32,
}

impl PaddedTokenizer {
    /// Opens the folder `name`: `tokenizer.json`, or CLIP's `vocab.json` and `merges.txt`. Prompts become `length` tokens.
    pub(crate) fn open(folder: &Folder, name: &str, length: usize) -> Result<Self, Error> {
        let at = |file: &str| folder.path(&format!("{name}/{file}"));
        let config: Map<String, Value> = read_json(&at("tokenizer_config.json"))?;
        // Where the configuration lists no tokens of its own, the older file counts: 2.1 and XL pad by it.
        let older = at("special_tokens_map.json");
        let older: Map<String, Value> = match !config.contains_key("added_tokens_decoder") && older.is_file() {
            true => read_json(&older)?,
            false => Map::new(),
        };
        let special = |key: &str, default: &str| {
            older.get(key).or(config.get(key)).and_then(token_text).unwrap_or(default.to_owned())
        };
        let (whole, vocabulary) = (at("tokenizer.json"), at("vocab.json"));
        let is_clip = !whole.is_file() && vocabulary.is_file();
        let (file, text, padding) = if is_clip {
            let (bos, eos) = (special("bos_token", "<|startoftext|>"), special("eos_token", "<|endoftext|>"));
            let text = clip(&vocabulary, &at("merges.txt"), &bos, &eos)?;
            (vocabulary, text, special("pad_token", &eos))
        } else {
            let text = read_text(&whole)?;
            (whole, text, special("pad_token", "<pad>"))
        };
        let invalid = |reason: String| Error::Tokenizer { file: file.clone(), reason };
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(text).map_err(|e| invalid(e.to_string()))?;
        tokenizer.with_padding(None);
        // The library panics where its own tokens don't fit.
        let added = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if added >= length {
            let reason = format!("adds {added} tokens to a prompt; the text encoder has positions for {length}");
            return Err(invalid(reason));
        }
        let truncation = TruncationParams { max_length: length, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| invalid(e.to_string()))?;
        let unknown = || invalid(format!("the padding token {padding:?} is not in the vocabulary"));
        let padding = tokenizer.token_to_id(&padding).ok_or_else(unknown)?;
        Ok(Self { file, tokenizer, length, padding })
    }

    /// The ids of a prompt, for a text encoder of this vocabulary.
    pub(crate) fn encode(&self, prompt: &str, vocabulary: usize) -> Result<Vec<u32>, Error> {
        Ok(self.encode_counted(prompt, vocabulary)?.0)
    }

    /// The same, and how many of them are not padding.
    pub(crate) fn encode_counted(&self, prompt: &str, vocabulary: usize) -> Result<(Vec<u32>, usize), Error> {
        let invalid = |reason: String| Error::Tokenizer { file: self.file.clone(), reason };
        let encoding = self.tokenizer.encode(prompt, true).map_err(|e| invalid(e.to_string()))?;
        let mut ids = encoding.get_ids().to_vec();
        if ids.len() > self.length {
            return Err(invalid(format!("a prompt became {} tokens; expected at most {}", ids.len(), self.length)));
        }
        let count = ids.len();
        ids.resize(self.length, self.padding);
        in_vocabulary(&ids, vocabulary, &self.file)?;
        Ok((ids, count))
    }
}

/// CLIP's tokenizer as `tokenizer.json` would have it.
fn clip(vocabulary: &Path, merges: &Path, bos: &str, eos: &str) -> Result<String, Error> {
    let vocab: Map<String, Value> = read_json(vocabulary)?;
    let id = |token: &str| match vocab.get(token) {
        Some(id) => Ok(id.clone()),
        None => Err(Error::Tokenizer { file: vocabulary.to_owned(), reason: format!("has no {token:?}") }),
    };
    let merges = read_text(merges)?;
    let merges: Vec<_> = merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")).collect();
    let added = |token: &str| {
        let id = id(token)?;
        Ok::<_, Error>(json!({
            "id": id, "content": token, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false
        }))
    };
    Ok(json!({
        "version": "1.0",
        "added_tokens": [added(bos)?, added(eos)?],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" }
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": CLIP_WORDS }, "behavior": "Removed", "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true }
        ] },
        "post_processor": {
            "type": "RobertaProcessing", "cls": [bos, id(bos)?], "sep": [eos, id(eos)?],
            "trim_offsets": false, "add_prefix_space": false
        },
        "model": {
            "type": "BPE", "unk_token": eos, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
            "fuse_unk": false, "vocab": vocab, "merges": merges
        }
    })
    .to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const MERGES: &str =
        "#version: 0.2\nl o\nlo w</w>\n1 2</w>\na b\nab c</w>\n' s</w>\nr e\nre d</w>\n! !\n!! !</w>\n";

    /// Every byte as CLIP spells it: printable ones as they are, the others from 256 on.
    fn spelled() -> Vec<String> {
        let is_printable = |b: &u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let printable = (0..256).filter(is_printable);
        let others = (0..256).filter(|b| !is_printable(b)).zip(256..).map(|(_, to)| to);
        printable.chain(others).filter_map(char::from_u32).map(String::from).collect()
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: String| fs::write(folder.path().join(file), text).unwrap();
        let ends = spelled().into_iter().map(|c| format!("{c}</w>"));
        let merged = MERGES.lines().skip(1).map(|line| line.replace(' ', ""));
        let special = ["<|startoftext|>", "<|endoftext|>"].map(String::from);
        let tokens = spelled().into_iter().chain(ends).chain(merged).chain(special);
        let vocab: Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
        fs::create_dir(folder.path().join("tokenizer")).unwrap();
        write("model_index.json", "{}".into());
        write("tokenizer/vocab.json", Value::from(vocab).to_string());
        write("tokenizer/merges.txt", MERGES.into());
        write("tokenizer/tokenizer_config.json", json!({ "pad_token": "<|endoftext|>" }).to_string());
        folder
    }

    fn open(folder: &tempfile::TempDir, length: usize) -> Result<PaddedTokenizer, Error> {
        PaddedTokenizer::open(&Folder::open(folder.path()).unwrap(), "tokenizer", length)
    }

    /// The ids are those of transformers' `CLIPTokenizer` for the same files.
    #[test]
    fn clip_is_spelled_as_the_reference_spells_it() {
        let folder = folder();
        let tokenizer = open(&folder, 16).unwrap();
        for (prompt, expected) in [
            ("LOW low's 12", &[522, 513, 513, 517, 272, 273, 523][..]),
            ("A Red\n\tab abc  !!!", &[522, 320, 519, 64, 321, 516, 521, 523]),
            ("caf\u{e9} \u{1f642}", &[522, 66, 64, 69, 127, 358, 172, 253, 247, 480, 523]),
            ("", &[522, 523]),
            ("<|endoftext|> red", &[522, 523, 519, 523]),
            ("it's we'll 3rd x_y", &[522, 72, 339, 517, 86, 324, 6, 75, 331, 274, 81, 323, 343, 318, 344, 523]),
            (&"low ".repeat(20), &[522, 513, 513, 513, 513, 513, 513, 513, 513, 513, 513, 513, 513, 513, 513, 523]),
        ] {
            let mut expected = expected.to_vec();
            expected.resize(16, 523);
            assert_eq!(tokenizer.encode(prompt, 524).unwrap(), expected, "{prompt:?}");
        }
    }

    /// As transformers reads the two files: checked by its `CLIPTokenizer`.
    #[test]
    fn padding_is_what_the_older_file_says_unless_the_newer_lists_tokens() {
        let folder = folder();
        let write = |file: &str, json: Value| fs::write(folder.path().join(file), json.to_string()).unwrap();
        let padding = || *open(&folder, 16).unwrap().encode("", 524).unwrap().last().unwrap();
        assert_eq!(padding(), 523);
        write("tokenizer/special_tokens_map.json", json!({ "pad_token": "!" }));
        assert_eq!(padding(), 0);
        let listed = json!({ "pad_token": "<|endoftext|>", "added_tokens_decoder": {} });
        write("tokenizer/tokenizer_config.json", listed);
        assert_eq!(padding(), 523);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let folder = folder();
        let refused = |found: Result<Vec<u32>, Error>| found.unwrap_err().to_string();
        let beyond = refused(open(&folder, 16).unwrap().encode("a", 100));
        assert!(beyond.contains("vocab.json: token 522 is beyond the text encoder's vocab_size, 100"), "{beyond}");
        for length in [0, 1, 2] {
            let short = refused(open(&folder, length).and_then(|tokenizer| tokenizer.encode("low", 524)));
            assert!(short.contains("vocab.json: adds 2 tokens to a prompt"), "{length}: {short}");
        }
        fs::write(folder.path().join("tokenizer/vocab.json"), "{\"a\": 0}").unwrap();
        let none = open(&folder, 16).err().unwrap().to_string();
        assert!(none.contains("vocab.json: has no \"<|startoftext|>\""), "{none}");
    }
}
