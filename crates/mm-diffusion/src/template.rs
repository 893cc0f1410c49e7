//! Chat templates, rendered as transformers renders them.

use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;
use std::io;

/// Renders the one message of a prompt.
pub(crate) struct Template {
    environment: Environment<'static>,
    special_tokens: Value,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

impl Template {
    /// Compiles a template. `special_tokens` maps `bos_token` and its like to their text.
    pub(crate) fn new(source: String, special_tokens: Value) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned("chat", source)?;
        Ok(Self { environment, special_tokens })
    }

    /// The text that the tokenizer gets for a prompt.
    pub(crate) fn render(&self, prompt: &str) -> Result<String, Error> {
        self.environment.get_template("chat")?.render(context! {
            messages => [Message { role: "user", content: prompt }],
            add_generation_prompt => true,
            enable_thinking => true,
            ..self.special_tokens.clone()
        })
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("the template refuses the prompt: {message}")))
}

/// Python's spacing, and no escaping of HTML: what models have seen in training.
fn tojson(value: Value) -> Result<Value, Error> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Spaced);
    let failed = |error: &dyn std::fmt::Display| Error::new(ErrorKind::BadSerialization, error.to_string());
    value.serialize(&mut serializer).map_err(|e| failed(&e))?;
    Ok(Value::from_safe_string(String::from_utf8(bytes).map_err(|e| failed(&e))?))
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, prompt: &str) -> Result<String, Error> {
        Template::new(source.to_owned(), context! { eos_token => "<end>" })?.render(prompt)
    }

    /// What templates of the Qwen3 family make use of.
    const QWEN_LIKE: &str = r#"
{%- if tools %}
    {{- tools | tojson }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, plain=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.plain and message.role == "user" and message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.plain = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- message.content.split('</think>')[-1].lstrip('\n') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"#;

    #[test]
    fn a_template_of_the_qwen3_family_renders() {
        let text = render(QWEN_LIKE, "a cat <& dog>").unwrap();
        assert_eq!(text, "<|im_start|>user\na cat <& dog><|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn python_helpers_work() {
        assert_eq!(render("{{ messages[0]['content'].strip().upper() }}{{ eos_token }}", " a ").unwrap(), "A<end>");
        assert_eq!(render("{{ messages | tojson }}", "ä<b>").unwrap(), r#"[{"role": "user", "content": "ä<b>"}]"#);
        assert_eq!(render("a\n  {% if true %}\nb\n  {% endif %}\n", "").unwrap(), "a\nb\n");
    }

    #[test]
    fn a_refusal_carries_its_message() {
        let error = render("{{ raise_exception('no images') }}", "a").unwrap_err();
        assert!(format!("{error:#}").contains("no images"), "{error:#}");
        assert!(render("{% if %}", "a").is_err());
    }
}
