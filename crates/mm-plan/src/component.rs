//! What is planned: components, their stacks, groups and slabs.

use alloc::{string::String, vec::Vec};
use core::fmt;

/// Element type of a slab. `Bytes` stands for "whatever it is": a size without a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum DType {
    Bytes,
    F64,
    F32,
    F16,
    Bf16,
    F8e4m3,
    F8e5m2,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
}

impl DType {
    /// Bytes per element.
    pub const fn size(self) -> u64 {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::Bytes | Self::F8e4m3 | Self::F8e5m2 | Self::I8 | Self::U8 => 1,
        }
    }

    /// Lower-case name, as on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F8e4m3 => "f8e4m3",
            Self::F8e5m2 => "f8e5m2",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::I16 => "i16",
            Self::I8 => "i8",
            Self::U64 => "u64",
            Self::U32 => "u32",
            Self::U16 => "u16",
            Self::U8 => "u8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a figure comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Basis {
    /// Seen while running.
    Measured,
    /// Told by the caller.
    Declared,
    /// Computed from an architecture.
    Estimated,
    /// Not known.
    Unknown,
}

/// What can be streamed of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Granularity {
    /// Nothing: it is all rest, whatever its groups.
    Whole,
    /// The blocks of its stacks.
    Blocks,
    /// Leaf layers.
    Leaves,
}

/// A group's weights of one dtype, packed; bytes as they lie on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slab {
    /// Element type on the device.
    pub dtype: DType,
    /// Bytes on the device, alignment included.
    pub bytes: u64,
}

/// The unit that is moved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// One slab per dtype.
    pub slabs: Vec<Slab>,
    /// Bytes in the stored form, where the host keeps it.
    pub host_bytes: u64,
    /// Measured compute time of one pass through it, nanoseconds.
    pub compute_ns: Option<u64>,
}

impl Group {
    /// A group of one slab of unspecified dtype, stored as it lies on the device.
    pub fn of_bytes(bytes: u64) -> Self {
        Self { slabs: alloc::vec![Slab { dtype: DType::Bytes, bytes }], host_bytes: bytes, compute_ns: None }
    }

    /// Bytes on the device, all slabs; saturating.
    pub fn bytes(&self) -> u64 {
        self.slabs.iter().fold(0, |sum, slab| sum.saturating_add(slab.bytes))
    }
}

/// A repeated list of blocks inside a component.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stack {
    /// Its path inside the component: `layers`.
    pub name: String,
    /// Its blocks, in order.
    pub groups: Vec<Group>,
}

/// Memory that computing a component takes on top of its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Activation {
    /// Peak bytes.
    pub bytes: u64,
    /// Where the figure comes from.
    pub basis: Basis,
}

/// A named model part with its own forward.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Component {
    /// `text_encoder`, `transformer`, `vae`.
    pub name: String,
    /// What can be streamed of it.
    pub granularity: Granularity,
    /// Its stacks of groups.
    pub stacks: Vec<Stack>,
    /// Device bytes outside its groups; resident while the component is active.
    pub rest: u64,
    /// Activation memory; `None`: unknown.
    pub activation: Option<Activation>,
    /// Forwards per request.
    pub passes: u32,
    /// Components of one phase are active together; `None`: active alone.
    pub phase: Option<u32>,
    /// The component whose weights these are; an alias counts once.
    pub same_as: Option<String>,
}

impl Component {
    /// A component that is one indivisible whole.
    pub fn whole(name: impl Into<String>, bytes: u64) -> Self {
        Self {
            name: name.into(),
            granularity: Granularity::Whole,
            stacks: Vec::new(),
            rest: bytes,
            activation: None,
            passes: 1,
            phase: None,
            same_as: None,
        }
    }

    /// A component with stacks of blocks.
    pub fn blocks(name: impl Into<String>, rest: u64, stacks: Vec<Stack>) -> Self {
        Self { granularity: Granularity::Blocks, stacks, ..Self::whole(name, rest) }
    }

    /// All groups of all stacks, in order.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.stacks.iter().flat_map(|stack| stack.groups.iter())
    }

    /// Device bytes of the whole component; saturating.
    pub fn bytes(&self) -> u64 {
        self.groups().fold(self.rest, |sum, group| sum.saturating_add(group.bytes()))
    }
}
