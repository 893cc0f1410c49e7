//! The sizes of a smaller or larger model, valid ones near what the scale asks for.

use crate::Options;

/// What the options make of the sizes of the published model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    layers: Option<usize>,
    dim: Option<usize>,
    width: f64,
    vocabulary: f64,
}

/// Attention heads and the width of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) count: usize,
    pub(crate) size: usize,
}

impl Heads {
    /// As many heads of at most `most` wide as make `dim`, a multiple of 8.
    pub(crate) fn of(dim: usize, most: usize) -> Heads {
        let size = (8..=most).rev().step_by(8).find(|size| dim.is_multiple_of(*size)).unwrap_or(dim);
        Heads { count: dim / size, size }
    }

    pub(crate) fn dim(self) -> usize {
        self.count * self.size
    }

    /// Splits the width of a head over three axes, all even, in about the proportion of `full`.
    pub(crate) fn axes(self, full: [usize; 3]) -> [usize; 3] {
        let whole: usize = full.iter().sum();
        let part = |axis: usize| (axis * self.size / whole) & !1;
        let (second, third) = (part(full[1]), part(full[2]));
        [self.size - second - third, second, third]
    }
}

impl Sizes {
    pub(crate) fn new(options: &Options) -> Sizes {
        let width = options.scale.sqrt();
        Sizes { layers: options.layers, dim: options.dim, width, vocabulary: width }
    }

    /// Of a model that is alone: all of its widths follow `--dim`, of which `full` is the published one.
    pub(crate) fn alone(self, full: usize) -> Sizes {
        match self.dim {
            Some(dim) => Sizes { width: dim as f64 / full as f64, ..self },
            None => self,
        }
    }

    /// Of a component beside the main one: neither `--layers` nor `--dim` is for it.
    pub(crate) fn beside(self) -> Sizes {
        Sizes { layers: None, dim: None, ..self }
    }

    /// The model's width, where it is asked for.
    pub(crate) fn dim(self) -> Option<usize> {
        self.dim
    }

    pub(crate) fn layers(self, full: usize) -> usize {
        self.layers.unwrap_or(full)
    }

    /// The model's width in heads.
    pub(crate) fn heads(self, count: usize, size: usize) -> Heads {
        Heads::of(self.dim.unwrap_or_else(|| self.near(count * size, size, 8)), size)
    }

    /// Channels, a multiple of at least 4.
    pub(crate) fn channels(self, full: usize) -> usize {
        self.dim.unwrap_or_else(|| self.near(full, 32, 4))
    }

    /// Another width: a multiple of 8.
    pub(crate) fn other(self, full: usize) -> usize {
        self.near(full, 8, 8)
    }

    pub(crate) fn vocabulary(self, full: usize) -> usize {
        multiple(full as f64 * self.vocabulary, 8).max(64)
    }

    /// The multiple of `coarse`, or of a half, a quarter… of it where that is too coarse, down to `fine`.
    fn near(self, full: usize, coarse: usize, fine: usize) -> usize {
        let target = full as f64 * self.width;
        let mut step = coarse;
        while step > fine && target < (8 * step) as f64 {
            step /= 2;
        }
        multiple(target, step)
    }
}

/// The groups of a group norm over multiples of `channels`: 32 where that divides.
pub(crate) fn groups(channels: usize) -> usize {
    1 << channels.trailing_zeros().min(5)
}

fn multiple(target: f64, step: usize) -> usize {
    ((target / step as f64).round() as usize).max(1) * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_keep_their_width_where_it_divides() {
        assert_eq!(Heads::of(3072, 128), Heads { count: 24, size: 128 });
        assert_eq!(Heads::of(480, 128), Heads { count: 4, size: 120 });
        assert_eq!(Heads::of(8 * 509, 128), Heads { count: 509, size: 8 });
        assert_eq!(Heads::of(8, 64), Heads { count: 1, size: 8 });
    }

    #[test]
    fn axes_are_even_and_make_the_head() {
        for size in (8..=128).step_by(8) {
            for full in [[16, 56, 56], [32, 48, 48]] {
                let axes = Heads { count: 1, size }.axes(full);
                assert!(axes.iter().sum::<usize>() == size && axes.iter().all(|a| a % 2 == 0 && *a > 0), "{axes:?}");
            }
        }
        assert_eq!(Heads { count: 24, size: 128 }.axes([16, 56, 56]), [16, 56, 56]);
    }

    #[test]
    fn groups_divide() {
        assert_eq!([320, 128, 24, 4, 96].map(groups), [32, 32, 8, 4, 32]);
    }
}
