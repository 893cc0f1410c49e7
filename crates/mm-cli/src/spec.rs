//! `mm plan --spec`: one JSON document, or one a line.

use crate::args::PlanArgs;
use crate::exit::{BAD_INPUT, Failure, INFEASIBLE};
use crate::plan::{answer, decide};
use crate::table::print_document;
use mm_plan::Spec;
use serde_json::{Value, error::Category};
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

pub(crate) fn run(file: &Path, args: &PlanArgs) -> Result<ExitCode, Failure> {
    let text = read(file)?;
    if !is_lines(&text) {
        let plan =
            parse(&text).map_err(|text| Failure::Spec { line: None, text }).and_then(|spec| decide(spec, args))?;
        answer(&plan, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut worst = 0;
    for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
        let spec = parse(text).map_err(|text| Failure::Spec { line: Some(line), text });
        match spec.and_then(|spec| decide(spec, args)) {
            Ok(plan) => print_document(&plan)?,
            Err(failure) => {
                eprintln!("mm: line {line}: {failure}");
                worst = worst.max(if failure.exit() == INFEASIBLE { INFEASIBLE } else { BAD_INPUT });
                print_document(&failure.document())?;
            }
        }
    }
    Ok(ExitCode::from(worst))
}

fn read(file: &Path) -> Result<String, Failure> {
    let bad = |error: std::io::Error| {
        let (file, reason) = (file.to_owned(), format!("cannot be read: {error}"));
        Failure::File { code: "bad_spec", file, reason }
    };
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(bad)?;
        return Ok(text);
    }
    std::fs::read_to_string(file).map_err(bad)
}

fn parse(text: &str) -> Result<Spec, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Whether each line is a document of its own. A document that spans lines has a first line that is cut short; so
/// has a damaged list of documents, but there another line is a whole one.
fn is_lines(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let Some(first) = lines.next() else { return false };
    if lines.clone().next().is_none() || serde_json::from_str::<Value>(text).is_ok() {
        return false;
    }
    let cut_short = serde_json::from_str::<Value>(first).is_err_and(|error| error.classify() == Category::Eof);
    // Lines within a document are indented, or not objects.
    let whole = |line: &str| line.starts_with('{') && serde_json::from_str::<Value>(line).is_ok();
    !cut_short || lines.any(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_from_a_document() {
        for lines in ["{}\n{}", "{}\n\n{}\n", "nonsense\n{}", "{\"a\":\n{}", "{}\n{", "1\n2"] {
            assert!(is_lines(lines), "{lines:?}");
        }
        for document in ["", "\n", "{}", "{}\n", "{\n}\n", "\n{\"a\":\n {}\n}", "{\n \"a\": {}\n \"b\"\n}", "nonsense"]
        {
            assert!(!is_lines(document), "{document:?}");
        }
    }
}
