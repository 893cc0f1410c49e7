//! Which weights belong to which spans, told from the order in which a model asked for the ones and made the others.
//!
//! A span knows nothing of weights. But a layer makes its span beside its weights: before it loads them, after, or in
//! between. So what lies between a module's first and last weight is that module's, and at its edges the
//! direction of the line of code that made a span decides (see [`super::direction`]).
//!
//! Whatever comes out is a guess that the first pass verifies: a wrong one is refused, never wrong output.

use super::direction::{Direction, directions};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What happened while a model was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A weight of this name was asked for.
    Weight(String),
    /// A span was made by the line of code with this number.
    Span(usize),
}

/// Modules that spans tell of, each a group, in the order of their stacks.
#[derive(Debug, Default)]
pub(crate) struct Outline {
    /// Paths of stacks, and how many groups each has.
    pub(crate) stacks: Vec<(String, usize)>,
    /// Per group its path.
    pub(crate) paths: Vec<String>,
    /// Weights that belong to a group; all others stay with the rest.
    pub(crate) weights: HashMap<String, usize>,
    /// Per span, in the order in which they were made.
    pub(crate) spans: Vec<Option<usize>>,
}

/// A stack of so many entries is not looked into: its entries are the groups.
const MANY: usize = 8;
/// An entry gives way to the entries inside it where these hold at least so much of it, in percent ...
const MOST: u128 = 90;
/// ... and none of them more than so much.
const LARGE: u128 = 60;

/// A module: what weights it asked for, by their position in the order of asking.
#[derive(Debug, Default)]
struct Node<'a> {
    children: BTreeMap<&'a str, Self>,
    first: usize,
    last: usize,
    count: usize,
    bytes: u128,
}

impl<'a> Node<'a> {
    fn add(&mut self, position: usize, bytes: u64) {
        if self.count == 0 {
            self.first = position;
        }
        self.last = position;
        self.count += 1;
        self.bytes += u128::from(bytes);
    }

    /// Nobody else asked for anything meanwhile.
    const fn is_contiguous(&self) -> bool {
        self.count > 0 && self.last - self.first + 1 == self.count
    }

    fn entries(&self) -> usize {
        self.children.keys().filter(|name| is_index(name)).count()
    }

    /// Modules inside, this one included, that end where it ends: as many as have different weights.
    fn closings(&self) -> usize {
        let inner = self.children.values().find(|child| child.last == self.last && child.count > 0);
        inner.map_or(1, |child| child.closings() + usize::from(child.first != self.first))
    }

    fn openings(&self) -> usize {
        let inner = self.children.values().find(|child| child.first == self.first && child.count > 0);
        inner.map_or(1, |child| child.openings() + usize::from(child.last != self.last))
    }
}

struct Unit<'n, 'a> {
    path: String,
    node: &'n Node<'a>,
    /// Made between its weights.
    between: Vec<usize>,
    /// At its edges, from the inside out: before its first weight, and after its last.
    edges: [Vec<usize>; 2],
}

impl Unit<'_, '_> {
    /// The weight at an edge, as it is called inside.
    fn at<'w>(&self, edge: usize, weights: &[&'w str]) -> &'w str {
        let weight = weights[[self.node.first, self.node.last][edge]];
        weight.strip_prefix(&self.path).unwrap_or(weight)
    }
}

impl Outline {
    /// `bytes`: how many a weight has on the device.
    pub(crate) fn new(events: &[Event], bytes: impl Fn(&str) -> u64) -> Self {
        let (mut once, mut again) = (HashSet::new(), HashSet::new());
        for event in events {
            if let Event::Weight(name) = event
                && !once.insert(name.as_str())
            {
                again.insert(name.as_str());
            }
        }
        // Who asks twice may use it in two places.
        let is_counted = |event: &&Event| !matches!(event, Event::Weight(name) if again.contains(name.as_str()));
        let events: Vec<Event> = events.iter().filter(is_counted).cloned().collect();
        let mut root = Node::default();
        let mut weights = Vec::new();
        // Per span: its line of code, and how many weights came before it.
        let mut spans = Vec::new();
        for event in &events {
            match event {
                Event::Span(line) => spans.push((*line, weights.len())),
                Event::Weight(name) => {
                    let size = bytes(name);
                    let mut node = &mut root;
                    node.add(weights.len(), size);
                    for module in name.split('.').rev().skip(1).collect::<Vec<_>>().into_iter().rev() {
                        node = node.children.entry(module).or_default();
                        node.add(weights.len(), size);
                    }
                    weights.push(name.as_str());
                }
            }
        }
        let finder = Finder { spans, directions: directions(&events) };
        let mut units = finder.units(&root, "", false, 0);
        units.sort_by_key(|unit| unit.node.first);
        Self::of(units, &weights, &finder.spans)
    }

