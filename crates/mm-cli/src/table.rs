//! Tables and texts for people.

use crate::exit::Failure;
use std::io::{ErrorKind, Write};

/// Rows under a head, columns aligned; figures to the right.
pub(crate) struct Table {
    table: comfy_table::Table,
}

impl Table {
    /// A table with these columns; those whose name starts with `>` are aligned to the right.
    pub(crate) fn new(columns: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        table.set_header(columns.iter().map(|name| name.trim_start_matches('>')));
        for (index, name) in columns.iter().enumerate() {
            if let Some(column) = table.column_mut(index) {
                column.set_padding((0, 2));
                if name.starts_with('>') {
                    column.set_cell_alignment(comfy_table::CellAlignment::Right);
                }
            }
        }
        Self { table }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.table.add_row(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Columns without names have no head.
        self.table
            .lines()
            .filter(|line| !line.trim().is_empty())
            .try_for_each(|line| writeln!(f, "{}", line.trim_end()))
    }
}

/// Writes to standard output. A reader that has left, as `head` does, is no error.
pub(crate) fn print(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.to_string().trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Output { path: "standard output".into(), source: error })
        }
        _ => Ok(()),
    }
}

/// Writes one JSON document on a line of its own, fields in the order of the type.
pub(crate) fn print_document(document: &impl serde::Serialize) -> Result<(), Failure> {
    match serde_json::to_string(document) {
        Ok(text) => print(text),
        Err(error) => Err(Failure::Output { path: "standard output".into(), source: error.into() }),
    }
}

/// Nanoseconds for people, to four figures: `12.34 ms`.
pub(crate) fn time(ns: u64) -> String {
    for (unit, name) in [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs")] {
        if ns >= unit {
            let whole = ns / unit;
            let digits = 3 - whole.ilog10().min(2);
            let part = ns % unit / (unit / 10u64.pow(digits));
            return format!("{whole}.{part:0width$} {name}", width = digits as usize);
        }
    }
    format!("{ns} ns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_for_people() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.000 µs"),
            (12_345, "12.34 µs"),
            (402_060_000, "402.0 ms"),
            (999_999_999, "999.9 ms"),
            (1_002_000_000, "1.002 s"),
            (61_000_000_000, "61.00 s"),
            (12_345_678_900_000, "12345.6 s"),
            (u64::MAX, "18446744073.7 s"),
        ] {
            assert_eq!(time(ns), text);
        }
    }
}
