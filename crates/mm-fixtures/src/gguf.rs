//! One GGUF file, as converters make them.

use crate::{
    Error, Fill, Quantization, Tensor,
    error::at,
    file::whole,
    fill::{Buffer, Filler, Job},
};
use half::f16;
use safetensors::Dtype;
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

/// A tensor starts at a multiple of this.
const ALIGNMENT: u64 = 32;
/// Numbers of types.
const F32: u32 = 0;
const F16: u32 = 1;

/// How a tensor is stored.
#[derive(Clone, Copy)]
enum Stored {
    F32,
    F16,
    Blocks(Quantization),
}

impl Stored {
    /// Vectors stay in f32, first and last layers in f16, and so do matrices whose rows are no whole number of blocks.
    fn of(tensor: &Tensor, wanted: Quantization) -> Self {
        let fine = ["img_in.", "final_layer.", "attn_rel_b."].iter().any(|part| tensor.name.contains(part));
        // Some kernels take two blocks at a time.
        let fits = |q: &Quantization| tensor.shape.last().is_some_and(|row| row.is_multiple_of(q.values().max(64)));
        match tensor.shape.len() {
            0 | 1 => Stored::F32,
            _ if fine => Stored::F16,
            _ => [wanted, Quantization::Q8_0].into_iter().find(fits).map_or(Stored::F16, Stored::Blocks),
        }
    }

    fn number(self) -> u32 {
        match self {
            Stored::F32 => F32,
            Stored::F16 => F16,
            Stored::Blocks(quantization) => quantization.number(),
        }
    }

    fn bytes(self, elements: u64) -> Option<u64> {
        match self {
            Stored::F32 => elements.checked_mul(4),
            Stored::F16 => elements.checked_mul(2),
            Stored::Blocks(q) => (elements / q.values() as u64).checked_mul(q.bytes() as u64),
        }
    }
}

/// Writes one GGUF file and returns its length in bytes; see [`write_file`](crate::write_file). Matrices whose rows are whole
/// blocks are quantized, as q8_0 where they are only whole ones of that; whatever their dtype says, values are those in f32.
pub fn write_gguf(
    path: &Path,
    tensors: &[Tensor],
    quantization: Quantization,
    fill: Fill,
    seed: u64,
) -> Result<u64, Error> {
    whole(path, |partial| write(partial, path, tensors, quantization, fill, seed))
}

fn write(
    partial: &Path,
    path: &Path,
    tensors: &[Tensor],
    quantization: Quantization,
    fill: Fill,
    seed: u64,
) -> Result<u64, Error> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(1u64.to_le_bytes());
    header.extend([text("general.alignment"), 4u32.to_le_bytes().to_vec(), 32u32.to_le_bytes().to_vec()].concat());
    let (mut offset, mut places) = (0u64, Vec::with_capacity(tensors.len()));
    for tensor in tensors {
        let stored = Stored::of(tensor, quantization);
        let bytes = tensor.elements().and_then(|elements| stored.bytes(elements));
        let too_large = || Error::Tensors {
            path: path.into(),
            why: format!("{}: its size overflows; give a smaller shape", tensor.name),
        };
        let bytes = bytes.ok_or_else(too_large)?;
        header.extend(text(&tensor.name));
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        // The innermost side comes first.
        tensor.shape.iter().rev().for_each(|side| header.extend((*side as u64).to_le_bytes()));
        header.extend(stored.number().to_le_bytes());
        header.extend(offset.to_le_bytes());
        places.push((stored, bytes));
        offset =
            bytes.checked_add(offset).and_then(|end| end.checked_next_multiple_of(ALIGNMENT)).ok_or_else(too_large)?;
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
    let length = header.len() as u64 + offset;
    let mut file = BufWriter::new(at(path, File::create(partial))?);
    at(path, file.write_all(&header))?;
    if fill == Fill::Random {
        let filler = Filler::new(fill, seed);
        for (tensor, (stored, bytes)) in tensors.iter().zip(places) {
            write_tensor(tensor, stored, &filler, &mut |part| at(path, file.write_all(part)))?;
            at(path, file.write_all(&vec![0; (bytes.next_multiple_of(ALIGNMENT) - bytes) as usize]))?;
        }
    }
    let file = at(path, file.into_inner().map_err(std::io::IntoInnerError::into_error))?;
    at(path, file.set_len(length))?;
    Ok(length)
}

/// Piece by piece: a piece is a whole number of blocks, or the last.
fn write_tensor(
    tensor: &Tensor,
    stored: Stored,
    filler: &Filler,
    write: &mut impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let tensor = Tensor { dtype: Dtype::F32, ..tensor.clone() };
    let (mut buffer, mut bytes) = (Buffer::default(), Vec::new());
    for job in Job::all(&tensor) {
        filler.fill(&tensor, &job, &mut buffer);
        let values = buffer.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        bytes.clear();
        match stored {
            Stored::F32 => bytes.extend_from_slice(&buffer.bytes),
            Stored::F16 => bytes.extend(values.flat_map(|v| f16::from_f32(v).to_le_bytes())),
            Stored::Blocks(quantization) => quantization.blocks(&values.collect::<Vec<_>>(), &mut bytes),
        }
        write(&bytes)?;
    }
    Ok(())
}
