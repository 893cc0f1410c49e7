//! Weights of which each content is held once, in however many files it lies.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::error::WeightsError;
use crate::index::Index;
use crate::tensor::{Stretch, TensorSlice, ids};
use crate::weights::Weights;

/// Opens weights so that a tensor whose bytes are open already, in whatever file, is read there: two copies of a text
/// encoder are held once by the system's cache and by every mapping, and so is what a fine-tune leaves as it was.
///
/// Nothing is read to find that out but where it may be so: a tensor is looked at if one of the same name, dtype and shape is
/// open, first in three places, and in full only if those are alike. What was hashed is remembered in the [`Index`].
///
/// A file that a tensor is shared with may be changed afterwards: the tensor is then read in its own file again.
#[derive(Default)]
pub struct WeightStore {
    index: Index,
    open: Mutex<Vec<Weak<Weights>>>,
}

/// What a [`WeightStore`] holds once that lies in several files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharingStats {
    /// Tensors that are read in another file than their own.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Read of a tensor at its start, middle and end before it is hashed; a tensor of no more than the three is compared whole.
const SAMPLE: u64 = 4 << 10;

impl WeightStore {
    /// A store that remembers what it hashed in `index`.
    pub fn new(index: Index) -> Self {
        Self { index, open: Mutex::default() }
    }

    /// The content ids on disk.
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// Opens files as [`Weights::open`] does, and shares with the weights of this store that are still held. Takes as
    /// long as hashing what may be shared, where the index does not know it yet; other calls wait meanwhile.
    ///
    /// # Errors
    /// As [`Weights::open`]. What can't be compared is not shared; reading it will tell why.
    pub fn open(&self, paths: &[impl AsRef<Path>]) -> Result<Arc<Weights>, WeightsError> {
        let weights = Weights::open(paths)?;
        let mut open = self.open.lock();
        open.retain(|other| other.strong_count() > 0);
        let others: Vec<Arc<Weights>> = open.iter().filter_map(Weak::upgrade).collect();
        for other in &others {
            self.share(&weights, other);
        }
        open.push(Arc::downgrade(&weights));
        drop(open);
        Ok(weights)
    }

    /// What is shared among the weights that are held now.
    pub fn stats(&self) -> SharingStats {
        let held: Vec<Arc<Weights>> = self.open.lock().iter().filter_map(Weak::upgrade).collect();
        let shared = held.iter().flat_map(|weights| weights.tensors()).filter(|tensor| tensor.is_shared());
        shared.fold(SharingStats::default(), |sum, tensor| SharingStats {
            tensors: sum.tensors + 1,
            bytes: sum.bytes + tensor.byte_len(),
        })
    }

    fn share(&self, weights: &Weights, with: &Weights) {
        let mut alike = Vec::new();
        for tensor in weights.tensors() {
            let Some((own, place)) = with.get(tensor.name()).and_then(|other| candidate(tensor, other)) else {
                continue;
            };
            match looks_alike(&own, &place) {
                Ok(Alike::Equal) => tensor.share(place),
                Ok(Alike::Perhaps) => alike.push((tensor, own, place)),
                Ok(Alike::No) | Err(_) => {}
            }
        }
        let (own, places): (Vec<&Stretch>, Vec<&Stretch>) = alike.iter().map(|(_, own, place)| (own, place)).unzip();
        let (Ok(own), Ok(places)) = (ids(&self.index, &own), ids(&self.index, &places)) else { return };
        for ((tensor, own, place), (id, other)) in alike.iter().zip(own.iter().zip(&places)) {
            // What was hashed is what was opened.
            if id == other && own.is_current() && place.is_current() {
                tensor.share(place.clone());
            }
        }
    }
}

/// Where the tensor lies, and where the other does that may have the same bytes.
fn candidate(tensor: &TensorSlice, other: &TensorSlice) -> Option<(Stretch, Stretch)> {
    // Whatever they stand for, equal bytes are equal bytes.
    if tensor.is_shared() || (tensor.dtype(), tensor.shape()) != (other.dtype(), other.shape()) {
        return None;
    }
    let own = tensor.held_at()?;
    let place = other.places().find(|place| place.is_current())?;
    (own.file.number() != place.file.number()).then(|| (own.clone(), place.clone()))
}

enum Alike {
    No,
    /// As far as was looked.
    Perhaps,
    Equal,
}

fn looks_alike(one: &Stretch, two: &Stretch) -> io::Result<Alike> {
    let length = one.range.end - one.range.start;
    let whole = length <= 3 * SAMPLE;
    let (starts, sample) = match whole {
        true => (vec![0], length),
        false => (vec![0, (length - SAMPLE) / 2, length - SAMPLE], SAMPLE),
    };
    // At most three samples long.
    let (mut ours, mut theirs) = (vec![0; sample as usize], vec![0; sample as usize]);
    for start in starts {
        one.file.read_at(one.range.start + start, &mut ours)?;
        two.file.read_at(two.range.start + start, &mut theirs)?;
        if ours != theirs {
            return Ok(Alike::No);
        }
    }
    Ok(if whole && one.is_current() && two.is_current() { Alike::Equal } else { Alike::Perhaps })
}

impl fmt::Debug for WeightStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeightStore").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
