//! The JSON form of a plan's input, with its shorthands. Whatever has the fields of [`Spec`] can be planned.

use crate::{
    Activation, Basis, Component, DType, Granularity, Group, Infeasible, MAX_GROUPS, Machine, Plan, Policy, Slab, Stack,
};
use alloc::{format, string::String, vec, vec::Vec};
use core::fmt;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
    ser::SerializeMap,
};

/// Input of a plan: what `mm plan --spec` reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Version of this form: 1, and nothing else is read.
    #[serde(deserialize_with = "schema")]
    pub schema: u32,
    /// What is planned for.
    pub machine: Machine,
    /// What is planned; none: not known.
    #[serde(default, deserialize_with = "components")]
    pub components: Vec<Component>,
    /// What is wanted.
    #[serde(default)]
    pub policy: Policy,
}

impl Spec {
    /// Plans it.
    ///
    /// # Errors
    ///
    /// Those of [`plan`](crate::plan).
    pub fn plan(&self) -> Result<Plan, Infeasible> {
        crate::plan(&self.machine, &self.components, &self.policy)
    }
}

fn schema<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        1 => Ok(1),
        other => Err(D::Error::custom(format!("field `schema` is {other}; this version reads 1"))),
    }
}

/// Counts all groups before any is made: a count is a few bytes of text, its groups are gigabytes.
fn components<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Component>, D::Error> {
    let forms = Vec::<ComponentForm>::deserialize(deserializer)?;
    check_count(forms.iter().fold(0, |sum: u64, form| sum.saturating_add(form.count()))).map_err(D::Error::custom)?;
    forms.into_iter().map(|form| form.build().map_err(D::Error::custom)).collect()
}

fn check_count(groups: u64) -> Result<(), String> {
    if groups > MAX_GROUPS as u64 {
        return Err(format!("{groups} groups; the planner takes {MAX_GROUPS}: lower `count` or stream larger groups"));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ComponentForm {
    name: String,
    granularity: Option<Granularity>,
    #[serde(default)]
    stacks: Vec<StackForm>,
    #[serde(default)]
    rest: u64,
    activation: Option<Activation>,
    passes: Option<u32>,
    phase: Option<u32>,
    same_as: Option<String>,
}

impl ComponentForm {
    fn count(&self) -> u64 {
        self.stacks.iter().fold(0, |sum, stack| sum.saturating_add(stack.size()))
    }

    fn build(self) -> Result<Component, String> {
        let default = if self.stacks.is_empty() { Granularity::Whole } else { Granularity::Blocks };
        let name = self.name;
        let stacks = self.stacks.into_iter().map(|stack| stack.build(&name)).collect::<Result<_, _>>()?;
        Ok(Component {
            name,
            granularity: self.granularity.unwrap_or(default),
            stacks,
            rest: self.rest,
            activation: self.activation,
            passes: self.passes.unwrap_or(1),
            phase: self.phase,
            same_as: self.same_as,
        })
    }
}

impl<'de> Deserialize<'de> for Component {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = ComponentForm::deserialize(deserializer)?;
        check_count(form.count()).and_then(|()| form.build()).map_err(D::Error::custom)
    }
}

impl Serialize for Component {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("granularity", &self.granularity)?;
        map.serialize_entry("stacks", &self.stacks)?;
        map.serialize_entry("rest", &self.rest)?;
        map.serialize_entry("passes", &self.passes)?;
        optional(&mut map, "activation", &self.activation)?;
        optional(&mut map, "phase", &self.phase)?;
        optional(&mut map, "same_as", &self.same_as)?;
        map.end()
    }
}

/// Equal groups written once, or each on its own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StackForm {
    name: String,
    groups: Option<Vec<Group>>,
    count: Option<u64>,
    bytes: Option<u64>,
}

impl StackForm {
    fn size(&self) -> u64 {
        self.groups.as_ref().map_or(0, |groups| groups.len() as u64).saturating_add(self.count.unwrap_or(0))
    }

