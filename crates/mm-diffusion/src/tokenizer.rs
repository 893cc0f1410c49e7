//! A prompt's way to token ids: the chat template, then `tokenizer.json`.

use crate::{
    Error,
    folder::{Folder, read_text},
    template::Template,
};
use minijinja::Value;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use tokenizers::TruncationParams;

/// More tokens than this are cut off, as in the reference pipeline.
pub(crate) const MAX_TOKENS: usize = 512;

/// Tokenizer and chat template of a checkpoint.
pub struct Tokenizer {
    file: PathBuf,
    tokenizer: tokenizers::Tokenizer,
    template_file: PathBuf,
    template: Template,
}

/// `chat_template` in `tokenizer_config.json`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

impl Tokenizer {
    /// Opens the folder `tokenizer`.
    ///
    /// # Errors
    /// A file is missing or broken, or there is no chat template.
    pub fn open(folder: &Folder) -> Result<Self, Error> {
        let file = folder.path("tokenizer/tokenizer.json");
        let invalid = |reason: String| Error::Tokenizer { file: file.clone(), reason };
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(read_text(&file)?).map_err(|e| invalid(e.to_string()))?;
        // Padding would be masked out; a length that the file sets is for other uses.
        tokenizer.with_padding(None);
        let truncation = TruncationParams { max_length: MAX_TOKENS, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| invalid(e.to_string()))?;

        let (config, config_file) =
            folder.config::<BTreeMap<String, serde_json::Value>>("tokenizer/tokenizer_config.json")?;
        let jinja = folder.path("tokenizer/chat_template.jinja");
        let (source, template_file) = match jinja.is_file() {
            true => (read_text(&jinja)?, jinja),
            false => (
                stored_template(&config).ok_or_else(|| Error::Missing {
                    path: jinja,
                    needed: format!("the chat template, which {} doesn't hold either", config_file.display()),
                })?,
                config_file,
            ),
        };
        let template = Template::new(source, special_tokens(&config)).map_err(|e| refused(&template_file, &e))?;
        Ok(Self { file, tokenizer, template_file, template })
    }

    /// The ids of a prompt, at most 512; no padding.
    ///
    /// # Errors
    /// The template refuses the prompt, or nothing is left of it.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>, Error> {
        let text = self.template.render(prompt).map_err(|e| refused(&self.template_file, &e))?;
        let invalid = |reason: String| Error::Tokenizer { file: self.file.clone(), reason };
        let encoding = self.tokenizer.encode(text, true).map_err(|e| invalid(e.to_string()))?;
        if encoding.is_empty() {
            return Err(Error::request("prompt", format!("{prompt:?}"), "no token is left of it: say what to draw"));
        }
        Ok(encoding.get_ids().to_vec())
    }
}

/// Checks that a text encoder knows these ids.
pub(crate) fn in_vocabulary(ids: &[u32], size: usize, file: &Path) -> Result<(), Error> {
    let Some(id) = ids.iter().find(|&&id| id as usize >= size) else { return Ok(()) };
    let reason = format!("token {id} is beyond the text encoder's vocab_size, {size}");
    Err(Error::Tokenizer { file: file.to_owned(), reason })
}

/// The text of a special token: stored as text, or as an object with the text in `content`.
pub(crate) fn token_text(value: &serde_json::Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

fn refused(file: &Path, error: &minijinja::Error) -> Error {
    Error::Tokenizer { file: file.to_owned(), reason: format!("chat template: {error:#}") }
}

fn stored_template(config: &BTreeMap<String, serde_json::Value>) -> Option<String> {
    match serde_json::from_value(config.get("chat_template")?.clone()).ok()? {
        Stored::One(template) => Some(template),
        Stored::Named(all) => all.into_iter().find(|t| t.name == "default").map(|t| t.template),
    }
}

fn special_tokens(config: &BTreeMap<String, serde_json::Value>) -> Value {
    let tokens = config.iter().filter(|(key, _)| key.ends_with("_token"));
    Value::from_serialize(tokens.filter_map(|(key, value)| Some((key, token_text(value)?))).collect::<BTreeMap<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::token_text;
    use serde_json::json;

    #[test]
    fn special_tokens_are_text_or_hold_it() {
        assert_eq!(token_text(&json!("<pad>")).as_deref(), Some("<pad>"));
        assert_eq!(token_text(&json!({ "content": "<pad>", "lstrip": false })).as_deref(), Some("<pad>"));
        assert_eq!(token_text(&json!(null)), None);
    }
}
