//! Names of visits that are too narrow to hold them: in rows above, with a leader each.

use super::sheet::{LEFT, RIGHT, fit, text_width};

/// Rows at the most.
const ROWS: usize = 4;
/// Between a leader and its text, and between texts.
const GAP: f64 = 4.0;
/// A text is no wider.
const WIDTH: f64 = 240.0;
/// Those that are closer have one leader.
const CLOSE: f64 = 3.0;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Label {
    pub(super) text: String,
    /// Of the leader.
    pub(super) x: f64,
    /// From the bottom.
    pub(super) row: usize,
    /// The text ends at the leader instead of starting there.
    pub(super) leftward: bool,
}

impl Label {
    /// Where its text is, from left to right.
    fn extent(&self) -> (f64, f64) {
        let width = text_width(&self.text, 12.0) + GAP;
        if self.leftward { (self.x - width, self.x) } else { (self.x, self.x + width) }
    }

    /// No text meets a text in its row, nor a leader on its way down to the visit.
    fn clears(&self, other: &Self) -> bool {
        let (a, b) = (self.extent(), other.extent());
        let apart = a.1 + GAP <= b.0 || b.1 + GAP <= a.0;
        let outside = |x: f64, extent: (f64, f64)| x < extent.0 - 1.0 || x > extent.1 + 1.0;
        match self.row.cmp(&other.row) {
            std::cmp::Ordering::Equal => apart,
            std::cmp::Ordering::Greater => outside(self.x, b),
            std::cmp::Ordering::Less => outside(other.x, a),
        }
    }
}

/// Places what there is room for; the rest has no label. Left half: from right to left, so that a leader finds the
/// texts that are lower to its right; right half: the other way round.
pub(super) fn place(wanted: Vec<(f64, String)>) -> Vec<Label> {
    let middle = f64::midpoint(LEFT, RIGHT);
    let (left, right): (Vec<_>, Vec<_>) = merged(wanted).into_iter().partition(|(x, _)| *x < middle);
    let mut placed: Vec<Label> = Vec::new();
    let left = left.into_iter().rev().map(|label| (label, false));
    for ((x, text), leftward) in left.chain(right.into_iter().map(|label| (label, true))) {
        let rows = (0..ROWS).map(|row| Label { text: text.clone(), x, row, leftward });
        let found = rows.into_iter().find(|label| placed.iter().all(|other| label.clears(other)));
        placed.extend(found);
    }
    placed
}

/// From left to right.
fn merged(mut wanted: Vec<(f64, String)>) -> Vec<(f64, String)> {
    wanted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut merged: Vec<(f64, String)> = Vec::new();
    for (x, text) in wanted {
        match merged.last_mut() {
            Some((at, texts)) if x - *at < CLOSE => {
                texts.push_str(", ");
                texts.push_str(&text);
            }
            _ => merged.push((x, text)),
        }
    }
    merged.into_iter().filter_map(|(x, text)| Some((x, fit(&text, 12.0, WIDTH)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_step_aside() {
        let wanted = [(LEFT, "clip"), (LEFT + 4.0, "text_encoder_2"), (RIGHT - 1.0, "vae"), (LEFT + 400.0, "unet")];
        let placed = place(wanted.iter().map(|(x, text)| (*x, (*text).to_owned())).collect());
        let row = |name: &str| placed.iter().find(|label| label.text == name).map(|label| (label.row, label.leftward));
        assert_eq!(row("text_encoder_2"), Some((0, false)));
        assert_eq!(row("clip"), Some((1, false)), "its leader runs to the left of the other's text");
        assert_eq!((row("vae"), row("unet")), (Some((0, true)), Some((0, false))));
        let same = place(["vae", "checker"].map(|text| (RIGHT, text.to_owned())).to_vec());
        assert_eq!(same.iter().map(|label| &*label.text).collect::<Vec<_>>(), ["vae, checker"]);
        let many = place((0..240).map(|i| (LEFT + 3.5 * f64::from(i), format!("component_{i}"))).collect());
        assert!(many.len() < 100 && many.iter().all(|label| label.row < ROWS));
        for (i, a) in many.iter().enumerate() {
            assert!(many[i + 1..].iter().all(|b| a.clears(b)), "{a:?}");
        }
    }
}