    /// The caller has checked the count.
    fn build(self, component: &str) -> Result<Stack, String> {
        let groups = match (self.groups, self.count, self.bytes) {
            (Some(groups), None, None) => groups,
            (None, Some(count), Some(bytes)) => {
                vec![Group::of_bytes(bytes); usize::try_from(count).unwrap_or(MAX_GROUPS).min(MAX_GROUPS)]
            }
            _ => {
                return Err(format!(
                    "stack `{}` of component `{component}` needs either `groups`, or `count` and `bytes`",
                    self.name
                ));
            }
        };
        Ok(Stack { name: self.name, groups })
    }
}

impl<'de> Deserialize<'de> for Stack {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = StackForm::deserialize(deserializer)?;
        check_count(form.size()).and_then(|()| form.build("?")).map_err(D::Error::custom)
    }
}

impl Serialize for Stack {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        let first = self.groups.first().filter(|first| **first == Group::of_bytes(first.bytes()));
        match first.filter(|first| self.groups.iter().all(|group| group == *first)) {
            Some(first) => {
                map.serialize_entry("count", &self.groups.len())?;
                map.serialize_entry("bytes", &first.bytes())?;
            }
            None => map.serialize_entry("groups", &self.groups)?,
        }
        map.end()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupForm {
    bytes: Option<u64>,
    slabs: Option<Slabs>,
    host_bytes: Option<u64>,
    compute_ns: Option<u64>,
}

impl<'de> Deserialize<'de> for Group {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = GroupForm::deserialize(deserializer)?;
        let slabs = match (form.bytes, form.slabs) {
            (Some(bytes), None) => vec![Slab { dtype: DType::Bytes, bytes }],
            (None, Some(Slabs(slabs))) => slabs,
            _ => return Err(D::Error::custom("a group needs either `bytes` or `slabs`")),
        };
        let mut group = Self { slabs, host_bytes: 0, compute_ns: form.compute_ns };
        group.host_bytes = form.host_bytes.unwrap_or(group.bytes());
        Ok(group)
    }
}

impl Serialize for Group {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.slabs.as_slice() {
            [Slab { dtype: DType::Bytes, bytes }] => map.serialize_entry("bytes", bytes)?,
            slabs => map.serialize_entry("slabs", &SlabsRef(slabs))?,
        }
        optional(&mut map, "host_bytes", &(self.host_bytes != self.bytes()).then_some(self.host_bytes))?;
        optional(&mut map, "compute_ns", &self.compute_ns)?;
        map.end()
    }
}

/// Slabs as a map from dtype to bytes, in their order.
struct Slabs(Vec<Slab>);

impl<'de> Deserialize<'de> for Slabs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Slabs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from dtype to bytes, such as {\"bf16\": 4096}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Slabs, A::Error> {
                let mut slabs: Vec<Slab> = Vec::new();
                while let Some((dtype, bytes)) = map.next_entry::<DType, u64>()? {
                    // Also what bounds the list: there are only so many dtypes.
                    if slabs.iter().any(|slab| slab.dtype == dtype) {
                        return Err(A::Error::custom(format!("field `slabs` names {dtype} twice")));
                    }
                    slabs.push(Slab { dtype, bytes });
                }
                Ok(Slabs(slabs))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

struct SlabsRef<'a>(&'a [Slab]);

impl Serialize for SlabsRef<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|slab| (slab.dtype, slab.bytes)))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ActivationForm {
    bytes: u64,
    #[serde(default = "declared")]
    basis: Basis,
}

fn declared() -> Basis {
    Basis::Declared
}

impl<'de> Deserialize<'de> for Activation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Activation;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`activation` as bytes or as {\"bytes\": …, \"basis\": …}")
            }

            fn visit_u64<E: Error>(self, bytes: u64) -> Result<Activation, E> {
                Ok(Activation { bytes, basis: Basis::Declared })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Activation, A::Error> {
                let ActivationForm { bytes, basis } = Deserialize::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Activation { bytes, basis })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Serialize for Activation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ActivationForm { bytes: self.bytes, basis: self.basis }.serialize(serializer)
    }
}

fn optional<M: SerializeMap, T: Serialize>(map: &mut M, key: &'static str, value: &Option<T>) -> Result<(), M::Error> {
    match value {
        Some(value) => map.serialize_entry(key, value),
        None => Ok(()),
    }
}
