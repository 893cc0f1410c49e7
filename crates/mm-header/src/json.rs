//! A header's JSON as it is written, lies included, within bounds.

use std::fmt;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Far above any model's in one file.
const MAX_TENSORS: usize = 1 << 18;
/// PyTorch's own limit.
const MAX_DIMENSIONS: usize = 64;

/// The header's tensors as written, repeated names included, which a map would hide.
pub(crate) struct Tensors(pub(crate) Vec<(String, Info)>);

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Tensors;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tensors, A::Error> {
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        if tensors.len() == MAX_TENSORS {
                            return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                        }
                        let info = map.next_value().map_err(|e| A::Error::custom(format!("tensor `{name}`: {e}")))?;
                        tensors.push((name, info));
                    }
                }
                Ok(Tensors(tensors))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// What the format says of a tensor; as `safetensors::tensor::TensorInfo`, but for a list of sides that has an end.
#[derive(Deserialize)]
pub(crate) struct Info {
    pub(crate) dtype: Dtype,
    #[serde(deserialize_with = "sides")]
    pub(crate) shape: Vec<usize>,
    pub(crate) data_offsets: (usize, usize),
}

/// Two bytes of text make eight in memory, so a shape could take many times the header.
fn sides<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Sides;

    impl<'de> Visitor<'de> for Sides {
        type Value = Vec<usize>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of sides")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<usize>, A::Error> {
            let mut sides = Vec::new();
            while let Some(side) = list.next_element()? {
                if sides.len() == MAX_DIMENSIONS {
                    return Err(A::Error::custom(format!("more than {MAX_DIMENSIONS} dimensions")));
                }
                sides.push(side);
            }
            Ok(sides)
        }
    }

    deserializer.deserialize_seq(Sides)
}
