//! A safetensors header as text that can be made to lie in one place.

use serde_json::{Map, Value};

/// One tensor's entry: each part is JSON, or is meant to look like it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: String,
    pub(crate) offsets: (u64, u64),
    /// Instead of the offsets.
    pub(crate) raw_offsets: Option<String>,
}

/// A file taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) entries: Vec<Entry>,
    pub(crate) data: Vec<u8>,
}

impl Header {
    /// Tensors of `size` bytes each.
    pub(crate) fn of_u8(names: &[&str], size: u64) -> Self {
        let entry = |(index, name): (u64, &&str)| Entry {
            name: (*name).to_owned(),
            dtype: "\"U8\"".into(),
            shape: format!("[{size}]"),
            offsets: (index * size, (index + 1) * size),
            raw_offsets: None,
        };
        let entries = (0..).zip(names).map(entry).collect();
        Self { entries, data: vec![0; names.len() * size as usize] }
    }

    /// Takes a file apart, if nobody has damaged it yet; entries in the order they lie in.
    pub(crate) fn parse(file: &[u8]) -> Option<Self> {
        let length = usize::try_from(u64::from_le_bytes(file.get(..8)?.try_into().ok()?)).ok()?;
        let end = length.checked_add(8)?;
        let entries: Map<String, Value> = serde_json::from_slice(file.get(8..end)?).ok()?;
        let mut entries: Vec<Entry> = entries.into_iter().filter_map(|(name, info)| entry(name, &info)).collect();
        entries.sort_by_key(|entry| entry.offsets);
        (!entries.is_empty()).then(|| Self { entries, data: file[end..].to_vec() })
    }

    pub(crate) fn json(&self) -> String {
        let entry = |entry: &Entry| {
            let (from, to) = entry.offsets;
            let offsets = entry.raw_offsets.clone().unwrap_or_else(|| format!("[{from},{to}]"));
            let name = Value::from(entry.name.as_str());
            format!(r#"{name}:{{"dtype":{},"shape":{},"data_offsets":{offsets}}}"#, entry.dtype, entry.shape)
        };
        format!("{{{}}}", self.entries.iter().map(entry).collect::<Vec<_>>().join(","))
    }

    pub(crate) fn file(&self) -> Vec<u8> {
        file(self.json().as_bytes(), &self.data)
    }
}

/// A file of this header and this data.
pub(crate) fn file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

fn entry(name: String, info: &Value) -> Option<Entry> {
    let offsets = (info.get("data_offsets")?.get(0)?.as_u64()?, info["data_offsets"].get(1)?.as_u64()?);
    let (dtype, shape) = (info.get("dtype")?.to_string(), info.get("shape")?.to_string());
    Some(Entry { name, dtype, shape, offsets, raw_offsets: None })
}
