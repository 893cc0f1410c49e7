//! Whether a line of code makes its span before a module's weights are loaded, or after.

use super::outline::Event;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A line of code does always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// As with_tracing's convolutions and RMS norms: the weights come after it.
    Before,
    /// As with_tracing's linear layers and T5's blocks: the weights came before it.
    After,
}

/// Of each line of code that makes spans, by its number. By what tells most, of whichever line it tells anything:
///
/// 1. Where there once was no weight on one side, it is the other.
/// 2. A block is always alike at its own end, and what comes next is not.
/// 3. A layer that is used for many weights has one beside its span each time, on its own side only.
/// 4. So has any other, where spans whose direction is known count as the weights that they stand beside.
/// 5. Fewer kinds of weights are next on its own side; else after, as most do.
pub(super) fn directions(events: &[Event]) -> HashMap<usize, Direction> {
    let mut places: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, event) in events.iter().enumerate() {
        if let Event::Span(line) = event {
            places.entry(*line).or_default().push(place);
        }
    }
    let kinds = |places: &[usize]| (kinds(events, places, Direction::After), kinds(events, places, Direction::Before));
    let kinds: BTreeMap<usize, (usize, usize)> = places.iter().map(|(line, at)| (*line, kinds(at))).collect();
    let mut known = HashMap::new();
    while let Some((line, direction)) = (1..=5).find_map(|rule| {
        let mut open = places.iter().filter(|(line, _)| !known.contains_key(*line));
        open.find_map(|(line, at)| Some((*line, told(rule, events, at, *kinds.get(line)?, &known)?)))
    }) {
        known.insert(line, direction);
    }
    known
}

/// How many kinds of weights a layer has beside its spans that is used everywhere.
const MANY: usize = 3;

/// `kinds`: on the left and on the right.
fn told(
    rule: usize,
    events: &[Event],
    places: &[usize],
    kinds: (usize, usize),
    known: &HashMap<usize, Direction>,
) -> Option<Direction> {
    let one = |after: bool, before: bool| match (after, before) {
        (true, false) => Some(Direction::After),
        (false, true) => Some(Direction::Before),
        _ => None,
    };
    match rule {
        1 => one(kinds.0 > 0, kinds.1 > 0),
        2 => one(kinds.0 == 1, kinds.1 == 1),
        3 => {
            let (left, right) = sides(events, places, &HashMap::new());
            one(left, right).filter(|side| MANY <= if *side == Direction::After { kinds.0 } else { kinds.1 })
        }
        4 => {
            let (left, right) = sides(events, places, known);
            one(left, right)
        }
        _ => Some(if kinds.1 < kinds.0 { Direction::Before } else { Direction::After }),
    }
}

/// Whether there is always a weight, or a span that stands beside one, on the left, and on the right.
fn sides(events: &[Event], places: &[usize], known: &HashMap<usize, Direction>) -> (bool, bool) {
    let suits = |event: Option<&Event>, direction| match event {
        Some(Event::Weight(_)) => true,
        Some(Event::Span(line)) => known.get(line) == Some(&direction),
        None => false,
    };
    let left = |place: &usize| suits(place.checked_sub(1).and_then(|p| events.get(p)), Direction::After);
    let right = |place: &usize| suits(events.get(place + 1), Direction::Before);
    (places.iter().all(left), places.iter().all(right))
}

/// How many different weights are next on that side; none where there once was nothing.
fn kinds(events: &[Event], places: &[usize], direction: Direction) -> usize {
    let mut kinds = HashSet::new();
    for place in places {
        let weight = |event: &Event| if let Event::Weight(name) = event { Some(kind(name).to_owned()) } else { None };
        let next = match direction {
            Direction::After => events[..*place].iter().rev().find_map(weight),
            Direction::Before => events[*place..].iter().find_map(weight),
        };
        let Some(next) = next else { return 0 };
        kinds.insert(next);
    }
    kinds.len()
}

/// A weight's name inside the innermost entry of a stack.
fn kind(name: &str) -> &str {
    let mut rest = name;
    let mut kind = name;
    while let Some((part, after)) = rest.split_once('.') {
        if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            kind = after;
        }
        rest = after;
    }
    kind
}
