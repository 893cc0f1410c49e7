//! Quantized weights, as GGUF files hold them: blocks of bytes in a home like any other weight's.
//!
//! A `QTensor` owns its bytes, so they can't be swapped under it. It is made when it is computed with, from the bytes that are in
//! the home then, and dropped right after, along with what candle's kernels keep in it (on a processor with AVX2 that is the whole
//! weight once more, packed anew). So what stays on the device is the file's bytes, and what comes on top is one layer's.

#[cfg(feature = "cuda")]
use crate::card;
use candle_core::{
    CpuStorage, DType, Device, Error, Result, Shape, Storage, Tensor, bail,
    quantized::{GgmlDType, QStorage, QTensor},
};
use candle_nn::VarBuilder;
use mm_cache::{Quantized, TensorSlice, Weights};
use std::{borrow::Cow, cell::RefCell, path::PathBuf, sync::Arc};

/// What a backend is asked for where a weight's bytes are meant: as many of these as hold them, in one dimension. Their address
/// then is one that blocks may begin at.
const WORDS: DType = DType::U32;

/// What candle computes with, and in rows of which multiple: some of its kernels take two blocks at a time.
const SUPPORTED: [(&str, GgmlDType, usize); 10] = [
    ("q4_0", GgmlDType::Q4_0, 32),
    ("q4_1", GgmlDType::Q4_1, 64),
    ("q5_0", GgmlDType::Q5_0, 64),
    ("q5_1", GgmlDType::Q5_1, 64),
    ("q8_0", GgmlDType::Q8_0, 32),
    ("q2_k", GgmlDType::Q2K, 256),
    ("q3_k", GgmlDType::Q3K, 256),
    ("q4_k", GgmlDType::Q4K, 256),
    ("q5_k", GgmlDType::Q5K, 256),
    ("q6_k", GgmlDType::Q6K, 256),
];

thread_local! {
    /// The files of the model that this thread is building: a `VarBuilder` can't tell how a tensor is stored.
    static FILES: RefCell<Option<Arc<Weights>>> = const { RefCell::new(None) };
}

/// Builds a model of these files.
pub(crate) fn building<T>(weights: &Arc<Weights>, make: impl FnOnce() -> T) -> T {
    struct Restore(Option<Arc<Weights>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FILES.set(self.0.take());
        }
    }
    let _restore = Restore(FILES.replace(Some(weights.clone())));
    make()
}

/// Whether the bytes of a tensor are asked for, and not its numbers, which a quantized one does not have.
///
/// # Errors
/// Its numbers are.
pub(crate) fn bytes_asked(source: &TensorSlice, shape: Option<&Shape>, dtype: DType) -> Result<bool> {
    let Some(quantized) = source.quantized() else { return Ok(false) };
    if shape.is_none() && dtype == WORDS {
        return Ok(true);
    }
    let (file, name, kind) = (source.file().display(), source.name(), quantized.kind.name());
    bail!(
        "{file}: tensor {name}: is quantized ({kind}), and the model has no layer for that there; take a file in which it is \
         not, or build the layer with mm_candle::linear or mm_candle::embedding"
    )
}

/// How many words hold the bytes.
pub(crate) fn words(source: &TensorSlice) -> usize {
    source.shape().iter().product::<usize>().div_ceil(WORDS.size_in_bytes())
}

/// A quantized matrix, which may be on no device at the moment.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    words: Tensor,
    bytes: usize,
    kind: GgmlDType,
    rows: usize,
    columns: usize,
    name: String,
    file: PathBuf,
}