    fn of(units: Vec<Unit<'_, '_>>, weights: &[&str], spans: &[(usize, usize)]) -> Self {
        let mut stacks: Vec<(String, Vec<Unit<'_, '_>>)> = Vec::new();
        for unit in units {
            let stack = unit.path.rsplit_once('.').map_or("", |(stack, _)| stack).to_owned();
            match stacks.iter_mut().find(|(name, _)| *name == stack) {
                Some((_, units)) => units.push(unit),
                None => stacks.push((stack, vec![unit])),
            }
        }
        let mut this = Self { spans: vec![None; spans.len()], ..Self::default() };
        for (stack, mut units) in stacks {
            units.sort_by_key(|unit| index(&unit.path));
            this.stacks.push((stack, units.len()));
            for edge in [0, 1] {
                keep_common(&mut units, edge, weights, spans);
            }
            for unit in units {
                let group = this.paths.len();
                let own = weights[unit.node.first..=unit.node.last].iter();
                this.weights.extend(own.map(|name| ((*name).to_owned(), group)));
                let own = unit.edges.iter().flatten().chain(&unit.between);
                own.for_each(|span| this.spans[*span] = Some(group));
                this.paths.push(unit.path);
            }
        }
        this
    }
}

struct Finder {
    spans: Vec<(usize, usize)>,
    directions: HashMap<usize, Direction>,
}

impl Finder {
    /// `siblings`: entries of the stack that the node is one of.
    fn units<'n, 'a>(&self, node: &'n Node<'a>, path: &str, is_entry: bool, siblings: usize) -> Vec<Unit<'n, 'a>> {
        let entries = node.entries();
        let inside = node.children.iter().flat_map(|(name, child)| {
            let inner = if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") };
            self.units(child, &inner, is_index(name), entries)
        });
        let inside: Vec<_> = inside.collect();
        let unit = (is_entry && node.is_contiguous()).then(|| self.unit(node, path));
        let Some(unit) = unit.filter(|unit| !(unit.between.is_empty() && unit.edges.iter().all(Vec::is_empty))) else {
            return inside;
        };
        let (held, largest) = inside
            .iter()
            .fold((0, 0), |(sum, largest): (u128, u128), unit| (sum + unit.node.bytes, largest.max(unit.node.bytes)));
        let share = |part: u128, percent: u128| part * 100 >= node.bytes * percent;
        if siblings < MANY && share(held, MOST) && !share(largest, LARGE) {
            return inside;
        }
        vec![unit]
    }

    /// A module with the spans made between its weights, and those at its edges that may belong there.
    fn unit<'n, 'a>(&self, node: &'n Node<'a>, path: &str) -> Unit<'n, 'a> {
        let at = |place: usize, direction: Direction| {
            let spans = self.spans.iter().enumerate();
            spans.filter(move |(_, (line, before))| *before == place && self.directions.get(line) == Some(&direction))
        };
        let mut opening: Vec<usize> = at(node.first, Direction::Before).map(|(span, _)| span).collect();
        opening.reverse();
        let closing = at(node.last + 1, Direction::After).map(|(span, _)| span).collect();
        let between = self.spans.iter().enumerate();
        let between = between.filter(|(_, (_, before))| (node.first + 1..=node.last).contains(before));
        let between = between.map(|(span, _)| span).collect();
        Unit { path: path.to_owned(), node, between, edges: [opening, closing] }
    }
}

/// Leaves out spans at an edge that are of what contains the entries of a stack. Entries that begin, or end, alike have the same lines of
/// code there, and what contains them does not. Of one that is like no other the innermost are its: one for each module that
/// begins, or ends, there.
fn keep_common(units: &mut [Unit<'_, '_>], edge: usize, weights: &[&str], spans: &[(usize, usize)]) {
    let line = |span: &usize| spans[*span].0;
    let mut alike: HashMap<&str, (usize, HashSet<usize>)> = HashMap::new();
    for unit in &*units {
        let lines: HashSet<usize> = unit.edges[edge].iter().map(line).collect();
        let (count, common) = alike.entry(unit.at(edge, weights)).or_insert_with(|| (0, lines.clone()));
        common.retain(|line| lines.contains(line));
        *count += 1;
    }
    for unit in units {
        match alike.get(unit.at(edge, weights)) {
            Some((2.., common)) if !common.is_empty() => unit.edges[edge].retain(|span| common.contains(&line(span))),
            _ => unit.edges[edge].truncate(if edge == 0 { unit.node.openings() } else { unit.node.closings() }),
        }
    }
}

fn is_index(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit())
}

/// Of an entry; saturating, as any text may be a name.
fn index(path: &str) -> usize {
    path.rsplit('.').next().and_then(|last| last.parse().ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[path = "outline_tests.rs"]
mod tests;
