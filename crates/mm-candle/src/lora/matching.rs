//! Which of a model's weights a LoRA is for.

use super::{
    Lora, LoraError,
    file::Piece,
    names::{Names, layer_of},
};
use std::collections::{BTreeMap, HashMap};

/// Names that are shown where none is known.
const SHOWN: usize = 3;
/// Longer names are compared by their ends only.
const COMPARED: usize = 160;

/// What became of a LoRA's layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Matched {
    /// Weights that it changes.
    pub weights: usize,
    /// Layers of the file that the model doesn't have, as the file calls them.
    pub left: Vec<String>,
}

/// A LoRA's pieces by what they may be called.
pub(crate) struct Index<'a> {
    lora: &'a Lora,
    dotted: HashMap<&'a str, Vec<usize>>,
    underscored: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Index<'a> {
    pub(crate) fn new(lora: &'a Lora) -> Self {
        let mut this = Self { lora, dotted: HashMap::new(), underscored: HashMap::new() };
        for (at, piece) in lora.pieces.iter().enumerate() {
            piece.names.dotted.iter().for_each(|name| this.dotted.entry(name).or_default().push(at));
            piece.names.underscored.iter().for_each(|name| this.underscored.entry(name).or_default().push(at));
        }
        this
    }

    /// The pieces for a weight.
    pub(crate) fn of(&self, weight: &str) -> Vec<usize> {
        let Some(layer) = layer_of(weight) else { return Vec::new() };
        let names = Names::of_model(layer);
        let dotted = names.dotted.iter().filter_map(|name| self.dotted.get(&**name));
        let underscored = names.underscored.iter().filter_map(|name| self.underscored.get(&**name));
        let mut all: Vec<usize> = dotted.chain(underscored).flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What the file calls the layer of this weight, if it is for it.
    pub(crate) fn layer_for(&self, weight: &str) -> Option<String> {
        self.of(weight).first().map(|at| self.lora.pieces[*at].factors.layer.clone())
    }

    /// The pieces for a weight of this shape, which they fit.
    pub(crate) fn fitting(&self, weight: &str, shape: &[usize]) -> Result<Vec<&'a Piece>, LoraError> {
        let pieces: Vec<&Piece> = self.of(weight).into_iter().map(|at| &self.lora.pieces[at]).collect();
        pieces.iter().try_for_each(|piece| self.check(piece, weight, shape))?;
        // Two that are for the same rows are one layer under two names.
        let rows = |piece: &Piece| piece.at.unwrap_or(0)..piece.at.unwrap_or(0) + piece.from.len();
        for (at, one) in pieces.iter().enumerate() {
            let meets = |two: &&&Piece| rows(one).start < rows(two).end && rows(two).start < rows(one).end;
            if let Some(two) = pieces[at + 1..].iter().find(meets) {
                let (name, other) = (one.factors.layer.clone(), &two.factors.layer);
                let reason = format!("{other:?} is for the weight {weight:?} as well");
                return Err(LoraError::Ambiguous { file: self.lora.path(), name, reason });
            }
        }
        Ok(pieces)
    }

    fn check(&self, piece: &Piece, weight: &str, shape: &[usize]) -> Result<(), LoraError> {
        let factors = &piece.factors;
        let fail = |reason: String| {
            let (file, name) = (self.lora.path(), factors.layer.clone());
            Err(LoraError::Shape { file, name, weight: weight.to_owned(), reason })
        };
        let (up, down) = (factors.up.shape(), factors.down.shape());
        let (Some(outputs), inputs) = (shape.first(), shape.iter().skip(1).product::<usize>()) else {
            return fail("it is a single number".to_owned());
        };
        if factors.inputs() != Some(inputs) || shape.len() < 2 {
            return fail(format!("its factors are {down:?} and {up:?}, the weight is {shape:?}"));
        }
        let there = piece.from.end <= factors.outputs() && piece.from.start < piece.from.end;
        let fits = match piece.at {
            None => piece.from.len() == *outputs,
            Some(at) => at.checked_add(piece.from.len()).is_some_and(|end| end <= *outputs),
        };
        if !(there && fits) {
            return fail(format!(
                "its outputs {:?} of {} don't fit the weight's {outputs}",
                piece.from,
                factors.outputs()
            ));
        }
        Ok(())
    }

    /// What became of all layers, where these weights took these pieces. A piece is for one weight.
    ///
    /// # Errors
    /// `NoMatch`: none took any. `Ambiguous`: two took one.
    pub(crate) fn outcome<'n>(&self, weights: impl Iterator<Item = &'n str> + Clone) -> Result<Matched, LoraError> {
        let mut taken: BTreeMap<usize, &str> = BTreeMap::new();
        let mut changed = std::collections::BTreeSet::new();
        for weight in weights.clone() {
            for at in self.of(weight) {
                changed.insert(weight);
                if let Some(other) = taken.insert(at, weight).filter(|other| *other != weight) {
                    let name = self.lora.pieces[at].factors.layer.clone();
                    let reason = format!("it may be {other:?} and {weight:?}");
                    return Err(LoraError::Ambiguous { file: self.lora.path(), name, reason });
                }
            }
        }
        let left = (self.lora.pieces.iter().enumerate()).filter(|(at, _)| !taken.contains_key(at));
        let mut left: Vec<String> = left.map(|(_, piece)| piece.factors.layer.clone()).collect();
        left.dedup();
        if taken.is_empty() {
            return Err(self.no_match(weights));
        }
        Ok(Matched { weights: changed.len(), left })
    }

    fn no_match<'n>(&self, weights: impl Iterator<Item = &'n str> + Clone) -> LoraError {
        let near = self.lora.pieces.iter().take(SHOWN).map(|piece| {
            let layer = &piece.factors.layer;
            (layer.clone(), nearest(&piece.names, weights.clone().filter_map(layer_of)))
        });
        LoraError::NoMatch { file: self.lora.path(), count: self.lora.layers().len(), near: near.collect() }
    }
}

/// The most similar of these layers.
fn nearest<'n>(names: &Names, layers: impl Iterator<Item = &'n str>) -> Option<String> {
    // The shortest is the one without wrappers.
    let all = names.dotted.iter().chain(&names.underscored);
    let name = end(&all.min_by_key(|name| name.len())?.replace('.', "_")).to_owned();
    let alike = |layer: &str| strsim::normalized_levenshtein(&name, end(&layer.replace('.', "_")));
    layers.map(|layer| (alike(layer), layer)).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, layer)| layer.to_owned())
}

fn end(name: &str) -> &str {
    let start = name.char_indices().rev().take(COMPARED).last().map_or(0, |(at, _)| at);
    &name[start..]
}