impl Matrix {
    /// The tensor `weight`; `None`: it is not quantized, or not there.
    pub(crate) fn find(rows: usize, columns: usize, vb: &VarBuilder<'_>) -> Result<Option<Self>> {
        let prefix = vb.prefix();
        let name = if prefix.is_empty() { "weight".to_owned() } else { format!("{prefix}.weight") };
        let found = FILES.with_borrow(|files| files.as_ref().and_then(|files| files.get(&name)).cloned());
        let Some((source, Quantized { kind: quantized, shape })) =
            found.as_ref().and_then(|found| Some((found, found.quantized()?)))
        else {
            return Ok(None);
        };
        let expected = Shape::from((rows, columns));
        if expected.dims() != shape {
            let msg = format!("{name} in {}", source.file().display());
            return Err(Error::UnexpectedShape { msg, expected, got: Shape::from(&shape[..]) }.bt());
        }
        let refused = |why: String| Error::Msg(format!("{}: tensor {name}: {why}", source.file().display())).bt();
        if rows == 0 || columns == 0 {
            return Err(refused("has no elements, and kernels divide by how many there are".to_owned()));
        }
        let found = SUPPORTED.iter().find(|(supported, ..)| *supported == quantized.name());
        let Some((kind, multiple)) = found.map(|(_, kind, multiple)| (*kind, *multiple)) else {
            let supported: Vec<_> = SUPPORTED.iter().map(|(name, ..)| *name).collect();
            let (kind, supported) = (quantized.name(), supported.join(", "));
            return Err(refused(format!(
                "is quantized as {kind}, which can't be computed with; take a file of {supported}"
            )));
        };
        if !columns.is_multiple_of(multiple) {
            let why = format!("has rows of {columns} as {}, which takes multiples of {multiple}", quantized.name());
            return Err(refused(format!("{why}; take a file in which it is of another type")));
        }
        let (bytes, file) = (source.shape().iter().product(), source.file().to_owned());
        let words = vb.get_unchecked_dtype("weight", WORDS)?;
        Ok(Some(Self { words, bytes, kind, rows, columns, name, file }))
    }

    pub(crate) fn device(&self) -> &Device {
        self.words.device()
    }

    /// `x` times its transpose, in the dtype of `x`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1_no_bwd(&self.tensor()?)
    }

    /// Rows of these numbers, in f32, on the CPU.
    pub(crate) fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let (row, word) = (self.bytes / self.rows.max(1), WORDS.size_in_bytes());
        // As words, so that blocks begin where they may.
        let mut gathered = vec![0u32; (row * ids.len()).div_ceil(word)];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut gathered);
        for (id, place) in ids.iter().zip(bytes.chunks_exact_mut(row.max(1))) {
            let id = *id as usize;
            if id >= self.rows {
                bail!("{}: there is no row {id}, it has {}", self.name, self.rows);
            }
            let (start, end) = (id * row, (id + 1) * row);
            let (first, count) = (start / word, end.div_ceil(word) - start / word);
            let words = self.words.narrow(0, first, count)?.to_vec1::<u32>()?;
            let before = start - first * word;
            place.copy_from_slice(&bytemuck::cast_slice(&words)[before..before + row]);
        }
        let gathered: &[u8] = &bytemuck::cast_slice(&gathered)[..row * ids.len()];
        let storage = QStorage::from_data(Cow::Borrowed(gathered), &Device::Cpu, self.kind)?;
        QTensor::new(storage, (ids.len(), self.columns))?.dequantize(&Device::Cpu)
    }

    fn tensor(&self) -> Result<QTensor> {
        let storage = match self.words.device() {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                card::quantized(&self.words, device, self.kind, self.rows * self.columns, self.bytes)
            }
            _ => {
                let (storage, layout) = self.words.storage_and_layout();
                let Storage::Cpu(CpuStorage::U32(all)) = &*storage else { return Err(self.absent()) };
                let start = layout.start_offset();
                let words = all.get(start..start + self.words.elem_count()).ok_or_else(|| self.absent())?;
                let bytes: &[u8] = bytemuck::cast_slice(words);
                QStorage::from_data(Cow::Borrowed(&bytes[..self.bytes]), &Device::Cpu, self.kind)
            }
        };
        QTensor::new(storage?, (self.rows, self.columns))
    }

    fn absent(&self) -> Error {
        let (file, name) = (self.file.display(), &self.name);
        Error::Msg(format!(
            "{file}: tensor {name}: is not on the device; compute with it inside run(..), or by a lease"
        ))
        .bt()
    }
}
