//! `mm plan --spec`: one JSON document, or one a line.

use crate::args::PlanArgs;
use crate::exit::{BAD_INPUT, Failure, INFEASIBLE, say};
use crate::output::OutputFile;
use crate::plan::Decision;
use crate::table::print_document;
use mm_plan::Spec;
use serde_json::{Value, error::Category};
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

pub(crate) fn run(file: &Path, args: &PlanArgs, picture: Option<&OutputFile>) -> Result<ExitCode, Failure> {
    let text = read(file)?;
    if !is_lines(&text) {
        Decision::make(parse(&text, None)?, args)?.answer(picture, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    if picture.is_some() {
        return Err(Failure::usage("--svg", "a picture is of one plan, and this is a spec a line: give one of them"));
    }
    let mut worst = 0;
    for (line, text) in (1..).zip(lines(&text)).filter(|(_, text)| !text.is_empty()) {
        match parse(text, Some(line)).and_then(|spec| Decision::make(spec, args)) {
            Ok(decision) => print_document(&decision.plan)?,
            Err(failure) => {
                say(format_args!("line {line}: {failure}"));
                worst = worst.max(if failure.exit() == INFEASIBLE { INFEASIBLE } else { BAD_INPUT });
                print_document(&failure.document())?;
            }
        }
    }
    Ok(ExitCode::from(worst))
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let bad = |error: std::io::Error| {
        let (file, reason) = (file.to_owned(), format!("cannot be read: {error}"));
        Failure::File { code: "bad_spec", file, reason }
    };
    if file == Path::new("-") {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text).map_err(bad)?;
        return Ok(text);
    }
    std::fs::read(file).map_err(bad)
}

fn parse(text: &[u8], line: Option<usize>) -> Result<Spec, Failure> {
    serde_json::from_slice(text).map_err(|error| Failure::Spec { line, text: error.to_string() })
}

/// Bytes, not text: one line that is no UTF-8 must not spoil the others.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end)
}

/// Whether each line is a document of its own. A document that spans lines has a first line that is cut short; so
/// has a damaged list of documents, but there another line is a whole one.
fn is_lines(text: &[u8]) -> bool {
    let mut lines = lines(text).filter(|line| !line.is_empty());
    let Some(first) = lines.next() else { return false };
    if lines.clone().next().is_none() || serde_json::from_slice::<Value>(text).is_ok() {
        return false;
    }
    let cut_short = serde_json::from_slice::<Value>(first).is_err_and(|error| error.classify() == Category::Eof);
    // Lines within a document are indented, or not objects.
    let whole = |line: &[u8]| line.starts_with(b"{") && serde_json::from_slice::<Value>(line).is_ok();
    !cut_short || lines.any(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_from_a_document() {
        for lines in ["{}\n{}", "{}\n\n{}\n", "nonsense\n{}", "{\"a\":\n{}", "{}\n{", "1\n2"] {
            assert!(is_lines(lines.as_bytes()), "{lines:?}");
        }
        for document in ["", "\n", "{}", "{}\n", "{\n}\n", "\n{\"a\":\n {}\n}", "{\n \"a\": {}\n \"b\"\n}", "nonsense"]
        {
            assert!(!is_lines(document.as_bytes()), "{document:?}");
        }
    }
}
