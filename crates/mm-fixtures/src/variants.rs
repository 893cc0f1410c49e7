//! What repositories have beside the weights: nothing of it may be loaded or counted.

use crate::{
    Error, Fixture, Tensor,
    layout::{Target, folder, stem, write_shards},
};
use safetensors::Dtype;

const GARBAGE: &[u8] = b"not weights: a loader that reads this file reads the wrong one\n";
const ATTRIBUTES: &[u8] =
    b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n";

pub(crate) fn write(fixture: &Fixture, target: &mut Target) -> Result<(), Error> {
    target.bytes(".gitattributes", ATTRIBUTES)?;
    target.bytes("README.md", format!("# {}\n\nA fixture.\n", fixture.model).as_bytes())?;
    let stray =
        [Tensor::new("lora_up.weight", [64, 4], Dtype::F16), Tensor::new("lora_down.weight", [4, 64], Dtype::F16)];
    target.weights("stray_lora.safetensors", &stray, fixture.options.seed)?;
    if fixture.is_single() {
        return Ok(());
    }
    for component in &fixture.components {
        let halves: Vec<_> = component.tensors.iter().map(half).collect();
        write_shards(fixture, component, &halves, Some("fp16"), target)?;
        let folder = folder(fixture, component);
        let torch = if component.transformers { "pytorch_model" } else { stem(component) };
        let flax = if component.transformers { "flax_model" } else { "diffusion_flax_model" };
        let junk = ["model.onnx", "model.onnx_data", "openvino_model.xml", "openvino_model.bin"];
        for file in [format!("{torch}.bin"), format!("{torch}.fp16.bin"), format!("{flax}.msgpack")] {
            target.bytes(&format!("{folder}{file}"), GARBAGE)?;
        }
        for file in junk {
            target.bytes(&format!("{folder}{file}"), GARBAGE)?;
        }
        if !folder.is_empty() {
            target.weights(&format!("{folder}stray_lora.safetensors"), &stray, fixture.options.seed)?;
        }
    }
    Ok(())
}

fn half(tensor: &Tensor) -> Tensor {
    let dtype = if tensor.dtype == Dtype::I64 { tensor.dtype } else { Dtype::F16 };
    Tensor { dtype, ..tensor.clone() }
}
