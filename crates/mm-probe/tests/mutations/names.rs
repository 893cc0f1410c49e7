//! Documents that name files and folders: other ones, none, ones outside.

use serde_json::{Map, Value, json};

use crate::checkpoint::Checkpoint;
use crate::mutate::Fault;
use crate::random::Random;

/// Changes a document of that name in place.
fn edit(
    checkpoint: &mut Checkpoint,
    random: &mut Random,
    is_it: impl Fn(&Map<String, Value>) -> bool,
    change: impl FnOnce(&mut Map<String, Value>, &mut Random),
) {
    let read = |bytes: &[u8]| serde_json::from_slice::<Map<String, Value>>(bytes).ok().filter(|map| is_it(map));
    let files: Vec<String> = checkpoint.files().into_iter().map(str::to_owned).collect();
    let documents: Vec<(String, Map<String, Value>)> =
        files.into_iter().filter_map(|file| read(checkpoint.bytes(&file)).map(|map| (file, map))).collect();
    if documents.is_empty() {
        return;
    }
    let (file, mut map) = random.pick(&documents).clone();
    change(&mut map, random);
    checkpoint.set(&file, serde_json::to_vec(&map).expect("JSON"));
}

const ELSEWHERE: [&str; 12] = [
    "missing.safetensors",
    "../x.safetensors",
    "/etc/passwd",
    "",
    ".",
    "..",
    "config.json",
    "a/../b",
    "\u{0}",
    "x\n",
    "CON",
    "2.safetensors",
];

/// An index that swaps its files, or names other files, or tensors that are not there.
pub(crate) fn index(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    let is_index = |map: &Map<String, Value>| map.contains_key("weight_map");
    edit(checkpoint, random, is_index, |map, random| {
        let Some(Value::Object(weights)) = map.get_mut("weight_map") else { return };
        let names: Vec<String> = weights.keys().cloned().collect();
        let (Some(first), Some(second)) = (names.first(), names.last()) else { return };
        let at = random.pick(&names).clone();
        match random.below(7) {
            0 => drop(weights.insert(at, (*random.pick(&ELSEWHERE)).into())),
            1 => {
                let (a, b) = (weights[first].clone(), weights[second].clone());
                weights.insert(first.clone(), b);
                weights.insert(second.clone(), a);
            }
            2 => drop(weights.insert("not.there".into(), weights[first].clone())),
            3 => drop(weights.remove(&at)),
            4 => drop(weights.insert(at, json!({"a": [1]}))),
            5 => weights.clear(),
            _ => drop(weights.insert(at, "x".repeat(1 << random.below(16)).into())),
        }
    });
    Fault::Somewhere
}

/// Components that are no folders, lie elsewhere or have odd classes.
pub(crate) fn pipeline(checkpoint: &mut Checkpoint, random: &mut Random) -> Fault {
    let is_pipeline = |map: &Map<String, Value>| map.contains_key("_class_name") && map.values().any(Value::is_array);
    edit(checkpoint, random, is_pipeline, |map, random| {
        let value = match random.below(6) {
            0 => json!(["diffusers", null]),
            1 => json!([null, "C"]),
            2 => json!([["diffusers"], "C"]),
            3 => json!(["diffusers", "C", "C"]),
            4 => json!(["transformers", "T5EncoderModel"]),
            _ => json!(["diffusers", "C".repeat(1 << random.below(16))]),
        };
        let names: Vec<String> = map.keys().cloned().collect();
        let there = random.pick(&names).clone();
        let name = if random.one_in(2) { (*random.pick(&ELSEWHERE)).to_owned() } else { there };
        map.insert(name, value);
    });
    Fault::Somewhere
}
