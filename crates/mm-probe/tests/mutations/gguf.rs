//! A GGUF file of version 3 that can be made to lie.

/// One tensor's info.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: Vec<u8>,
    pub(crate) shape: Vec<u64>,
    pub(crate) kind: u32,
    /// Bytes of its data.
    pub(crate) bytes: u64,
    /// Instead of where it lies.
    pub(crate) offset: Option<u64>,
}

impl Tensor {
    pub(crate) fn q4_0(name: &str) -> Self {
        Self { name: name.into(), shape: vec![32, 2], kind: 2, bytes: 36, offset: None }
    }
}

pub(crate) fn file(tensors: &[Tensor]) -> Vec<u8> {
    let text = |text: &[u8]| [&(text.len() as u64).to_le_bytes(), text].concat();
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend(2u64.to_le_bytes());
    file.extend([text(b"general.alignment"), vec![4, 0, 0, 0, 32, 0, 0, 0]].concat());
    file.extend([text(b"tokens"), vec![9, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]].concat());
    file.extend([text(b"a"), text(b"bc")].concat());
    let mut end = 0u64;
    for tensor in tensors {
        file.extend(text(&tensor.name));
        file.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().for_each(|side| file.extend(side.to_le_bytes()));
        file.extend(tensor.kind.to_le_bytes());
        file.extend(tensor.offset.unwrap_or(end).to_le_bytes());
        end += tensor.bytes.next_multiple_of(32);
    }
    file.resize(file.len().next_multiple_of(32) + end as usize, 0);
    file
}
