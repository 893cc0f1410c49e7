//! Adding products of factors to a weight, in place.

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Tensor, WithDType, bail};
use half::{bf16, f16};

/// Elements of a weight that are computed at a time. What this takes is a few times that, whatever the weight's size: on the CPU it
/// stays in the cores' caches, on a card it is worth a kernel.
const AT_A_TIME: usize = 1 << 18;
const AT_A_TIME_ON_A_CARD: usize = 1 << 22;

/// What is added to one weight: it is computed in f32 (f64 where the weight is), and rounded once.
pub(crate) struct Merge {
    /// `[outputs, inputs]`, over the weight's own memory.
    weight: Tensor,
    terms: Vec<Term>,
}

/// One product.
pub(crate) struct Term {
    /// `[rows, rank]`.
    pub(crate) up: Tensor,
    /// `[rank, inputs]`.
    pub(crate) down: Tensor,
    /// The first of the weight's rows.
    pub(crate) at: usize,
    pub(crate) scale: f64,
}

impl Merge {
    /// `weight` is contiguous.
    pub(crate) fn new(weight: &Tensor, terms: Vec<Term>) -> Result<Self> {
        Ok(Self { weight: weight.flatten_from(1)?, terms })
    }

    pub(crate) fn run(&self) -> Result<()> {
        let (rows, columns) = self.weight.dims2()?;
        let exact = if self.weight.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let downs = self.terms.iter().map(|term| term.down.to_dtype(exact)).collect::<Result<Vec<_>>>()?;
        let at_a_time = if self.weight.device().is_cpu() { AT_A_TIME } else { AT_A_TIME_ON_A_CARD };
        let most = (at_a_time / columns.max(1)).max(1);
        // Terms of some rows begin and end where others go on.
        let mut cuts: Vec<usize> = self.terms.iter().flat_map(|t| [t.at, t.at + t.up.dims()[0]]).collect();
        cuts.extend([0, rows]);
        cuts.sort_unstable();
        cuts.dedup();
        for pair in cuts.windows(2) {
            for start in (pair[0]..pair[1]).step_by(most) {
                self.add(&downs, start, most.min(pair[1] - start), exact)?;
            }
        }
        Ok(())
    }

    /// Rows that the same terms are for.
    fn add(&self, downs: &[Tensor], start: usize, count: usize, exact: DType) -> Result<()> {
        let mut sum: Option<Tensor> = None;
        for (term, down) in self.terms.iter().zip(downs) {
            if start < term.at || start >= term.at + term.up.dims()[0] {
                continue;
            }
            let up = (term.up.narrow(0, start - term.at, count)?.to_dtype(exact)? * term.scale)?;
            let product = up.matmul(down)?;
            sum = Some(match sum {
                Some(sum) => (sum + product)?,
                None => product,
            });
        }
        let Some(sum) = sum else { return Ok(()) };
        if self.weight.device().is_cpu() {
            return self.weight.narrow(0, start, count)?.inplace_op2(&sum, &Add);
        }
        let merged = (self.weight.narrow(0, start, count)?.to_dtype(exact)? + sum)?;
        self.weight.slice_set(&merged.to_dtype(self.weight.dtype())?, 0, start)
    }
}

/// Adds to a weight in one pass over it, where candle's own operations would make three tensors on the way. The numbers are the same.
struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add-lora"
    }

    fn cpu_fwd(&self, to: &mut CpuStorage, to_layout: &Layout, sum: &CpuStorage, sum_layout: &Layout) -> Result<()> {
        match (to, sum) {
            (CpuStorage::F64(to), CpuStorage::F64(sum)) => add(to, to_layout, sum, sum_layout, |w, s| w + s),
            (CpuStorage::F32(to), CpuStorage::F32(sum)) => add(to, to_layout, sum, sum_layout, |w, s| w + s),
            (CpuStorage::F16(to), CpuStorage::F32(sum)) => {
                add(to, to_layout, sum, sum_layout, |w, s| f16::from_f32(w.to_f32() + s))
            }
            (CpuStorage::BF16(to), CpuStorage::F32(sum)) => {
                add(to, to_layout, sum, sum_layout, |w, s| bf16::from_f32(w.to_f32() + s))
            }
            _ => bail!("a LoRA is added to floats that are on the device"),
        }
    }
}

fn add<W: WithDType, S: WithDType>(
    to: &mut [W],
    to_layout: &Layout,
    sum: &[S],
    sum_layout: &Layout,
    add: impl Fn(W, S) -> W,
) -> Result<()> {
    let ranges = to_layout.contiguous_offsets().zip(sum_layout.contiguous_offsets());
    let places = ranges.and_then(|((a, b), (c, d))| Some((to.get_mut(a..b)?, sum.get(c..d)?)));
    let Some((to, sum)) = places.filter(|(to, sum)| to.len() == sum.len()) else {
        bail!("a LoRA is added to weights that lie one after the other");
    };
    for (to, sum) in to.iter_mut().zip(sum) {
        *to = add(*to, *sum);
    }
    Ok(())
}
